# SPDX-License-Identifier: Apache-2.0
"""The temporary folder is full, or none can be written to: one clear line, and nothing is lost."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import tempfile
import urllib.error
import urllib.request
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from serving import server
from talking import in_trio, say, speech, utterance
from test_render_faults import mounted

import lipsync_fast
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.client.local import LocalServer
from lipsync_fast.console import guarded
from lipsync_fast.errors import LipsyncError, MediaError, OutputError
from lipsync_fast.frontend.legacy import video
from lipsync_fast.supervisor.run_folder import RunFolder, is_running

FULL = os.strerror(errno.ENOSPC)


def wav(seconds: float) -> io.BytesIO:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1), out.setsampwidth(2), out.setframerate(16_000)
        out.writeframes(np.zeros(round(seconds * 16_000), np.int16).tobytes())
    file.seek(0)
    return file


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files can be made, and nothing written to them."""

    def made(*_: Any, **named: Any) -> Any:
        return open("/dev/full", "w+b", buffering=named.get("buffering", -1))

    monkeypatch.setattr(tempfile, "TemporaryFile", made)


@pytest.fixture
def none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python has found no folder that it can write to."""

    def made(*_: Any, **__: Any) -> Any:
        folders = ["/tmp", "/var/tmp"]
        raise FileNotFoundError(errno.ENOENT, f"No usable temporary directory found in {folders}")

    for name in ("TemporaryFile", "mkdtemp"):
        monkeypatch.setattr(tempfile, name, made)


# ---------------------------------------------------------------- each place by itself
@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("seconds", [0.05, 40.0])
def test_a_short_and_a_long_open_file(tiny_avatar: Path, seconds: float) -> None:
    with lipsync_fast.open(tiny_avatar, backend="cpu", threads=1) as avatar:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(MediaError, match=rf"the open file: no room for it in .*{FULL}"):
            list(avatar.render(wav(seconds)))
        assert len(os.listdir("/proc/self/fd")) == before
        assert len(list(avatar.render(np.zeros(640, np.float32), 16_000))) == 1


@pytest.mark.usefixtures("none")
def test_no_folder_for_an_open_file(tiny_avatar: Path) -> None:
    with (
        lipsync_fast.open(tiny_avatar, backend="cpu", threads=1) as avatar,
        pytest.raises(MediaError, match="the open file: no room for a copy of it: No usable"),
    ):
        list(avatar.render(wav(0.1)))


def test_an_avatars_video(tiny_avatar: Path, request: pytest.FixtureRequest) -> None:
    with AvatarPackage.open(tiny_avatar) as package:
        for fixture, why in (("full", FULL), ("none", "No usable temporary directory")):
            request.getfixturevalue(fixture)
            with pytest.raises(OutputError, match=f"cannot make the video of tiny: {why}"):
                video._encoded(package, lambda: False)


@pytest.mark.usefixtures("none")
def test_a_server_of_a_programs_own() -> None:
    with (
        pytest.raises(LipsyncError, match="no folder for a server's files: No usable temporary"),
        LocalServer(),
    ):
        pass


@pytest.mark.usefixtures("none")
def test_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        with tempfile.TemporaryDirectory():
            pass

    with pytest.raises(typer.Exit) as left:
        guarded(command)()
    assert left.value.exit_code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: No usable temporary directory found in ['/tmp', '/var/tmp'] (")
    assert said.count("\n") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EAGAIN])
def test_what_a_machine_has_no_more_of_is_no_defect(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise OSError(number, os.strerror(number), "/some/file")

    with pytest.raises(typer.Exit):
        guarded(command)()
    assert capsys.readouterr().err == f"error: /some/file: {os.strerror(number)}\n"


def test_a_defect_keeps_its_traceback() -> None:
    def command() -> None:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))

    with pytest.raises(IsADirectoryError):
        guarded(command)()


def test_a_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is room for names, and none for a number."""

    def write(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, FULL)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        taken = RunFolder.take(tmp_path / "run")
    assert is_running(tmp_path / "run")
    taken.remove()
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- a whole server
@pytest.fixture
def small_folder(tmp_path: Path) -> Iterator[Path]:
    """A temporary folder with room for next to nothing."""
    with contextlib.contextmanager(mounted)(tmp_path / "small", "size=16k") as folder:
        yield folder


@in_trio
async def test_a_server_goes_on(tiny_avatar: Path, small_folder: Path) -> None:
    config = (
        f"[avatars]\nfolders = ['{tiny_avatar.parent}']\ndefault = '{tiny_avatar.name}'\n"
        "[engines]\ngpus = 'none'\nspares = 0\nhung_s = 20.0\n"
        "[live]\nmargin_ms = 400\nmargin_most_ms = 400\nhalf_rate = false\n"
    )
    with server(config, environ={"TMPDIR": str(small_folder)}) as run:
        status = run.serving(spares=0)
        url = f"http://127.0.0.1:{status.http_port}/models/{tiny_avatar.name}/video.mp4"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url, timeout=60)
        with refused.value as answer:
            assert answer.code == 500
            assert f"cannot make the video of tiny: {FULL}" in answer.read().decode()
        async with lipsync_fast.connect(f"ws://127.0.0.1:{status.ports[0]}") as session:
            await say(session, speech(0.4))
            ended, _ = await utterance(session, 1)
            assert ended.frames == 10
        assert "Traceback" not in run.log
        assert os.listdir(small_folder) == []
        assert run.stop() == 0
