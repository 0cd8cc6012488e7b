# SPDX-License-Identifier: Apache-2.0
"""Tickets: each lets somebody in once, within half a minute, so that it may stand in an address.

    ticket   BODY.MAC         both in URL-safe base64; BODY: msgpack of [id, ends, subject]
    used     memory without a name that all fronts of a server share:
             u64 next | records of 24 bytes: the id of a ticket that was used, u64 its end

Whoever shows a token gets one, which any front can check: all know one secret, which is made anew
with each server. That it is good once, whichever front sees it, is kept in the shared memory: its
id is looked for and noted under a lock that the kernel lets go of when a front dies. Where there
is no room for it among those that have not ended yet, the ticket is not taken.
"""

from __future__ import annotations

import base64
import fcntl
import hmac
import mmap
import os
import secrets
import struct
import time
from collections.abc import Callable

import msgspec

from lipsync_fast.errors import LipsyncError, TokenError
from lipsync_fast.tokens.subject import Subject

LIFE_S = 30
"""From its issue to its end."""
MOST_BYTES = 4096
"""Of a ticket; what a request's head has room for."""
RECORDS = 16_384
_NEXT, _RECORD = struct.Struct("<Q"), struct.Struct("<16sQ")
_SIZE = _NEXT.size + RECORDS * _RECORD.size
_TRIES, _PAUSE_S = 100, 0.0001


class _Body(msgspec.Struct, frozen=True, array_like=True):
    id: bytes
    ends: int
    subject: Subject


_ENCODER, _DECODER = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(_Body)


def new_memory() -> int:
    """Memory for the ids of tickets that were used, as a descriptor.

    Raises:
        OSError: there is none.
    """
    fd = os.memfd_create("lipsync-tickets", os.MFD_CLOEXEC)
    os.ftruncate(fd, _SIZE)
    return fd


class Tickets:
    """The tickets of a server, as one of its fronts sees them.

    Args:
        secret: all fronts'; fd: from ``new_memory``, all fronts', closed by ``close``.
        clock: seconds since 1970.
    """

    def __init__(self, secret: bytes, fd: int, clock: Callable[[], float] = time.time) -> None:
        self._secret, self._fd, self._clock = secret, fd, clock
        self._memory = mmap.mmap(fd, _SIZE, prot=mmap.PROT_READ)

    @classmethod
    def alone(cls) -> Tickets:
        """Those of a server with one front."""
        return cls(secrets.token_bytes(32), new_memory())

    def issue(self, subject: Subject) -> str:
        """A ticket for somebody.

        Raises:
            LipsyncError: what it allows takes too many words.
        """
        body = _Body(secrets.token_bytes(16), int(self._clock()) + LIFE_S, subject)
        encoded = _ENCODER.encode(body)
        ticket = f"{_text(encoded)}.{_text(self._mac(encoded))}"
        if len(ticket) > MOST_BYTES:
            raise LipsyncError("the token allows too much by name for a ticket")
        return ticket

    def redeem(self, ticket: bytes) -> Subject:
        """Whose ticket it is; it is of no use any more.

        Raises:
            TokenError: it is none of this server's, has run out, or was used.
        """
        wrong = TokenError("wrong_token", "the ticket is not one of this server's")
        encoded, _, mac = ticket.partition(b".")
        try:
            data, given = _bytes(encoded), _bytes(mac)
        except ValueError:
            raise wrong from None
        if len(ticket) > MOST_BYTES or not hmac.compare_digest(self._mac(data), given):
            raise wrong
        body = _DECODER.decode(data)
        if self._clock() >= body.ends:
            raise TokenError("expired", "the ticket has run out; get a new one")
        if not self._use(body.id, body.ends):
            raise TokenError("used_ticket", "the ticket was used; get a new one")
        return body.subject

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()
        os.close(self._fd)

    def _mac(self, data: bytes) -> bytes:
        return hmac.digest(self._secret, data, "sha256")

    def _use(self, id_: bytes, ends: int) -> bool:
        """Note that a ticket is used, unless it was, or that cannot be noted."""
        if not self._lock():
            return False
        try:
            if self._memory.find(id_, _NEXT.size) >= 0:
                return False
            (number,) = _NEXT.unpack_from(self._memory)
            place = _NEXT.size + number % RECORDS * _RECORD.size
            if _RECORD.unpack_from(self._memory, place)[1] > self._clock():
                return False
            os.pwrite(self._fd, _RECORD.pack(id_, ends), place)
            os.pwrite(self._fd, _NEXT.pack(number + 1), 0)
        except OSError:  # no memory is left
            return False
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)
        return True

    def _lock(self) -> bool:
        """Keep other fronts out: they are there for some microseconds, unless one is stopped."""
        for _ in range(_TRIES):
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(_PAUSE_S)
            else:
                return True
        return False


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _bytes(text: bytes) -> bytes:
    """What ``_text`` has written, and in no other form: a ticket has one spelling.

    Raises:
        ValueError: it is none.
    """
    data = base64.b64decode(text + b"=" * (-len(text) % 4), b"-_", validate=True)
    if _text(data).encode() != text:
        raise ValueError("not as it was written")
    return data
