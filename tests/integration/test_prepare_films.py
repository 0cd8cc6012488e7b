# SPDX-License-Identifier: Apache-2.0
"""Films as people have them, good and bad, through ``avatar prepare``: one clear line each.

All are made of the demo avatar's frames: who is in them does not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from typer.testing import CliRunner
from videos import demo_pictures, demo_rects, tone, write_video

from lipsync_fast.cli.main import app
from lipsync_fast.errors import OutputError, PrepareError
from lipsync_fast.prepare.assemble import RESTLESS, RESTLESS_BOTH, RESTLESS_IDLE
from lipsync_fast.prepare.folder import PreparedAvatar
from lipsync_fast.prepare.mesh_detector import SEVERAL
from lipsync_fast.prepare.one import prepare_one
from lipsync_fast.prepare.report import report_lines
from lipsync_fast.prepare.request import Request, Result

Picture = NDArray[np.uint8]
Prepare = Callable[..., Result]
SCALE = 4
FEW = 30
SILENCE = np.zeros(640 * FEW, np.int16)
X1, Y1, X2, Y2 = (int(v) for v in demo_rects(1, scale=SCALE)[0])


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """Prepare a video of the folder."""

    def call(video: str, **options: Any) -> Result:
        idle = options.pop("idle", None)
        request = Request(
            video=str(tmp_path / video),
            name=options.pop("name", "made"),
            out=str(tmp_path / "out"),
            consent="not needed: nobody is shown",
            licence="CC0-1.0",
            stated_by="a test",
            synthetic=True,
            detector="mesh",
            idle=None if idle is None else str(tmp_path / idle),
            **options,
        )
        (tmp_path / "out").mkdir(exist_ok=True)
        return prepare_one(request, lambda _: None)

    return call


def changed(how: Callable[[int, Picture], Picture], frames: int = FEW) -> list[Picture]:
    return [how(i, picture.copy()) for i, picture in enumerate(demo_pictures(frames, scale=SCALE))]


def cartoon(i: int, picture: Picture) -> Picture:
    image = Image.new("RGB", (picture.shape[1], picture.shape[0]), "skyblue")
    draw = ImageDraw.Draw(image)
    draw.ellipse((100, 30, 220, 150), fill="yellow", outline="black")
    draw.polygon([(150, 60), (170, 60), (160, 80)], fill="black")
    draw.line((120, 110 + i % 5, 200, 110), fill="red", width=4)
    return np.asarray(image)


def masked(_: int, picture: Picture) -> Picture:
    """A cloth over nose, mouth and chin."""
    picture[Y1 + (Y2 - Y1) // 10 : Y2 + 6, X1 + 4 : X2 - 4] = (120, 160, 200)
    return picture


def doubled(_: int, picture: Picture) -> Picture:
    part = picture[:, (X1 + X2) // 2 - 80 : (X1 + X2) // 2 + 80]
    return np.ascontiguousarray(np.concatenate([part, part[:, ::-1]], axis=1))


def dimming(i: int, picture: Picture) -> Picture:
    return (picture * (1.0 if i < FEW else 0.4)).astype(np.uint8)


def refused(prepare: Prepare, *words: str, **options: Any) -> None:
    with pytest.raises(PrepareError) as caught:
        prepare("v.mkv", **options)
    [line] = str(caught.value).splitlines()
    assert any(word in line for word in words), line


# ---------------------------------------------------------------- refused, in one line


@pytest.mark.parametrize(
    ("how", "word"),
    [
        (lambda _, picture: np.full_like(picture, 90), "no face was found in any of the 30 frames"),
        (lambda _, picture: picture[::-1, :].copy() // 24, "no face"),
        (cartoon, "no face"),
        (lambda i, p: p if i < 8 else np.full_like(p, 90), "no face in frames 8-29"),
    ],
    ids=["nobody", "upside down in the dark", "a cartoon", "who leaves"],
)
def test_films_without_a_face(
    tmp_path: Path, prepare: Prepare, how: Callable[[int, Picture], Picture], word: str
) -> None:
    write_video(tmp_path / "v.mkv", changed(how))
    refused(prepare, word)
    assert not (tmp_path / "out" / "made").exists()


def test_a_mouth_below_the_picture(tmp_path: Path, prepare: Prepare) -> None:
    low = Y1 + (Y2 - Y1) // 5 & ~1
    write_video(tmp_path / "v.mkv", changed(lambda _, p: p[:low].copy()))
    refused(prepare, "mouth leaves the picture in frames 0-29", "no face")


def test_the_same_person_twice() -> None:
    stated = ("--synthetic", "--licence", "CC0-1.0")
    done = CliRunner().invoke(app, ["avatar", "prepare", "v.mkv", "v.mkv", *stated])
    assert done.exit_code == 2
    assert "would both become 'v'" in done.stderr


# ---------------------------------------------------------------- taken, and told


def test_three_frames(tmp_path: Path, prepare: Prepare) -> None:
    write_video(tmp_path / "v.mkv", demo_pictures(3, scale=SCALE))
    made = prepare("v.mkv")
    assert made.frames == 3
    assert any("no sound" in warning for warning in made.warnings)


def test_two_people(tmp_path: Path, prepare: Prepare) -> None:
    write_video(tmp_path / "v.mkv", changed(doubled))
    made = prepare("v.mkv")
    assert SEVERAL in made.warnings


def test_a_mask_before_the_mouth(tmp_path: Path, prepare: Prepare) -> None:
    """A face is found, with a mouth that never opens."""
    write_video(tmp_path / "v.mkv", changed(masked), sound=tone(FEW))
    assert any(line.startswith("speech: ") for line in prepare("v.mkv").advice)


def test_light_that_changes(tmp_path: Path, prepare: Prepare) -> None:
    write_video(tmp_path / "v.mkv", changed(dimming, 2 * FEW), sound=np.tile(SILENCE, 2))
    made = prepare("v.mkv")
    assert any("light: the face changes by" in line for line in made.advice)
    assert any(line.startswith("advice     light") for line in report_lines(made))
    assert any("silent throughout" in warning for warning in made.warnings)


def test_a_film_longer_than_is_taken(tmp_path: Path, prepare: Prepare) -> None:
    write_video(tmp_path / "v.mkv", demo_pictures(FEW, scale=SCALE))
    made = prepare("v.mkv", longest_s=0.4)
    assert made.frames == 10
    assert "only its first 0.4 s are used" in made.warnings


def test_a_face_at_the_edge_whose_mouth_is_seen(tmp_path: Path, prepare: Prepare) -> None:
    """Half of the chin is below the picture: the crop passes its edge, the lips do not."""
    low = Y1 + (Y2 - Y1) * 3 // 5 & ~1
    write_video(tmp_path / "v.mkv", changed(lambda _, p: p[:low].copy()))
    made = prepare("v.mkv")
    assert any("of its side: leave more room" in warning for warning in made.warnings)


# ---------------------------------------------------------------- a clip to idle on


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """A film in which it is never silent, one that is, and one that is not either."""
    pictures = demo_pictures(FEW, scale=SCALE)
    write_video(tmp_path / "talks.mkv", pictures, sound=tone(FEW))
    write_video(tmp_path / "idle.mkv", demo_pictures(FEW, 40, SCALE), rate=25, sound=SILENCE)
    write_video(tmp_path / "hums.mkv", demo_pictures(FEW, 40, SCALE), sound=tone(FEW))
    return tmp_path


def test_the_loop_comes_from_the_idle_clip(films: Path, prepare: Prepare) -> None:
    made = prepare("talks.mkv", idle="idle.mkv")
    assert (made.frames, made.idle_frames) == (2 * FEW, FEW)
    assert made.loop_first >= FEW
    assert not any("silence" in warning for warning in made.warnings)
    assert any("(the last 30 of the idle clip)" in line for line in report_lines(made))
    with PreparedAvatar.open(films / "out" / "made") as prepared:
        prepared.verify()
        pcm = prepared.sound()
        assert pcm is not None
        assert len(pcm) == 640 * 2 * FEW
        assert np.abs(pcm[: 640 * FEW]).mean() > 1000
        assert not pcm[640 * FEW :].any()
        assert "one to idle on (idle.mkv)" in prepared.manifest.provenance
    assert prepare("talks.mkv", idle="idle.mkv").again
    with pytest.raises(OutputError, match="other options"):
        prepare("talks.mkv")


def test_no_rest_anywhere(films: Path, prepare: Prepare) -> None:
    assert RESTLESS in prepare("talks.mkv").warnings
    both = prepare("talks.mkv", idle="hums.mkv", name="both")
    assert RESTLESS_BOTH in both.warnings
    assert both.loop_first >= FEW
    other = prepare("idle.mkv", idle="hums.mkv", name="other")
    assert RESTLESS_IDLE in other.warnings
    assert other.loop_first + other.loop_count <= FEW


def test_an_idle_clip_of_another_size(films: Path, prepare: Prepare) -> None:
    write_video(films / "v.mkv", demo_pictures(2, scale=SCALE))
    write_video(films / "small.mkv", demo_pictures(FEW, 0, 8))
    refused(prepare, "small.mkv: its pictures are 160 x 90", idle="small.mkv")
    assert not list((films / "out").iterdir())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["a.mkv", "--idle", "none.mkv"], "none.mkv: no such file"),
        (["a.mkv", "--idle", "a.mkv"], "is the video itself"),
        (["a.mkv", "b.mkv", "--idle", "b.mkv"], "give one video with it"),
        (["a.mkv", "--idle", "b.mkv", "--landmarks", "."], "--idle needs a detector"),
    ],
)
def test_idle_clips_that_make_no_sense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.mkv", "b.mkv"):
        Path(name).write_bytes(b"")
    stated = ("--synthetic", "--licence", "CC0-1.0")
    done = CliRunner().invoke(app, ["avatar", "prepare", *arguments, *stated])
    assert done.exit_code == 2
    assert word in done.stderr.replace("\n", " ")


def test_a_sound_that_is_late_is_moved_back(tmp_path: Path, prepare: Prepare) -> None:
    sound = np.random.default_rng(4).integers(-9000, 9000, 640 * FEW).astype(np.int16)
    write_video(tmp_path / "v.mkv", changed(lambda _, p: p), sound=sound)
    for late, own in ((80.0, sound[1280:]), (-80.0, sound[:-1280])):
        made = prepare("v.mkv", sound_late_ms=late, name=f"by{late:.0f}")
        with PreparedAvatar.open(Path(made.path)) as prepared:
            heard = prepared.sound()
        assert heard is not None
        assert len(heard) == len(sound)
        moved = heard[: len(own)] if late > 0 else heard[-len(own) :]
        np.testing.assert_array_equal(moved, own)
        assert np.count_nonzero(heard) == np.count_nonzero(own)
