# SPDX-License-Identifier: Apache-2.0
"""A batch of frames of one avatar: planned on the host, put on the device in a few calls.

    copy     tables, samples, in one piece
                │
    compute     └► mel ► audio encoder ► vectors' slots ────────► blocks ─┐
                image halves that are missing ► their slots ► levels ─┴► decoder ► compose
                                                                                      │
    encode      packed, in the host's memory ◄ gather ◄ segments ◄ jpeg ◄─────────────┘
                and pixels, where pixels are wanted

Nothing here waits for the device; ``Lane.done`` tells when the results can be read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipsync_fast.engine.backends.base import Coded
from lipsync_fast.engine.backends.cuda.avatar import CudaAvatar
from lipsync_fast.engine.backends.cuda.device import Device
from lipsync_fast.engine.backends.cuda.graphs import cover
from lipsync_fast.engine.backends.cuda.images import Halves
from lipsync_fast.engine.backends.cuda.lanes import Lane, Placed, Streams, aligned
from lipsync_fast.engine.backends.cuda.sounds import PAD, Heard, Sounds
from lipsync_fast.engine.backends.cuda.tasks import Kind, Task, segments

MOST_CODED = 8 << 20
"""Bytes that the segments of a picture may need at worst; one that needs more is coded by the host:
with long restart intervals, few threads would code it."""
_PLANES_F32 = 0
_BILINEAR = 3
"""In place of ``Kind.PART`` in a compose job: resized so, not bicubic."""


def float_bits(value: float) -> int:
    """A float32's bits as a number."""
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


@dataclass(slots=True)
class Results:
    """What comes back of a batch.

    Attributes:
        places: of each task's pixels in the lane's; the first ``down`` bytes come to the host.
        coded: of tasks that are coded: number of the first segment, how many there are, and where
            their slots begin.
        segments, slots: of all of them; the latter in bytes.
        most: bytes of code that there is room for on the host.
    """

    places: list[int] = field(default_factory=list)
    down: int = 0
    coded: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    segments: int = 0
    slots: int = 0
    most: int = 0


class Batch:
    """Tasks of one avatar that are made together; one thread makes and puts it on the device.

    Args:
        number: batches are numbered in the order in which they are put on the device.
        lane: its own until it has ended.
        size: of the decoder's graph, as many as there are tasks or more.
    """

    def __init__(self, number: int, tasks: Sequence[Task], lane: Lane, size: int) -> None:
        self.number, self.tasks, self.lane, self.size = number, list(tasks), lane, size
        self.results = Results()

    # ------------------------------------------------------------ planning
    def plan(self, sounds: Sounds, ended: int) -> tuple[Heard, Halves]:
        """Find slots for what it needs; it may lose its last tasks for want of room.

        Returns:
            What is to be computed; a batch without tasks has nothing to do until another one ends.
        """
        avatar = self.tasks[0].avatar
        wanted = [(avatar, t.job.sound) for t in self.tasks]
        heard = sounds.plan(wanted, self.number, ended, avatar.vectors)
        frames = [t.job.avatar_frame for t in self.tasks[: len(heard.index)]]
        halves = avatar.images.plan(frames, self.number, ended)
        del self.tasks[len(halves.index) :]
        return heard, halves

    def lay_out(self, slot_bytes: Callable[[int], int]) -> None:
        """Decide where the results lie."""
        out = self.results
        wanted: list[int] = []
        for k, task in enumerate(self.tasks):
            encode = task.job.encode
            if encode is not None and task.kind == Kind.PART:
                count, units = segments(encode)
                size = count * slot_bytes(units)
                if size <= MOST_CODED:
                    out.coded[k] = out.segments, count, out.slots
                    out.segments += count
                    out.slots += size
                    width, height = encode.box.size
                    # More than half of its pixels' own bytes, no picture's code is in practice.
                    out.most += 3 * width * height // 2 + 64 * count
                    continue
            wanted.append(k)
        at = 0
        out.places = [0] * len(self.tasks)
        for k in (*wanted, *out.coded):
            width, height = self.tasks[k].size
            out.places[k] = at
            at += aligned(3 * width * height)
            if k not in out.coded:
                out.down = at
        self.lane.pixels.room(at)

    # ------------------------------------------------------------ tables
    def _tables(self, heard: Heard, halves: Halves) -> dict[str, Placed]:
        """Write all that the device is told into the staging."""
        tasks, staging = self.tasks, self.lane.staging
        loose = [k for k, task in enumerate(tasks) if task.job.sound is None]
        count, made, vectors = len(tasks), len(heard.slots), tasks[0].avatar.vectors
        wanted = {
            "windows": ((made, 4), "int32"),
            "samples": ((heard.end + PAD,), "float32"),
            "vectors": ((made,), "int64"),
            "index": ((count * vectors,), "int64"),
            "frames": ((count,), "int64"),
            "halves": ((len(halves.slots),), "int64"),
            "loose": ((len(loose),), "int64"),
            "blocks": ((len(loose), vectors, 512), "float32"),
        }
        staging.begin(sum(aligned(8 * int(np.prod(shape))) for shape, _ in wanted.values()))
        placed, arrays = {}, {}
        for name, (shape, dtype) in wanted.items():
            placed[name], arrays[name] = staging.room(shape, dtype)
        arrays["index"][:] = np.array(heard.index[:count], np.int64).ravel()
        arrays["frames"][:] = halves.index
        arrays["halves"][:] = halves.slots
        arrays["vectors"][:] = heard.slots
        if made:
            arrays["windows"][:] = heard.windows
            samples, at = arrays["samples"], PAD
            samples[:PAD] = 0
            for piece in heard.samples:
                samples[at : at + len(piece)] = piece
                at += len(piece)
            samples[at:] = 0
        if loose:
            arrays["loose"][:] = loose
            for k, place in enumerate(loose):
                arrays["blocks"][k] = tasks[place].job.audio_block
        return placed

    def _compose_jobs(self, region: Tensor) -> NDArray[np.int64]:
        avatar, pixels = self.tasks[0].avatar, self.lane.pixels.room(1).data_ptr()
        _, height, width = region.shape[1:]
        planes, step = region.data_ptr(), 4 * 3 * height * width
        left, top = avatar.corner
        rows = []
        for k, task in enumerate(self.tasks):
            face = task.face
            assert face is not None
            head = (planes + k * step, _PLANES_F32, height * width, width, 1, height, width)
            share = float_bits(task.job.share)
            crop = (left, top, face.crop, avatar.crop, share)
            part = face.row if task.kind == Kind.PART else (0, *task.size, 0, 0, 0)
            way = _BILINEAR if task.kind == Kind.PART and avatar.rule.linear else task.kind
            rows.append((*head, *crop, *part, pixels + self.results.places[k], way))
        return np.array(rows, np.int64)

    def _pictures(self) -> NDArray[np.int64]:
        pixels = self.lane.pixels.room(1).data_ptr()
        rows = []
        for k, (first, _, slot) in self.results.coded.items():
            task = self.tasks[k]
            encode = task.job.encode
            assert encode is not None
            box, stride = encode.box, 3 * task.size[0]
            corner = pixels + self.results.places[k] + box.y * stride + 3 * box.x
            table = encode.quality - 1
            rows.append((corner, stride, *box.size, encode.interval, first, table, slot))
        return np.array(rows, np.int64)

    # ------------------------------------------------------------ the device's work
    def launch(
        self,
        device: Device,
        streams: Streams,
        sounds: Sounds,
        tables: Tensor,
        heard: Heard,
        halves: Halves,
    ) -> None:
        """Put it on the device; the current stream is the compute stream.

        Args:
            tables: quantisation tables of the qualities 1 .. 100.
        """
        lane, compute = self.lane, streams.compute
        avatar = self.tasks[0].avatar
        self.lay_out(device.kernels.jpeg_slot_bytes)
        # Also where the staging is replaced: its memory belongs to the stream that writes it first.
        with device.on(streams.copy):
            placed = self._tables(heard, halves)
            lane.staging.upload()
            lane.uploaded.record(streams.copy)
        compute.wait_event(lane.uploaded)
        there = {name: lane.staging.there(place) for name, place in placed.items()}
        if heard.slots:
            self._hear(device, compute.cuda_stream, avatar, sounds, there)
        if halves.slots:
            faces = {t.job.avatar_frame: t.face for t in self.tasks}
            crops = [face.crop for frame in halves.made if (face := faces[frame]) is not None]
            compute_halves(device, compute.cuda_stream, avatar, crops, there["halves"])
        self._decode(avatar, sounds, there)
        region = avatar.decoder.outputs[0]
        device.kernels.compose(self._compose_jobs(region), compute.cuda_stream)
        lane.composed.record(compute)
        streams.encode.wait_event(lane.composed)
        with device.on(streams.encode):
            self._bring_back(device, streams.encode.cuda_stream, tables)
            lane.done.record(streams.encode)

    @staticmethod
    def _hear(
        device: Device, stream: int, avatar: CudaAvatar, sounds: Sounds, there: dict[str, Tensor]
    ) -> None:
        """Missing vectors, into their slots."""
        encoder, slots = avatar.encoder, there["vectors"]
        (mel_in,), (feature,) = encoder.inputs, encoder.outputs
        pieces = cover(len(slots), encoder.ready)
        mel = mel_in[: len(slots)]
        if len(pieces) > 1:
            mel = torch.empty(
                len(slots), *mel_in.shape[1:], dtype=mel_in.dtype, device=device.where
            )
        device.kernels.mel(there["samples"], there["windows"], mel, stream)
        at = 0
        for size in pieces:
            count = min(size, len(slots) - at)
            if len(pieces) > 1:
                mel_in[:count].copy_(mel[at : at + count])
            encoder.run(size)
            sounds.table.index_copy_(0, slots[at : at + count], feature[:count])
            at += count

    def _decode(self, avatar: CudaAvatar, sounds: Sounds, there: dict[str, Tensor]) -> None:
        statics, count = avatar.statics, len(self.tasks)
        audio = statics.audio[:count].view(count * avatar.vectors, -1)
        torch.index_select(sounds.table, 0, there["index"], out=audio)
        if len(there["loose"]):
            blocks = there["blocks"].view(-1, *statics.audio.shape[1:]).to(statics.audio.dtype)
            statics.audio.index_copy_(0, there["loose"], blocks)
        for name, rows in statics.levels.items():
            kept = avatar.images.levels[name]
            torch.index_select(kept, 0, there["frames"], out=rows.words[:count])
        avatar.decoder.run(self.size)

    def _bring_back(self, device: Device, stream: int, tables: Tensor) -> None:
        lane, out, kernels = self.lane, self.results, device.kernels
        if out.down:
            back = lane.pixels_back.room(out.down)
            back.copy_(lane.pixels.room(out.down), non_blocking=True)
        if not out.coded:
            return
        coded, pictures = lane.coded.room(out.slots), self._pictures()
        sizes, offsets = lane.sizes.room(out.segments), lane.offsets.room(out.segments + 1)
        kernels.jpeg(pictures, tables, coded, sizes, stream)
        packed = lane.packed.room(out.most)
        kernels.jpeg_gather(pictures, coded, sizes, packed, offsets, stream)
        lane.offsets_back.room(out.segments + 1).copy_(offsets, non_blocking=True)

    # ------------------------------------------------------------ results
    def read(self) -> list[NDArray[np.uint8] | Coded]:
        """What was made of each task, in memory of its own; it has ended."""
        lane, out = self.lane, self.results
        made: list[Any] = [None] * len(self.tasks)
        if out.coded:
            offsets = lane.offsets_back.room(out.segments + 1).numpy()
            end = min(int(offsets[-1]), out.most)
            data = memoryview(lane.packed.room(out.most)[:end].numpy().tobytes())
            for k, (first, count, _) in out.coded.items():
                where = offsets[first : first + count + 1]
                low, high = int(where[0]), int(where[-1])
                if high <= out.most:
                    made[k] = Coded(data[low:high], (where - low).tolist())
                else:  # there was no room for it
                    made[k] = self._pixels(k, lane.pixels.room(self._pixels_end(k)))
        if out.down:
            pixels = lane.pixels_back.room(out.down)
            for k in range(len(self.tasks)):
                if k not in out.coded:
                    made[k] = self._pixels(k, pixels)
        return made

    def _pixels_end(self, k: int) -> int:
        width, height = self.tasks[k].size
        return self.results.places[k] + 3 * width * height

    def _pixels(self, k: int, pixels: Tensor) -> NDArray[np.uint8]:
        width, height = self.tasks[k].size
        part = pixels[self.results.places[k] : self._pixels_end(k)].cpu().numpy()
        return part.reshape(height, width, 3).copy()


def compute_halves(
    device: Device,
    stream: int,
    avatar: CudaAvatar,
    crops: Sequence[int],
    slots: Tensor | Sequence[int],
) -> None:
    """Image halves of crops, given by their addresses, into slots.

    Args:
        slots: on the device; or numbers, for a few that are not worth a copy there.
    """
    image, statics, rule, at = avatar.image, avatar.statics, avatar.rule, 0
    for size in cover(len(crops), image.ready):
        count = min(size, len(crops) - at)
        addresses = np.array(crops[at : at + count], np.int64)
        given = statics.image[:count]
        device.kernels.region_input(addresses, rule.border, given, stream, rule.half)
        image.run(size)
        for name, rows in statics.made.items():
            kept, some = avatar.images.levels[name], slots[at : at + count]
            if isinstance(some, Tensor):
                kept.index_copy_(0, some, rows.words[:count])
            else:
                for k, slot in enumerate(some):
                    kept[slot].copy_(rows.words[k])
        at += count
