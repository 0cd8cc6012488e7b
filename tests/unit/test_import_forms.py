# SPDX-License-Identifier: Apache-2.0
"""Packages of other software: recognised, imported, refused with all that is wrong with them."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import packages
import pytest
from videos import write_video

import lipsync_fast
from lipsync_fast.avatars.importing.build import Imported, import_avatar
from lipsync_fast.avatars.importing.recognise import recognise
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.errors import AvatarError, AvatarImportError, CheckpointError
from lipsync_fast.geometry import Rect

torch = pytest.importorskip("torch", reason="the extra train is not installed")

WIDTH, HEIGHT, COUNT = 200, 160, 4
RECTS = [Rect(40 + i, 30, 100, 100) for i in range(COUNT)]
BUILDERS = {"sanders": packages.sanders, "default_model": packages.default_model}
RECTANGLES = "cache/crop_rectangles.json"
Change = Callable[[Path], object]


def pictures() -> list[packages.Rgb]:
    """Frames that are smooth, as faces are, and each another."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return [np.stack([x + 9 * i, y, (x + y) // 2], 2).astype(np.uint8) for i in range(COUNT)]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both forms, with weights of a small network; copy before changing."""
    from lipsync_fast.models.audio_encoder import AudioEncoder
    from lipsync_fast.models.unet import UNet

    root = tmp_path_factory.mktemp("packages")
    torch.manual_seed(0)
    torch.save({"state_dict": UNet(2).state_dict()}, root / "unet.pth")
    torch.save(AudioEncoder().state_dict(), root / "encoder.pth")
    for form, name in (
        ("sanders", "checkpoint/best_trainloss.pth"),
        ("default_model", "models/99.pth"),
    ):
        folder = BUILDERS[form](root / form, pictures(), RECTS)
        (folder / name).symlink_to(root / "unet.pth")
        encoder = (
            "models/audio_visual_encoder.pth" if form != "sanders" else "audio_visual_encoder.pth"
        )
        (folder / encoder).symlink_to(root / "encoder.pth")
    return root


@pytest.fixture
def sanders(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "sanders", tmp_path / "in" / "ann", symlinks=True))


@pytest.fixture
def default_model(originals: Path, tmp_path: Path) -> Path:
    return Path(
        shutil.copytree(originals / "default_model", tmp_path / "in" / "ann", symlinks=True)
    )


def imported(path: Path, **options: object) -> Imported:
    return import_avatar(path, path.parents[1] / "avatars", **options)  # type: ignore[arg-type]


def refused(path: Path, *words: str, error: type[AvatarError] = AvatarImportError) -> str:
    """One line with all words, and nothing written."""
    with pytest.raises(error) as caught:
        imported(path)
    said = str(caught.value)
    assert type(caught.value) is error
    for word in words:
        assert word in said
    assert len(said.splitlines()) == 1
    assert len(said) < 4_000
    avatars = path.parents[1] / "avatars"
    assert not avatars.exists() or os.listdir(avatars) == []
    return said


@pytest.mark.slow
@pytest.mark.parametrize("form", BUILDERS)
def test_a_whole_package(request: pytest.FixtureRequest, form: str) -> None:
    """Its frames and rectangles are the package's, to the bit, and it renders."""
    path: Path = request.getfixturevalue(form)
    lines: list[str] = []
    calls: list[tuple[int, int]] = []
    made = imported(
        path, recognised=lines.append, progress=lambda done, total: calls.append((done, total))
    )
    assert made.source.warnings == made.source.notes == []
    (line,) = lines
    assert f": {form} (by " in line
    assert calls == [(i + 1, COUNT) for i in range(COUNT)]
    with lipsync_fast.open(made.path, backend="cpu", threads=1) as avatar:
        package, m = avatar.package, avatar.manifest
        package.verify()
        assert (m.name, m.width, m.region, m.frame_count) == ("ann", 2, 320, COUNT)
        assert f"a {form} package (ann, " in m.provenance
        for i, picture in enumerate(pictures()):
            assert package.rect(i) == RECTS[i]
            assert np.array_equal(package.picture(i), picture)
        (shown,) = avatar.render(np.zeros(640, np.int16), 16_000)
    inside = np.zeros((HEIGHT, WIDTH), np.bool_)
    inside[RECTS[0].slices] = True
    assert np.array_equal(shown.image[~inside], pictures()[0][~inside])
    assert (shown.image[inside] != pictures()[0][inside]).mean() > 0.5


def test_a_lossy_video(sanders: Path) -> None:
    """As they are in the wild: some levels off, and no reason to warn."""
    for name in ("full_body_video.mp4", "crops_328_video.mp4"):
        frames = pictures() if "full" in name else packages.crops(pictures(), RECTS)
        write_video(sanders / name, frames)
    made = imported(sanders)
    assert made.source.warnings == []
    with AvatarPackage.open(made.path) as package:
        far = np.abs(package.picture(2).astype(int) - pictures()[2])
    assert 0 < far.mean() < 4


# Recognition


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    return folder


SYNCTALK = ("full_body_img/", "landmarks/")
SANDERS = ("full_body_video.mp4", RECTANGLES)
DEFAULT = ("video.mp4", "face_bounds/")


def test_what_is_recognised(tmp_path: Path) -> None:
    for k, (names, option) in enumerate(
        [
            (SYNCTALK, "synctalk"),
            (SYNCTALK[1:], "synctalk"),
            (SANDERS, "sanders"),
            (("package_info.json",), "sanders"),
            (DEFAULT, "default_model"),
            (("face_regions_320.mp4",), "default_model"),
            (("full_imgs/", "face_imgs/", "coords.pkl"), "livetalking"),
            (("coords.pkl",), "livetalking"),
        ]
    ):
        folder = make(tmp_path / str(k), *names)
        assert recognise(folder).form.option == option
        assert names[-1].rstrip("/") in recognise(folder).line


def test_two_forms_in_one_folder(tmp_path: Path) -> None:
    """The whole one is taken, and why is said; of two that are alike the user chooses."""
    folder = make(tmp_path / "a", *SANDERS, "face_regions_320.mp4")
    found = recognise(folder)
    assert found.form.option == "sanders"
    assert "of default_model (face_regions_320.mp4) only parts are there" in found.line
    for k, names in enumerate(((*SANDERS, *DEFAULT), ("landmarks/", "face_regions_320.mp4"))):
        folder = make(tmp_path / f"b{k}", *names)
        with pytest.raises(
            AvatarImportError, match=r"choose with --form .* or --form default_model"
        ):
            recognise(folder)
        assert recognise(folder, "default_model").form.option == "default_model"
    with pytest.raises(AvatarImportError, match="expected synctalk, sanders, default_model"):
        recognise(folder, "other")


def test_what_is_known_and_not_imported(tmp_path: Path) -> None:
    for k, (names, word) in enumerate(
        [
            (("full_imgs/", "coords.pkl", "ultralight.pth"), "ultralight.*HuBERT.*not supported"),
            (("ultralight.pth",), "ultralight.*HuBERT.*not supported"),
            (("manifest.json",), "package already"),
            (("prepared.json",), "avatar train"),
            (("a.txt",), "no avatar of a known form"),
            ((), "no avatar of a known form"),
        ]
    ):
        folder = make(tmp_path / str(k), *names)
        folder.mkdir(exist_ok=True)
        with pytest.raises(AvatarImportError, match=word):
            imported(folder)
    make(tmp_path / "root", *(f"dataset/ann/{name}" for name in SYNCTALK))
    with pytest.raises(AvatarImportError, match=r"did you mean .*root/dataset/ann\?"):
        recognise(tmp_path / "root")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("a.lsa", "package already"),
        ("a.mp4", "avatar prepare"),
        ("a.flv", "avatar prepare"),
        ("a.VOB", "avatar prepare"),
        ("a.pth", "--checkpoint"),
        ("a.onnx", "--checkpoint"),
        ("a.txt", "not a folder"),
    ],
)
def test_files(tmp_path: Path, name: str, word: str) -> None:
    make(tmp_path, name)
    with pytest.raises(AvatarImportError, match=word):
        recognise(tmp_path / name)


# Parts that are missing


def test_all_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    for form, names in (
        (
            "sanders",
            (RECTANGLES, "full_body_video.mp4", "best_trainloss.pth", "audio_visual_encoder"),
        ),
        ("default_model", ("face_bounds", "video.mp4", "{epoch}.pth", "audio_visual_encoder")),
        ("synctalk", ("full_body_img", "{epoch}.pth", "audio_visual_encoder")),
        ("livetalking", ("full_imgs", "coords.pkl", "models/wav2lip.pth")),
    ):
        folder = tmp_path / form / "ann"
        folder.mkdir(parents=True)
        with pytest.raises(AvatarImportError) as caught:
            imported(folder, form=form)
        said = str(caught.value)
        assert f"{len(names)} parts of a" in said
        for name in names:
            assert name in said
        assert "expected" in said


SANDERS_PARTS = {
    "full_body_video.mp4": "expected a video of the frames",
    RECTANGLES: 'expected one rectangle a frame: {"0"',
    "checkpoint/best_trainloss.pth": "best_trainloss.pth, model_best.pth or model_best.onnx",
    "audio_visual_encoder.pth": "--audio-encoder",
}
DEFAULT_PARTS = {
    "video.mp4": "expected a video of the frames",
    "face_bounds/2.npy": "",
    "models/99.pth": "--checkpoint",
    "models/audio_visual_encoder.pth": "--audio-encoder",
}


@pytest.mark.parametrize("name", SANDERS_PARTS)
def test_a_part_of_sanders_is_missing(sanders: Path, name: str) -> None:
    (sanders / name).unlink()
    refused(sanders, str(sanders), SANDERS_PARTS[name])


@pytest.mark.parametrize("name", DEFAULT_PARTS)
def test_a_part_of_default_model_is_missing(default_model: Path, name: str) -> None:
    (default_model / name).unlink()
    refused(default_model, str(default_model), DEFAULT_PARTS[name])


def test_parts_that_are_not_needed(sanders: Path) -> None:
    """A note says so; without crops there is nothing to hold the rectangles against: a warning."""
    for name in ("package_info.json", "aud_ave.npy", "rois_320_video.mp4", "crops_328_video.mp4"):
        (sanders / name).unlink()
    made = imported(sanders)
    (note,) = made.source.notes
    assert note == "not there, and not needed: package_info.json, rois_320_video.mp4, aud_ave.npy"
    (warning,) = made.source.warnings
    assert "not checked" in warning
    assert "crops_328_video.mp4: missing" in warning


def test_weights_that_are_named(sanders: Path, originals: Path) -> None:
    (sanders / "checkpoint" / "best_trainloss.pth").unlink()
    (sanders / "audio_visual_encoder.pth").unlink()
    made = imported(
        sanders, checkpoint=originals / "unet.pth", audio_encoder=originals / "encoder.pth"
    )
    assert made.source.networks.checkpoint == originals / "unet.pth"


def test_which_weights_are_taken(sanders: Path) -> None:
    for name in ("model_best.pth", "model_best.onnx"):
        (sanders / "checkpoint" / name).write_text("no weights")
    (note,) = imported(sanders).source.notes
    assert note == "of best_trainloss.pth, model_best.pth, model_best.onnx the first was taken"
    (sanders / "checkpoint" / "best_trainloss.pth").unlink()
    shutil.rmtree(sanders.parents[1] / "avatars")
    refused(sanders, "model_best.pth", error=CheckpointError)
    (sanders / "checkpoint" / "model_best.pth").unlink()
    refused(sanders, "model_best.onnx", error=CheckpointError)


# Parts that are damaged


def rectangles(change: Callable[[dict[str, object]], object]) -> Change:
    def write(path: Path) -> None:
        entries = json.loads((path / RECTANGLES).read_text())
        changed = change(entries)
        (path / RECTANGLES).write_text(json.dumps(entries if changed is None else changed))

    return write


def text(data: str | bytes | Callable[[], str]) -> Change:
    """Other rectangles. What is large is made where it is used, not at collection."""

    def replace(path: Path) -> None:
        made = data() if callable(data) else data
        (path / RECTANGLES).write_bytes(made.encode() if isinstance(made, str) else made)

    return replace


def all_rects(value: object) -> Change:
    return rectangles(lambda e: {k: {"rect": value} for k in e})


def one_rect(value: object) -> Change:
    return rectangles(lambda e: e.update({"1": {"rect": value}}))


def sparse(path: Path) -> None:
    with (path / RECTANGLES).open("r+b") as file:
        file.truncate(10 << 30)


def instead(name: str, make_it: Callable[[Path], object]) -> Change:
    def replace(path: Path) -> None:
        (path / name).unlink()
        make_it(path / name)

    return replace


BAD_RECTANGLES: dict[str, tuple[Change, str]] = {
    "empty": (text(""), "expected one rectangle"),
    "no text": (text(b"\xff\xfe\0"), "expected one rectangle"),
    "no object": (text("[1, 2]"), "expected one rectangle"),
    "nothing in it": (text("{}"), "0 rectangles"),
    "deep": (text(lambda: '{"0":' + "[" * 100_000), "expected one rectangle"),
    "a million": (
        text(lambda: json.dumps({str(i): {"rect": [1, 1, 9, 9]} for i in range(200_000)})),
        "rectangles, expected 1 to 15000",
    ),
    "a million without rectangles": (
        text(lambda: "{" + ",".join(f'"{i}":{{}}' for i in range(300_000)) + "}"),
        "300000 values, more than 240000",
    ),
    "many without rectangles": (
        text(lambda: "{" + ",".join(f'"{i}":{{}}' for i in range(200_000)) + "}"),
        "200000 rectangles, expected 1 to 15000",
    ),
    "of 10 GB": (sparse, "expected rectangles of at most 8388608"),
    "NaN": (one_rect(float("nan")), "expected one rectangle"),
    "NaN within": (one_rect([float("nan"), 1, 9, 9]), "expected one rectangle"),
    "infinite": (text('{"0": {"rect": [1e999, 0, 9, 9]}}'), "expected"),
    "three numbers": (one_rect([1, 2, 3]), "expected one rectangle"),
    "five numbers": (one_rect([1, 2, 3, 4, 5]), "expected one rectangle"),
    "words": (one_rect(["a", "b", "c", "d"]), "expected one rectangle"),
    "one missing": (rectangles(lambda e: e.__delitem__("2")), "no frame 2 among its 3"),
    "another name": (rectangles(lambda e: e.update({"x": e.pop("2")})), "no frame 2 among its 4"),
    "one more": (rectangles(lambda e: e.update({"4": e["0"]})), "has 4 pictures"),
    "one fewer": (rectangles(lambda e: e.__delitem__("3")), "has more than 3 pictures"),
    "all turned round": (all_rects([140, 130, 40, 30]), "4 of 4 frames have no rectangle"),
    "all negative": (all_rects([-90, -80, -10, -5]), "4 of 4 frames have no rectangle"),
    "all beyond": (all_rects([5_000, 30, 5_100, 130]), "4 of 4 frames have no rectangle"),
    "all far beyond": (all_rects([-1e300, -1e300, 1e300, 1e300]), "4 of 4 frames"),
    "none": (all_rects(None), "4 of 4 frames have no rectangle"),
    "a folder": (instead(RECTANGLES, Path.mkdir), "cannot be read as rectangles"),
    "a pipe": (instead(RECTANGLES, lambda p: os.mkfifo(p)), "not a file"),
    "a link out": (instead(RECTANGLES, lambda p: p.symlink_to("/etc/passwd")), "leads out"),
}


@pytest.mark.parametrize("case", BAD_RECTANGLES)
def test_rectangles_that_cannot_be(sanders: Path, case: str) -> None:
    change, word = BAD_RECTANGLES[case]
    change(sanders)
    refused(sanders, str(sanders), word)


def npy(*numbers: float, dtype: str = "<f8") -> bytes:
    import io

    out = io.BytesIO()
    np.save(out, np.array(numbers, dtype), allow_pickle=True)
    return out.getvalue()


GOOD = npy(41, 30, 141, 130, 100)
BAD_BOUNDS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "expected 5 or 6 numbers"),
    "text": (b"41 30 141 130 100", "expected 5 or 6 numbers"),
    "four": (npy(41, 30, 141, 130), "expected 5 or 6 numbers"),
    "seven": (npy(1, 2, 3, 4, 5, 6, 7), "expected 5 or 6 numbers"),
    "cut off": (GOOD[:-1], "expected 5 or 6 numbers"),
    "objects": (npy(1, 2, 3, 4, 5, dtype="O"), "expected 5 or 6 numbers"),
    "complex": (npy(1, 2, 3, 4, 5, dtype="<c16"), "expected 5 or 6 numbers"),
    "a header that is no expression": (GOOD.replace(b"(5,)", b"(1<<"), "expected 5 or 6 numbers"),
    "another order of shape": (GOOD.replace(b"(5,)", b"()  "), "expected 5 or 6 numbers"),
    "as many as said": (GOOD.replace(b"(5,)", b"(9,)"), "expected 5 or 6 numbers"),
    "code": (GOOD.replace(b"'<f8'", b"exit("), "expected 5 or 6 numbers"),
    "large": (GOOD + bytes(5_000), "at most 4096"),
    "another width": (npy(41, 30, 141, 130, 300), "a width of 300, but its bounds span 100"),
    "another height": (npy(41, 30, 141, 130, 100, 7), "a height of 7, but its bounds span 100"),
    "a width of NaN": (npy(41, 30, 141, 130, np.nan), "a width of nan"),
    "no face": (npy(np.nan, 30, 141, 130, 100), "1 of 4 frames have no rectangle"),
    "infinite": (npy(41, 30, np.inf, 130, 100), "1 of 4 frames have no rectangle"),
}


@pytest.mark.parametrize("case", BAD_BOUNDS)
def test_bounds_that_cannot_be(default_model: Path, case: str) -> None:
    data, word = BAD_BOUNDS[case]
    (default_model / "face_bounds" / "1.npy").write_bytes(data)
    refused(default_model, str(default_model / "face_bounds"), word)


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i4", "<i8"])
def test_bounds_of_other_types(default_model: Path, dtype: str) -> None:
    """Truncated as whole pixels, whatever they are stored as."""
    more = 0.9 if "f" in dtype else 0
    numbers = [x + more for x in (*RECTS[1].corners, 100)]
    (default_model / "face_bounds" / "1.npy").write_bytes(npy(*numbers, dtype=dtype))
    from lipsync_fast.avatars.importing.default_model import read_bounds

    found = read_bounds(default_model / "face_bounds" / "1.npy", default_model)
    assert tuple(found.astype(int)) == RECTS[1].corners


def larger(path: Path) -> None:
    """Pictures of 4,160 x 64: wider than videos may be."""
    write_video(path, [np.zeros((64, 4_160, 3), np.uint8)])


BAD_VIDEOS: dict[str, tuple[Change, str]] = {
    "empty": (Path.touch, "empty"),
    "text": (lambda p: p.write_text("hello"), "cannot be read as a video"),
    "a playlist": (lambda p: p.write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"), "cannot be read"),
    "a folder": (Path.mkdir, "not a file"),
    "a pipe": (lambda p: os.mkfifo(p), "not a file"),
    "a device": (lambda p: p.symlink_to("/dev/zero"), "leads out"),
    "too wide": (larger, "4160 x 64"),
    "too few": (lambda p: packages.lossless(p, pictures()[:3]), "has 3 pictures"),
    "too many": (lambda p: packages.lossless(p, pictures() * 2), "more than 4 pictures"),
    "cut off": (lambda p: p.write_bytes(packages.lossless(p, pictures()).read_bytes()[:2_000]), ""),
}


@pytest.mark.parametrize("case", BAD_VIDEOS)
def test_videos_that_cannot_be(sanders: Path, case: str) -> None:
    change, word = BAD_VIDEOS[case]
    instead("full_body_video.mp4", change)(sanders)
    refused(sanders, "full_body_video.mp4", word)


CROPS: dict[str, tuple[Change, str]] = {
    "text": (lambda p: p.write_text("hello"), "not checked"),
    "a pipe": (lambda p: os.mkfifo(p), "not checked"),
    "another size": (lambda p: packages.lossless(p, pictures()), "200 x 160 for frame 0, expected"),
    "too few": (
        lambda p: packages.lossless(p, packages.crops(pictures(), RECTS)[:2]),
        "nothing for frame 2",
    ),
    "of another place": (
        lambda p: packages.lossless(
            p, packages.crops(pictures(), [Rect(r.x - 20, r.y + 9, *r.size) for r in RECTS])
        ),
        "do rectangles and video belong together",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CROPS)
def test_crops_that_are_not_the_rectangles(sanders: Path, case: str) -> None:
    """Nothing is made of them, so it is a warning."""
    change, word = CROPS[case]
    instead("crops_328_video.mp4", change)(sanders)
    (warning,) = imported(sanders).source.warnings
    assert re.search(f"crops_328_video.mp4.*{word}|{word}.*crops_328_video.mp4", warning)
