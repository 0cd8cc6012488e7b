# SPDX-License-Identifier: Apache-2.0
"""An engine that finds what it has made before: the same bytes, and no network."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import backends
import msgspec
import pytest
from engines import jobs_of, noise
from test_scheduler import Front, settle, until_true

from lipsync_fast.arrays import F32
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.config import Utterances
from lipsync_fast.engine.frame_cache import Scopes, open_frame_cache
from lipsync_fast.engine.prerender import Prerendering, wanted
from lipsync_fast.engine.scheduler import Scheduler
from lipsync_fast.engine.splice import FrameEncoder
from lipsync_fast.errors import AvatarError
from lipsync_fast.ipc.messages import Content, Job, Look, Status, StoreMode
from lipsync_fast.utterances.store import Store

OFF, LOOK_UP, KEEP = StoreMode
SOUND = noise(0.4)
LOOKS = [
    Look(),
    Look(quality=55),
    Look(max_width=100),
    Look(Content.MOUTH),
    Look(Content.REGION, 70),
]


@pytest.fixture(scope="module")
def manifest(tiny_avatar: Path) -> Manifest:
    with AvatarPackage.open(tiny_avatar) as package:
        return package.manifest


def engine_of(tiny_avatar: Path, folder: Path, backend: str = "cpu", mb: int = 64) -> Scheduler:
    made, encoder = backends.make(backend, live=True), FrameEncoder()
    config = Utterances(folder=str(folder), disk_mb=mb, write_mb_s=100.0)
    engine = Scheduler(made, encoder, open_frame_cache(made, encoder, config))
    engine.registry.load("tiny", tiny_avatar)
    return engine


@pytest.fixture(params=backends.NAMES)
def engine(
    request: pytest.FixtureRequest, tiny_avatar: Path, tmp_path: Path
) -> Iterator[Scheduler]:
    made = engine_of(tiny_avatar, tmp_path / "kept", request.param)
    yield made
    made.close()


@pytest.fixture
def front(engine: Scheduler) -> Iterator[Front]:
    made = Front(engine)
    yield made
    made.close()


def asked(
    manifest: Manifest, store: StoreMode, look: Look, sound: F32 = SOUND
) -> list[tuple[Job, F32]]:
    jobs = jobs_of(sound, manifest.audio, lambda k: manifest.avatar_frame(k, 2), look=look)
    out = []
    for job, pcm in jobs:
        assert job.speech is not None
        share = 0.5 if job.number == 1 else 1.0
        speech = msgspec.structs.replace(job.speech, store=store, share=share)
        out.append((msgspec.structs.replace(job, speech=speech), pcm))
    return out


def answers(front: Front, jobs: list[tuple[Job, F32]]) -> dict[int, tuple[bytes, bool, object]]:
    for job, pcm in jobs:
        front.submit(job, pcm)
    found = front.run(len(jobs))
    assert all(a.status == Status.MADE for a, _ in found), [a.reason for a, _ in found]
    return {a.number: (jpeg, a.kept, a.box) for a, jpeg in found}


def test_an_avatar_that_cannot_be_read_ends_no_engine(
    engine: Scheduler, front: Front, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files may be cut short while it is in use: its jobs fail one by one, others go on."""
    answers(front, asked(manifest, KEEP, Look()))
    until_kept(engine, 1)

    def cut_short(*_: object) -> bytes:
        raise AvatarError("tiny: has become shorter while it was in use")

    with monkeypatch.context() as patched:
        patched.setattr(Scopes, "sound", cut_short)
        answers(front, asked(manifest, LOOK_UP, Look()))
        answers(front, asked(manifest, KEEP, Look()))
    assert any(kept for _, kept, _ in answers(front, asked(manifest, LOOK_UP, Look())).values())


def until_kept(engine: Scheduler, count: int) -> None:
    known = engine.cache
    assert known is not None
    until_true(engine, lambda: known.counts["kept"] >= count)


@pytest.mark.parametrize(
    "look",
    [LOOKS[0], *(pytest.param(look, marks=pytest.mark.slow) for look in LOOKS[1:])],
    ids=lambda look: f"{look.content.name} {look.quality}",
)
def test_what_was_made_is_found_with_the_same_bytes(
    engine: Scheduler, front: Front, manifest: Manifest, look: Look
) -> None:
    first = answers(front, asked(manifest, KEEP, look))
    until_kept(engine, len(first))
    inferences = engine.load_now().inferences
    assert inferences == len(first)
    again = answers(front, asked(manifest, LOOK_UP, look))
    for number, (jpeg, kept, box) in first.items():
        assert not kept
        assert again[number] == (jpeg, True, box)
    other = Look(look.content, 33, None)
    assert not any(kept for _, kept, _ in answers(front, asked(manifest, LOOK_UP, other)).values())
    load = engine.load_now()
    assert load.inferences == inferences + len(first)
    assert load.store["found"] == load.store["missed"] == len(first)
    assert load.made == 3 * len(first)


def test_nothing_is_looked_for_or_kept_unasked(
    engine: Scheduler, front: Front, manifest: Manifest
) -> None:
    for _ in range(2):
        found = answers(front, asked(manifest, OFF, Look()))
        assert not any(kept for _, kept, _ in found.values())
    settle(engine)
    known = engine.cache
    assert known is not None
    assert set(known.counts.values()) == {0}
    assert engine.load_now().inferences == 2 * len(found)


def test_a_value_that_is_damaged_is_made_again(
    tiny_avatar: Path, tmp_path: Path, manifest: Manifest
) -> None:
    engine = engine_of(tiny_avatar, tmp_path)
    front = Front(engine)
    first = answers(front, asked(manifest, KEEP, Look()))
    until_kept(engine, len(first))
    with sqlite3.connect(tmp_path / "utterances.sqlite") as raw:
        raw.execute("UPDATE frames SET value = zeroblob(length(value)) WHERE id % 2")
    raw.close()
    again = answers(front, asked(manifest, LOOK_UP, Look()))
    assert {n: jpeg for n, (jpeg, _, _) in again.items()} == {
        n: jpeg for n, (jpeg, _, _) in first.items()
    }
    assert {kept for _, kept, _ in again.values()} == {True, False}
    until_kept(engine, len(first) + sum(not kept for _, kept, _ in again.values()))
    assert all(kept for _, kept, _ in answers(front, asked(manifest, LOOK_UP, Look())).values())
    front.close()
    engine.close()


@pytest.mark.parametrize("harm", ["garbage", "cut short", "locked", "gone"])
def test_whatever_becomes_of_the_file_frames_are_made(
    tiny_avatar: Path, tmp_path: Path, manifest: Manifest, harm: str
) -> None:
    engine = engine_of(tiny_avatar, tmp_path)
    front = Front(engine)
    path = tmp_path / "utterances.sqlite"
    first = answers(front, asked(manifest, KEEP, Look()))
    until_kept(engine, len(first))
    holder = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    holder.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if harm == "garbage":
        path.write_bytes(b"?" * path.stat().st_size)
    elif harm == "cut short":
        with open(path, "r+b") as file:
            file.truncate(9_000)
    elif harm == "gone":
        path.unlink()
    else:
        holder.execute("BEGIN EXCLUSIVE")
    for _ in range(2):
        again = answers(front, asked(manifest, LOOK_UP, Look()))
        assert {n: jpeg for n, (jpeg, _, _) in again.items()} == {
            n: jpeg for n, (jpeg, _, _) in first.items()
        }
    holder.close()
    front.close()
    engine.close()


def test_the_file_is_full(tiny_avatar: Path, tmp_path: Path, manifest: Manifest) -> None:
    """A disk without room: what cannot be kept is made each time, and nothing else happens."""
    engine = engine_of(tiny_avatar, tmp_path)
    known = engine.cache
    assert known is not None
    until = Store(tmp_path, 64_000_000, 1.0)
    until.close()
    front = Front(engine)
    first = answers(front, asked(manifest, KEEP, Look()))
    until_kept(engine, len(first))
    store = known.write_behind._store
    assert store is not None
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    more = noise(0.4, seed=8)
    for _ in range(2):
        found = answers(front, asked(manifest, KEEP, Look(), more))
        assert not any(kept for _, kept, _ in found.values())
        until_true(engine, lambda: known.counts["refused"] >= 10)
    assert all(kept for _, kept, _ in answers(front, asked(manifest, LOOK_UP, Look())).values())
    front.close()
    engine.close()


@pytest.mark.slow
def test_pre_rendered_frames_are_those_that_an_engine_makes(
    engine: Scheduler, front: Front, manifest: Manifest, tiny_avatar: Path, tmp_path: Path
) -> None:
    """In the same store, by another process's backend of the same kind: found, byte for byte."""
    store = Store(tmp_path / "kept", 64_000_000, 2.0)
    made = backends.make("cpu" if engine.backend.name == "cpu" else "emulated", live=True)
    with AvatarPackage.open(tiny_avatar) as package:
        work = Prerendering(made, package, SOUND, Look(), store)
        wants = wanted(package, len(SOUND), [2])
        number = store.begin_name("tiny", "greeting", work.content, SOUND.tobytes())
        half = len(wants) // 2
        work.run(wants[:half], number, lambda: None)
        missing = work.missing(wants, number)
        assert missing == wants[half:], "it goes on where it was"
        work.run(missing, number, lambda: None)
        assert work.missing(wants) == []
        made.close()
    plain = answers(front, asked(manifest, OFF, Look()))
    found = answers(front, asked(manifest, LOOK_UP, Look()))
    assert all(kept for _, kept, _ in found.values())
    if engine.backend.name == "cpu":
        assert {n: j for n, (j, _, _) in found.items()} == {n: j for n, (j, _, _) in plain.items()}
    store.close()


def test_a_frame_of_the_demo_avatar(tmp_path: Path) -> None:
    """720p with a window and several segments in a row: the same bytes, some of its size."""
    engine = engine_of(AvatarLibrary().find("demo"), tmp_path)
    front = Front(engine)
    m = engine.registry.avatars["tiny"].package.manifest
    jobs = asked(m, 2, Look(), noise(0.2))
    first = answers(front, jobs)
    until_kept(engine, len(first))
    again = answers(front, asked(m, 1, Look(), noise(0.2)))
    for number, (jpeg, _, box) in first.items():
        assert again[number] == (jpeg, True, box)
    known = engine.cache
    assert known is not None
    assert known.counts["kept_bytes"] < sum(len(jpeg) for jpeg, _, _ in first.values()) / 4
    front.close()
    engine.close()
