# SPDX-License-Identifier: Apache-2.0
"""What is kept of utterances: by what it is known, how it is bounded, and what damage costs."""

from __future__ import annotations

import fcntl
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import small_manifest
from variants import put

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.errors import StoreDamagedError, StoreError
from lipsync_fast.ipc.messages import Content, Look
from lipsync_fast.utterances.keys import content_of, scope_of, sound_of
from lipsync_fast.utterances.likeness import Likeness, loop_positions_of, period_of, thumbnails
from lipsync_fast.utterances.store import FILE, Row, Store
from lipsync_fast.utterances.transitions import LEAD, LEAD_OUT, shown
from lipsync_fast.utterances.write_behind import Admission, Task, WriteBehind

MB = 1_000_000
MANIFEST = small_manifest((640, 480), 40, name="x")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "kept", 4 * MB, 2.0)
    yield made
    made.close()


def row(number: int, size: int = 6_000, picture: int = 3, share: float = 1.0) -> Row:
    return Row(number.to_bytes(16, "big"), picture, share, number.to_bytes(2, "big") * (size // 2))


def there(store: Store, numbers: range) -> list[int]:
    return [n for n in numbers if store.find(row(n).sound, 3, 1.0) is not None]


def filled(store: Store, name: int) -> None:
    """Keep for a name until it is refused, which it is before so much is kept."""
    for n in range(5_000, 6_000, 100):
        store.add([row(k) for k in range(n, n + 100)], name)


# ---------------------------------------------------------------- keys
def test_what_a_frame_is_known_by(tiny_avatar: Path, tmp_path: Path) -> None:
    """Whatever its bytes depend on makes another key; what they do not depend on does not."""
    with AvatarPackage.open(tiny_avatar) as package:
        content, m = content_of(package), package.manifest
    with AvatarPackage.open(put(tiny_avatar, tmp_path / "other.lsa", 192, 4)) as package:
        assert content_of(package) != content
    plain = scope_of(content, "cpu avx2", m, Look())
    assert plain == scope_of(content, "cpu avx2", m, Look(Content.FRAME, m.jpeg.quality, 5000))
    others = [
        scope_of(bytes(16), "cpu avx2", m, Look()),
        scope_of(content, "cpu avx512", m, Look()),
        scope_of(content, "cpu avx2", m, Look(Content.MOUTH)),
        scope_of(content, "cpu avx2", m, Look(quality=50)),
        scope_of(content, "cpu avx2", m, Look(max_width=100)),
    ]
    assert len({plain, *others}) == 6
    pcm = np.arange(3_000, dtype=np.float32) / 3_000
    middle, later = [20 + 3 * k for k in range(16)], [520 + 3 * k for k in range(16)]
    known = sound_of(plain, middle, 200 * 20 - 401, pcm)
    assert known == sound_of(plain, later, 200 * 520 - 401, pcm), "the same, later in a sound"
    changed = pcm.copy()
    changed[1_500] = np.nextafter(changed[1_500], np.float32(1))
    for other in (
        sound_of(others[0], middle, 200 * 20 - 401, pcm),
        sound_of(plain, middle, 200 * 20 - 401, changed),
        sound_of(plain, middle, 200 * 20 - 401, pcm[:-1]),
        sound_of(plain, [*middle[:-1], -1], 200 * 20 - 401, pcm),
        sound_of(plain, [s - 20 for s in middle], 0, pcm),
    ):
        assert other != known


@given(st.integers(1, 40))
def test_what_is_shown_around_an_utterance(frames: int) -> None:
    around = shown(frames)
    assert len(set(around)) == len(around)
    assert [(s, f) for s, f, share in around if share == 1.0] == [(k, k) for k in range(frames)]
    lead = [share for _, frame, share in around if frame < LEAD and 0 < share < 1][: min(frames, 3)]
    assert lead == [0.25, 0.5, 0.75][: len(lead)]
    out = [s for s, f, share in around if s >= frames]
    assert set(out) <= set(range(frames, frames + LEAD_OUT))
    assert max(out) == frames + LEAD_OUT - 1


# ---------------------------------------------------------------- the store
def test_it_is_found_again_by_others_and_closed_to_strangers(store: Store) -> None:
    added, dropped = store.add([row(n) for n in range(5)])
    assert (added, dropped) == (5, 0)
    assert store.add([row(2), row(7)]) == (1, 0)
    other = Store(store.path.parent, 4 * MB)
    kept = other.find(row(2).sound, 3, 1.0)
    assert kept is not None
    assert kept.value == row(2).value
    assert abs(kept.used - time.time()) < 60
    assert other.find(row(2).sound, 4, 1.0) is None
    assert other.find(row(2).sound, 3, 0.5) is None
    assert other.avatar_frames([row(2).sound, row(9).sound]) == {
        row(2).sound: {(3, 1.0)},
        row(9).sound: set(),
    }
    other.close()
    assert store.path.parent.stat().st_mode & 0o777 == 0o700
    for path in store.path.parent.iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_it_stays_within_its_bound_and_gives_up_what_was_not_used_for_longest(store: Store) -> None:
    store.limit = 3 * MB
    now = iter(range(10_000))
    dropped = 0
    for n in range(0, 1_000, 50):
        dropped += store.add([row(k) for k in range(n, n + 50)])[1]
        with sqlite3.connect(store.path) as raw:  # as if it had been used a second later
            raw.execute("UPDATE frames SET used = ? WHERE used > 1000000", (next(now),))
        raw.close()
        assert store.used_bytes() <= 3 * MB
    left = there(store, range(1_000))
    assert dropped > 0
    assert left == list(range(1_000 - len(left), 1_000))
    assert 200 < len(left) < 500


def test_what_has_a_name_is_not_given_up_for_others(store: Store) -> None:
    number = store.begin_name("anna", "greeting", b"v1", b"\0" * 64_000)
    store.add([row(n) for n in range(100)], number)
    assert store.named("anna", "greeting") is None, "it is not whole yet"
    store.end_name(number)
    assert store.named("anna", "greeting") == b"\0" * 64_000
    assert store.named("bert", "greeting") is None
    for n in range(1_000, 3_000, 100):
        store.add([row(k) for k in range(n, n + 100)])
    assert there(store, range(100)) == list(range(100))
    assert store.used_bytes() <= store.limit
    (named,) = store.names("anna")
    assert (named.name, named.whole, named.frames, named.seconds) == ("greeting", True, 100, 1.0)
    assert named.size == sum(row(n).size for n in range(100))
    other = store.begin_name("anna", "all", b"v1", bytes(4))
    with pytest.raises(StoreError, match="pre-rendered utterances are not given up"):
        filled(store, other)
    assert store.used_bytes() <= store.limit
    assert there(store, range(100)) == list(range(100))


def test_a_name_is_let_go_of_with_what_nobody_else_needs(store: Store) -> None:
    one = store.begin_name("anna", "one", b"v1", bytes(4))
    two = store.begin_name("anna", "two", b"v1", bytes(8))
    store.add([row(n) for n in range(20)], one)
    store.add([row(n) for n in range(10, 30)], two)
    assert store.forget_name("anna", "one")
    assert not store.forget_name("anna", "one")
    assert there(store, range(40)) == list(range(10, 30))
    assert store.begin_name("anna", "two", b"v1", bytes(8)) == two, "it goes on"
    three = store.begin_name("anna", "two", b"v2", bytes(8))
    assert there(store, range(40)) == [], "another avatar's content: nothing of it fits"
    store.add([row(1)], three)
    assert store.pinned_bytes() == row(1).size + 8


def test_a_value_that_is_not_what_was_written_is_not_given_out(store: Store) -> None:
    store.add([row(1), row(2)])
    with sqlite3.connect(store.path) as raw:
        raw.execute("UPDATE frames SET value = zeroblob(6000) WHERE sound = ?", (row(1).sound,))
    raw.close()
    assert store.find(row(1).sound, 3, 1.0) is None
    assert len(store.bad) == 1
    store.remove(store.bad)
    assert store.add([row(1)]) == (1, 0)
    assert there(store, range(4)) == [1, 2]


def test_what_comes_while_others_are_written_is_written_at_the_end(tmp_path: Path) -> None:
    keeper = WriteBehind(tmp_path, 4 * MB, 10 * MB)
    writing, ending = threading.Event(), threading.Event()

    def slow() -> Row:
        writing.set()
        assert ending.wait(60)
        return row(1)

    keeper.keep(Task("a", 100, slow))
    assert writing.wait(60)
    keeper.keep(Task("a", 100, lambda: row(2)))
    end = threading.Thread(target=keeper.close)
    end.start()
    while not keeper._closing:
        time.sleep(0.001)
    ending.set()
    end.join()
    assert there(Store(tmp_path, 4 * MB), range(4)) == [1, 2]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"no database at all" * 300,
        lambda data: data[: len(data) // 2 // 4096 * 4096 + 100],
        lambda data: data[:4096] + os.urandom(len(data) - 4096),
        lambda data: data[:100],
    ],
    ids=["garbage", "cut short", "all pages but the first", "a stump"],
)
def test_a_damaged_file_is_put_aside_and_begun_anew(store: Store, damage: object) -> None:
    store.add([row(n) for n in range(100)])
    store.close()
    data = store.path.read_bytes()
    store.path.write_bytes(damage(data))  # type: ignore[operator]
    write_behind = WriteBehind(store.path.parent, 4 * MB, 10 * MB)
    for n in range(100, 140):
        write_behind.keep(Task("a", 100, lambda n=n: row(n)))  # type: ignore[misc]
    write_behind.close()
    if write_behind.counts["refused"]:  # what was found out only when it was written
        write_behind = WriteBehind(store.path.parent, 4 * MB, 10 * MB)
        reader = Store(store.path.parent, 4 * MB)
        with pytest.raises(StoreDamagedError):
            reader.add([row(n) for n in range(1_000)])
        reader.mended().close()
        for n in range(100, 140):
            write_behind.keep(Task("a", 100, lambda n=n: row(n)))  # type: ignore[misc]
        write_behind.close()
    again = Store(store.path.parent, 4 * MB)
    assert there(again, range(200)) == list(range(100, 140))
    again.close()
    assert list(store.path.parent.glob(f"{FILE}.damaged-*"))


def test_who_finds_the_damage_second_takes_what_the_first_has_begun(store: Store) -> None:
    other = Store(store.path.parent, 4 * MB)
    store.mended().add([row(1)])
    assert other.replaced
    other = other.mended()
    assert there(other, range(3)) == [1]
    other.close()


def test_a_file_that_another_one_locks_is_a_miss_and_nobody_waits(store: Store) -> None:
    store.add([row(1)])
    reader = Store(store.path.parent, 4 * MB)
    write_behind = WriteBehind(store.path.parent, 4 * MB, 10 * MB)
    holder = sqlite3.connect(store.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    assert reader.find(row(1).sound, 3, 1.0) is not None, "readers read beside a writer"
    with pytest.raises(StoreError, match="locked"):
        reader.add([row(2)])
    write_behind.keep(Task("a", 100, lambda: row(3)))
    write_behind.close()
    assert write_behind.counts["refused"] == 1
    holder.execute("ROLLBACK")
    holder.close()
    assert there(reader, range(4)) == [1]
    reader.close()


def test_what_is_not_kept_is_counted(tmp_path: Path) -> None:
    write_behind = WriteBehind(tmp_path / "kept", 4 * MB, 100 * MB)
    for begin in (0, 300, 600):
        for n in range(begin, begin + 300):
            write_behind.keep(Task("a", 6_000, lambda n=n: row(n)))  # type: ignore[misc]
        until(lambda begin=begin: write_behind.counts["kept"] == begin + 300)  # type: ignore[misc]
    assert 0 < write_behind.counts["evicted"] < 900
    size = write_behind.counts["kept_bytes"]
    assert size == sum(row(n).size for n in range(900))
    for n in (899, 900):  # the first of them is there
        write_behind.keep(Task("a", 6_000, lambda n=n: row(n)))  # type: ignore[misc]
    until(lambda: write_behind.counts["kept"] == 901)
    assert write_behind.counts["kept_bytes"] == size + row(900).size
    write_behind.keep(Task("a", 100 * MB, lambda: row(0)))
    assert write_behind.counts["refused"] == 1
    assert write_behind.counts["mended"] == 0
    write_behind.damaged()
    until(lambda: write_behind.counts["mended"] == 1)
    write_behind.close()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "nothing happened for a minute"
        time.sleep(0.01)


SHORTENED = """
import os, sys
from pathlib import Path
from lipsync_fast.utterances.store import Row, Store
first, second = (Store(Path(sys.argv[1]), 4_000_000, 2.0) for _ in range(2))
row = Row(bytes(16), 3, 1.0, b"x" * 6000)
first.add([row])
assert second.find(row.sound, 3, 1.0) is not None
for size in (0, 100):
    os.truncate(f"{first.path}-shm", size)
    for store in (second, first):
        assert store.find(row.sound, 3, 1.0).value == row.value
    os.truncate(f"{first.path}-shm", size)
    second.touch([1])
os.truncate(f"{first.path}-shm", 0)
second.close()
first.close()
print("lives")
"""


def test_an_index_that_was_cut_short_kills_nobody(tmp_path: Path) -> None:
    """SQLite maps it: who reads a byte that it has lost is killed. In a process of its own."""
    command = [sys.executable, "-P", "-c", SHORTENED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "lives\n"), done.stderr


@pytest.mark.parametrize("what", ["pipe", "folder", "socket"])
def test_what_is_no_file_is_one_clear_error(tmp_path: Path, what: str) -> None:
    path = tmp_path / FILE
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    with pytest.raises(StoreError) as caught:
        Store(tmp_path, 4 * MB)
    assert type(caught.value) is StoreError, "nothing is put aside"
    assert str(path) in str(caught.value)
    assert [each.name for each in tmp_path.glob("*damaged*")] == []


def test_a_lock_that_another_holds_for_ever_is_one_clear_error(tmp_path: Path) -> None:
    with (tmp_path / FILE).with_suffix(".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="is being made by another one"):
            Store(tmp_path, 4 * MB)


def test_a_pipe_in_the_place_of_the_lock_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo((tmp_path / FILE).with_suffix(".lock"))
    store = Store(tmp_path, 4 * MB)
    store.add([row(1)])
    assert there(store, range(1, 2)) == [1]
    store.close()


def test_rows_of_other_types_are_no_frames(store: Store) -> None:
    store.add([row(1), row(2)])
    with sqlite3.connect(store.path) as other:
        other.execute("UPDATE frames SET value = 7 WHERE id = 1")
        other.execute("UPDATE frames SET picture = 'three' WHERE id = 2")
    other.close()
    assert there(store, range(1, 3)) == []
    assert store.bad == [1]
    assert store.avatar_frames([row(1).sound, row(2).sound])[row(2).sound] == set()


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Not a directory"):
        Store(tmp_path / "file" / "kept", MB)


def test_utterances_are_kept_as_a_whole_and_no_faster_than_the_rate() -> None:
    now = 100.0
    admission = Admission(1_000, lambda: now)
    kept = 0
    for second in range(200):
        now = 100.0 + second
        for _ in range(10):
            if admission.admits(("front", second)):
                assert admission.admits(("front", second)), "none is left out of it"
                admission.spent(500)
                kept += 1
    assert kept % 10 == 0
    assert 200 * 1_000 <= kept * 500 <= 200 * 1_000 + 2_000 + 10 * 500


# ---------------------------------------------------------------- places of the loop
def test_positions_of_the_loop() -> None:
    assert period_of(MANIFEST) == 78
    for place in range(78):
        assert place in loop_positions_of(MANIFEST, MANIFEST.avatar_frame(place))
    assert loop_positions_of(MANIFEST, 0) == [0]
    assert loop_positions_of(MANIFEST, 39) == [39]


def test_a_place_stands_for_those_that_are_near_or_look_alike() -> None:
    small = np.zeros((40, 1024), np.float32)
    small[:, 0] = np.abs(np.arange(40) - 20) * 32.0  # it comes to 0 and goes again: k as 40 - k
    likeness = Likeness(MANIFEST, small)
    blind = Likeness(MANIFEST)
    assert blind.nearest(10, [14, 30, 68]) is None
    assert blind.nearest(10, [13, 30]) == 13
    assert likeness.nearest(10, [30, 50]) == 30
    assert likeness.nearest(10, [48, 68]) is None, "the same picture, but it moves the other way"
    chosen = likeness.cover()
    assert 0 in chosen
    assert len(chosen) < len(blind.cover()) < 78
    for place in range(78):
        assert likeness.nearest(place, chosen) is not None
        assert blind.nearest(place, blind.cover()) is not None


def test_thumbnails_of_a_package(tiny_avatar: Path) -> None:
    with AvatarPackage.open(tiny_avatar) as package:
        small = thumbnails(package)
        assert small is not None
        assert small.shape[0] == package.manifest.frame_count
        assert np.abs(small[0] - small[4]).mean() > 20
