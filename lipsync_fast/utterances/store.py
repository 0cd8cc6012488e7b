# SPDX-License-Identifier: Apache-2.0
"""Where frames are kept: one SQLite file that all processes of a user share.

    frames   sound, picture, share -> value   see ``keys``; when used last, how many names need it
    names    avatar, name -> the sound        utterances that were pre-rendered
    pins     name, frame                      what a name needs is not given up for others

Readers never wait: what cannot be had at once is a miss. Writers wait for each other, in threads of
their own. Each value has a digest that is checked when it is read.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from lipsync_fast.errors import StoreError
from lipsync_fast.utterances.database import FILE, PAGE, Database, store_folder

__all__ = ["FILE", "Kept", "Named", "Row", "Store", "store_folder"]
ROW_BYTES = 200
"""What a frame takes besides its value, in tables and indexes."""
GIVEN_UP_AT_A_TIME = 256
_AT = struct.Struct("<qd")


@dataclass(frozen=True, slots=True)
class Row:
    """A frame to keep; see ``keys`` for what it is known by."""

    sound: bytes
    avatar_frame: int
    share: float
    value: bytes

    @property
    def size(self) -> int:
        """Bytes that it takes in the file, about: large values have pages of their own."""
        whole = len(self.value) + ROW_BYTES
        return whole if whole < PAGE // 4 else -(-whole // PAGE) * PAGE


@dataclass(frozen=True, slots=True)
class Kept:
    """A frame that was found: its row, its value, and when it was used last (s since 1970)."""

    id: int
    value: bytes
    used: int


@dataclass(frozen=True, slots=True)
class Named:
    """An utterance that was pre-rendered.

    Attributes:
        whole: all of its frames were there once; else its making was interrupted.
        frames, size: how many frames it holds, and their bytes.
        seconds: of its sound; made: when, s since 1970.
    """

    name: str
    whole: bool
    frames: int
    size: int
    seconds: float
    made: int


class Store(Database):
    """A connection to the file; see ``Database``.

    Attributes:
        bad: rows that are not what was written, to be removed.
        added_bytes: of the frames that ``add`` has added; those that were there do not count.
    """

    def __init__(self, folder: Path, limit: int, wait_s: float = 0.0) -> None:
        super().__init__(folder, limit, wait_s)
        self.bad: list[int] = []
        self.added_bytes = 0

    # ------------------------------------------------------------ reading
    def find(self, sound: bytes, avatar_frame: int, share: float) -> Kept | None:
        """A frame's value, where it is there; one that is not what was written goes to ``bad``.

        Raises:
            StoreError: it cannot be read now; StoreDamagedError: nor later.
        """
        with self._access():
            rows = self._connection.execute(
                "SELECT id, value, used, mark FROM frames"
                " WHERE sound = ? AND picture = ? AND share = ?",
                (sound, avatar_frame, share),
            ).fetchall()
        if not rows:
            return None
        number, value, used, mark = rows[0]
        if not isinstance(value, bytes) or mark != _mark(sound, avatar_frame, share, value):
            self.bad.append(number)
            return None
        return Kept(number, value, used)

    def avatar_frames(self, sounds: Sequence[bytes]) -> dict[bytes, set[tuple[int, float]]]:
        """Over which avatar frames, and with which shares, frames of some sounds are there.

        Raises:
            StoreError: as ``find``.
        """
        found: dict[bytes, set[tuple[int, float]]] = {sound: set() for sound in sounds}
        marks = ", ".join("?" * len(found))
        with self._access():
            rows = self._connection.execute(
                f"SELECT sound, picture, share FROM frames WHERE sound IN ({marks})", [*found]
            ).fetchall()
        for sound, avatar_frame, share in rows:
            if isinstance(avatar_frame, int) and isinstance(share, float):  # else it is damaged
                found[sound].add((avatar_frame, share))
        return found

    @property
    def empty(self) -> bool:
        """Whether no frame is kept.

        Raises:
            StoreError: as ``find``.
        """
        with self._access():
            return not self._connection.execute("SELECT 1 FROM frames LIMIT 1").fetchall()

    def pinned_bytes(self) -> int:
        """Bytes of all that has a name.

        Raises:
            StoreError: as ``find``.
        """
        with self._access():
            (frames,) = self._connection.execute(
                "SELECT total(size) FROM frames WHERE pins > 0"
            ).fetchone()
            (sounds,) = self._connection.execute("SELECT total(length(pcm)) FROM names").fetchone()
        return int(frames + sounds)

    # ------------------------------------------------------------ writing
    def add(self, rows: Sequence[Row], name: int = 0) -> tuple[int, int]:
        """Keep frames, giving up those that were not used for longest.

        Args:
            name: of the utterance that needs them (``begin_name``); 0 for none.

        Returns:
            How many were not there before, and how many others were given up.

        Raises:
            StoreError: there is no room for them, or it cannot be written; none is kept then.
        """
        now, added, size = int(time.time()), 0, 0
        with self._writing() as to:
            self._forget_future(now)
            dropped = self._make_room(sum(row.size for row in rows))
            for row in rows:
                where = row.sound, row.avatar_frame, row.share
                done = to.execute(
                    "INSERT OR IGNORE INTO frames (sound, picture, share, used, size, mark, value)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (*where, now, row.size, _mark(*where, row.value), row.value),
                )
                added += done.rowcount
                size += row.size * done.rowcount
            if name:
                self._pin(name, [(row.sound, row.avatar_frame, row.share) for row in rows])
        self.added_bytes += size
        return added, dropped

    def _forget_future(self, now: int) -> None:
        """What was used later than now was used under a clock that has been set back since.

        It would be the newest for ever, and what is used from now on given up for it.
        """
        self._connection.execute(
            "UPDATE frames SET used = ? WHERE used > ? AND pins = 0", (now, now)
        )

    def _make_room(self, needed: int) -> int:
        dropped = 0
        while self._used_bytes() + needed > self.limit:
            gone = self._connection.execute(
                "DELETE FROM frames WHERE id IN"
                " (SELECT id FROM frames WHERE pins = 0 ORDER BY used LIMIT ?)",
                (GIVEN_UP_AT_A_TIME,),
            ).rowcount
            if not gone:
                raise StoreError(
                    f"{self.path}: {needed / 1e6:.1f} MB more do not fit into"
                    f" {self.limit / 1e6:.0f} MB; pre-rendered utterances are not given up"
                )
            dropped += gone
        return dropped

    def _pin(self, name: int, frames: Iterable[tuple[bytes, int, float]]) -> None:
        for frame_key in frames:
            found = self._connection.execute(
                "SELECT id FROM frames WHERE sound = ? AND picture = ? AND share = ?", frame_key
            ).fetchall()
            for (frame,) in found:
                new = self._connection.execute(
                    "INSERT OR IGNORE INTO pins (name, frame) VALUES (?, ?)", (name, frame)
                ).rowcount
                self._connection.execute(
                    "UPDATE frames SET pins = pins + ? WHERE id = ?", (new, frame)
                )

    def pin(self, name: int, frames: Sequence[tuple[bytes, int, float]]) -> None:
        """Keep frames that are there for a name.

        Raises:
            StoreError: it cannot be written.
        """
        with self._writing():
            self._pin(name, frames)

    def touch(self, ids: Sequence[int]) -> None:
        """Frames were used now.

        Raises:
            StoreError: it cannot be written.
        """
        now = int(time.time())
        with self._writing() as to:
            to.executemany("UPDATE frames SET used = ? WHERE id = ?", [(now, i) for i in ids])

    def remove(self, ids: Sequence[int]) -> None:
        """Forget rows that are not what was written.

        Raises:
            StoreError: it cannot be written.
        """
        with self._writing() as to:
            to.executemany("DELETE FROM frames WHERE id = ?", [(i,) for i in ids])
            to.executemany("DELETE FROM pins WHERE frame = ?", [(i,) for i in ids])

    # ------------------------------------------------------------ names
    def named(self, avatar: str, name: str) -> bytes | None:
        """The sound of an utterance that was pre-rendered: float32 samples, 16 kHz mono.

        None where there is none of that name, it is not whole yet, or not what was written.

        Raises:
            StoreError: as ``find``.
        """
        with self._access():
            rows = self._connection.execute(
                "SELECT pcm, mark FROM names WHERE avatar = ? AND name = ? AND whole",
                (avatar, name),
            ).fetchall()
        if not rows:
            return None
        pcm, mark = rows[0]
        good = isinstance(pcm, bytes) and mark == _mark(name.encode(), 0, 0.0, pcm)
        return pcm if good and len(pcm) % 4 == 0 else None

    def names(self, avatar: str) -> list[Named]:
        """What was pre-rendered for an avatar.

        Raises:
            StoreError: as ``find``.
        """
        with self._access():
            rows = self._connection.execute(
                "SELECT n.name, n.whole, count(f.id), total(f.size), length(n.pcm), n.made"
                " FROM names n LEFT JOIN pins p ON p.name = n.id"
                " LEFT JOIN frames f ON f.id = p.frame"
                " WHERE n.avatar = ? GROUP BY n.id ORDER BY n.name",
                (avatar,),
            ).fetchall()
        return [
            Named(name, bool(whole), frames, int(size), length / 4 / 16_000, made)
            for name, whole, frames, size, length, made in rows
        ]

    def begin_name(self, avatar: str, name: str, content: bytes, pcm: bytes) -> int:
        """Begin to pre-render: what comes is kept for this name, which is found once it is whole.

        What the name had before is let go of where the sound or the avatar's content was another.

        Args:
            avatar: the name in its manifest.
            content: of the avatar (``keys.content_of``).
            pcm: float32 samples, 16 kHz mono.

        Raises:
            StoreError: it cannot be written.
        """
        with self._writing() as to:
            rows = to.execute(
                "SELECT id, content, pcm FROM names WHERE avatar = ? AND name = ?", (avatar, name)
            ).fetchall()
            for number, before, sound in rows:
                if before == content and sound == pcm:
                    return int(number)
                self._let_go(number)
            self._make_room(len(pcm))
            done = to.execute(
                "INSERT INTO names (avatar, name, content, whole, made, mark, pcm)"
                " VALUES (?, ?, ?, 0, ?, ?, ?)",
                (avatar, name, content, int(time.time()), _mark(name.encode(), 0, 0.0, pcm), pcm),
            )
            assert done.lastrowid is not None
            return done.lastrowid

    def end_name(self, number: int) -> None:
        """All frames of a name are there.

        Raises:
            StoreError: it cannot be written.
        """
        with self._writing() as to:
            to.execute("UPDATE names SET whole = 1 WHERE id = ?", (number,))

    def forget_name(self, avatar: str, name: str) -> bool:
        """Let go of a name, and of the frames that no other one needs; False: there is none.

        Raises:
            StoreError: it cannot be written.
        """
        with self._writing() as to:
            rows = to.execute(
                "SELECT id FROM names WHERE avatar = ? AND name = ?", (avatar, name)
            ).fetchall()
            for (number,) in rows:
                self._let_go(number)
        return bool(rows)

    def _let_go(self, number: int) -> None:
        to = self._connection
        mine = "(SELECT frame FROM pins WHERE name = ?)"
        to.execute(f"UPDATE frames SET pins = pins - 1 WHERE id IN {mine}", (number,))
        to.execute(f"DELETE FROM frames WHERE pins = 0 AND id IN {mine}", (number,))
        to.execute("DELETE FROM pins WHERE name = ?", (number,))
        to.execute("DELETE FROM names WHERE id = ?", (number,))


def _mark(sound: bytes, avatar_frame: int, share: float, value: bytes) -> bytes:
    made = blake2b(_AT.pack(avatar_frame, share), digest_size=8)
    made.update(sound)
    made.update(value)
    return made.digest()
