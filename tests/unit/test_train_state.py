# SPDX-License-Identifier: Apache-2.0
"""The folder of a training: nothing in it is half written, and logs agree with checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training import file_limit, lines

from lipsync_fast.errors import CheckpointError, OutputError, TrainingError
from lipsync_fast.train.options import Options
from lipsync_fast.train.state import LOG, STATE, Best, Log, State, Work

OPTIONS = Options(steps=10, seed=3)


def state(step: int, best: Best | None = None) -> State:
    tensors = {"net": {"w": torch.full((1000,), float(step))}}
    return State(
        options=OPTIONS, data="d", step=step, best=best, seconds=1.5, logs=(7, 0), tensors=tensors
    )


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    work = Work(tmp_path)
    assert work.load() is None
    work.save(state(4, Best(3, 1.25, 2.5)))
    found = work.load()
    assert found is not None
    assert (found.options, found.data, found.step, found.seconds) == (OPTIONS, "d", 4, 1.5)
    assert found.best == Best(3, 1.25, 2.5)
    assert found.logs == (7, 0)
    assert torch.equal(found.tensors["net"]["w"], torch.full((1000,), 4.0))


def test_a_full_disk_leaves_the_former_checkpoint(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.save(state(4))
    with file_limit(2000), pytest.raises(OutputError, match="no space left"):
        work.save(state(5))
    found = work.load()
    assert found is not None
    assert found.step == 4
    assert [path.name for path in tmp_path.iterdir()] == [STATE]


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.save(state(4))
    whole = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"state\.pt: cannot be read .* --restart"):
        work.load()


class Bomb:
    """Takes memory when it is read, by a call that torch allows."""

    def __reduce__(self) -> tuple[type[bytearray], tuple[int]]:
        return bytearray, (1 << 20,)


def test_a_checkpoint_that_is_more_than_tensors_is_refused(tmp_path: Path) -> None:
    work, best = Work(tmp_path), Best(3, 1.25, 2.5)
    work.save(state(4, best))
    work.save_tensors(best.file, {"w": torch.zeros(1), "more": Bomb()})
    assert torch.load(tmp_path / best.file, weights_only=True)["more"]  # torch reads it
    with pytest.raises(CheckpointError, match=r"best-3\.pt: cannot be read .*bytearray"):
        work.best(best)
    plain = torch.load(tmp_path / STATE, weights_only=True)
    plain["tensors"]["net"]["more"] = Bomb()
    work.save_tensors(STATE, plain)
    with pytest.raises(CheckpointError, match=r"state\.pt: cannot be read .*bytearray"):
        work.load()


def test_weights_that_are_not_the_best_go_only_when_the_checkpoint_knows(tmp_path: Path) -> None:
    work = Work(tmp_path)
    for step in (2, 4):
        work.save_tensors(f"best-{step}.pt", {"w": torch.zeros(1)})
    work.save(state(3, Best(2, 1.0, 1.0)))
    assert sorted(p.name for p in tmp_path.glob("best-*")) == ["best-2.pt"]


def test_a_log_goes_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    log = Log(tmp_path / LOG, 0)
    log.add({"step": 1, "loss": 0.5})
    kept = log.bytes
    log.add({"step": 2, "loss": 0.25})
    log.close()
    with (tmp_path / LOG).open("a") as file:
        file.write('{"step": 3, "lo')  # as a kill leaves it
    log = Log(tmp_path / LOG, kept)
    log.add({"step": 2, "loss": 0.125})
    log.close()
    assert lines(tmp_path / LOG) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.125}]


def test_a_log_that_was_cut_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text("{}\n")
    with pytest.raises(CheckpointError, match="shorter than its checkpoint"):
        Log(tmp_path / LOG, 100)


def test_two_trainings_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        Work(tmp_path).locked(),
        pytest.raises(TrainingError, match=r"another training runs here \(process \d+\)"),
        Work(tmp_path).locked(),
    ):
        pass
    with Work(tmp_path).locked():
        pass


def test_a_new_beginning_leaves_other_files_alone(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.save(state(4))
    work.save_tensors("best-4.pt", {"w": torch.zeros(1)})
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "best-of-all.pt").write_text("mine")
    work.clear()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best-of-all.pt", "notes.txt"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"), Work(tmp_path / "file/x").locked():
        pass
