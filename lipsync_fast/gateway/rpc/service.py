# SPDX-License-Identifier: Apache-2.0
"""The ten rpcs: what each asks of a front, and its answer.

What cannot be done is said in the response (``success`` false, ``error``); GetVideoFrame and
GetModelMetadata set NOT_FOUND beside it, as the old server did. A status alone is for who may not
ask at all, for what has no field to say it in, and for what is larger than a message may be.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc

from lipsync_fast.errors import FrontError, LipsyncError
from lipsync_fast.gateway.adapters import Counts
from lipsync_fast.gateway.fronts import (
    Client,
    Fronts,
    OwnLink,
    Reply,
    answer,
)
from lipsync_fast.gateway.questions import (
    MOST_NAME,
    Answer,
    Question,
    encode,
    read_avatar_frame,
)
from lipsync_fast.gateway.rpc import messages as m
from lipsync_fast.gateway.rpc import pictures as p
from lipsync_fast.gateway.rpc.calls import (
    Context,
    Shares,
    Stalled,
    client_of,
    is_refused,
    reason_of,
    status_of,
)
from lipsync_fast.logs import get_logger
from lipsync_fast.tokens.refusals import CODE

log = get_logger("lipsync.gateway")
TOO_MANY = "too many calls are open from this address"
AT_A_TIME = 16
"""Requests of a stream that are worked on; beyond, it is not read from."""
PIECES_AT_A_TIME = 2
"""Of a batch: engines have the next one while one is waited for, and others their turn."""
STALLED_S = 30.0
"""A client that does not read a response of a stream for so long is left."""
MOST_RESPONSE = 48 << 20
"""Bytes of pictures in a response: a message may have 50 MiB."""
MOST_INT32 = 2**31 - 1


class Service:
    """Answers calls. One loop.

    Args:
        fronts: where pictures come from.
        counts: of what is done.
        shares: of the calls that may be at once.
        uptime: seconds since the server's start.
    """

    def __init__(
        self, fronts: Fronts, counts: Counts, shares: Shares, uptime: Callable[[], float]
    ) -> None:
        self._fronts, self._counts, self._uptime = fronts, counts, uptime
        self._shares = shares

    # ------------------------------------------------------------ pictures
    async def GenerateInference(  # noqa: N802
        self, request: m.Message, client: Client, context: Context
    ) -> m.Message:
        """One picture."""
        model = request.model_name[:MOST_NAME]
        message = p.single(model, request.frame_id, request.audio)
        try:
            if request.audio:  # a sound of its own: what was heard over other connections is none
                async with self._fronts.own(client) as link:
                    reply = await answer(await link.ask(message))
            else:
                reply = await self._fronts.ask(client, message)
        except FrontError as error:
            return self._counted(_in_band(error, model, request.frame_id))
        return self._counted(p.picture(reply, model, request.frame_id))

    async def GenerateBatchInference(  # noqa: N802
        self, request: m.Message, client: Client, context: Context
    ) -> m.Message:
        """Pictures without sound."""
        return await self._batch(request.model_name[:MOST_NAME], client, request.frame_ids)

    async def GenerateBatchWithAudio(  # noqa: N802
        self, request: m.Message, client: Client, context: Context
    ) -> m.Message:
        """Successive pictures of one sound."""
        model, first, count = (
            request.model_name[:MOST_NAME],
            request.start_frame_id,
            request.frame_count,
        )
        try:
            if not 1 <= count <= p.MOST_FRAMES:
                raise LipsyncError(f"frame_count: {count}; expected 1 to {p.MOST_FRAMES}")
            if first + count - 1 > MOST_INT32:
                raise LipsyncError(f"start_frame_id: {first}; the last frame has no number")
            pcm = p.joined(request.audio_chunks, count)
        except LipsyncError as error:
            refused = self._counted(p.refused(model, first, str(error)))
            return m.BatchInferenceResponse(responses=[refused])
        return await self._batch(model, client, range(first, first + count), pcm)

    async def _batch(
        self, model: str, client: Client, frame_ids: Sequence[int], pcm: bytes = b""
    ) -> m.Message:
        began = time.monotonic()
        if len(frame_ids) > p.MOST_FRAMES:
            why = f"frame_ids: {len(frame_ids)} frames; at most {p.MOST_FRAMES} at once"
            refused = self._counted(p.refused(model, frame_ids[0], why))
            return m.BatchInferenceResponse(responses=[refused])
        response, size = m.BatchInferenceResponse(), 0
        waiting: deque[tuple[p.Piece, asyncio.Future[Reply]]] = deque()
        async with self._fronts.own(client) as link:
            coming = p.pieces(model, frame_ids, pcm)
            while True:
                while len(waiting) < PIECES_AT_A_TIME and (piece := next(coming, None)) is not None:
                    waiting.append((piece, await link.ask(piece.message)))
                if not waiting:
                    break
                piece, future = waiting.popleft()
                made = await _pictures(piece, future, model)
                size += sum(len(each.prediction_data) for each in made)
                if size > MOST_RESPONSE:
                    why = "the response would be larger than a message may be; ask for fewer frames"
                    made = [p.refused(model, each, why) for each in piece.frame_ids]
                response.responses.extend(map(self._counted, made))
        total_ms = (time.monotonic() - began) * 1000
        response.total_processing_time_ms = round(total_ms)
        response.avg_frame_time_ms = total_ms / max(1, len(frame_ids))
        return response

    async def StreamInference(  # noqa: N802
        self, requests: AsyncIterator[m.Message], client: Client, context: Context
    ) -> None:
        """One response for each request, in order.

        Raises:
            Stalled: the client does not read.
        """
        free = asyncio.Semaphore(AT_A_TIME)
        turns: asyncio.Queue[tuple[str, int, asyncio.Future[Reply]] | None] = asyncio.Queue()
        async with self._fronts.own(client) as link:
            reader = asyncio.create_task(_read(requests, link, free, turns))
            try:
                while (turn := await turns.get()) is not None:
                    model, frame_id, future = turn
                    try:
                        response = p.picture(await answer(future), model, frame_id)
                    except FrontError as error:
                        response = _in_band(error, model, frame_id)
                    try:
                        async with asyncio.timeout(STALLED_S):
                            await context.write(self._counted(response))
                    except TimeoutError:
                        raise Stalled from None
                    free.release()
                await reader
            finally:
                reader.cancel()
                await asyncio.wait([reader])

    def _counted(self, response: m.Message) -> m.Message:
        if response.success:
            self._counts.picture(len(response.prediction_data))
        else:
            self._counts.refused()
        return response

    # ------------------------------------------------------------ questions
    async def LoadPackage(  # noqa: N802
        self, request: m.Message, client: Client, context: Context
    ) -> m.Message:
        """Have an avatar of the server's folders loaded."""
        began, name = time.monotonic(), request.package_name[:MOST_NAME]
        try:
            about = await self._about("get_metadata", name, client)
            numbers = (await self._about("get_model_stats", name, client)).stats
        except LipsyncError as error:
            _raise_refused(error)
            self._counts.refused()
            return m.LoadPackageResponse(package_name=name, message="not loaded", error=str(error))
        said = "; package_dir is not looked at" if request.package_dir else ""
        return m.LoadPackageResponse(
            success=True,
            package_name=name,
            message=f"loaded from the server's folders{said}",
            initialization_time_ms=round((time.monotonic() - began) * 1000),
            frame_count=about.frame_count,
            device=numbers.device if numbers is not None else "",
            videos_loaded=about.available_videos,
        )

    async def GetStats(  # noqa: N802
        self, request: m.Message, client: Client, context: Context
    ) -> m.Message:
        """What was made of an avatar: the response has no field for what is wrong."""
        name = request.model_name[:MOST_NAME]
        try:
            numbers = (await self._about("get_model_stats", name, client)).stats
        except LipsyncError as error:
            _raise_refused(error)
            self._not_found(context, error)
            return m.StatsResponse(model_name=name)
        if numbers is None:
            return m.StatsResponse(model_name=name)
        return m.StatsResponse(
            model_name=name,
            total_requests=min(numbers.total_requests, MOST_INT32),
            avg_inference_time_ms=numbers.avg_inference_time_ms,
            min_inference_time_ms=numbers.min_inference_time_ms,
            max_inference_time_ms=numbers.max_inference_time_ms,
            frame_count=numbers.frame_count,
            device=numbers.device,
            optimizations_active=numbers.optimizations_active,
        )

    async def ListModels(  # noqa: N802
        self, request: m.Message, client: Client, context: Context
    ) -> m.Message:
        """Avatars that can be used."""
        names = (await self._about("list_models", "", client)).models
        return m.ListModelsResponse(loaded_models=names, count=len(names))

    async def HealthCheck(  # noqa: N802
        self, request: m.Message, client: Client, context: Context
    ) -> m.Message:
        """Whether pictures can be had."""
        seconds = int(self._uptime())
        try:
            count = len((await self._about("list_models", "", client)).models)
        except LipsyncError as error:
            _raise_refused(error)
            return m.HealthResponse(healthy=False, status=str(error), uptime_seconds=seconds)
        return m.HealthResponse(
            healthy=bool(count),
            status="SERVING" if count else "NOT_SERVING: no avatar is loaded",
            loaded_models=count,
            uptime_seconds=seconds,
        )

    async def GetVideoFrame(  # noqa: N802
        self, request: m.Message, client: Client, context: Context
    ) -> m.Message:
        """One of the avatar's own pictures."""
        question = Question(
            type="get_video_frame",
            model_name=request.model_name,
            frame_id=request.frame_id,
            video_type=request.video_type,
        )
        kind = request.video_type[:MOST_NAME]
        try:
            reply = await self._fronts.ask(client, encode(question))
            if isinstance(reply, str):
                raise LipsyncError(p.understood(reply).error or "there is no such picture")
            jpeg = read_avatar_frame(reply)
        except (LipsyncError, ValueError) as error:
            _raise_refused(error)
            self._not_found(context, error)
            return m.GetVideoFrameResponse(
                frame_id=request.frame_id, video_type=kind, error=str(error)
            )
        self._counts.picture(len(jpeg))
        return m.GetVideoFrameResponse(
            success=True, frame_data=jpeg, frame_id=request.frame_id, video_type=kind
        )

    async def GetModelMetadata(  # noqa: N802
        self, request: m.Message, client: Client, context: Context
    ) -> m.Message:
        """What an avatar has."""
        name = request.model_name[:MOST_NAME]
        try:
            about = await self._about("get_metadata", name, client)
        except LipsyncError as error:
            _raise_refused(error)
            self._not_found(context, error)
            return m.GetModelMetadataResponse(model_name=name, error=str(error))
        return m.GetModelMetadataResponse(
            success=True,
            model_name=name,
            frame_count=about.frame_count,
            available_videos=about.available_videos,
            audio_path=about.audio_path,
            bounds=about.bounds,
        )

    async def _about(self, kind: str, name: str, client: Client) -> Answer:
        """The answer to a question.

        Raises:
            LipsyncError: it says that something is wrong, or there is none.
        """
        reply = await self._fronts.ask(client, encode(Question(type=kind, model_name=name)))
        found = p.understood(reply)
        if not found.success:
            raise LipsyncError(found.error or "the server cannot say")
        return found

    def _not_found(self, context: Context, error: Exception) -> None:
        self._counts.refused()
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details(str(error))

    # ------------------------------------------------------------ calls
    def handler(self) -> grpc.GenericRpcHandler:
        """All rpcs, for a server of grpc.aio."""
        handlers = {}
        for name, described in m.methods().items():
            reads, writes = m.class_of(described.input_type), m.class_of(described.output_type)
            wrapped = self._stream(name) if name == "StreamInference" else self._unary(name)
            kind = (
                grpc.stream_stream_rpc_method_handler
                if name == "StreamInference"
                else grpc.unary_unary_rpc_method_handler
            )
            handlers[name] = kind(wrapped, reads.FromString, writes.SerializeToString)
        made: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(m.SERVICE, handlers)
        return made

    def _unary(self, name: str) -> Callable[[m.Message, Context], Any]:
        method = getattr(self, name)

        async def call(request: m.Message, context: Context) -> m.Message:
            client = client_of(context)
            with self._shares.call(client.address) as fits, self._counts.call(name):
                if not fits:
                    await self._end(context, grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MANY)
                try:
                    return await method(request, client, context)
                except LipsyncError as error:
                    await self._end(context, status_of(error), str(error), reason_of(error))

        return call

    def _stream(self, name: str) -> Callable[[AsyncIterator[m.Message], Context], Any]:
        method = getattr(self, name)

        async def call(requests: AsyncIterator[m.Message], context: Context) -> None:
            client, stalled = client_of(context), False
            with self._shares.call(client.address) as fits, self._counts.call(name):
                if not fits:
                    await self._end(context, grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MANY)
                try:
                    await method(requests, client, context)
                except LipsyncError as error:
                    await self._end(context, status_of(error), str(error), reason_of(error))
                except Stalled:
                    stalled = True
            if stalled:  # the status waits behind what is not read; all else is let go of now
                log.info("a client does not read", peer=client.address, seconds=STALLED_S)
                why = f"no response was read for {STALLED_S:g} s"
                await self._end(context, grpc.StatusCode.RESOURCE_EXHAUSTED, why)

        return call

    async def _end(
        self, context: Context, status: grpc.StatusCode, why: str, reason: str = ""
    ) -> None:
        """End a call by a status, with the word for why where there is one."""
        self._counts.failed()
        try:
            await context.abort(status, why, ((CODE.lower(), reason),) if reason else ())
        except grpc.aio.InternalError:  # the client has gone meanwhile
            raise asyncio.CancelledError from None


async def _pictures(piece: p.Piece, future: asyncio.Future[Reply], model: str) -> list[m.Message]:
    try:
        return p.pictures(await answer(future), model, piece.frame_ids)
    except FrontError as error:
        return [_in_band(error, model, each) for each in piece.frame_ids]


async def _read(
    requests: AsyncIterator[m.Message],
    link: OwnLink,
    free: asyncio.Semaphore,
    turns: asyncio.Queue[tuple[str, int, asyncio.Future[Reply]] | None],
) -> None:
    """Take a stream's requests, as many as are free; whatever ends them ends the turns."""
    try:
        await free.acquire()
        async for request in requests:
            model, frame_id = request.model_name[:MOST_NAME], request.frame_id
            future = await link.ask(p.single(model, frame_id, request.audio))
            turns.put_nowait((model, frame_id, future))
            await free.acquire()
    finally:
        turns.put_nowait(None)


def _in_band(error: FrontError, model: str, frame_id: int) -> m.Message:
    """The response that says what a front has not done.

    Raises:
        FrontError: who asks may not.
    """
    _raise_refused(error)
    return p.refused(model, frame_id, str(error))


def _raise_refused(error: Exception) -> None:
    if isinstance(error, FrontError) and is_refused(error):
        raise error
