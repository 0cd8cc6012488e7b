# SPDX-License-Identifier: Apache-2.0
"""What a training is asked to do: the learning rate's course, and what may change later."""

from __future__ import annotations

import msgspec
import pytest

from lipsync_fast.errors import TrainingError
from lipsync_fast.train.options import Options, checked, differing


def test_the_rate_rises_stays_and_falls() -> None:
    options = Options(steps=10_000, rate=1e-3)
    rates = [options.rate_at(step) for step in range(10_000)]
    assert rates[0] == pytest.approx(1e-5)
    assert set(rates[100:7000]) == {1e-3}
    assert rates[7001:] == sorted(rates[7001:], reverse=True)
    assert rates[-1] == pytest.approx(5e-5, rel=0.02)


def test_even_a_single_step_has_a_rate() -> None:
    assert 0 < Options(steps=1).rate_at(0) <= 1e-3


def test_more_steps_may_follow_but_nothing_else_may_change() -> None:
    before = Options(steps=100)
    assert differing(before, Options(steps=200)) == []
    assert differing(before, Options(steps=50)) == ["steps was 100, now 50"]
    changed = msgspec.structs.replace(before, seed=3, sync_loss=0.5)
    assert differing(before, changed) == ["sync-loss was 0.0, now 0.5", "seed was 0, now 3"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Options(steps=1, region=330), "--region 330"),
        (Options(steps=1, region=96), "--region: expected"),
        (Options(steps=1, width=7), "--width 7"),
        (Options(steps=1, batch=1), "--batch: expected"),
        (Options(steps=1, after=9), "--after: expected"),
        (Options(steps=1, rate=-1.0), "--rate: expected"),
        (Options(steps=1, gain="loud"), "--gain: invalid"),  # type: ignore[arg-type]
        (Options(steps=1, precision="fp16"), "--precision fp16 needs a GPU"),
    ],
)
def test_what_cannot_be_is_named(wrong: Options, said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        checked(wrong)


def test_trainings_begun_before_there_was_a_gain_go_on_without() -> None:
    old = msgspec.to_builtins(Options(steps=100, recipe="follow"))
    del old["gain"]
    former = msgspec.convert(old, Options)
    assert not former.audio.levelled
    now = msgspec.structs.replace(former, gain="auto")
    assert differing(former, now) == ["gain was none, now auto"]


def test_whether_levels_are_evened_out_goes_into_the_manifest() -> None:
    assert msgspec.json.encode(Options(steps=1).audio) == b'{"before":8,"after":8}'
    assert Options(steps=1, gain="auto").audio.levelled


def test_the_look_ahead_goes_into_the_manifest() -> None:
    assert Options(steps=1).audio.lookahead_samples == 7240
    assert (Options(steps=1, after=2).audio.before, Options(steps=1, after=2).audio.after) == (
        14,
        2,
    )
