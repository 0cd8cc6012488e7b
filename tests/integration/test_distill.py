# SPDX-License-Identifier: Apache-2.0
"""``avatar distill``: what a student has of its teacher, what it says of it, what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distilling import LITTLE, wanted, write_teacher
from forking import Forked
from sounds import tone, write_wav
from training import lines
from typer.testing import CliRunner

import lipsync_fast
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.cli.main import app
from lipsync_fast.errors import AvatarFormatError, MediaError, OutputError, TrainingError
from lipsync_fast.extras import how_to_get
from lipsync_fast.train.distill import DistillRequest, DistillResult, distill, work_beside
from lipsync_fast.train.state import LOG, VALIDATION

DEADLINE_S = 300
TESTS = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def little() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        for module, name, value in LITTLE:
            patched.setattr(module, name, value)
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a signature of somebody's, as far as distilling looks at it."""
    path = write_teacher(tmp_path_factory.mktemp("avatars") / "anna")
    (path / "manifest.sig").write_text("{}")
    return path


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> DistillResult:
    """A student that was taught without an interruption."""
    return distill(wanted(teacher, tmp_path_factory.mktemp("whole")))


def test_it_has_all_of_its_teacher_but_the_networks(teacher: Path, whole: DistillResult) -> None:
    with AvatarPackage.open(teacher) as old, AvatarPackage.open(whole.path) as new:
        new.verify()
        m, before = new.manifest, old.manifest
        assert (m.name, m.width, m.region) == ("student", 2, 224)
        same = ("licence", "consent", "synthetic", "audio", "loop", "frame_count", "jpeg", "family")
        assert {name: getattr(m, name) for name in same} == {
            name: getattr(before, name) for name in same
        }
        for name in ("frames.bin", "pictures.bin", "rects.npy", "masks.bin", "thumbnail.jpg"):
            assert new.member_bytes(name) == old.member_bytes(name)
        assert new.network("audio_encoder") == old.network("audio_encoder")
        assert new.network("decoder") != old.network("decoder")
        assert new.crop(2).shape == (232, 232, 3)
        assert m.window is not None
        assert before.window is not None
        middle = m.window.x + m.window.width / 2, before.window.x + before.window.width / 2
        assert (middle[0] + 4) / 232 == pytest.approx((middle[1] + 4) / 264, abs=0.01)
        assert new.signature() is None
        assert whole.teacher_signed
    with lipsync_fast.open(whole.path, backend="cpu") as avatar:
        sound = np.random.default_rng(1).normal(0, 3000, 4000).astype(np.int16)
        shapes = {frame.image.shape for frame in avatar.render(sound, sample_rate=16_000)}
    assert shapes == {(192, 160, 3)}


def test_it_says_whose_student_it_is(teacher: Path, whole: DistillResult) -> None:
    manifest = (teacher / "manifest.json").read_bytes()
    assert b"student" not in manifest, "what has no teacher says nothing of one"
    s = whole.student
    assert (s.teacher, s.teacher_width, s.teacher_region) == ("tiny", 4, 256)
    assert s.teacher_manifest == hashlib.sha256(manifest).hexdigest()
    assert s.frames_per_s > 0
    assert s.teacher_frames_per_s > 0
    with AvatarPackage.open(whole.path) as package:
        assert package.manifest.student == s
        for part in ("a student of the avatar tiny", "width 2 at region 224", "6 steps of 3"):
            assert part in package.manifest.provenance
    runner = CliRunner()
    shown = runner.invoke(app, ["avatar", "inspect", whole.path]).stdout
    assert "student of  tiny (width 4, region 256)" in shown
    assert f"{s.frames_per_s:.0f} frames/s in place of {s.teacher_frames_per_s:.0f}" in shown
    described = json.loads(runner.invoke(app, ["avatar", "inspect", whole.path, "--json"]).stdout)
    assert described["student"]["difference"] == s.difference
    assert "student" not in runner.invoke(app, ["avatar", "inspect", str(teacher)]).stdout


def test_it_comes_nearer_to_its_teacher(teacher: Path, tmp_path: Path) -> None:
    distill(wanted(teacher, tmp_path, steps=25, validate_every=25, rate=0.02))
    pixels = [line["pixel"] for line in lines(work_beside(tmp_path / "student") / LOG)]
    assert len(pixels) == 25
    assert np.mean(pixels[-5:]) < 0.7 * np.mean(pixels[:5])


def test_killed_and_gone_on_with_it_comes_to_the_same(
    teacher: Path, whole: DistillResult, tmp_path: Path, commands: Forked
) -> None:
    work = work_beside(tmp_path / "student")
    script = TESTS / "distilling.py"
    with commands.start(teacher, tmp_path, "6", script=script) as process:
        end = time.monotonic() + DEADLINE_S
        while len(lines(work / LOG)) < 4:  # behind a look, and its checkpoint
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.005)
        process.kill()
    assert not (tmp_path / "student").exists()
    first = distill(wanted(teacher, tmp_path, steps=5))
    again = distill(DistillRequest(avatar=teacher, out=Path(first.path), steps=6, device="cpu",
                                   force=True, quiet=True))  # fmt: skip
    assert (again.steps, again.width, again.region) == (6, 2, 224)
    assert (work / LOG).read_bytes() == (Path(whole.work) / LOG).read_bytes()
    with AvatarPackage.open(again.path) as made, AvatarPackage.open(whole.path) as other:
        for name in ("image", "decoder"):
            assert made.network(name) == other.network(name)
    looks = [line["step"] for line in lines(work / VALIDATION)]
    assert looks == [3, 5, 6]


def test_time_ends_it_and_files_of_speech_are_heard(teacher: Path, tmp_path: Path) -> None:
    voice = write_wav(tmp_path / "voice.wav", tone(6))
    asked = wanted(
        teacher, tmp_path, steps=None, minutes=0.01, speech=[voice], out=tmp_path / "small.lsa",
        region=None, validate_every=1000,
    )  # fmt: skip
    done = distill(asked)
    assert 1 <= done.steps < 1000
    assert done.speech[1:] == ["voice.wav"]
    assert done.region == 256
    with AvatarPackage.open(done.path) as package:
        assert package.manifest.window == AvatarPackage.open(teacher).manifest.window
    with pytest.raises(TrainingError, match=r"recordings have changed.*--restart"):
        distill(wanted(teacher, tmp_path, work=Path(done.work), region=256, validate_every=1000))


def changed(teacher: Path, place: Path, **fields: Any) -> Path:
    """A copy whose manifest says something else; and has no crops, whose size would not fit."""
    shutil.copytree(teacher, place)
    said = json.loads((place / "manifest.json").read_text()) | fields
    said["files"].pop("regions.npy", None)
    (place / "manifest.json").write_text(json.dumps(said))
    return place


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 4}, "--width 4: tiny is of width 4; a student is narrower"),
        ({"width": 3}, "--width 3: expected an even number"),
        ({"width": 0}, "--width"),
        ({"region": 288}, "--region 288: tiny makes squares of 256 pixels"),
        ({"region": 250}, "--region 250: expected a multiple of 32"),
        ({"region": 192}, "--region"),
        ({"device": "tpu"}, "expected auto, cpu or cuda"),
    ],
)
def test_options_that_cannot_be(
    teacher: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(TrainingError, match=said):
        distill(wanted(teacher, tmp_path, **changes))
    assert not list(tmp_path.iterdir()), "refused before anything is written"


def test_avatars_that_cannot_teach(teacher: Path, whole: DistillResult, tmp_path: Path) -> None:
    other = changed(
        teacher, tmp_path / "other", family="wav2lip", region=96, width=16, window=None,
        audio={"before": -1, "after": 2, "edge": "nearest"},
    )  # fmt: skip
    with pytest.raises(TrainingError, match="of the family wav2lip; only avatars of synctalk2d"):
        distill(wanted(other, tmp_path))
    with pytest.raises(TrainingError, match="student: is a student of tiny; let that one teach"):
        distill(wanted(Path(whole.path), tmp_path))
    long = changed(teacher, tmp_path / "long", provenance="x" * 19_500)
    with pytest.raises(TrainingError, match="leaves no room to say whose student"):
        distill(wanted(long, tmp_path))
    narrow = changed(teacher, tmp_path / "narrow", width=2)
    with pytest.raises(TrainingError, match="a student is narrower"):
        distill(wanted(narrow, tmp_path, width=None))
    broken = shutil.copytree(teacher, tmp_path / "broken")
    data = bytearray((broken / "frames.bin").read_bytes())
    data[5000] ^= 255
    (broken / "frames.bin").write_bytes(data)
    with pytest.raises(AvatarFormatError, match=r"frames\.bin is damaged"):
        distill(wanted(broken, tmp_path))
    assert not work_beside(tmp_path / "student").exists()


def test_places_and_sounds_that_will_not_do(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there.lsa").write_bytes(b"")
    with pytest.raises(OutputError, match="already exists; --force"):
        distill(wanted(teacher, tmp_path, out=tmp_path / "there.lsa"))
    with pytest.raises(OutputError, match="is the teacher itself"):
        distill(wanted(teacher, tmp_path, out=teacher, force=True))
    with pytest.raises(MediaError, match=r"none\.wav"):
        distill(wanted(teacher, tmp_path, speech=[tmp_path / "none.wav"]))
    short = write_wav(tmp_path / "short.wav", tone(1))
    with pytest.raises(TrainingError, match=r"short\.wav: 1\.0 s of sound; expected 5 s or more"):
        distill(wanted(teacher, tmp_path, speech=[short]))
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"0 MB are free, some \d+ MB are needed"):
        distill(wanted(teacher, tmp_path))
    assert not work_beside(tmp_path / "student").exists()


def test_by_the_command_line(teacher: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["avatar", "distill", "nobody", "-o", str(tmp_path / "x")])
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert "avatar 'nobody' was not found" in done.stderr
    told = ["avatar", "distill", str(teacher), "--avatars", str(tmp_path), "--width", "2"]
    told += ["--region", "224", "--steps", "3", "--batch", "3", "--threads", "1", "--json"]
    env = {"XDG_DATA_HOME": str(tmp_path)}
    done = runner.invoke(app, told, env=env)
    assert done.exit_code == 0, done.stderr
    made = json.loads(done.stdout)
    assert Path(made["path"]) == tmp_path / "lipsync-fast" / "avatars" / "tiny-2"
    assert "against tiny: mouth " in done.stderr
    assert "the teacher's signature does not hold for it" in done.stderr
    listed = runner.invoke(app, ["avatar", "list"], env=env).stdout
    assert "tiny-2" in listed
    refused = runner.invoke(app, told, env=env)
    assert refused.exit_code == 2
    assert "already exists; --force" in refused.stderr


def test_without_torch_the_extra_is_named() -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from lipsync_fast.cli.main import run\n"
        "sys.argv = ['lipsync-fast', 'avatar', 'distill', 'demo']; run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2
    assert done.stderr == f"error: training needs torch: {how_to_get('train')}\n"
