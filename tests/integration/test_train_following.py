# SPDX-License-Identifier: Apache-2.0
"""A whole training that follows the sound, in small: what is packed, and that it goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from films import FRAMES, LOOP_COUNT, LOOP_FIRST, REST, film, openings, pcm
from forking import Forked
from training import SAID, drawn, lines, request, start

import lipsync_fast
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.errors import TrainingError
from lipsync_fast.prepare.folder import PreparedAvatar
from lipsync_fast.train import hearing, learner, look
from lipsync_fast.train.run import TrainRequest, train
from lipsync_fast.train.staged import write_prepared
from lipsync_fast.train.state import HEARING, LOG, STATE, VALIDATION

DEADLINE_S = 300
pytestmark = pytest.mark.slow
SMALL = {"hearing": 2, "steps": 6, "batch": 4, "validate_every": 3, "save_every": 2}


@pytest.fixture(autouse=True, scope="module")
def few_sounds() -> Iterator[None]:
    """Only the film's own sound to choose from: variants take time and change nothing here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hearing, "VARIANTS", 0)
        patched.setattr(look, "LOOKED_AT", 6)
        patched.setattr(learner, "NORM_BATCHES", 1)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("films") / "film")


def wanted(folder: Path, encoder: Path, place: Path, **changes: object) -> TrainRequest:
    told = {
        "work": place / "work", "out": place / "made.lsa", "recipe": "follow", "after": 2,
        **SMALL, **changes,
    }  # fmt: skip
    return request(folder, encoder, **told)


@pytest.fixture(scope="module")
def whole(
    folder: Path, tiny_avatar: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainRequest:
    """A training that ran through."""
    asked = wanted(folder, tiny_avatar, tmp_path_factory.mktemp("whole"))
    train(asked)
    return asked


def test_what_is_packed(whole: TrainRequest, folder: Path) -> None:
    with AvatarPackage.open(whole.out) as package:
        package.verify()
        m = package.manifest
        assert (m.width, m.region, m.audio.before, m.audio.after) == (2, 224, 14, 2)
        assert m.audio.levelled
        assert m.window is not None
        assert m.window.width * m.window.height < 0.8 * 224 * 224
        for part in ("of the avatar tiny, tuned to the voice", "6 steps of 4 frames", "with r "):
            assert part in m.provenance
        with PreparedAvatar.open(folder) as prepared:
            loop = prepared.manifest.loop
            assert m.frame_count == loop.count
            changed = [
                int(np.abs(package.picture(i).astype(int) - prepared.picture(loop.first + i)).max())
                for i in (0, loop.count - 1)
            ]
        assert min(changed) > 0, "mouths of a loop in which one speaks are shut by the network"
    with lipsync_fast.open(whole.out, backend="cpu") as avatar:
        frames = [f.image for f in avatar.render(pcm(openings(8, 2)), sample_rate=16_000)]
    assert {f.shape for f in frames} == {(192, 160, 3)}
    looks = lines(whole.work / VALIDATION)  # type: ignore[operator]
    assert [line["step"] for line in looks] == [3, 6]
    assert {"r", "shut", "sharpness", "seam", "loss", "mouth"} <= set(looks[0])


def test_stopped_and_gone_on_with_it_comes_to_the_same(
    whole: TrainRequest, folder: Path, tiny_avatar: Path, tmp_path: Path, commands: Forked
) -> None:
    asked = wanted(folder, tiny_avatar, tmp_path)
    assert asked.work is not None
    assert whole.work is not None
    line = ("--work", str(asked.work), "--hearing-steps", "2", "--recipe", "follow", "--after", "2")
    with start(commands, asked, *line) as process:  # killed while it learns to hear, or soon after
        end = time.monotonic() + DEADLINE_S
        while not (asked.work / "lock").exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(0.5)
        process.kill()
    first = wanted(folder, tiny_avatar, tmp_path, steps=4)
    assert train(first).steps == 4
    heard = (asked.work / HEARING).read_bytes()
    again = wanted(folder, tiny_avatar, tmp_path, force=True)
    assert train(again).steps == 6
    assert (asked.work / HEARING).read_bytes() == heard
    assert (asked.work / LOG).read_bytes() == (whole.work / LOG).read_bytes()
    ours, theirs = (torch.load(p / STATE, weights_only=True) for p in (asked.work, whole.work))
    for part in ("net", "average"):
        for name, tensor in theirs["tensors"][part].items():
            assert torch.equal(ours["tensors"][part][name], tensor), name
    with AvatarPackage.open(asked.out) as made, AvatarPackage.open(whole.out) as other:
        for name in ("audio_encoder", "image", "decoder"):
            assert bytes(made.model(name)) == bytes(other.model(name))


def test_time_ends_it_and_it_goes_on_with_the_options_it_began_with(
    folder: Path, tiny_avatar: Path, tmp_path: Path
) -> None:
    asked = wanted(folder, tiny_avatar, tmp_path, steps=None, minutes=0.01, validate_every=100)
    done = train(asked)
    assert 1 <= done.steps < 100
    assert done.best.follows is not None
    bare = TrainRequest(
        folder=folder, out=tmp_path / "later.lsa", audio_encoder=str(tiny_avatar), minutes=0.01,
        perceptual="off", device="cpu", work=tmp_path / "work", quiet=True,
    )  # fmt: skip
    assert train(bare).steps > done.steps
    with AvatarPackage.open(bare.out) as package:
        assert (package.manifest.width, package.manifest.region) == (2, 224)


def test_a_loop_at_rest_is_taken_as_it_was_filmed(tiny_avatar: Path, tmp_path: Path) -> None:
    still = openings(FRAMES, rest=REST + LOOP_COUNT)
    at_rest = film(tmp_path / "film", open_=still)
    asked = wanted(at_rest, tiny_avatar, tmp_path, steps=1)
    train(asked)
    with AvatarPackage.open(asked.out) as package, PreparedAvatar.open(at_rest) as prepared:
        for i in range(LOOP_COUNT):
            assert bytes(package.frame_jpeg(i)) == bytes(prepared.frame_jpeg(LOOP_FIRST + i))


def test_what_it_is_not_for(folder: Path, tiny_avatar: Path, tmp_path: Path) -> None:
    plain = write_prepared(tmp_path / "plain", drawn(), pcm(openings(50)), SAID)
    with pytest.raises(TrainingError, match=r"3 landmarks a frame.*detector mesh"):
        train(wanted(plain, tiny_avatar, tmp_path, recipe="follow"))
    with pytest.raises(TrainingError, match="expected reference or follow"):
        train(wanted(folder, tiny_avatar, tmp_path, recipe="magic"))
    with pytest.raises(TrainingError, match="--sync-loss belongs to --recipe reference"):
        train(wanted(folder, tiny_avatar, tmp_path, sync_loss=0.1))
    with pytest.raises(TrainingError, match="--weights belongs to --recipe reference"):
        train(wanted(folder, tiny_avatar, tmp_path, weights=str(tiny_avatar)))
