# SPDX-License-Identifier: Apache-2.0
"""Batches whose recordings, disks, workers or own lives fail: what is made is whole, the same
command goes on, and nothing is made twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest
from commands import LINE, Done
from sounds import tone, write_wav

from lipsync_fast.batch.made import read_made

DEADLINE_S = 120


class DoneBatch(Done):
    """And what became of the recordings."""

    @property
    def counts(self) -> tuple[int, int, int]:
        """Made, kept, failed."""
        found = self.summary
        return found["made"], found["kept"], found["failed"]


Cli = Callable[..., DoneBatch]


@pytest.fixture
def batch(
    tiny_avatar: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Cli:
    """``lipsync-fast batch list.jsonl`` with the tiny avatar."""
    monkeypatch.chdir(tmp_path)

    def call(*more: str) -> DoneBatch:
        arguments = command(tiny_avatar, "--jobs", "1", *more)[3:]
        with pytest.raises(SystemExit) as ended:
            LINE(arguments, prog_name="lipsync-fast")
        captured = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return DoneBatch(ended.value.code, captured.out, captured.err)

    return call


def command(avatar: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "lipsync_fast", "batch", "list.jsonl", "--out", "videos", "--json",
        "--avatar", str(avatar), *more,
    ]  # fmt: skip


def write_list(folder: Path, *recordings: dict[str, object]) -> None:
    (folder / "list.jsonl").write_text("".join(json.dumps(each) + "\n" for each in recordings))


def many(folder: Path, count: int, seconds: float) -> None:
    write_wav(folder / "s.wav", tone(seconds))
    write_list(folder, *[{"audio": "s.wav", "out": f"{n}.mp4"} for n in range(count)])


def states(folder: Path) -> dict[str, str]:
    lines = (folder / "videos/batch.jsonl").read_text().splitlines()
    return {line["out"]: line["state"] for line in map(json.loads, lines)}


def left(folder: Path) -> list[str]:
    """What lies in the folder of outputs, hidden things too."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def refused(done: Done, *words: str) -> None:
    assert done.code == 2, done
    assert done.err.startswith("error: "), done.err
    assert done.err.count("\n") == 1, done.err
    for word in words:
        assert word in done.err


def frames(video: Path) -> int:
    with av.open(str(video)) as file:
        return sum(1 for _ in file.decode(video=0))


def test_what_is_finished_stands_for_its_input(batch: Cli, tmp_path: Path) -> None:
    for name in "abcd":
        write_wav(tmp_path / f"{name}.wav", tone(0.2))
    (tmp_path / "bad.wav").write_bytes(b"no sound at all")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/mine.mp4").write_bytes(b"a film of mine")
    write_list(
        tmp_path,
        {"audio": "a.wav", "out": "deep/er/a.mp4"},
        {"audio": "none.wav"},
        {"audio": "b.wav"},
        {"audio": "bad.wav"},
        {"audio": "c.wav", "out": "mine.mp4"},
        {"audio": "d.wav"},
    )
    first = batch()
    assert first.code == 1
    assert first.counts == (3, 0, 3)
    lines = (tmp_path / "videos/batch.jsonl").read_text().splitlines()
    ends = [json.loads(line) for line in lines]
    assert [end["state"] for end in ends] == ["made", "failed", "made", "failed", "failed", "made"]
    assert "none.wav: no such file" in ends[1]["error"]
    assert "bad.wav" in ends[3]["error"]
    assert "no batch has made it" in ends[4]["error"]
    assert {end["tries"] for end in ends} == {1}, "what cannot pass is not tried again"
    for end in ends:
        if end["state"] == "failed":
            assert f"failed: {end['out']}" in first.err
    assert (tmp_path / "videos/mine.mp4").read_bytes() == b"a film of mine"
    assert frames(tmp_path / "videos/deep/er/a.mp4") == 5
    assert left(tmp_path / "videos") == [
        "b.mp4",
        "batch.jsonl",
        "d.mp4",
        "deep/er/a.mp4",
        "mine.mp4",
    ]

    before = {name: (tmp_path / "videos" / name).stat() for name in ("b.mp4", "deep/er/a.mp4")}
    write_wav(tmp_path / "none.wav", tone(0.2))
    shutil.copy(tmp_path / "b.wav", tmp_path / "copy")
    os.replace(tmp_path / "copy", tmp_path / "b.wav")  # the same sound, of another time
    write_wav(tmp_path / "d.wav", tone(0.4))
    second = batch()
    assert second.counts == (2, 2, 2)
    for name, about in before.items():
        assert os.path.samestat((tmp_path / "videos" / name).stat(), about), "it was made again"
    assert frames(tmp_path / "videos/d.mp4") == 10, "its sound is another one"

    third = batch("--start-frame", "2")
    assert third.counts == (4, 0, 2), "other pictures are asked for"
    made = read_made(tmp_path / "videos/d.mp4")
    assert made is not None
    assert made.start_frame == 2
    assert batch("--start-frame", "2", "--force").counts == (5, 0, 1)
    assert frames(tmp_path / "videos/mine.mp4") == 5


def test_what_can_be_refused_is_refused_before_anything_is_made(batch: Cli, tmp_path: Path) -> None:
    write_wav(tmp_path / "s.wav", tone(0.2))
    refused(batch(), "list.jsonl: no such file")
    write_list(tmp_path, {"audio": "s.wav"}, {"audio": "s.wav", "avatar": "nobody", "out": "o.mp4"})
    refused(batch(), "'nobody' was not found")
    write_list(tmp_path, {"audio": "s.wav"})
    refused(batch("--out", "no/such/folder"), "no/such does not exist")
    refused(batch("--out", "s.wav"), "is no folder")
    refused(batch("--out", "ftp://host/x"), "expected one of s3://")
    refused(batch("--out", "s3://key:secret@bucket/x"), "credentials do not belong")
    refused(batch("--backend", "abacus"), "abacus")
    assert batch("--ray", "127.0.0.1:9").code == 2
    assert not list(tmp_path.rglob("*.mp4"))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 KiB where the videos go."""
    folder = tmp_path / "videos"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(batch: Cli, tmp_path: Path, tiny_disk: Path) -> None:
    many(tmp_path, 12, 1.0)
    full = batch()
    refused(Done(full.code, full.out, full.err[full.err.index("error:") :]), "no space left")
    made = [name for name in left(tiny_disk) if name.endswith(".mp4")]
    assert made
    assert {frames(tiny_disk / name) for name in made} == {25}, "what is there is whole"
    assert not (tiny_disk / ".batch").exists()
    sizes = {name: (tiny_disk / name).stat().st_ino for name in made}
    subprocess.run(["mount", "-o", "remount,size=8m", str(tiny_disk)], check=True)
    more = batch()
    assert more.code == 0
    assert more.counts == (12 - len(made), len(made), 0)
    assert {name: (tiny_disk / name).stat().st_ino for name in made} == sizes


def test_one_run_at_a_time(batch: Cli, tiny_avatar: Path, tmp_path: Path) -> None:
    many(tmp_path, 2, 300)
    with begun(tiny_avatar, tmp_path) as process:
        refused(batch(), "another batch writes to")
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 143


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_interrupted(
    batch: Cli, tiny_avatar: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    many(tmp_path, 6, 1.0)
    lines = (tmp_path / "list.jsonl").read_text()
    write_wav(tmp_path / "long.wav", tone(300))
    (tmp_path / "list.jsonl").write_text(lines + '{"audio": "long.wav"}\n')
    with begun(tiny_avatar, tmp_path, "--jobs", "2") as process:
        wait_for(lambda: len(list((tmp_path / "videos").glob("*.mp4"))) >= 4, process)
        workers = children(process.pid)
        process.send_signal(sent)
        _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, said
    assert b"Traceback" not in said
    deadline = time.monotonic() + DEADLINE_S
    while any(Path(f"/proc/{pid}/stat").exists() for pid in workers):
        assert time.monotonic() < deadline, "workers outlive the run"
        time.sleep(0.01)
    made = {path.name: path.stat().st_ino for path in (tmp_path / "videos").glob("*.mp4")}
    assert {frames(tmp_path / "videos" / name) for name in made} == {25}
    if sent != signal.SIGKILL:
        assert not (tmp_path / "videos/.batch").exists()
        told = states(tmp_path)
        assert told["long.mp4"] == "waiting"
        assert {name for name, state in told.items() if state == "made"} <= set(made)
    (tmp_path / "list.jsonl").write_text(lines)
    again = batch()
    assert again.counts == (6 - len(made), len(made), 0)
    assert {name: (tmp_path / "videos" / name).stat().st_ino for name in made} == made
    assert left(tmp_path / "videos") == sorted([*(f"{n}.mp4" for n in range(6)), "batch.jsonl"])


def test_a_worker_is_killed(tiny_avatar: Path, tmp_path: Path) -> None:
    many(tmp_path, 8, 1.0)
    with begun(tiny_avatar, tmp_path, "--jobs", "2") as process:
        wait_for(lambda: any((tmp_path / "videos").glob("*.mp4")), process)
        os.kill(children(process.pid)[0], signal.SIGKILL)
        out, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, said
    done = DoneBatch(0, out.decode(), said.decode())
    assert sum(done.counts[:2]) == 8, "one may have been whole before its worker could tell"
    assert done.summary["retries"] <= 1
    assert {frames(tmp_path / "videos" / f"{n}.mp4") for n in range(8)} == {25}
    assert left(tmp_path / "videos") == sorted([*(f"{n}.mp4" for n in range(8)), "batch.jsonl"])


# ---------------------------------------------------------------- parts
class begun:  # noqa: N801
    """A batch in a process of its own, which has begun to make something; killed at the end."""

    def __init__(self, avatar: Path, folder: Path, *more: str) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            command(avatar, *more),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
        )

    def __enter__(self) -> subprocess.Popen[bytes]:
        hidden = self._folder / "videos/.batch"
        wait_for(lambda: any(hidden.glob("run-*/*/*")), self._process)
        return self._process

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=DEADLINE_S)
        except ValueError:  # it was waited for
            pass
        finally:
            self._process.kill()
            self._process.wait()


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
