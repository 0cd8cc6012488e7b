# SPDX-License-Identifier: Apache-2.0
"""Streams of H.264 out of an engine: what is in them, how they look, and how they stay whole."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engines import jobs_of, noise
from h264 import KEY_SLICE, PPS, SEI, SLICE, SPS, Viewer, grey_difference, nal_units, psnr, xmp_of
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from test_scheduler import Front, settle, until_true
from tiny import write_tiny_avatar

from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends import create_backend
from lipsync_fast.engine.scheduler import Scheduler
from lipsync_fast.engine.splice import FrameEncoder
from lipsync_fast.engine.stream_pictures import group_at, turn_of
from lipsync_fast.geometry import EMPTY, Rect
from lipsync_fast.ipc.messages import (
    Answer,
    Coding,
    Content,
    Encode,
    EndStream,
    Look,
    Status,
    crf_of,
    try_send,
)
from lipsync_fast.media.h264 import MOST_BETWEEN, H264Encoder, encoder_name, i420, pasted
from lipsync_fast.provenance import h264_sei, h264_with_xmp, xmp_packet

U8 = NDArray[np.uint8]
FINE = Coding(8)
PIXELS = Look(Content.PIXELS)


def picture(size: tuple[int, int], seed: int = 0) -> U8:
    """Something with edges and colours."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (size[1] // 16 + 1, size[0] // 16 + 1, 3), np.uint8)
    large = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(large)


# ---------------------------------------------------------------- the encoder
def test_a_stream_says_its_colours_and_how_it_was_made() -> None:
    packet = xmp_packet(True)
    encoder, viewer = H264Encoder((64, 48), 20, None, packet), Viewer()
    for number in range(4):
        unit, key = encoder.encode(i420(picture((64, 48), number)), number == 2)
        assert key == (number in (0, 2))
        kinds = [kind for kind, _ in nal_units(unit)]
        assert kinds == ([SPS, PPS, SEI, KEY_SLICE] if key else [SLICE])
        assert xmp_of(unit) == (packet if key else None)
        viewer.show(unit)
        frame = viewer.last
        assert frame is not None
        assert frame.color_range == 1, "limited"
        assert frame.colorspace in (5, 6), "BT.601"
        assert (frame.color_primaries, frame.color_trc) == (1, 13), "sRGB's"
        assert nal_units(unit)[0][1][:2] in (b"\x42\xc0", b"") or not key, "constrained baseline"


@pytest.mark.parametrize("level", [0, 17, 128, 200, 255])
@pytest.mark.parametrize("size", [(64, 48), (66, 50), (102, 122)])
def test_a_grey_stays_as_it_is(level: int, size: tuple[int, int]) -> None:
    flat = np.full((size[1], size[0], 3), level, np.uint8)
    shown = Viewer().show(H264Encoder(size, 20, None, b"").encode(i420(flat))[0])
    assert np.abs(shown.astype(int) - level).max() <= 1


def test_of_odd_sides_the_last_row_and_column_are_there_twice() -> None:
    odd = picture((63, 47))
    planes = i420(odd)
    assert planes.shape == (72, 64)
    shown = Viewer().show(H264Encoder((64, 48), 10, None, b"").encode(planes)[0])
    assert psnr(shown[:47, :63], odd) > 25


def test_a_part_is_pasted_where_it_belongs() -> None:
    whole, part = picture((64, 48)), picture((20, 12), 5)
    planes = i420(whole)
    into = np.empty_like(planes)
    assert pasted(planes, Rect(10, 6, 20, 12), i420(part), into) is into
    both = whole.copy()
    both[6:18, 10:30] = part
    assert np.abs(into[:48].astype(int) - i420(both)[:48].astype(int)).max() <= 1
    for box in (Rect(46, 6, 20, 12), Rect(11, 6, 20, 12), Rect(10, 6, 20, 14), Rect(-2, 0, 20, 12)):
        with pytest.raises(ValueError, match=r"part|leaves"):
            pasted(planes, box, i420(part), into)


def test_a_held_picture_takes_next_to_nothing() -> None:
    encoder, planes = H264Encoder((640, 480), 27, None, b""), i420(picture((640, 480)))
    first, *others = [len(encoder.encode(planes)[0]) for _ in range(40)]
    assert first > 1000
    assert sorted(others)[len(others) // 2] < 30
    assert max(others[30:]) < 300, "it gets no better any more"


def test_a_bitrate_is_kept() -> None:
    sizes = {}
    for bitrate in (None, 200_000):
        encoder = H264Encoder((640, 480), 20, bitrate, b"")
        planes = [i420(picture((640, 480), seed)) for seed in range(50)]
        sizes[bitrate] = sum(len(encoder.encode(p)[0]) for p in planes) * 8 / 2
    assert sizes[200_000] < sizes[None] / 2
    assert sizes[200_000] < 3 * 200_000  # every picture is another one: more than x264 believes


@given(st.binary(max_size=80))
def test_any_packet_comes_back_out_of_its_nal_unit(packet: bytes) -> None:
    sei = h264_sei(packet)
    assert not any(code in sei[4:] for code in (b"\0\0\0", b"\0\0\1", b"\0\0\2"))
    assert xmp_of(sei + b"\0\0\0\1\x65x") == packet


@pytest.mark.parametrize("unit", [b"", b"\0\0\1", b"\0\0\0\1\x67abc", b"garbage"])
def test_provenance_is_refused_to_what_has_no_slice(unit: bytes) -> None:
    with pytest.raises(ValueError, match="slice"):
        h264_with_xmp(unit, b"x")


def test_the_encoder_is_found() -> None:
    """One of a GPU where there is one, and the software's everywhere."""
    assert encoder_name(False) == "libx264"
    assert encoder_name(True) in ("libx264", "h264_nvenc")


def test_qualities() -> None:
    assert [crf_of(q) for q in (1, 50, 100)] == [40, 30, 20]
    assert crf_of(None) == 27


# ---------------------------------------------------------------- groups of rest
@given(st.integers(1, 400), st.sampled_from([1, 2, 4]), st.integers(0, 3))
def test_groups_cut_a_loop_into_pieces_of_less_than_two_seconds(
    turn: int, stride: int, offset: int
) -> None:
    """From any position on: each picture begins a group or continues the one before it."""
    left = 0
    for position in range(offset, offset + 3 * turn * stride, stride):
        group = group_at(turn, position, stride)
        if group is not None:
            assert left == 0 or position < stride + offset
            assert group.first == position % turn
            assert group.count >= 1
            assert group.count * stride <= MOST_BETWEEN + stride
            left = group.count
        elif left == 0:
            continue  # where the session begins in the middle of a group
        left = max(0, left - 1)


def test_a_short_loop_is_several_turns(tiny_avatar: Path) -> None:
    with AvatarPackage.open(tiny_avatar) as package:
        turn = turn_of(package)
        assert turn % 8 == 0
        assert MOST_BETWEEN - 8 < turn <= MOST_BETWEEN


# ---------------------------------------------------------------- streams of an engine
@pytest.fixture(scope="module")
def avatar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_avatar(tmp_path_factory.mktemp("avatars") / "tiny")


@pytest.fixture
def engines(avatar: Path) -> Iterator[list[tuple[Scheduler, Front]]]:
    made = []
    for _ in range(2):
        engine = Scheduler(create_backend("cpu", 1, live=True), FrameEncoder())
        engine.registry.load("tiny", avatar)
        made.append((engine, Front(engine)))
    yield made
    for engine, front in made:
        front.close()
        engine.close()


class Client:
    """One stream, at whichever engine it is sent to; shows what it gets."""

    def __init__(self, session: int = 1, coding: Coding = FINE) -> None:
        self.session, self.coding, self.viewer = session, coding, Viewer()
        self.number = self.has = 0

    def ask(
        self, front: Front, slot: int, after: int | None = None, **more: object
    ) -> tuple[Answer, bytes]:
        """The next access unit; the avatar's own picture unless ``part`` and ``box`` are given."""
        self.number += 1
        part = more.pop("part", b"")
        fields = {"stride": 1, "avatar": "tiny", "box": EMPTY} | more
        frame = fields.pop("avatar_frame", slot % 5)
        encode = Encode(
            session=self.session,
            epoch=0,
            number=self.number,
            after=self.has if after is None else after,
            slot=slot,
            avatar_frame=frame,
            coding=self.coding,
            **fields,
        )
        assert try_send(front.jobs, encode, part)
        ((answer, unit),) = front.run(1)
        assert answer.number == self.number
        if answer.status == Status.MADE:
            self.has = self.number
            assert answer.key == (xmp_of(unit) is not None)
        return answer, unit


def spoken(front: Front, package: AvatarPackage, look: Look) -> list[tuple[Answer, bytes, int]]:
    """Ten frames of a sound in a look, with the avatar frames under them."""
    m = package.manifest
    jobs = jobs_of(noise(0.4), m.audio, m.avatar_frame, avatar="tiny", look=look)
    for job, pcm in jobs:
        front.submit(job, pcm)
    got = {answer.number: (answer, data) for answer, data in front.run(len(jobs))}
    return [(*got[job.number], job.avatar_frame) for job, _ in jobs]


def decoded(jpeg: bytes) -> U8:
    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("max_width", [None, 101])
def test_pictures_are_those_of_the_jpegs(
    engines: list[tuple[Scheduler, Front]], avatar: Path, max_width: int | None
) -> None:
    (engine, front), _ = engines
    client = Client(coding=Coding(4, max_width=max_width))
    with AvatarPackage.open(avatar) as package:
        jpegs = spoken(front, package, Look(quality=95, max_width=max_width))
        parts = spoken(front, package, Look(Content.PIXELS, max_width=max_width))
    for slot, ((_, jpeg, under), (answer, part, _)) in enumerate(zip(jpegs, parts, strict=True)):
        assert answer.status == Status.MADE
        got = client.ask(front, slot, part=part, box=answer.box, avatar_frame=under)
        shown, wanted = client.viewer.show(got[1]), decoded(jpeg)
        height, width = wanted.shape[:2]
        assert shown.shape[:2] == (height + height % 2, width + width % 2)
        shown = shown[:height, :width]
        assert grey_difference(shown, wanted) <= 1
        assert psnr(shown, wanted) > 27  # its frames are noise, which 4:2:0 does not keep
        inner = np.abs(shown.astype(int) - wanted.astype(int)).mean()
        assert inner < 8
    settle(engine)


@pytest.mark.slow
def test_the_demo_avatar_looks_as_in_jpegs(engines: list[tuple[Scheduler, Front]]) -> None:
    (engine, front), _ = engines
    path = AvatarLibrary().find("demo")
    engine.registry.load("tiny", path)
    client = Client(coding=Coding(crf_of(None)))
    with AvatarPackage.open(path) as package:
        jpegs, parts = spoken(front, package, Look()), spoken(front, package, PIXELS)
        for slot, ((_, jpeg, under), (answer, part, _)) in enumerate(
            zip(jpegs, parts, strict=True)
        ):
            got = client.ask(front, slot, part=part, box=answer.box, avatar_frame=under)
            shown, wanted = client.viewer.show(got[1]), decoded(jpeg)
            assert psnr(shown, wanted) > 38
            assert grey_difference(shown, wanted) <= 1
            face = answer.box.slices
            assert psnr(shown[face], wanted[face]) > 35
            assert grey_difference(shown[face], wanted[face]) <= 1


def test_a_key_frame_comes_where_the_client_has_not_got_the_last_one(
    engines: list[tuple[Scheduler, Front]],
) -> None:
    """Left out on its way, lost with an engine, encoded by another one: it can always be shown."""
    (_, one), (_, other) = engines
    client = Client()
    client.viewer.show(client.ask(one, 1)[1])
    keys = []
    script = [(one, None), (one, None), (other, None), (other, None), (one, None), (one, 0)]
    script += [(one, None), (one, 2), (one, None)]
    for slot, (front, after) in enumerate(script, 2):
        answer, unit = client.ask(front, slot, after)
        client.viewer.show(unit)
        keys.append(answer.key)
    assert keys == [False, False, True, False, True, True, False, True, False]


def test_a_key_frame_comes_within_two_seconds_whatever_the_pace(
    engines: list[tuple[Scheduler, Front]],
) -> None:
    (_, front), _ = engines
    for stride in (1, 4):
        client = Client(session=stride)
        last = 1
        for slot in range(1, 40 * stride + 110, stride):
            part = bytes(96)
            answer, unit = client.ask(front, slot, part=part, box=Rect(0, 0, 8, 8))
            client.viewer.show(unit)
            assert slot - last <= MOST_BETWEEN
            last = slot if answer.key else last


def test_rest_is_encoded_once_for_all(engines: list[tuple[Scheduler, Front]]) -> None:
    """A second stream gets the same bytes, and no encoder works for it."""
    (engine, front), _ = engines
    first, second = Client(1), Client(2)
    for slot in range(3):
        first.viewer.show(first.ask(front, slot)[1])
    until_true(engine, lambda: engine.streams.pictures.cache_bytes["encoded rest"] > 0)
    spent = engine.backend.cpu_time.seconds["H.264"]
    units = []
    with AvatarPackage.open(engine.registry.avatars["tiny"].package.path) as package:
        turn = turn_of(package)
        for slot in range(2 * turn):
            avatar_frame = package.manifest.avatar_frame(slot)
            answer, unit = second.ask(front, slot, avatar_frame=avatar_frame)
            assert answer.key == (slot % turn == 0)
            shown = second.viewer.show(unit)
            assert grey_difference(shown, package.picture(avatar_frame)) <= 1
            units.append(unit)
    assert engine.backend.cpu_time.seconds["H.264"] == spent
    assert units[:turn] == units[turn:]
    # It speaks, and rests again in the middle of a group: its own encoder, until the next one.
    slot = 2 * turn + 3
    box = Rect(0, 0, 8, 8)
    answers = [second.ask(front, slot, part=bytes(96), box=box)]
    answers += [second.ask(front, after) for after in range(slot + 1, 3 * turn + 1)]
    for _, unit in answers:
        second.viewer.show(unit)
    assert [a.key for a, _ in answers] == [k in (0, len(answers) - 1) for k in range(len(answers))]
    assert answers[-1][1] == units[0]


def test_a_stream_may_change_its_form(engines: list[tuple[Scheduler, Front]]) -> None:
    (_, front), _ = engines
    client = Client()
    client.ask(front, 1)
    for coding, size in ((Coding(20), (192, 160)), (Coding(20, None, 80), (96, 80))):
        client.coding = coding
        answer, unit = client.ask(front, 2)
        assert answer.key
        assert client.viewer.show(unit).shape[:2] == size


def test_what_cannot_be_is_refused_and_the_stream_goes_on(
    engines: list[tuple[Scheduler, Front]],
) -> None:
    (engine, front), _ = engines
    client = Client()
    client.ask(front, 1)
    for wrong in (
        {"avatar": "nobody"},
        {"avatar_frame": 99},
        {"part": b"12345", "box": Rect(0, 0, 8, 8)},
        {"part": bytes(96), "box": Rect(158, 0, 8, 8)},
        {"part": bytes(96), "box": Rect(1, 1, 8, 8)},
    ):
        answer, _ = client.ask(front, 2, **wrong)
        assert answer.status == Status.FAILED
        assert answer.reason
    answer, unit = client.ask(front, 3)
    assert answer.status == Status.MADE
    client.viewer.show(unit)
    settle(engine)
    assert engine.registry.avatars["tiny"].users == 0


def test_a_stream_that_has_ended_leaves_nothing(engines: list[tuple[Scheduler, Front]]) -> None:
    (engine, front), _ = engines
    for session in range(3):
        Client(session).ask(front, 1)
    assert try_send(front.jobs, EndStream(1))
    until_true(engine, lambda: len(engine.streams._streams) == 2)
    engine.fronts.detach("front-1")
    assert not engine.streams._streams
    settle(engine)
    assert engine.registry.avatars["tiny"].users == 0
