# SPDX-License-Identifier: Apache-2.0
"""The steps of a training, and everything that they change.

    order(step) -> frames -> image, target, audio     (data.py, threads, a little ahead)
    network(image, audio) -> made
    pixel + 0.01 perceptual + weight x sync -> gradients -> Adam
    every so often: held-out frames -> best weights; checkpoint (state.py)

On the CPU in float32 a run is repeatable bit for bit (deterministic algorithms, a fixed number of
threads), also when it is killed on the way and goes on from a checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from lipsync_fast.errors import TrainingError
from lipsync_fast.models.unet import UNet
from lipsync_fast.train.data import Batch, Data, Feed, Order
from lipsync_fast.train.losses import PERCEPTUAL_WEIGHT, Perceptual, pixel_loss
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
from lipsync_fast.train.sync import PairNetwork, pair_loss, sync_loss
from lipsync_fast.train.validate import Validation

MOST_GRADIENT = 10.0
"""Longer gradients are shortened: one odd frame shall not undo what was learnt."""
PAIR_RATE = 3e-4
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Learning:
    """What a training learns from, and by.

    Attributes:
        data: frames and sound.
        order: which frames each step sees.
        validation: the held-out frames.
        key: hash of all that.
        start: weights to begin with, or None.
        perceptual: the loss, where its weights are at hand.
        workers: threads that make batches.
        save_every: steps between two checkpoints.
    """

    data: Data
    order: Order
    validation: Validation
    key: str
    start: dict[str, Tensor] | None
    perceptual: Perceptual | None
    workers: int
    save_every: int


class Trainer:
    """One training; ``run`` does what is left of it.

    Args:
        options: what was asked for.
        learning: what from.
        work: the folder, locked by the caller.
        state: a former run's checkpoint, to go on from.
    """

    def __init__(
        self, options: Options, learning: Learning, work: Work, state: State | None
    ) -> None:
        self.options, self.work = options, work
        self._learning = learning
        self.device = torch.device(options.device)
        torch.manual_seed(options.seed)
        self.net = UNet(options.width, options.region)
        if learning.start is not None and state is None:
            self.net.load_state_dict(learning.start)
        self.pairs = PairNetwork(options.region) if options.sync_loss > 0 else None
        cast(Any, self.net.train()).to(self.device, memory_format=torch.channels_last)
        self._perceptual = learning.perceptual
        if self._perceptual is not None:
            self._perceptual.to(self.device)
        self._optimiser = torch.optim.Adam(self.net.parameters(), options.rate)
        self._pair_optimiser: torch.optim.Adam | None = None
        if self.pairs is not None:
            self.pairs.to(self.device)
            self._pair_optimiser = torch.optim.Adam(self.pairs.parameters(), PAIR_RATE)
        self._scaler = torch.amp.GradScaler(
            options.device, enabled=options.precision == "fp16" and options.device == "cuda"
        )
        self.step = 0
        self.best: Best | None = None
        self.seconds = 0.0
        self._kept = (0, 0)
        if state is not None:
            self._take_up(state)

    def _take_up(self, state: State) -> None:
        """Everything as it was at a checkpoint."""
        t = state.tensors
        self.net.load_state_dict(t["net"])
        self._optimiser.load_state_dict(t["optimiser"])
        if self.pairs is not None and self._pair_optimiser is not None:
            self.pairs.load_state_dict(t["pairs"])
            self._pair_optimiser.load_state_dict(t["pair_optimiser"])
        self._scaler.load_state_dict(t["scaler"])
        torch.set_rng_state(t["random"])
        if t["device_random"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(t["device_random"])
        self.step, self.best, self.seconds = state.step, state.best, state.seconds
        self._kept = state.logs

    def _state(self) -> State:
        tensors: dict[str, Any] = {
            "net": self.net.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "pairs": None if self.pairs is None else self.pairs.state_dict(),
            "pair_optimiser": self._pair_optimiser and self._pair_optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
        }
        return State(
            options=self.options,
            data=self._learning.key,
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
        work, learning = self.work, self._learning
        with contextlib.ExitStack() as stack:
            log = Log(work.folder / LOG, self._kept[0])
            stack.callback(log.close)
            looks = Log(work.folder / VALIDATION, self._kept[1])
            stack.callback(looks.close)
            feed = stack.enter_context(
                Feed(learning.data, learning.order, self.step, self.options.steps, learning.workers)
            )
            stop = stack.enter_context(Stop())
            stack.enter_context(repeatable(self.options))
            stack.callback(progress.clear)
            begun = time.monotonic() - self.seconds
            saved = self.step
            while self.step < self.options.steps and stop.signal is None:
                line = self._learn(feed.next())
                log.add(line)
                progress.step(self.step, self.options.steps, line["loss"])
                self.seconds = time.monotonic() - begun
                self._kept = (log.bytes, looks.bytes)
                last = self.step == self.options.steps
                if last or self.step % self.options.validate_every == 0:
                    self._look(looks, progress)
                elif self.step % learning.save_every:
                    continue
                self._kept = (log.bytes, looks.bytes)
                self._save()
                saved = self.step
            if stop.signal is not None:
                if saved != self.step:
                    self._save()
                progress.say(f"stopped after step {self.step}; the same command goes on from there")
                raise Stop.reason(stop.signal)

    def _save(self) -> None:
        if not all(bool(torch.isfinite(p).all()) for p in self.net.parameters()):
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

    def _learn(self, batch: Batch) -> dict[str, float]:
        """One step; returns its line of the log."""
        rate = self.options.rate_at(self.step)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        image, target, audio, other = (self._moved(torch.from_numpy(a)) for a in batch)
        judged = self._judge(target, audio, other)
        with self._autocast():
            made = self.net(image, audio)
        made = made.float()
        parts = {"pixel": pixel_loss(made, target)}
        loss = parts["pixel"]
        if self._perceptual is not None:
            with self._autocast():
                parts["perceptual"] = self._perceptual(made, target)
            loss = loss + PERCEPTUAL_WEIGHT * parts["perceptual"].float()
        if self.pairs is not None:
            parts["sync"] = sync_loss(self.pairs, made, audio)
            loss = loss + self.options.sync_loss * parts["sync"]
        total = loss.item()
        if not math.isfinite(total):
            raise self._lost("the loss is not a number any more")
        self._optimiser.zero_grad(set_to_none=True)
        cast(Any, self._scaler.scale(loss)).backward()
        self._scaler.unscale_(self._optimiser)
        length = nn.utils.clip_grad_norm_(self.net.parameters(), MOST_GRADIENT)
        if not self._scaler.is_enabled() and not math.isfinite(length.item()):
            raise self._lost("gradients that are no numbers any more")
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self.step += 1
        line: dict[str, float] = {"step": self.step, "loss": total, "rate": rate}
        return line | {name: part.item() for name, part in parts.items()} | judged

    def _judge(self, target: Tensor, audio: Tensor, other: Tensor) -> dict[str, float]:
        """Let the judge of pairs learn from real frames, then hold it still."""
        if self.pairs is None or self._pair_optimiser is None:
            return {}
        self.pairs.requires_grad_(True)
        loss = pair_loss(self.pairs, target, audio, other)
        self._pair_optimiser.zero_grad(set_to_none=True)
        cast(Any, loss).backward()
        self._pair_optimiser.step()
        self.pairs.requires_grad_(False)
        return {"pair": loss.item()}

    def _moved(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, memory_format=torch.channels_last, non_blocking=True)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type,
            _DTYPES[self.options.precision],
            enabled=self.options.precision != "fp32",
        )

    def _look(self, looks: Log, progress: StepProgress) -> None:
        """Look at the held-out frames; keep the weights where they are the best so far."""
        look = self._learning.validation.look(self.net, self.device)
        found = Best(self.step, look.loss, look.mouth)
        if not math.isfinite(look.loss):
            raise self._lost("held-out frames that are no numbers any more")
        better = self.best is None or look.loss < self.best.loss
        if better:
            self.work.save_tensors(found.file, self.net.state_dict())
            self.work.save_bytes(BEST_SHEET, look.sheet)
            self.best = found
        self.work.save_bytes(SHEET, look.sheet)
        looks.add({"step": self.step, "loss": look.loss, "mouth": look.mouth})
        mark = ", the best so far" if better else ""
        progress.say(
            f"step {self.step}: held-out frames differ by {look.loss:.2f} grey levels,"
            f" {look.mouth:.2f} at the mouth{mark}"
        )
        progress.resting()


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
