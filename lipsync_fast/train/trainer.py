# SPDX-License-Identifier: Apache-2.0
"""The loop of a training: steps, checkpoints, looks at held-out frames, and every way to end.

    lesson.batch(step) -> lesson.learn(step, batch)     (batches: by threads, a little ahead)
    every so often: lesson.look() -> best weights; checkpoint (state.py)

What is learnt, and how, is a lesson's (reference.py, follow.py). On the CPU in float32 a run is
repeatable bit for bit (deterministic algorithms, a fixed number of threads), also when it is killed
on the way and goes on from a checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from lipsync_fast.errors import TrainingError
from lipsync_fast.train.data import Feed
from lipsync_fast.train.options import Options
from lipsync_fast.train.progress import StepProgress
from lipsync_fast.train.state import (
    BEST_SHEET,
    LOG,
    SHEET,
    VALIDATION,
    Best,
    Log,
    State,
    Work,
)
from lipsync_fast.train.stopping import Stop
from lipsync_fast.train.validate import Look

MOST_GRADIENT = 10.0
"""Longer gradients are shortened: one odd frame shall not undo what was learnt."""
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BatchT = TypeVar("BatchT")


class Lost(Exception):  # noqa: N818
    """Numbers came out that are none; says which. The trainer makes a TrainingError of it."""


class Lesson(Protocol[BatchT]):
    """What a training learns, and all that its steps change."""

    @property
    def net(self) -> nn.Module:
        """Whose weights must stay numbers."""

    def batch(self, step: int) -> BatchT:
        """What a step sees; called by threads, a pure function of the step."""

    def learn(self, step: int, batch: BatchT) -> dict[str, float]:
        """One step; its losses, ``loss`` among them.

        Raises:
            Lost: numbers that are none.
        """

    def look(self) -> Look:
        """How it does on held-out frames."""

    def better(self, found: Best, best: Best) -> bool:
        """Whether a look's weights are to be kept rather than those of the best so far."""

    def kept(self) -> dict[str, Tensor]:
        """The weights as they are packed."""

    def tensors(self) -> dict[str, Any]:
        """All that steps change."""

    def restore(self, tensors: dict[str, Any]) -> None:
        """Take up what ``tensors`` gave."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a training runs.

    Attributes:
        key: hash of all that is learnt from.
        workers: threads that make batches.
        save_every: steps between two checkpoints.
        minutes: of this run, after which it ends with a look and a checkpoint; None: all steps.
    """

    key: str
    workers: int
    save_every: int
    minutes: float | None = None


class Trainer:
    """One training; ``run`` does what is left of it.

    Args:
        options: what was asked for.
        lesson: what is learnt.
        schedule: how.
        work: the folder, locked by the caller.
        state: a former run's checkpoint, to go on from.
    """

    def __init__(
        self,
        options: Options,
        lesson: Lesson[Any],
        schedule: Schedule,
        work: Work,
        state: State | None,
    ) -> None:
        self.options, self.work = options, work
        self._lesson, self._schedule = lesson, schedule
        self.step = 0
        self.best: Best | None = None
        self.seconds = 0.0
        self._kept = (0, 0)
        if state is not None:
            self._take_up(state)

    def _take_up(self, state: State) -> None:
        """Everything as it was at a checkpoint."""
        tensors = state.tensors
        self._lesson.restore(tensors)
        torch.set_rng_state(tensors["random"])
        if tensors["device_random"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["device_random"])
        self.step, self.best, self.seconds = state.step, state.best, state.seconds
        self._kept = state.logs

    def _state(self) -> State:
        on_gpu = self.options.device == "cuda"
        tensors = self._lesson.tensors() | {
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state() if on_gpu else None,
        }
        return State(
            options=self.options,
            data=self._schedule.key,
            step=self.step,
            best=self.best,
            seconds=self.seconds,
            logs=self._kept,
            tensors=tensors,
        )

    def run(self, progress: StepProgress) -> None:
        """Train to the last step, keeping checkpoints.

        Raises:
            TrainingError: a loss is no number any more; the last checkpoint stays.
            OutputError: a file cannot be written; the last checkpoint stays.
            KeyboardInterrupt, SystemExit: a signal came; a checkpoint was written.
        """
        work, lesson, schedule = self.work, self._lesson, self._schedule
        with contextlib.ExitStack() as stack:
            log = Log(work.folder / LOG, self._kept[0])
            stack.callback(log.close)
            looks = Log(work.folder / VALIDATION, self._kept[1])
            stack.callback(looks.close)
            feed = stack.enter_context(
                Feed(lesson.batch, self.step, self.options.steps, schedule.workers)
            )
            stop = stack.enter_context(Stop())
            stack.enter_context(repeatable(self.options))
            stack.callback(progress.clear)
            started = time.monotonic()
            begun = started - self.seconds
            saved, over = self.step, False
            while self.step < self.options.steps and stop.signal is None and not over:
                line = self._learn(feed.next())
                log.add(line)
                over = self._over(time.monotonic() - started)
                progress.step(self.step, self.options.steps, line["loss"])
                self.seconds = time.monotonic() - begun
                self._kept = (log.bytes, looks.bytes)
                last = over or self.step == self.options.steps
                if last or self.step % self.options.validate_every == 0:
                    self._look(looks, progress)
                elif self.step % schedule.save_every:
                    continue
                self._kept = (log.bytes, looks.bytes)
                self._save()
                saved = self.step
            if stop.signal is not None:
                if saved != self.step:
                    self._save()
                progress.say(f"stopped after step {self.step}; the same command goes on from there")
                raise Stop.reason(stop.signal)

    def _over(self, seconds: float) -> bool:
        """Whether this run's time is over."""
        return self._schedule.minutes is not None and seconds >= 60 * self._schedule.minutes

    def _learn(self, batch: object) -> dict[str, float]:
        """One step; its line of the log."""
        try:
            losses = self._lesson.learn(self.step, batch)
        except Lost as lost:
            raise self._lost(str(lost)) from None
        self.step += 1
        return {"step": self.step, **losses}

    def _save(self) -> None:
        if not all(bool(torch.isfinite(p).all()) for p in self._lesson.net.parameters()):
            raise self._lost("weights that are no numbers any more")
        self.work.save(self._state())

    def _lost(self, what: str) -> TrainingError:
        kept = "no checkpoint yet" if not self._has_checkpoint() else "the last checkpoint stays"
        return TrainingError(
            f"step {self.step + 1}: {what} ({kept} in {self.work.folder}); try a lower --rate, or"
            " --precision fp32"
        )

    def _has_checkpoint(self) -> bool:
        return (self.work.folder / "state.pt").exists()

    def _look(self, looks: Log, progress: StepProgress) -> None:
        """Look at the held-out frames; keep the weights where they are the best so far."""
        look = self._lesson.look()
        found = look.best(self.step)
        if not math.isfinite(look.loss):
            raise self._lost("held-out frames that are no numbers any more")
        better = self.best is None or self._lesson.better(found, self.best)
        if better:
            self.work.save_tensors(found.file, self._lesson.kept())
            self.work.save_bytes(BEST_SHEET, look.sheet)
            self.best = found
        self.work.save_bytes(SHEET, look.sheet)
        looks.add({"step": self.step, **look.numbers()})
        mark = ", the best so far" if better else ""
        progress.say(f"step {self.step}: {found.sentence()}{mark}")
        progress.resting()


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A batch's part where it is needed; pictures with their channels last."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    order = torch.channels_last if tensor.dim() == 4 else torch.preserve_format
    return tensor.to(device, memory_format=order, non_blocking=True)


def autocast(options: Options) -> torch.autocast:
    """The precision in which networks run."""
    return torch.autocast(
        options.device, _DTYPES[options.precision], enabled=options.precision != "fp32"
    )


def descend(
    loss: Tensor,
    parameters: Iterable[nn.Parameter],
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> float:
    """One step of an optimiser, its gradients shortened where they are too long; the loss.

    Raises:
        Lost: the loss or gradients are no numbers any more; nothing has changed.
    """
    total = float(loss.item())
    if not math.isfinite(total):
        raise Lost("the loss is not a number any more")
    optimiser.zero_grad(set_to_none=True)
    cast(Any, scaler.scale(loss)).backward()
    scaler.unscale_(optimiser)
    length = nn.utils.clip_grad_norm_(parameters, MOST_GRADIENT)
    if not scaler.is_enabled() and not math.isfinite(length.item()):
        raise Lost("gradients that are no numbers any more")
    scaler.step(optimiser)
    scaler.update()
    return total


@contextmanager
def repeatable(options: Options) -> Iterator[None]:
    """Fixed threads, and on the CPU algorithms that give the same numbers again."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(options.threads)
    if options.device == "cpu":
        torch.use_deterministic_algorithms(True)
    else:
        torch.backends.cudnn.benchmark = True  # all batches are of one shape
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(threads)
