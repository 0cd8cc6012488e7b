# SPDX-License-Identifier: Apache-2.0
"""A student's marks: what they tell apart, tried with answers of the teacher's own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lipsync_fast.avatars.library import shipped_folder
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.geometry import Rect

pytest.importorskip("torch", reason="the extra train is not installed")

from lipsync_fast.train import exam as exams
from lipsync_fast.train import speech as speeches
from lipsync_fast.train.exam import Exam
from lipsync_fast.train.hearing import Sounds
from lipsync_fast.train.speech import learnt_and_held, read_speech
from lipsync_fast.train.teacher import Seat, Teacher, window_in

KINDS = 6


@pytest.fixture(scope="module")
def teacher() -> Iterator[Teacher]:
    with AvatarPackage.open(shipped_folder() / "demo.lsa") as package, Teacher(package, 1) as made:
        yield made


@pytest.fixture(scope="module")
def sounds(teacher: Teacher) -> tuple[Sounds, Sounds]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(speeches, "ENOUGH_S", 1.0)
        speech, warnings = read_speech((), teacher.package.manifest.audio)
        assert not warnings
        return learnt_and_held(speech, teacher.features, teacher.package.manifest.audio, 0)


@pytest.fixture(scope="module")
def exam(teacher: Teacher, sounds: tuple[Sounds, Sounds]) -> Exam:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exams, "FRAMES", 2)
        patched.setattr(exams, "SOUNDS", KINDS)
        return Exam(teacher, Seat(teacher, 256), range(100), sounds[1], 0)


@pytest.fixture(scope="module")
def answers(teacher: Teacher, exam: Exam) -> list[np.ndarray]:
    return teacher.made(exam.frames, exam.blocks)


def test_the_teacher_itself_has_the_best_marks(exam: Exam, answers: list[np.ndarray]) -> None:
    marks = exam.marks(answers)
    assert (marks.window, marks.mouth) == (0, 0)
    assert marks.alike.r == pytest.approx(1)
    assert (marks.alike.swing, marks.alike.sharpness) == (pytest.approx(1), pytest.approx(1))
    look = exam.look(answers)
    assert look.sheet[:2] == b"\xff\xd8"
    assert b"trainedAlgorithmicMedia" in look.sheet


def test_a_mouth_that_does_something_else_has_worse_ones(
    exam: Exam, answers: list[np.ndarray]
) -> None:
    still = [answers[k - k % KINDS] for k in range(len(answers))]
    marks = exam.marks(still)
    assert (marks.alike.r, marks.alike.swing) == (0, pytest.approx(0, abs=1e-6))
    assert marks.mouth > 1
    assert marks.mouth > marks.window, "what is off is off at the mouth"
    other = [answers[k - k % KINDS + (k + KINDS // 2) % KINDS] for k in range(len(answers))]
    assert exam.marks(other).alike.r < 0.8
    assert exam.marks(other).alike.swing == pytest.approx(1)


def test_what_is_soft_has_less_sharpness(exam: Exam, answers: list[np.ndarray]) -> None:
    blur = ImageFilter.GaussianBlur(1.5)
    soft = [np.asarray(Image.fromarray(one).filter(blur)) for one in answers]
    marks = exam.marks(soft)
    assert marks.alike.sharpness < 0.5
    assert marks.alike.r > 0.95


def test_the_mouth_is_where_sound_moves_the_picture(teacher: Teacher, exam: Exam) -> None:
    box, window = exam.mouth, teacher.window
    assert box.width * box.height < 0.6 * window.width * window.height
    assert box in Rect(0, 0, window.width, window.height)
    assert teacher.region * 0.3 < window.x + box.x + box.width / 2 < teacher.region * 0.7


def test_a_smaller_seat_shows_the_same_place(
    teacher: Teacher, exam: Exam, answers: list[np.ndarray]
) -> None:
    seat = Seat(teacher, 224)
    target = seat.target(exam.frames[0], answers[0], seat.window)
    assert target.shape == (3, seat.window.height, seat.window.width)
    small = np.clip(255 * target, 0, 255).astype(np.uint8)[::-1].transpose(1, 2, 0)
    back = seat.as_taught(exam.frames[0], np.ascontiguousarray(small))
    off = np.abs(back.astype(int) - answers[0])
    assert back.shape == answers[0].shape
    assert off.mean() < 2
    moved = np.abs(np.roll(back, 3, 1).astype(int) - answers[0])
    assert off.mean() < 0.6 * moved.mean(), "three pixels aside it would show"
    same = Seat(teacher, 256)
    exact = same.target(exam.frames[0], answers[0], same.window)
    assert np.array_equal((255 * exact).astype(np.uint8)[::-1].transpose(1, 2, 0), answers[0])


def test_windows_in_other_regions() -> None:
    window = Rect(12, 16, 219, 168)
    assert window_in(window, 256, 256) == window
    small = window_in(window, 256, 224)
    assert small == Rect(10, 13, 193, 149)
    assert window_in(Rect(0, 0, 320, 320), 320, 256) == Rect(0, 0, 256, 256)


def test_what_is_held_out_is_not_among_what_is_learnt(sounds: tuple[Sounds, Sounds]) -> None:
    learnt, held = sounds
    blocks = np.stack([learnt.block(i).ravel() for i in range(len(learnt))])
    for i in (10, 25, 40):
        near = np.abs(blocks - held.block(i).ravel()).mean(1).min()
        assert near > 1e-3
    assert 45 <= len(held) <= 60
