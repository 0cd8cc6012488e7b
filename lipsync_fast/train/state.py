# SPDX-License-Identifier: Apache-2.0
"""The folder of a training: what it needs to go on after any end, as if there had been none.

    state.pt            the last checkpoint: networks, optimisers, scaler, random numbers, step,
                        how long both logs were then, and which weights were the best so far
    best-STEP.pt        those weights
    hearing.pt          the audio encoder tuned to the film's voice (the way that follows the sound)
    log.jsonl           a line for each step: its losses and its learning rate
    validation.jsonl    a line for each look at held-out frames
    validation.jpg      the held-out frames at the last look: target | output
    best.jpg            the same, of the best weights
    lock                held while a training runs

Every file but the logs appears whole under its name or not at all. A log may be ahead of the
checkpoint when a training is killed; what is ahead is cut off before it goes on.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import torch

from lipsync_fast.errors import CheckpointError, OutputError, TrainingError
from lipsync_fast.train.options import Options
from lipsync_fast.untrusted import limits
from lipsync_fast.untrusted.pickles import check_checkpoint
from lipsync_fast.whole_files import sync_all, write_whole

FORMAT = 1
STATE, LOCK = "state.pt", "lock"
HEARING = "hearing.pt"
LOG, VALIDATION = "log.jsonl", "validation.jsonl"
SHEET, BEST_SHEET = "validation.jpg", "best.jpg"


class Follows(msgspec.Struct, frozen=True):
    """How far a mouth follows the sound, over pictures from another moment.

    Attributes:
        r: the made opening's correlation with the filmed one, for sound that was not learnt from.
        shut: part of the frames in silence whose mouth is shut.
        sharpness: of the made mouth (variance of the Laplacian) against the film's.
        seam: the step across the window's border against those beside it.
    """

    r: float
    shut: float
    sharpness: float
    seam: float


class Alike(msgspec.Struct, frozen=True):
    """How a student's mouth is like its teacher's; see ``avatars.manifest.Student``."""

    r: float
    swing: float
    sharpness: float


class Best(msgspec.Struct, frozen=True):
    """The best look at held-out frames so far.

    Attributes:
        step: steps that had been done.
        loss: mean absolute difference over the region, in grey levels.
        mouth: the same over the mouth.
    """

    step: int
    loss: float
    mouth: float
    follows: Follows | None = None
    alike: Alike | None = None

    def sentence(self) -> str:
        """What is said of it."""
        if self.alike is not None:
            a = self.alike
            return (
                f"the mouth differs from the teacher's by {self.mouth:.2f} grey levels, opens and"
                f" shuts with r {a.r:.3f} and {100 * a.swing:.0f}% of its swing, and has"
                f" {100 * a.sharpness:.0f}% of its sharpness"
            )
        if self.follows is None:
            return (
                f"held-out frames differ by {self.loss:.2f} grey levels, {self.mouth:.2f} at the"
                " mouth"
            )
        f = self.follows
        return (
            f"the mouth follows unheard sound with r {f.r:.2f}, is shut in {100 * f.shut:.0f}% of"
            f" silence, and has {100 * f.sharpness:.0f}% of the film's sharpness"
        )

    @property
    def file(self) -> str:
        """Its weights' name."""
        return f"best-{self.step}.pt"


class State(msgspec.Struct, kw_only=True):
    """Where a training stands.

    Attributes:
        options: what was asked for.
        data: hash of what it learns from.
        step: steps done.
        best: the best look so far.
        seconds: spent.
        logs: bytes of log.jsonl and validation.jsonl.
        tensors: networks, optimisers, scaler and random numbers, as torch gives them.
    """

    options: Options
    data: str
    step: int = 0
    best: Best | None = None
    seconds: float = 0.0
    logs: tuple[int, int] = (0, 0)
    tensors: dict[str, Any]


class Work:
    """The folder.

    Raises:
        OutputError: anything in it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else trains in the folder meanwhile.

        Raises:
            TrainingError: somebody does.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                who = os.pread(handle, 20, 0).decode("ascii", "replace").strip() or "?"
                raise TrainingError(
                    f"{self.folder}: another training runs here (process {who}); wait for it, or"
                    " give this one another folder by --work"
                ) from None
            with suppress(OSError):  # who it is, is only for the message
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(handle)

    def clear(self) -> None:
        """Forget what a former training left."""
        with writing(self.folder):
            for path in list(self.folder.iterdir()):
                if path.name == LOCK:
                    continue
                name = path.name.removesuffix(".part").lstrip(".")
                if path.is_file() and (name in _OWN or _best_step(name) is not None):
                    path.unlink()

    def load(self) -> State | None:
        """The last checkpoint, or None.

        Raises:
            CheckpointError: it cannot be read.
        """
        path = self.folder / STATE
        if not path.exists():
            return None
        try:
            plain = _loaded(path)
            tensors = plain.pop("tensors")
            if plain.pop("format") != FORMAT:
                raise ValueError("another format")
            state = msgspec.convert(plain | {"tensors": {}}, State)
        except Exception as error:  # a damaged pickle can raise anything; nothing of it has run
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{path}: cannot be read ({reason}); begin anew with --restart"
            ) from None
        state.tensors = tensors
        return state

    def save(self, state: State) -> None:
        """Write a checkpoint; the former one stays until it is whole."""
        for name in (LOG, VALIDATION):
            path = self.folder / name
            if path.exists():
                with writing(path):
                    sync_all([path])
        fields = {f: getattr(state, f) for f in state.__struct_fields__ if f != "tensors"}
        plain: dict[str, Any] = msgspec.to_builtins(fields)
        self.save_tensors(STATE, plain | {"format": FORMAT, "tensors": state.tensors})
        self._forget(state.best)

    def save_tensors(self, name: str, what: dict[str, Any]) -> None:
        """Write tensors under a name, whole or not at all."""
        path = self.folder / name
        buffer = io.BytesIO()
        torch.save(what, buffer)
        self.save_bytes(path.name, buffer.getbuffer())

    def save_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Write a file, whole or not at all."""
        path = self.folder / name
        with writing(path):
            write_whole(path, data)

    def best(self, best: Best) -> dict[str, torch.Tensor]:
        """The best weights.

        Raises:
            CheckpointError: they are gone, or damaged.
        """
        path = self.folder / best.file
        try:
            state: dict[str, torch.Tensor] = _loaded(path)
        except Exception as error:  # as in load
            raise CheckpointError(f"{path}: cannot be read ({error})") from None
        return state

    def tensors(self, name: str) -> dict[str, Any] | None:
        """What ``save_tensors`` wrote under a name, or None where it is not there or damaged."""
        try:
            found = _loaded(self.folder / name)
        except Exception:  # as in load; it is made anew
            return None
        return found if isinstance(found, dict) else None

    def losses(self) -> tuple[float, float]:
        """Mean pixel losses of the first and of the last twentieth of the log's steps."""
        with (self.folder / LOG).open("rb") as file:
            values = [msgspec.json.decode(line, type=_Line).pixel for line in file]
        part = max(1, len(values) // 20)
        return sum(values[:part]) / part, sum(values[-part:]) / part

    def _forget(self, best: Best | None) -> None:
        """Remove weights that are not the best any more."""
        for path in self.folder.glob("best-*.pt"):
            if best is None or path.name != best.file:
                with suppress(OSError):
                    path.unlink()


def _loaded(path: Path) -> Any:
    """What a file holds, once it was seen that it holds tensors and plain values alone.

    Prepared folders go from hand to hand, and their trainings with them.
    """
    if path.stat().st_size > limits.CHECKPOINT_BYTES:
        raise ValueError("larger than any checkpoint")
    check_checkpoint(path)
    return torch.load(path, map_location="cpu", weights_only=True)


class _Line(msgspec.Struct):
    pixel: float


_OWN = {HEARING, STATE, LOG, VALIDATION, SHEET, BEST_SHEET}


def _best_step(name: str) -> int | None:
    middle = name.removeprefix("best-").removesuffix(".pt")
    return int(middle) if name == f"best-{middle}.pt" and middle.isdecimal() else None


class Log:
    """A file of JSON lines, each of which is there once, in order, also after kills.

    Args:
        path: the file.
        kept: bytes of it that a checkpoint knows of; the rest is cut off.
    """

    def __init__(self, path: Path, kept: int) -> None:
        self._path = path
        with writing(path):
            self._file = path.open("ab")
            if self._file.tell() < kept:
                self._file.close()
                raise CheckpointError(
                    f"{path}: is shorter than its checkpoint says; begin anew with --restart"
                )
            self._file.truncate(kept)
        self.bytes = kept

    def add(self, line: dict[str, float | int]) -> None:
        """Append a line."""
        data = msgspec.json.encode(line) + b"\n"
        with writing(self._path):
            self._file.write(data)
            self._file.flush()
        self.bytes += len(data)

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # what could not be written has been said
            self._file.close()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of any failure to write which path it was and why.

    Raises:
        OutputError: in place of OSError.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "no space left" if full else error.strerror or str(error)
        raise OutputError(f"{path}: cannot be written ({reason})") from error
