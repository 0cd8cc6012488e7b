# SPDX-License-Identifier: Apache-2.0
"""A session's stream: whatever is lost on the way, its client can show all that it gets."""

from __future__ import annotations

import itertools
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import small_manifest

from lipsync_fast.errors import ProtocolError, SocketClosedError
from lipsync_fast.frontend.engines.engine_link import Pending
from lipsync_fast.frontend.playout.playout import Appearance, Flag, Picture
from lipsync_fast.frontend.session import stream as module
from lipsync_fast.frontend.session.outbox import Item, Outbox
from lipsync_fast.frontend.session.stream import KEY_EVERY_NS, MOST_AT_ONCE, StreamSender
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import Answer, Coding, Content, Encode, Look, Status
from lipsync_fast_client.protocol import (
    MediaFlag,
    MediaHeader,
    MediaType,
    VideoKeyframe,
    decode_client,
    unpack_media,
)

LATE_FRAMES = 12
APPEARANCE = Appearance(small_manifest((64, 48)), "x@1", Look(Content.PIXELS), Coding(27))


class Socket:
    """Takes what it is given while it is open."""

    peer, port, kind, subprotocol = "x", 1, "stream", None
    unsent = False

    def __init__(self) -> None:
        self.open = True
        self.got: list[str | bytes] = []

    def send_now(self, data: str | bytes) -> bool:
        if self.open:
            self.got.append(data)
        return self.open

    async def send(self, data: str | bytes) -> None:
        raise AssertionError

    async def receive(self) -> str | bytes:
        raise SocketClosedError

    async def flush(self) -> None:
        pass

    async def close(self, code: int = 1000, reason: str = "") -> None:
        pass


class Rig:
    """A stream's sender, with an engine that is played, a clock that is set, and a decoder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch | None = None, paced: bool = True) -> None:
        self.now_ns = 1_000_000_000_000
        self.socket = Socket()
        self.skipped = 0
        self.outbox = Outbox(self.socket, LATE_FRAMES, self._left_out if paced else None)
        self.asked: deque[Pending] = deque()
        self.ended: list[int] = []
        self.alarm = SimpleNamespace(due_ns=None, ring=lambda: None)
        self.alarm.set = lambda when: setattr(self.alarm, "due_ns", when)
        self.alarm.close = lambda: setattr(self.alarm, "due_ns", None)

        def alarm(call: Any) -> Any:
            self.alarm.ring = call
            return self.alarm

        services: Any = SimpleNamespace(
            pool=SimpleNamespace(submit=self.asked.append, end_stream=self.ended.append),
            numbers=SimpleNamespace(session=lambda: 7),
            timer=SimpleNamespace(alarm=alarm),
        )
        self.sender = StreamSender(services, self.outbox, paced, self._left_out, lambda: 1)
        self.sequence = itertools.count()
        self.encoded = 0
        """What the engine's encoder has made last."""
        self.sent_bytes: list[int] = []

    def _left_out(self, frames: int) -> None:
        self.skipped += frames

    def picture(self, jpeg: bytes | None = None) -> None:
        """A slot has come."""
        number = next(self.sequence)
        box = Rect(0, 0, 8, 8)
        shown = Picture(
            number, number * 40_000_000, 3, Flag.IDLE, 0, jpeg, box, appearance=APPEARANCE
        )
        header = MediaHeader(type=MediaType.H264, sequence=number, box=Rect(0, 0, 64, 48))
        self.sender.send(shown, header, self.sent_bytes.append)

    def answer(self, status: Status = Status.MADE) -> None:
        """The engine is done with the next one."""
        pending = self.asked.popleft()
        encode = pending.job
        assert isinstance(encode, Encode)
        key = encode.after == 0 or encode.after != self.encoded
        data = b""
        if status == Status.MADE:
            data = b"%d after %d" % (encode.number, 0 if key else self.encoded)
            self.encoded = encode.number
        reply = Answer(encode.session, 0, encode.number, status, key=key and bool(data))
        pending.answered(reply, memoryview(data))

    def flow(self) -> None:
        """The client reads what waits."""
        self.socket.open = True
        self.outbox._go_on()

    def shown(self) -> list[int]:
        """Numbers of the access units that the client got; each can be shown."""
        last, numbers, before = -1, [], -1
        for message in self.socket.got:
            if isinstance(message, str):
                continue
            header, payload = unpack_media(message)
            number, after = (int(n) for n in bytes(payload).split(b" after "))
            assert (after == 0) == bool(header.flags & MediaFlag.KEY)
            assert after in (0, last), "it builds on what the client has not got"
            assert number > last
            assert header.sequence > before
            last, before = number, header.sequence
            numbers.append(number)
        return numbers


def test_pictures_go_out_in_order_with_what_is_said_between_them() -> None:
    rig = Rig()
    for k in range(3):
        rig.picture()
        rig.outbox.post(Item(f"message {k}"))
    assert rig.socket.got == []
    rig.answer()
    rig.answer()
    assert [m for m in rig.socket.got if isinstance(m, str)] == ["message 0", "message 1"]
    rig.answer()
    assert rig.shown() == [1, 2, 3]
    kinds = [type(m) for m in rig.socket.got]
    assert kinds == [bytes, str] * 3
    assert rig.sent_bytes == [len(b"1 after 0")] * 3


def test_what_is_asked_for() -> None:
    rig = Rig()
    rig.picture()
    rig.picture(b"planes")
    own, spoken = rig.asked
    assert own.job == Encode(7, 0, 1, 0, 0, 1, "x@1", 3, Coding(27))
    assert len(own.pcm) == 0
    assert spoken.job == Encode(7, 0, 2, 1, 1, 1, "x@1", 3, Coding(27), Rect(0, 0, 8, 8))
    assert bytes(spoken.pcm) == b"planes"
    assert own.lost(own.job) is own.job, "it goes to another engine as it is"


def test_where_encoding_takes_long_pictures_are_left_out_before_it() -> None:
    rig = Rig()
    for _ in range(20):
        rig.picture()
    assert len(rig.asked) == MOST_AT_ONCE
    assert rig.skipped == 20 - MOST_AT_ONCE
    while rig.asked:
        rig.answer()
    rig.picture()
    rig.answer()
    assert rig.shown() == [1, 2, 3, 4, 5]
    assert sum(b"after 0" in m for m in rig.socket.got if isinstance(m, bytes)) == 1


def test_a_burst_leaves_nothing_out() -> None:
    rig = Rig(paced=False)
    for _ in range(20):
        rig.picture()
    while rig.asked:
        rig.answer()
    assert rig.shown() == list(range(1, 21))
    assert rig.skipped == 0


def test_a_slow_reader_gets_a_key_frame_when_it_reads_again() -> None:
    rig = Rig()
    rig.picture()
    rig.answer()
    rig.socket.open = False
    for _ in range(2 * LATE_FRAMES):
        rig.picture()
        if rig.asked:
            rig.answer()
    assert rig.outbox.frames == 1, "the newest that it could begin with"
    encoded = rig.encoded
    assert encoded == LATE_FRAMES + 3, "none is encoded that would not be sent"
    rig.flow()
    for _ in range(2):
        rig.picture()
        rig.answer()
    assert rig.shown() == [1, encoded, encoded + 1, encoded + 2]
    assert len(rig.shown()) + rig.skipped == 2 * LATE_FRAMES + 3


def test_behind_an_interruption_comes_nothing_of_before_and_then_a_key_frame() -> None:
    rig = Rig()
    for _ in range(3):
        rig.picture()
    rig.answer()
    rig.outbox.drop_media()
    rig.outbox.post(Item("interrupted"))
    assert rig.socket.got[-1] == "interrupted", "it waits for nothing"
    rig.picture()
    for _ in range(3):
        rig.answer()
    assert rig.shown() == [1, 4]
    assert rig.asked == deque()


def test_what_was_not_interrupted_on_its_way_needs_no_key_frame() -> None:
    rig = Rig()
    for _ in range(2):
        rig.picture()
        rig.answer()
        rig.outbox.drop_media()
    assert [b"after 0" in m for m in rig.socket.got] == [True, False]  # type: ignore[operator]


@pytest.mark.parametrize("status", [Status.FAILED, Status.SKIPPED])
def test_one_that_was_not_made_holds_up_nothing(status: Status) -> None:
    rig = Rig()
    for _ in range(3):
        rig.picture()
    rig.answer()
    rig.answer(status)
    rig.answer()
    rig.picture()
    rig.answer()
    assert rig.shown() == [1, 3, 4]
    assert rig.skipped == 1


@pytest.mark.parametrize("paced", [True, False])
def test_one_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch, paced: bool) -> None:
    rig = Rig(paced=paced)
    monkeypatch.setattr(module.time, "monotonic_ns", lambda: rig.now_ns)
    rig.picture()
    rig.outbox.post(Item("behind it"))
    due = rig.alarm.due_ns
    assert due == rig.now_ns + (module.GIVE_UP_NS if paced else module.GIVE_UP_BURST_NS)
    rig.now_ns, rig.alarm.due_ns = due, None
    lost = rig.asked[0]
    rig.alarm.ring()
    assert rig.socket.got == ["behind it"]
    assert lost.lost(lost.job) is None, "it is sent to no other engine"
    rig.answer()  # too late
    rig.picture()
    rig.answer()
    assert rig.shown() == [2]


def test_key_frames_that_are_asked_for_are_two_a_second_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig()
    monkeypatch.setattr(module.time, "monotonic_ns", lambda: rig.now_ns)
    for _ in range(100):
        for _ in range(40):  # a thousand a second
            rig.sender.want_key()
        rig.picture()
        rig.answer()
        rig.now_ns += 40_000_000
    keys = sum(m.endswith(b"after 0") for m in rig.socket.got if isinstance(m, bytes))
    assert len(rig.shown()) == 100
    assert 1 < keys <= 1 + 4_000_000_000 // KEY_EVERY_NS


def test_at_the_end_the_engine_is_told() -> None:
    rig = Rig()
    rig.picture()
    rig.sender.close()
    assert rig.ended == [7]
    assert rig.asked[0].lost(rig.asked[0].job) is None


ACTS = ["picture", "answer", "fail", "skip", "another engine", "block", "flow", "interrupt", "key"]


@given(st.lists(st.sampled_from(["picture", "answer", *ACTS]), max_size=120), st.booleans())
def test_whatever_is_lost_the_client_can_show_what_it_gets(acts: list[str], paced: bool) -> None:
    rig = Rig(paced=paced)
    for act in acts:
        if act == "picture" and (paced or rig.outbox.has_room):
            rig.picture(b"x")
        elif act in ("answer", "fail", "skip") and rig.asked:
            status = {"answer": Status.MADE, "fail": Status.FAILED, "skip": Status.SKIPPED}[act]
            rig.answer(status)
        elif act == "another engine":
            rig.encoded = -1
        elif act == "block":
            rig.socket.open = False
        elif act == "flow":
            rig.flow()
        elif act == "interrupt":
            rig.outbox.drop_media()
        elif act == "key":
            rig.sender.want_key()
        rig.shown()
    rig.flow()
    while rig.asked:
        rig.answer()
    before = len(rig.shown())
    for _ in range(3):  # when all is well again, all is shown
        rig.picture(b"x")
        rig.answer()
    assert len(rig.shown()) == before + 3
    assert rig.outbox.frames == 0


# ---------------------------------------------------------------- what clients ask for
def start(video: str) -> Any:
    return decode_client(f'{{"type": "session.start", "video": {video}}}')


def test_a_stream_is_asked_for() -> None:
    video = start('{"codec": "h264", "bitrate": 500000, "quality": 70, "max_width": 640}').video
    assert (video.codec, video.bitrate, video.quality, video.max_width) == (
        "h264",
        500_000,
        70,
        640,
    )
    assert decode_client('{"type": "video.keyframe"}') == VideoKeyframe()


@pytest.mark.parametrize(
    "video",
    [
        '{"codec": "h265"}',
        '{"codec": "h264", "content": "mouth"}',
        '{"codec": "h264", "bitrate": 0}',
        '{"codec": "h264", "bitrate": -1}',
        '{"codec": "h264", "bitrate": 1e12}',
        '{"codec": "h264", "bitrate": "fast"}',
        '{"codec": "h264", "quality": 0}',
        '{"codec": "jpeg", "bitrate": 500000}',
        '{"bitrate": 500000}',
        '{"codec": null}',
    ],
)
def test_what_cannot_be_is_said(video: str) -> None:
    with pytest.raises(ProtocolError, match=r"codec|bitrate|content|quality|video"):
        start(video)
