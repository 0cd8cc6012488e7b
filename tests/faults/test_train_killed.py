# SPDX-License-Identifier: Apache-2.0
"""A training that is killed, stopped or comes to grief: what it has learnt is kept, to the bit."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forking import Command, Forked
from training import file_limit, lines, prepared, request, start

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.errors import OutputError, TrainingError
from lipsync_fast.train.run import TrainRequest, train
from lipsync_fast.train.state import LOG, STATE, VALIDATION

DEADLINE_S = 300
STEPS, KILLS = 12, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder."""
    return prepared(tmp_path_factory.mktemp("prepared") / "small")


@pytest.fixture(scope="module")
def encoder(tiny_avatar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audio encoder's graph."""
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    path.write_bytes((tiny_avatar / "models" / "audio_encoder.onnx").read_bytes())
    return path


@pytest.fixture(scope="module")
def whole(folder: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainRequest:
    """A training that ran through without an interruption."""
    place = tmp_path_factory.mktemp("whole")
    asked = wanted(folder, encoder, place)
    train(asked)
    return asked


def wanted(folder: Path, encoder: Path, place: Path) -> TrainRequest:
    return request(
        folder, encoder, steps=STEPS, sync_loss=0.02, work=place / "work", out=place / "made.lsa"
    )


def test_killed_at_random_points(
    folder: Path,
    encoder: Path,
    whole: TrainRequest,
    tmp_path: Path,
    commands: Forked,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = wanted(folder, encoder, tmp_path)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    work = tmp_path / "work"
    assert asked.save_every is not None
    done = asked.save_every  # what was killed before the first checkpoint begins anew
    for _ in range(KILLS):
        until = min(done + draw.randint(1, 3), STEPS - 1)
        with start(commands, asked, "--work", str(work)) as process:
            wait_for(lambda until=until: len(lines(work / LOG)) >= until, process)  # type: ignore[misc]
            time.sleep(draw.random() * 0.1)  # where in a step or a checkpoint does not matter
            process.kill()
        assert process.returncode == -signal.SIGKILL
        done = len(lines(work / LOG))
    train(replace(asked, quiet=False))
    assert "going on after step" in capsys.readouterr().err
    check_equal(asked, whole)


def check_equal(asked: TrainRequest, whole: TrainRequest) -> None:
    """Losses, held-out frames, weights and the packed networks: the same, to the bit."""
    assert asked.work is not None
    assert whole.work is not None
    for name in (LOG, VALIDATION):
        assert (asked.work / name).read_bytes() == (whole.work / name).read_bytes()
    assert [line["step"] for line in lines(asked.work / LOG)] == list(range(1, STEPS + 1))
    ours, theirs = (torch.load(p / STATE, weights_only=True) for p in (asked.work, whole.work))
    assert ours["step"] == theirs["step"] == STEPS
    assert ours["best"] == theirs["best"]
    for part in ("net", "pairs"):
        for name, tensor in theirs["tensors"][part].items():
            assert torch.equal(ours["tensors"][part][name], tensor), name
    with AvatarPackage.open(asked.out) as made, AvatarPackage.open(whole.out) as other:
        for name in ("image", "decoder"):
            assert bytes(made.model(name)) == bytes(other.model(name))


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_interrupted_with_a_checkpoint(
    folder: Path,
    encoder: Path,
    whole: TrainRequest,
    tmp_path: Path,
    commands: Forked,
    sent: signal.Signals,
    code: int,
) -> None:
    asked = wanted(folder, encoder, tmp_path)
    work = tmp_path / "work"
    with start(commands, asked, "--work", str(work)) as process:
        wait_for(lambda: len(lines(work / LOG)) >= 4, process)
        process.send_signal(sent)
        said = process.communicate(timeout=DEADLINE_S)[1]
    assert process.returncode == code, said
    assert "Traceback" not in said
    steps = len(lines(work / LOG))
    assert f"stopped after step {steps}; the same command goes on from there" in said
    assert torch.load(work / STATE, weights_only=True)["step"] == steps
    if sent == signal.SIGINT:
        train(asked)
        check_equal(asked, whole)


def test_what_is_no_number_stops_it(folder: Path, encoder: Path, tmp_path: Path) -> None:
    good = request(folder, encoder, steps=3, work=tmp_path / "work", out=tmp_path / "made.lsa")
    train(good)
    before = (tmp_path / "work" / STATE).read_bytes()
    state = torch.load(tmp_path / "work" / STATE, weights_only=True)
    state["tensors"]["optimiser"]["state"][0]["exp_avg"].fill_(float("nan"))
    torch.save(state, tmp_path / "work" / STATE)
    poisoned = (tmp_path / "work" / STATE).read_bytes()
    bad = request(folder, encoder, steps=30, work=tmp_path / "work", out=tmp_path / "2.lsa")
    with pytest.raises(
        TrainingError, match=r"step 5: the loss is not a number .* checkpoint stays"
    ):
        train(bad)
    assert (tmp_path / "work" / STATE).read_bytes() == poisoned
    assert not (tmp_path / "2.lsa").exists()
    (tmp_path / "work" / STATE).write_bytes(before)
    bad = request(folder, encoder, steps=4, work=tmp_path / "work", out=tmp_path / "2.lsa")
    assert train(bad).steps == 4


def test_a_rate_that_is_too_high(folder: Path, encoder: Path, tmp_path: Path) -> None:
    asked = request(folder, encoder, rate=1e30, work=tmp_path / "work", out=tmp_path / "made.lsa")
    with pytest.raises(TrainingError, match=r"(not a number|no numbers?) any more .* lower --rate"):
        train(asked)


def test_a_full_disk_at_a_checkpoint(folder: Path, encoder: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    train(request(folder, encoder, steps=4, work=work, out=tmp_path / "1.lsa"))
    before = (work / STATE).read_bytes()
    more = request(folder, encoder, steps=8, work=work, out=tmp_path / "2.lsa")
    with (
        file_limit(len(before) // 2),
        pytest.raises(OutputError, match=r"state\.pt: cannot be written \(no space left\)"),
    ):
        train(more)
    assert (work / STATE).read_bytes() == before
    assert not list(work.glob(".*.new"))
    assert train(more).steps == 8
    assert [line["step"] for line in lines(work / LOG)] == list(range(1, 9))


def test_two_trainings_in_one_folder(
    folder: Path, encoder: Path, tmp_path: Path, commands: Forked
) -> None:
    asked = request(
        folder, encoder, steps=100_000, work=tmp_path / "work", out=tmp_path / "made.lsa"
    )
    with start(commands, asked, "--work", str(asked.work)) as process:
        wait_for(lambda: len(lines(tmp_path / "work" / LOG)) >= 1, process)
        with pytest.raises(
            TrainingError, match=f"another training runs here .process {process.pid}"
        ):
            train(asked)
        process.kill()


def test_a_prepared_folder_that_has_changed(folder: Path, encoder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    asked = request(mine, encoder, steps=2, out=tmp_path / "made.lsa")
    train(asked)
    (mine / "prepared.json").write_text(
        json.dumps(changed(json.loads((mine / "prepared.json").read_text())))
    )
    more = request(mine, encoder, steps=4, out=tmp_path / "more.lsa")
    with pytest.raises(TrainingError, match="the prepared folder or the audio encoder has changed"):
        train(more)
    again = request(mine, encoder, steps=4, out=tmp_path / "more.lsa", restart=True)
    assert train(again).steps == 4
    assert len(lines(mine / "training" / LOG)) == 4


def changed(told: dict[str, dict[str, dict[str, str]]]) -> dict[str, dict[str, dict[str, str]]]:
    """What a folder says of itself when other frames were prepared in it."""
    told["files"]["frames.bin"]["sha256"] = "0" * 64
    return told


def wait_for(condition: Callable[[], bool], process: Command) -> None:
    """Until the condition holds; fails if the process ends first, or never gets there."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
