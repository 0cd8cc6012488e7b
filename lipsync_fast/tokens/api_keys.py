# SPDX-License-Identifier: Apache-2.0
"""API keys for those who have no issuer of tokens, in a file that holds their hashes alone.

    key    lsf_ID_SECRET    ID: 12 characters, which finds the record; SECRET: 256 random bits
    file   {"version": 1, "keys": [{"id", "name", "hash", "made", "ends", "allowed"}, …]}

A hash is plain SHA-256. Slow ones (scrypt, argon2) make up for secrets that people choose; these
are chosen here, and nobody tries 2^256 of them. What a slow one would do is let a stranger spend
a server's processor time by showing nonsense.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from lipsync_fast.errors import ConfigError, LipsyncError, TokenError, words_of
from lipsync_fast.tokens.files import read_keys
from lipsync_fast.tokens.subject import Allowance, Name, Subject

PREFIX = "lsf_"
SETTING = "access.api_keys"
MOST_KEYS = 10_000


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of a key.

    Attributes:
        hash: SHA-256 of all of the key, hexadecimal.
        made, ends: seconds since 1970; it does not end where None.
    """

    id: Annotated[str, Meta(min_length=1, max_length=64)]
    name: Name
    hash: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    made: float = 0.0
    ends: float | None = None
    allowed: Allowance = Allowance()


class _KeyFile(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    keys: Annotated[tuple[KeyRecord, ...], Meta(max_length=MOST_KEYS)] = ()


class ApiKeys:
    """The keys of a file."""

    def __init__(self, records: tuple[KeyRecord, ...]) -> None:
        self.records = records
        self._by_id = {record.id: record for record in records}

    @classmethod
    def read(cls, path: str, setting: str = SETTING) -> ApiKeys:
        """Read the file.

        Raises:
            ConfigError: it cannot be read, or is none.
        """
        try:
            found = msgspec.json.decode(read_keys(path, setting), type=_KeyFile)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise ConfigError(f"{setting}: {path} is no file of API keys ({error})") from None
        if found.version != 1:
            raise ConfigError(f"{setting}: {path} is of a newer version ({found.version})")
        return cls(found.keys)

    def believes(self, subject: Subject) -> bool:
        """Whether somebody's key is there, not revoked."""
        return subject.key in self._by_id

    def subject(self, key: str) -> Subject:
        """Whose key it is.

        Raises:
            TokenError: nobody's, or it has run out.
        """
        record = self._by_id.get(key.removeprefix(PREFIX).partition("_")[0])
        if record is None or not hmac.compare_digest(_hash(key), record.hash):
            raise TokenError("wrong_token", "the key is not one of this server's")
        if record.ends is not None and time.time() >= record.ends:
            raise TokenError("expired", "the key has run out; ask for a new one")
        return Subject(name=record.name, by="key", key=record.id, allowed=record.allowed)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


# ---------------------------------------------------------------- writing
def add_key(path: Path, name: str, allowed: Allowance, ends: float | None = None) -> str:
    """Make a key, and write what is kept of it; the file is made where it is missing.

    Returns:
        The key, which nobody can tell again.

    Raises:
        LipsyncError: the file cannot be read or written, or ``name`` has a key.
    """
    id_ = secrets.token_hex(6)
    key = f"{PREFIX}{id_}_{secrets.token_urlsafe(32)}"
    record = KeyRecord(
        id=id_, name=name, hash=_hash(key), made=round(time.time()), ends=ends, allowed=allowed
    )
    with _changed(path) as records:
        if any(other.name == name for other in records):
            raise LipsyncError(f"{name!r} has a key already: revoke it, or choose another name")
        records.append(record)
    return key


def remove_key(path: Path, which: str) -> KeyRecord:
    """Remove a key, by its name or its id.

    Raises:
        LipsyncError: there is none, or the file cannot be read or written.
    """
    with _changed(path, made=False) as records:
        for record in records:
            if which in (record.id, record.name):
                records.remove(record)
                return record
        raise LipsyncError(f"{path}: there is no key {which!r}")


@contextmanager
def _changed(path: Path, made: bool = True) -> Iterator[list[KeyRecord]]:
    """The records, to be changed: written in one step, and by one program at a time."""
    path = Path(os.path.realpath(path))
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise LipsyncError(f"{path.parent}: {words_of(error)}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        missing = made and not os.path.lexists(path)
        records = [] if missing else list(ApiKeys.read(str(path), "--file").records)
        yield records
        if len(records) > MOST_KEYS:
            raise LipsyncError(f"{path}: holds {MOST_KEYS} keys, which is as many as may be")
        _write(path, records)
        os.fsync(folder)
    finally:
        os.close(folder)


def _write(path: Path, records: list[KeyRecord]) -> None:
    whole = {"version": 1, "keys": msgspec.to_builtins(records)}
    temporary = ""
    try:
        # Of mode 0600; whoever reads meanwhile has all of the file before, or of this one.
        number, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with open(number, "w") as file:
            json.dump(whole, file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
            if path.exists():  # whose it is may be the server's user
                before = path.stat()
                with suppress(PermissionError):
                    os.chown(number, before.st_uid, before.st_gid)
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise LipsyncError(f"{path}: cannot be written ({words_of(error)})") from None
