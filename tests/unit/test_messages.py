# SPDX-License-Identifier: Apache-2.0
"""Records of the rings: what goes in comes out, and nothing else is taken for one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync_fast.errors import MessageError
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import (
    Answer,
    Cancel,
    Content,
    Job,
    Look,
    Speech,
    Status,
    StoreMode,
    read_answer,
    read_job,
    samples_of,
    try_send,
)
from lipsync_fast.ipc.ring import RingHandle, RingReader, RingWriter

COUNTS = st.integers(0, (1 << 62) - 1)
JOBS = st.builds(
    Job,
    session=COUNTS,
    epoch=COUNTS,
    number=COUNTS,
    avatar=st.text(min_size=1, max_size=50),
    avatar_frame=COUNTS,
    deadline_ns=COUNTS,
    look=st.builds(
        Look,
        content=st.sampled_from(Content),
        quality=st.none() | st.integers(1, 100),
        max_width=st.none() | st.integers(16, 8192),
    ),
    speech=st.none()
    | st.builds(
        Speech,
        stream=COUNTS,
        frame=st.integers(-(1 << 40), 1 << 40),
        samples=st.none() | COUNTS,
        first=COUNTS,
        share=st.floats(0, 1),
        store=st.sampled_from(StoreMode),
    ),
)
CANCELS = st.builds(Cancel, session=COUNTS, epoch=COUNTS)
ANSWERS = st.builds(
    Answer,
    session=COUNTS,
    epoch=COUNTS,
    number=COUNTS,
    status=st.sampled_from(Status),
    box=st.builds(Rect, *[st.integers(0, 65_535)] * 4),
    reason=st.text(max_size=100),
    taken_ns=COUNTS,
    made_ns=COUNTS,
)


@pytest.fixture(scope="module")
def ring() -> Iterator[tuple[RingWriter, RingReader]]:
    handle = RingHandle.create(1 << 16, 1)
    yield RingWriter(handle), RingReader(handle)
    handle.close()


@settings(max_examples=100)
@given(header=JOBS | CANCELS | ANSWERS, payload=st.binary(max_size=3000))
def test_round_trip(
    ring: tuple[RingWriter, RingReader], header: Job | Cancel | Answer, payload: bytes
) -> None:
    writer, reader = ring
    assert try_send(writer, header, payload)
    record = reader.next()
    assert record is not None
    found, rest = read_answer(record) if isinstance(header, Answer) else read_job(record)
    assert found == header
    assert bytes(rest) == payload
    reader.release()


@settings(max_examples=200)
@given(data=st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_worse(data: bytes) -> None:
    with contextlib.suppress(MessageError):
        job, _ = read_job(memoryview(data))
        assert isinstance(job, Job | Cancel)
    with contextlib.suppress(MessageError):
        answer, _ = read_answer(memoryview(data))
        assert isinstance(answer, Answer)


def test_a_record_of_the_other_direction_is_refused(ring: tuple[RingWriter, RingReader]) -> None:
    """Also a cancellation for a job, and the reverse: each is read as what it was sent as."""
    writer, reader = ring
    job, cancel = Job(1, 2, 3, "demo", 4, 5), Cancel(1, 2)
    for header in (job, cancel, Answer(1, 2, 3, Status.MADE)):
        assert try_send(writer, header)
        record = reader.next()
        assert record is not None
        if isinstance(header, Answer):
            with pytest.raises(MessageError, match="no job"):
                read_job(record)
        else:
            assert type(read_job(record)[0]) is type(header)
            with pytest.raises(MessageError, match="no answer"):
                read_answer(record)
        reader.release()


def test_samples_lie_where_they_came(ring: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ring
    pcm = np.linspace(-1, 1, 1001, dtype=np.float32)
    job = Job(1, 2, 3, "demo", 4, 5, speech=Speech(6, 7, None, 8))
    assert try_send(writer, job, pcm.data)
    record = reader.next()
    assert record is not None
    _, payload = read_job(record)
    samples = samples_of(payload)
    assert np.array_equal(samples, pcm)
    assert not samples.flags.owndata
    assert samples.flags.aligned
    reader.release()
    with pytest.raises(MessageError, match="3 bytes"):
        samples_of(memoryview(b"abc"))


def test_a_full_ring_takes_nothing() -> None:
    handle = RingHandle.create(4096, 1)
    writer = RingWriter(handle)
    answer = Answer(1, 1, 1, Status.MADE)
    assert try_send(writer, answer, bytes(3000))
    assert not try_send(writer, answer, bytes(3000))
    with pytest.raises(ValueError, match="the ring holds"):
        try_send(writer, answer, bytes(5000))
    handle.close()
