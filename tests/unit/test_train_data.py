# SPDX-License-Identifier: Apache-2.0
"""What a training step learns from: which frames, in which order, as which arrays."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lipsync_fast.errors import TrainingError
from lipsync_fast.train.data import Crops, Data, Feed, Order, looked_at, split

REGION, SIDE = 224, 232


class Pictures:
    """Frame i is of one colour; counts how often frames are decoded."""

    def __init__(self, count: int) -> None:
        self.count, self.decoded = count, 0

    def __len__(self) -> int:
        return self.count

    def crop(self, index: int, side: int) -> NDArray[np.uint8]:
        self.decoded += 1
        return np.full((side, side, 3), (index, index + 1, index + 2), np.uint8)


class Sound:
    def block(self, index: int) -> NDArray[np.float32]:
        return np.full((32, 16, 16), index, np.float32)


def test_every_frame_is_seen_once_before_one_is_seen_again() -> None:
    order = Order(range(10, 40), batch=4, seed=7)
    seen = [sample[0] for step in range(15) for sample in order.step(step)]
    assert sorted(seen[:30]) == list(range(10, 40))
    assert sorted(seen[30:60]) == list(range(10, 40))
    assert seen[:30] != seen[30:60]
    assert {sample[0] for step in range(8) for sample in order.step(step)} == set(range(10, 40))


def test_a_step_is_the_same_whatever_was_asked_before() -> None:
    asked = Order(range(30), batch=4, seed=7)
    forwards = [asked.step(step) for step in range(40)]
    assert [Order(range(30), 4, 7).step(step) for step in reversed(range(40))] == forwards[::-1]
    assert Order(range(30), 4, 8).step(0) != forwards[0]


def test_another_frame_lies_beside_and_another_moment_is_heard() -> None:
    order = Order(range(30), batch=4, seed=7)
    for step in range(50):
        for wanted, shown, other in order.step(step):
            assert shown != wanted
            assert 5 <= (other - wanted) % 30 <= 25


def test_held_out_frames_lie_together_and_are_not_learnt_from() -> None:
    learnt, held = split(1000)
    assert sorted([*learnt, *held]) == list(range(1000))
    assert 50 <= len(held) <= 100
    assert {held[k + 1] - held[k] for k in range(24)} == {1}


@pytest.mark.parametrize("count", [50, 61, 130, 299, 4500])
def test_something_is_always_held_out(count: int) -> None:
    learnt, held = split(count)
    assert count // 20 <= len(held) <= count // 8
    assert sorted([*learnt, *held]) == list(range(count))


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(TrainingError, match="49 frames are too few"):
        split(49)


def test_a_batch_is_what_the_reference_is_trained_on() -> None:
    batch = Data(Crops(Pictures(60), REGION), Sound()).batch([(10, 20, 30)])
    image, target = batch.image[0], batch.target[0]
    blue, green, red = (np.float32(v) / np.float32(255) for v in (22, 21, 20))
    assert (image[0] == blue).all()
    assert (image[1] == green).all()
    assert (image[2] == red).all()  # another frame of the same person, whole
    assert (target[0] == np.float32(12) / np.float32(255)).all()
    masked = np.zeros((REGION, REGION), bool)
    masked[5 : REGION - 10, 5 : REGION - 5] = True
    assert (image[3:][:, masked] == 0).all()  # the target, with its face masked
    assert (image[3:][:, ~masked] == target[:, ~masked]).all()
    assert (batch.audio == 10).all()
    assert (batch.other == 30).all()
    assert {a.dtype for a in batch} == {np.dtype(np.float32)}


def test_crops_are_kept_within_a_budget() -> None:
    pictures = Pictures(60)
    data = Crops(pictures, REGION, cache_bytes=10 * 3 * SIDE * SIDE)
    for index in (*range(20), *range(10, 20)):
        data.crop(index)
    assert pictures.decoded == 20
    data.crop(0)
    assert pictures.decoded == 21


def test_batches_come_in_order_from_many_threads() -> None:
    data, order = Data(Crops(Pictures(60), REGION), Sound()), Order(range(60), 2, seed=1)
    with Feed(lambda step: data.batch(order.step(step)), 5, 12, workers=4) as feed:
        for step in range(5, 12):
            wanted = data.batch(order.step(step))
            assert all(map(np.array_equal, feed.next(), wanted))


def test_a_validation_looks_at_held_out_frames_beside_others() -> None:
    held = [*range(100, 150), *range(400, 450)]
    samples = looked_at(held)
    assert len(samples) == 48
    assert {wanted for wanted, _, _ in samples} <= set(held)
    assert all(shown in held and abs(shown - wanted) > 20 for wanted, shown, _ in samples)
