# SPDX-License-Identifier: Apache-2.0
"""An avatar's files are deleted or damaged while an engine serves it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines import Engine, Host, jobs_of, noise, own

import lipsync_fast
from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.ipc.control import AvatarState, LoadAvatar, Ready
from lipsync_fast.ipc.messages import Job, Status


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "control")
    yield made
    made.close()


@pytest.fixture
def doomed(tmp_path: Path, tiny_avatar: Path) -> Path:
    return Path(shutil.copytree(tiny_avatar, tmp_path / "doomed"))


@pytest.fixture(scope="module")
def manifest(tiny_avatar: Path) -> Manifest:
    with AvatarPackage.open(tiny_avatar) as package:
        return package.manifest


@pytest.fixture
def engine(host: Host, doomed: Path, tiny_avatar: Path) -> Engine:
    """Serves both; it prepares frames when idle, and has not touched all of them yet."""
    return host.ready({"good": str(tiny_avatar), "doomed": str(doomed)})


def test_deleted_it_goes_on_from_what_is_mapped(
    host: Host, engine: Engine, doomed: Path, tiny_avatar: Path, manifest: Manifest
) -> None:
    shutil.rmtree(doomed)
    jobs = jobs_of(noise(0.4), manifest.audio, manifest.avatar_frame, avatar="doomed")
    for job, pcm in jobs:
        engine.submit(job, pcm)
    got = {}
    for _ in jobs:
        answer, jpeg = engine.answer()
        got[answer.number] = jpeg
    with lipsync_fast.open(tiny_avatar, backend="cpu", threads=1) as avatar:
        wanted = [frame.jpeg for frame in avatar.render(noise(0.4), 16_000)]
    assert [got[k] for k in range(len(jobs))] == wanted
    host.hub.send(engine.name, LoadAvatar(name="doomed", path=str(doomed)))
    assert "no such avatar package" in host.expect(engine, AvatarState).error


def test_overwritten_its_jobs_fail_and_others_do_not(
    engine: Engine, doomed: Path, manifest: Manifest
) -> None:
    for name in ("frames.bin", "pictures.bin"):
        data = (doomed / name).stat().st_size
        with open(doomed / name, "r+b") as file:  # in place: what is mapped changes
            file.write(b"\xa5" * data)
    speech, pcm = jobs_of(noise(0.4), manifest.audio, manifest.avatar_frame, avatar="doomed")[1]
    for number in range(6):
        engine.submit(own(4, number, "doomed"))
        engine.submit(Job(2, 0, number, "doomed", 4, speech.deadline_ns, speech=speech.speech), pcm)
        engine.submit(Job(3, 0, number, "good", 4, speech.deadline_ns, speech=speech.speech), pcm)
    status: dict[int, set[Status]] = {1: set(), 2: set(), 3: set()}
    for _ in range(18):
        answer, _ = engine.answer()
        status[answer.session].add(answer.status)
        assert answer.status == Status.MADE or answer.reason
    assert status[1] == {Status.FAILED}
    assert status[3] == {Status.MADE}


def test_cut_short_its_jobs_fail_and_others_do_not(
    host: Host, engine: Engine, doomed: Path, tiny_avatar: Path
) -> None:
    """What is mapped and gone is not read; a successor that loads it says what is wrong."""
    (doomed / "frames.bin").write_bytes(b"")
    engine.submit(own(3, 0, "doomed"))
    answer, _ = engine.answer()
    assert answer.status == Status.FAILED
    assert "has become shorter" in answer.reason
    engine.submit(own(3, 1, "good"))
    assert engine.answer()[0].status == Status.MADE
    engine.kill()
    successor = host.start({"good": str(tiny_avatar), "doomed": str(doomed)})
    state = host.expect(successor, AvatarState, lambda told: told.name == "doomed")
    assert "frames.bin has 0 bytes" in state.error
    host.expect(successor, Ready)
    successor.connect()
    successor.submit(own(1, 1, "good"))
    assert successor.answer()[0].status == Status.MADE
