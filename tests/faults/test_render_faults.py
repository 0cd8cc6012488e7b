# SPDX-License-Identifier: Apache-2.0
"""Bad sound, bad outputs and interruptions: one clear line, nothing left behind or overwritten."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from commands import LINE, Done
from sounds import render_command, tone, write_media, write_wav

from lipsync_fast.avatars.writer import pack
from lipsync_fast.timing import SAMPLE_RATE

DEADLINE_S = 60
PROGRESS = re.compile(r"\d+/\d+ frames \(\d+%\), [\d.]+ frames/s, [\d:]+ left")
"""What is said every five seconds, where a busy machine takes that long."""


Cli = Callable[..., Done]


@pytest.fixture
def render(
    tiny_avatar: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Cli:
    """``lipsync-fast render`` with the tiny avatar, in this process."""
    monkeypatch.chdir(tmp_path)

    def call(sound: str | Path, out: str | Path, *more: str) -> Done:
        arguments = ["render", str(sound), "-o", str(out), "--avatar", str(tiny_avatar), *more]
        with pytest.raises(SystemExit) as ended:
            LINE(arguments, prog_name="lipsync-fast")
        said = capfd.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)

    return call


def refused(done: Done, *words: str) -> None:
    """Exit 2 with one line that has all ``words``."""
    assert done.code == 2, done.err
    lines = [line for line in done.err.splitlines() if not PROGRESS.fullmatch(line)]
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# Sound


def test_missing_file(render: Cli, tmp_path: Path) -> None:
    refused(render("no.wav", "o.mp4"), "no.wav", "no such file")
    assert left(tmp_path) == []


def test_a_folder_as_sound(render: Cli, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    refused(render("d", "o.mp4"), "folder")


def test_a_file_that_cannot_be_read(render: Cli, tmp_path: Path) -> None:
    (tmp_path / "s.wav").symlink_to("/proc/self/mem")  # opens, and then fails to read, for anyone
    refused(render("s.wav", "o.mp4"), "s.wav")
    assert left(tmp_path) == ["s.wav"]


def test_a_file_without_permission(render: Cli, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    write_wav(tmp_path / "s.wav", tone(0.2)).chmod(0)
    refused(render("s.wav", "o.mp4"), "s.wav", "ermission")
    assert left(tmp_path) == ["s.wav"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("text.wav", b"this is not a sound\n" * 40),
        ("empty.wav", b""),
        ("noise.mp3", bytes(np.random.default_rng(0).integers(0, 256, 4096, np.uint8))),
        ("head.wav", b"RIFF\xff\xff\xff\xffWAVE"),
    ],
)
@pytest.mark.parametrize("out", ["o.mp4", "o"])
def test_not_media(render: Cli, tmp_path: Path, name: str, data: bytes, out: str) -> None:
    (tmp_path / name).write_bytes(data)
    refused(render(name, out), name)
    assert left(tmp_path) == [name]


def test_no_sound_in_a_video(render: Cli, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    refused(render("v.mp4", "o.mp4"), "v.mp4", "no sound")
    assert left(tmp_path) == ["v.mp4"]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("t.wav", "pcm_s16le", {}),
        ("t.flac", "flac", {}),
        ("t.mp3", "libmp3lame", {}),
        ("t.m4a", "aac", {"movflags": "+faststart"}),
    ],
)
def test_truncated_sound_gives_what_decodes(
    render: Cli, tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    path = write_media(tmp_path / name, tone(4), codec, **options)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
    done = render(name, "o.mp4", "--json")
    assert done.code == 0, done.err
    frames = done.summary["frames"]
    assert isinstance(frames, int)
    assert 35 <= frames <= 75
    assert "warning: " in done.err
    assert "Traceback" not in done.err
    with av.open(str(tmp_path / "o.mp4")) as container:
        sound = sum(f.samples for f in container.decode(audio=0)) / SAMPLE_RATE
    assert frames / 25 - 0.04 <= sound + 1e-9, "sound and pictures end together"
    assert sound <= frames / 25 + 1024 / SAMPLE_RATE


def test_a_truncated_index_is_an_error(render: Cli, tmp_path: Path) -> None:
    path = write_media(tmp_path / "t.m4a", tone(2), "aac")  # its index lies at the end
    path.write_bytes(path.read_bytes()[:-200])
    refused(render("t.m4a", "o.mp4"), "t.m4a")
    assert left(tmp_path) == ["t.m4a"]


def test_no_samples(render: Cli, tmp_path: Path) -> None:
    write_wav(tmp_path / "s.wav", tone(0))
    refused(render("s.wav", "o.mp4"), "s.wav")
    assert left(tmp_path) == ["s.wav"]


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (320, 1), (640, 1), (641, 2)])
@pytest.mark.parametrize("out", ["o.mp4", "o"])
def test_hardly_any_samples(
    render: Cli, tmp_path: Path, samples: int, frames: int, out: str
) -> None:
    write_wav(tmp_path / "s.wav", tone(1)[:samples])
    done = render("s.wav", out, "--json")
    assert done.code == 0, done.err
    assert done.summary["frames"] == frames
    if out == "o":
        assert len(left(tmp_path / "o")) == frames
    else:
        with av.open(str(tmp_path / "o.mp4")) as container:
            assert sum(1 for _ in container.decode(video=0)) == frames


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 192_000])
def test_any_rate(render: Cli, tmp_path: Path, rate: int) -> None:
    write_wav(tmp_path / "s.wav", tone(0.5, rate), rate)
    done = render("s.wav", "o.mp4", "--json")
    assert done.code == 0, done.err
    assert done.summary["frames"] == 13
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert container.streams.audio[0].rate == (48_000 if rate == 192_000 else rate)


def test_surround(render: Cli, tmp_path: Path) -> None:
    samples = tone(0.5, 48_000, 6)
    write_media(tmp_path / "s.wav", samples, "pcm_s16le", layout="5.1", rate=48_000)
    done = render("s.wav", "o.mp4", "--json")
    assert done.code == 0, done.err
    assert done.summary["frames"] == 13
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert container.streams.audio[0].layout.name == "stereo"


def test_not_a_number_is_silence_and_counted(render: Cli, tmp_path: Path) -> None:
    samples = tone(0.5)
    samples[1000:1012] = np.nan
    samples[2000] = np.inf
    write_media(tmp_path / "s.wav", samples, "pcm_f32le")
    done = render("s.wav", "o.mp4", "--json")
    assert done.code == 0, done.err
    assert done.summary["frames"] == 13
    assert "13 samples" in str(done.summary["warnings"])
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert all(np.isfinite(f.to_ndarray()).all() for f in container.decode(audio=0))


@pytest.mark.parametrize("level", [0.0, 0.5, 4.0])
def test_silence_dc_and_too_loud(render: Cli, tmp_path: Path, level: float) -> None:
    write_media(tmp_path / "s.wav", np.full((8000, 1), level, np.float32), "pcm_f32le")
    done = render("s.wav", "o.mp4", "--json")
    assert done.code == 0, done.err
    assert done.summary["frames"] == 13
    assert ("clipped" in str(done.summary["warnings"])) == (level > 1)


# Outputs


@pytest.mark.parametrize("out", ["no/such/o.mp4", "no/such/frames"])
def test_output_folder_missing(render: Cli, tmp_path: Path, out: str) -> None:
    write_wav(tmp_path / "s.wav", tone(0.2))
    refused(render("s.wav", out), out, "does not exist")
    assert left(tmp_path) == ["s.wav"]


@pytest.mark.parametrize("out", ["s.wav/o.mp4", "s.wav/frames"])
def test_output_under_a_file(render: Cli, tmp_path: Path, out: str) -> None:
    write_wav(tmp_path / "s.wav", tone(0.2))
    refused(render("s.wav", out), out)


@pytest.mark.parametrize("out", ["o.mp4", "frames"])
def test_output_not_writable(render: Cli, tmp_path: Path, out: str, read_only: Path) -> None:
    write_wav(tmp_path / "s.wav", tone(0.2))
    refused(render("s.wav", read_only / out), out)
    assert left(read_only) == []


@pytest.mark.parametrize("out", ["o.mp4", "frames"])
def test_disk_full(render: Cli, tmp_path: Path, out: str, tiny_disk: Path) -> None:
    write_wav(tmp_path / "s.wav", tone(8))
    refused(render("s.wav", tiny_disk / out), out, "no space left")
    assert left(tiny_disk) == []


@pytest.mark.parametrize("out", ["o.mp4", "frames"])
def test_file_size_limit(tiny_avatar: Path, tmp_path: Path, out: str) -> None:
    """As a full disk, but for anyone: the system refuses files beyond 8 KiB."""
    write_wav(tmp_path / "s.wav", tone(8))

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    done = subprocess.run(
        render_command(tiny_avatar, "s.wav", out),
        cwd=tmp_path,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    refused(Done(done.returncode, done.stdout, done.stderr), out, "larger than allowed")
    assert left(tmp_path) == ["s.wav"]


def test_existing_outputs_are_kept(render: Cli, tmp_path: Path) -> None:
    write_wav(tmp_path / "s.wav", tone(0.2))
    (tmp_path / "o.mp4").write_bytes(b"precious")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "precious").touch()
    (tmp_path / "s.png").write_bytes(b"precious")
    refused(render("s.wav", "o.mp4"), "o.mp4 exists", "--force")
    refused(render("s.wav", "f"), "not empty")
    refused(render("s.wav", "f", "--force"), "did not write")
    refused(render("s.wav", "new.mp4", "--contact-sheet", "s.png"), "s.png exists")
    refused(render("s.wav", "s.wav"), "a file of that name")
    assert (tmp_path / "o.mp4").read_bytes() == b"precious"
    assert (tmp_path / "s.png").read_bytes() == b"precious"
    assert left(tmp_path) == ["f", "o.mp4", "s.png", "s.wav"]


def test_an_existing_output_is_refused_before_any_work(render: Cli, tmp_path: Path) -> None:
    (tmp_path / "o.mp4").touch()
    refused(render("not-even-there.wav", "o.mp4"), "o.mp4 exists")


def test_unknown_avatar_and_backend(render: Cli, tmp_path: Path) -> None:
    write_wav(tmp_path / "s.wav", tone(0.2))
    refused(render("s.wav", "o.mp4", "--avatar", "nobody"), "nobody")
    refused(render("s.wav", "o.mp4", "--backend", "abacus"), "abacus")
    refused(render("s.wav", "o.mp4", "--backend", "cuda"), "CUDA")
    assert left(tmp_path) == ["s.wav"]


def test_a_damaged_avatar(render: Cli, tiny_avatar: Path, tmp_path: Path) -> None:
    """What the package's reader refuses (test_avatar_damage.py) is one line here, and no output."""
    write_wav(tmp_path / "s.wav", tone(0.2))
    pack(tiny_avatar, tmp_path / "whole.lsa")
    whole = (tmp_path / "whole.lsa").read_bytes()
    (tmp_path / "cut.lsa").write_bytes(whole[: len(whole) // 2])
    changed = bytearray(whole)
    changed[whole.index(b'"format_version": 1') + 18] = ord("9")
    (tmp_path / "newer.lsa").write_bytes(changed)
    refused(render("s.wav", "o.mp4", "--avatar", "cut.lsa"), "cut.lsa")
    refused(render("s.wav", "o.mp4", "--avatar", "newer.lsa"), "newer.lsa")
    assert left(tmp_path) == ["cut.lsa", "newer.lsa", "s.wav", "whole.lsa"]


def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own at ``folder``, where this process may mount one."""
    folder.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 KiB."""
    yield from mounted(tmp_path / "disk", "size=100k")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that takes no files: by its mode, or for root by its file system."""
    if os.geteuid() == 0:
        yield from mounted(tmp_path / "ro", "ro,size=16k")
        return
    folder = tmp_path / "ro"
    folder.mkdir(mode=0o555)
    yield folder
    folder.chmod(0o755)
