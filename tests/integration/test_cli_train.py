# SPDX-License-Identifier: Apache-2.0
"""``avatar train`` by the command line: what comes out, and what is refused before any work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import FRAMES, lines, prepared, request, sound
from typer.testing import CliRunner

import lipsync_fast
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.cli.main import app
from lipsync_fast.errors import (
    AvatarFormatError,
    AvatarNotFoundError,
    CheckpointError,
    OutputError,
    TrainingError,
)
from lipsync_fast.extras import how_to_get
from lipsync_fast.models.unet import UNet
from lipsync_fast.train.losses import Perceptual
from lipsync_fast.train.run import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder."""
    return prepared(tmp_path_factory.mktemp("prepared") / "small")


def test_smoke(tmp_path: Path) -> None:
    """The loss falls, and the packed avatar speaks; see ``train.smoke``, which checks both."""
    done = subprocess.run(
        [
            sys.executable, "-m", "lipsync_fast", "avatar", "train", "--smoke", "--steps", "50",
            "--threads", "1", "--out", str(tmp_path / "smoke.lsa"), "--json", "--quiet",
        ],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["last_loss"] < 0.5 * report["first_loss"]
    assert report["reaction"] > 0.5
    assert report["elsewhere"] == 0
    with AvatarPackage.open(tmp_path / "smoke.lsa") as package:
        package.verify()
        assert package.manifest.synthetic
        assert (package.manifest.width, package.manifest.region) == (8, 224)


def test_what_is_packed(folder: Path, tiny_avatar: Path, tmp_path: Path) -> None:
    vgg = tmp_path / "vgg19-test.pth"
    torch.manual_seed(2)
    torch.save(Perceptual().state_dict(), vgg)
    asked = request(
        folder, tiny_avatar, steps=1, after=2, seed=11, sync_loss=0.5, perceptual=str(vgg),
        work=tmp_path / "work", out=tmp_path / "anna.lsa",
    )  # fmt: skip
    result = train(asked)
    with AvatarPackage.open(result.path) as package:
        package.verify()
        m = package.manifest
        assert (m.name, m.licence, m.consent) == (
            "small",
            "CC0-1.0",
            "Not needed: nobody is shown.",
        )
        assert (m.audio.before, m.audio.after, m.frame_count) == (14, 2, FRAMES)
        for part in (
            "drawn by a test", "1 steps of 2 frames", "seed 11", "fp32", "small.mp4", "torch",
            "perceptual (VGG19), sync (x 0.5", "of the avatar tiny", "held out",
        ):  # fmt: skip
            assert part in m.provenance
    assert {"pixel", "perceptual", "sync", "pair"} < set(lines(tmp_path / "work" / "log.jsonl")[0])
    loss = lines(tmp_path / "work" / "log.jsonl")[0]
    parts = loss["pixel"] + 0.01 * loss["perceptual"] + 0.5 * loss["sync"]
    assert loss["loss"] == pytest.approx(parts, rel=1e-3)
    for name in ("validation.jpg", "best.jpg"):
        assert b"trainedAlgorithmicMedia" in (tmp_path / "work" / name).read_bytes()
    with lipsync_fast.open(result.path, backend="cpu") as avatar:
        shapes = {frame.image.shape for frame in avatar.render(sound(3), sample_rate=16_000)}
    assert shapes == {(192, 160, 3)}


def test_half_as_many_bits(folder: Path, tiny_avatar: Path, tmp_path: Path) -> None:
    """Without the perceptual loss (its test: ``test_train_losses``): not every processor has
    instructions for these numbers, and VGG19 takes most of a minute without them."""
    asked = request(
        folder, tiny_avatar, steps=1, sync_loss=0.5, precision="bf16",
        work=tmp_path / "work", out=tmp_path / "half.lsa",
    )  # fmt: skip
    result = train(asked)
    with AvatarPackage.open(result.path) as package:
        package.verify()
        assert "bf16" in package.manifest.provenance
    (loss,) = lines(tmp_path / "work" / "log.jsonl")
    assert loss["loss"] == pytest.approx(loss["pixel"] + 0.5 * loss["sync"], rel=1e-3)


def test_it_begins_with_given_weights(folder: Path, tiny_avatar: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    torch.save(UNet(2, 224).state_dict(), tmp_path / "unet.pth")
    asked = request(
        folder, tiny_avatar, steps=1, rate=1e-12, weights=tmp_path / "unet.pth",
        work=tmp_path / "work", out=tmp_path / "made.lsa",
    )  # fmt: skip
    train(asked)
    state = torch.load(tmp_path / "work" / "state.pt", weights_only=True)["tensors"]["net"]
    torch.manual_seed(5)
    for name, tensor in UNet(2, 224).named_parameters():
        torch.testing.assert_close(state[name], tensor.detach(), rtol=0, atol=1e-6)
    wide = request(
        folder, tiny_avatar, width=4, weights=tmp_path / "unet.pth", work=tmp_path / "2",
        out=tmp_path / "2.lsa",
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="is of width 2, --width is 4"):
        train(wide)


def test_more_steps_and_the_same_command_again(
    folder: Path, tiny_avatar: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    train(request(folder, tiny_avatar, steps=2, work=work, out=tmp_path / "a.lsa"))
    train(request(folder, tiny_avatar, steps=4, work=work, out=tmp_path / "a.lsa", force=True))
    log = (work / "log.jsonl").read_bytes()
    assert [line["step"] for line in lines(work / "log.jsonl")] == [1, 2, 3, 4]
    train(request(folder, tiny_avatar, steps=4, work=work, out=tmp_path / "b.lsa"))
    assert (work / "log.jsonl").read_bytes() == log
    with AvatarPackage.open(tmp_path / "a.lsa") as a, AvatarPackage.open(tmp_path / "b.lsa") as b:
        assert bytes(a.model("decoder")) == bytes(b.model("decoder"))
    with pytest.raises(TrainingError, match=r"seed was 0, now 1.*--restart"):
        train(request(folder, tiny_avatar, steps=4, seed=1, work=work, out=tmp_path / "c.lsa"))


def test_what_cannot_be_learnt_from(folder: Path, tiny_avatar: Path, tmp_path: Path) -> None:
    silent = prepared(tmp_path / "silent", silent=True)
    with pytest.raises(TrainingError, match="the video has no sound"):
        train(request(silent, tiny_avatar))
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    (cut / "sound.wav").write_bytes((cut / "sound.wav").read_bytes()[:-1280])
    with pytest.raises(AvatarFormatError, match=r"sound\.wav has \d+ bytes, expected"):
        train(request(cut, tiny_avatar))
    short = prepared(tmp_path / "short", 40)
    with pytest.raises(TrainingError, match="40 frames are too few"):
        train(request(short, tiny_avatar))
    (tmp_path / "empty").mkdir()
    with pytest.raises(AvatarFormatError, match=r"no prepared\.json in it"):
        train(request(tmp_path / "empty", tiny_avatar))
    with pytest.raises(AvatarNotFoundError, match=r"no such folder; .*avatar prepare"):
        train(request(tmp_path / "absent", tiny_avatar))


def test_outputs_are_checked_before_any_work(
    folder: Path, tiny_avatar: Path, tmp_path: Path
) -> None:
    (tmp_path / "there.lsa").write_bytes(b"")
    for out, said in (
        (tmp_path / "there.lsa", "already exists; --force"),
        (tmp_path / "my avatar", "cannot be an avatar's name"),
        (tmp_path / "there.lsa" / "x.lsa", "not a folder to write to"),
    ):
        with pytest.raises(OutputError, match=said):
            train(request(folder, tiny_avatar, out=out, work=tmp_path / "work"))
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device": "cuda"}, "torch finds no GPU"),
        ({"device": "tpu"}, "expected auto, cpu or cuda"),
        ({"precision": "fp8"}, "expected auto, fp32, fp16 or bf16"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"width": 7}, "expected an even number"),
        ({"region": 300}, "multiple of 32"),
        ({"audio_encoder": "nobody"}, "neither a file of weights"),
    ],
)
def test_options_that_cannot_be(
    folder: Path, tiny_avatar: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    asked = request(
        folder, tiny_avatar, **{"work": tmp_path / "w", "out": tmp_path / "o", **changes}
    )
    with pytest.raises(TrainingError, match=said):
        train(asked)


def test_the_command_asks_for_what_it_needs(folder: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    for arguments, said in (
        (["avatar", "train"], "DIR is missing"),
        (
            ["avatar", "train", str(folder), "--steps", "1", "--epochs", "1"],
            "cannot be given together",
        ),
    ):
        done = runner.invoke(app, arguments)
        assert done.exit_code == 2
        assert said in " ".join(done.stderr.replace("│", " ").split())
    done = runner.invoke(
        app,
        ["avatar", "train", str(tmp_path / "no"), "--audio-encoder", "demo", "-o", f"{tmp_path}/o"],
    )
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_without_torch_the_extra_is_named() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.modules['torch'] = None\n"
            "from lipsync_fast.cli.main import run\n"
            "sys.argv = ['lipsync-fast', 'avatar', 'train', 'x']; run()",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: training needs torch: {how_to_get('train')}\n"
