# SPDX-License-Identifier: Apache-2.0
"""What each message of an old client is answered.

A message is first read and its sound located, in the order in which messages come; what is then to
be done may run beside others. Each piece of work is answered once, by a picture, by words, or by
the error of its own protocol.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import msgspec
import trio

from lipsync_fast.errors import LegacyRequestError, LipsyncError
from lipsync_fast.frontend.access.socket import Socket
from lipsync_fast.frontend.legacy import json_messages as said
from lipsync_fast.frontend.legacy import wire
from lipsync_fast.frontend.legacy.counts import LegacyCounts
from lipsync_fast.frontend.legacy.json_messages import Asked
from lipsync_fast.frontend.legacy.pictures import VIDEO_TYPES, Pictures, Region, region_bounds
from lipsync_fast.frontend.legacy.stitch import SoundWindow, Stitcher
from lipsync_fast.frontend.services import Services
from lipsync_fast.tokens.accounts import Visit

Reply = str | bytes
BATCH_PORT, LIVE_PORT, MODELS_PORT, HTTP_PORT = 8082, 8084, 8085, 8086
"""Ports that clients know; on others, the kind of connection decides."""
BATCH_AT_A_TIME = 8
OPTIMIZATIONS = ["image half cached", "audio vectors shared", "batches by deadline"]


@dataclass(frozen=True, slots=True)
class Work:
    """A message that was read.

    Attributes:
        make: its answer; may raise LipsyncError.
        refuse: the answer that says why there is none.
        request: whether it asks for pictures.
    """

    make: Callable[[], Awaitable[Reply]]
    refuse: Callable[[str], Reply]
    request: bool = True


def is_http(socket: Socket) -> bool:
    """Whether clients expect the ways of port 8086."""
    known = socket.port in (BATCH_PORT, LIVE_PORT, MODELS_PORT, HTTP_PORT)
    return socket.port == HTTP_PORT if known else socket.kind == "http"


def tells_stats(socket: Socket) -> bool:
    """Whether clients expect statistics unasked, as on port 8084."""
    return not is_http(socket) and socket.port not in (BATCH_PORT, MODELS_PORT)


class Answers:
    """The answers of one connection."""

    def __init__(
        self,
        socket: Socket,
        visit: Visit,
        services: Services,
        counts: LegacyCounts,
        session: int,
    ) -> None:
        self._services, self._counts = services, counts
        self._pictures = Pictures(services, session, visit)
        self._stitcher = Stitcher(services.numbers.stream)
        self._http = is_http(socket)
        self._asked = 0

    def read(self, message: Reply) -> Work:
        """Read a message; in the order in which they come."""
        if isinstance(message, bytes):
            self._counts.binary += 1
            return self._read_binary(message)
        self._counts.json += 1
        return self._read_text(message)

    def close(self) -> None:
        """The connection has ended."""
        self._pictures.close()

    def stats(self) -> str:
        """The statistics, as asked for and unasked."""
        counts = self._counts
        total = counts.binary + counts.json
        stats = said.Stats(
            total_requests=total,
            binary_requests=counts.binary,
            json_requests=counts.json,
            binary_percentage=100 * counts.binary / total if total else 0.0,
            average_time_ms=round(counts.all.average_ms, 3),
            connected_clients=self._services.statistics.load.connections,
        )
        return said.encode(stats)

    # ------------------------------------------------------------ binary
    def _read_binary(self, data: bytes) -> Work:
        began = time.monotonic_ns()

        def refuse(text: str, frame_id: int) -> bytes:
            return wire.pack_error(frame_id, _milliseconds(began), text)

        try:
            request = wire.parse(data)
        except LegacyRequestError as error:
            return Work(partial(_fail, error), partial(refuse, frame_id=error.frame_id))
        name, frame_id = self._pictures.name(request.name), request.frame_id
        refused = partial(refuse, frame_id=frame_id)
        if isinstance(request, wire.PlainRequest):
            return Work(partial(self._plain, name, frame_id, began), refused)
        window = self._stitcher.locate(name, request.audio)
        return Work(partial(self._binary_region, name, frame_id, window, began), refused)

    async def _binary_region(
        self, name: str, frame_id: int, window: SoundWindow | None, began: int
    ) -> bytes:
        region = await self._pictures.region(name, frame_id, window)
        self._made(name, began)
        return wire.pack_picture(frame_id, _milliseconds(began), region.jpeg, region.bounds)

    async def _plain(self, name: str, frame_id: int, began: int) -> bytes:
        jpeg = await self._pictures.whole(name, frame_id)
        self._made(name, began)
        return jpeg

    # ------------------------------------------------------------ text
    def _read_text(self, text: str) -> Work:
        began = time.monotonic_ns()
        try:
            asked = said.parse(text)
        except LegacyRequestError as error:
            return self._words(said.UnknownType(error=f"Invalid JSON: {error}"))
        if asked.type in (said.INFERENCE, said.BATCH):
            return self._read_inference(asked, began)
        if asked.problem is not None and asked.type in ASKED_OF_MODELS:
            return Work(partial(_fail, LipsyncError(asked.problem)), _refusal(asked), request=False)
        if asked.type == "get_model_stats":
            return Work(partial(self._model_stats, asked), _refusal(asked), request=False)
        if asked.type == "get_metadata":
            return Work(partial(self._metadata, asked), _refusal(asked), request=False)
        if asked.type == "get_video_frame":
            return Work(partial(self._video_frame, asked), _refusal(asked), request=False)
        if asked.type in ("get_models", "list_models"):
            return Work(partial(self._models, asked), _internal, request=False)
        return self._words(self._simple(asked))

    def _words(self, reply: msgspec.Struct | str) -> Work:
        text = reply if isinstance(reply, str) else said.encode(reply)
        return Work(partial(_say, text), _internal, request=False)

    def _simple(self, asked: Asked) -> msgspec.Struct | str:
        """Those that are answered from what is at hand."""
        if asked.type == "get_stats":
            return self.stats()
        if asked.type == "test_binary":
            return said.ProtocolAck()
        if asked.type == "switch_to_binary":
            return said.ProtocolAck() if self._http else said.ProtocolInfo()
        return said.UnknownType(error=f"Unknown message type: {asked.type}")

    async def _models(self, asked: Asked) -> str:
        names = await self._pictures.names()
        if asked.type == "list_models":
            return said.encode(said.ModelList(models=names, count=len(names)))
        return said.encode(said.Models(models=said.LoadedModels(names, len(names))))

    async def _model_stats(self, asked: Asked) -> str:
        name = self._pictures.name(asked.model_name)
        async with self._pictures.using(name) as lease:
            frame_count = lease.package.manifest.frame_count
        counts, status = self._counts.model(name), self._services.statistics.server
        devices = sorted({e.device for e in status.engines if e.device}) if status else []
        numbers = said.ModelNumbers(
            model_name=asked.model_name or name,
            total_requests=counts.requests,
            avg_inference_time_ms=round(counts.average_ms, 3),
            min_inference_time_ms=round(counts.least_ms, 3),
            max_inference_time_ms=round(counts.most_ms, 3),
            frame_count=frame_count,
            device=", ".join(devices),
            optimizations_active=OPTIMIZATIONS,
        )
        return said.encode(said.ModelStats(stats=numbers))

    async def _metadata(self, asked: Asked) -> str:
        async with self._pictures.using(self._pictures.name(asked.model_name)) as lease:
            metadata = said.Metadata(
                model_name=asked.model_name,
                frame_count=lease.package.manifest.frame_count,
                available_videos=VIDEO_TYPES,
                bounds=region_bounds(lease.package, 0),
            )
        return said.encode(metadata)

    async def _video_frame(self, asked: Asked) -> bytes:
        name = self._pictures.name(asked.model_name)
        jpeg = await self._pictures.of_kind(name, asked.frame_id, asked.video_type)
        return wire.pack_avatar_frame(asked.frame_id, asked.video_type, jpeg)

    # ------------------------------------------------------------ pictures in text
    def _read_inference(self, asked: Asked, began: int) -> Work:
        if asked.request_id is None:
            self._asked += 1
            asked.request_id = f"request-{self._asked}"

        def refuse(text: str) -> str:
            error = said.InferenceFailure(
                error=text,
                processing_time_ms=_milliseconds(began),
                request_id=_id(asked),
                frame_id=asked.frame_id,
            )
            return said.encode(error)

        if asked.problem is not None:
            return Work(partial(_fail, LipsyncError(asked.problem)), refuse)
        name = self._pictures.name(asked.model_name)
        frames = max(1, len(asked.frame_ids))
        window = self._stitcher.locate(name, asked.audio, frames)
        asked.audio = b""  # may be long, and may wait long
        make = self._inference if asked.type == said.INFERENCE else self._batch
        return Work(partial(make, asked, name, window, began), refuse)

    async def _inference(
        self, asked: Asked, name: str, window: SoundWindow | None, began: int
    ) -> str:
        region = await self._pictures.region(name, asked.frame_id, window)
        self._made(name, began)
        inference = said.Inference(
            model_name=asked.model_name,
            frame_id=asked.frame_id,
            prediction_data=said.base64_of(region.jpeg),
            bounds=region.bounds,
            processing_time_ms=_milliseconds(began),
            metadata=_picture_metadata(region),
            request_id=_id(asked),
        )
        return said.encode(inference)

    async def _batch(self, asked: Asked, name: str, window: SoundWindow | None, began: int) -> str:
        """Frames of one window, or of successive chunks where it holds as many."""
        count = len(asked.frame_ids)
        successive = window is not None and window.frames >= count
        made: list[said.BatchPicture | None] = [None] * count
        limiter = trio.CapacityLimiter(BATCH_AT_A_TIME)
        failed: list[LipsyncError] = []

        async def one(k: int, frame_id: int) -> None:
            async with limiter:
                if failed:
                    return
                try:
                    ahead = k if successive else 0
                    region = await self._pictures.region(name, frame_id, window, ahead)
                except LipsyncError as error:
                    failed.append(error)
                    return
            self._made(name, began)
            made[k] = said.BatchPicture(
                frame_id=frame_id,
                prediction_data=said.base64_of(region.jpeg),
                bounds=region.bounds,
                metadata=_picture_metadata(region),
            )

        async with trio.open_nursery() as nursery:
            for k, frame_id in enumerate(asked.frame_ids):
                nursery.start_soon(one, k, frame_id)
        if failed:
            raise failed[0]
        total_ms = (time.monotonic_ns() - began) / 1e6
        batch = said.Batch(
            model_name=asked.model_name,
            batch_size=count,
            frames=[picture for picture in made if picture is not None],
            total_processing_time_ms=round(total_ms, 3),
            average_frame_time_ms=round(total_ms / max(1, count), 3),
            batch_fps=round(1000 * count / max(total_ms, 1e-3), 3),
            request_id=_id(asked),
        )
        return said.encode(batch)

    def _made(self, name: str, began: int) -> None:
        self._services.statistics.load.requests += 1
        self._counts.made(name, (time.monotonic_ns() - began) / 1e6)


ASKED_OF_MODELS = ("get_model_stats", "get_metadata", "get_video_frame")


def _refusal(asked: Asked) -> Callable[[str], str]:
    """The error of a question about an avatar."""

    def refuse(text: str) -> str:
        name = asked.model_name
        if asked.type == "get_metadata":
            return said.encode(said.MetadataFailure(model_name=name, error=text))
        if asked.type == "get_model_stats":
            return said.encode(said.ModelStatsFailure(error=text, model_name=name))
        error = said.VideoFrameFailure(
            error=text, model_name=name, frame_id=asked.frame_id, video_type=asked.video_type
        )
        return said.encode(error)

    return refuse


def _internal(text: str) -> str:
    return said.encode(said.UnknownType(error=text))


async def _fail(error: LipsyncError) -> Reply:
    raise error


async def _say(text: str) -> Reply:
    return text


def _milliseconds(began: int) -> int:
    return round((time.monotonic_ns() - began) / 1e6)


def _id(asked: Asked) -> said.RequestId:
    return "" if asked.request_id is None else asked.request_id


def _picture_metadata(region: Region) -> said.PictureMetadata:
    return said.PictureMetadata(region.avatar_frame, (region.side, region.side, 3))
