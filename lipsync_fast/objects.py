# SPDX-License-Identifier: Apache-2.0
"""Objects at a URL: in S3 and what speaks it, Google's and Azure's stores, on an HTTP server, or in
a folder (extra ``store``).

    s3://BUCKET/PATH   gs://BUCKET/PATH   az://CONTAINER/PATH   https://HOST/PATH   file:///PATH

Credentials are the environment's (AWS_ACCESS_KEY_ID and so on, AWS_ENDPOINT_URL for other makers'
S3), a container's or the machine's role. None stands in a URL, and none is ever shown: of a URL
that is signed (``?X-Amz-Signature=…``) only what stands before the question mark.
"""

from __future__ import annotations

import functools
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

from lipsync_fast.errors import ObjectChangedError, ObjectError, ObjectMissingError
from lipsync_fast.extras import how_to_get

SCHEMES = ("s3", "gs", "az", "http", "https", "file")
PIECE = 8 << 20
"""Bytes that are asked for at a time: a piece that fails is all that comes twice."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SECRET = re.compile(r"(\w+://[^\s?]*)\?\S*")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class About:
    """What a store says of an object: its size in bytes, and a word that changes with it."""

    size: int
    version: str


def is_url(text: str) -> bool:
    """Whether a text is a URL and no path."""
    return _URL.match(text) is not None


def shown_url(url: str) -> str:
    """A URL for people and logs: without what may be a secret."""
    return url.partition("?")[0]


def checked_url(url: str) -> str:
    """The URL, where objects can lie there.

    Raises:
        ObjectError: another scheme, credentials in it, or no URL at all.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ObjectError(f"{shown_url(url)[:200]!r} is no URL") from None
    if parts.scheme.lower() not in SCHEMES:
        schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ObjectError(f"{shown_url(url)[:200]!r}: expected one of {schemes}")
    if parts.password or parts.username:
        raise ObjectError(
            f"{parts.scheme}://…@{parts.hostname}: credentials do not belong into a URL; they are"
            " taken from the environment"
        )
    if not parts.netloc and parts.scheme != "file":
        raise ObjectError(f"{shown_url(url)[:200]!r}: names no bucket or host")
    return url


class Objects:
    """Objects below a URL. Calls block; they can be interrupted. Safe in several threads.

    Raises, as all of its methods:
        ObjectError: it cannot be reached, or must not be used.
    """

    def __init__(self, url: str, *, patient: bool = True) -> None:
        """Objects at ``url``/KEY.

        Args:
            patient: try again for half a minute; else give up within a few seconds.
        """
        self.url = shown_url(checked_url(url)).rstrip("/")
        self._api = _library()
        retries = {
            "max_retries": 4 if patient else 1,
            "retry_timeout": timedelta(seconds=60 if patient else 5),
        }
        client = {
            "allow_http": True,  # where the URL, or AWS_ENDPOINT_URL, says so
            "connect_timeout": timedelta(seconds=5 if patient else 3),
            "read_timeout": timedelta(seconds=20 if patient else 4),
            "timeout": timedelta(seconds=300 if patient else 8),
        }
        more: dict[str, Any] = {"client_options": client, "retry_config": retries}
        self._given, self._more = url, {} if url.startswith("file:") else more

    @functools.cached_property
    def _store(self) -> Any:
        """Made when it is first used: a folder need not be there before."""
        parts = urlsplit(self._given)
        if parts.scheme == "file" and not os.path.isdir(unquote(parts.path)):
            raise FileNotFoundError(parts.path)
        return self._api.store.from_url(self._given, **self._more)

    def where(self, key: str) -> str:
        """The URL of an object, for people."""
        return f"{self.url}/{key}" if key else self.url

    def about(self, key: str) -> About:
        """Size and version of an object."""
        with self._told(key):
            return _about(_interruptible(lambda: self._api.head(self._store, key)))

    def read(self, key: str, most: int, unless: str | None = None) -> tuple[bytes, About] | None:
        """A small object; None where its version still is ``unless``.

        Args:
            most: bytes that it may have.
        """
        options = {"if_none_match": unless} if unless and unless.startswith(('"', "W/")) else None

        def get() -> tuple[bytes, About] | None:
            try:
                result = self._api.get(self._store, key, options=options)
            except self._api.exceptions.NotModifiedError:
                return None
            about = _about(result.meta)
            if about.version == unless:
                return None
            if about.size > most:
                raise ObjectError(
                    f"{self.where(key)}: has {about.size} bytes, expected at most {most}"
                )
            data = bytearray()
            for piece in result.stream():
                data += piece
                if len(data) > most:
                    raise ObjectError(f"{self.where(key)}: has more than {most} bytes")
            return bytes(data), about

        with self._told(key):
            return _interruptible(get)

    def tail(self, key: str, count: int) -> bytes:
        """The last bytes of an object, ``count`` at most."""
        with self._told(key):
            get = self._api.get
            options = {"range": {"suffix": count}}
            return bytes(_interruptible(lambda: get(self._store, key, options=options).bytes()))

    def fetch(
        self,
        key: str,
        about: About,
        file: BinaryIO,
        at: int = 0,
        advance: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Write an object's bytes from ``at`` on into a file, by pieces.

        A server without ranges sends all of it at once, from the beginning: then ``file`` is begun
        anew.

        Args:
            about: what it was when its first bytes were taken.
            advance: told how many bytes have come, now and then.

        Raises:
            ObjectChangedError: it is another one now.
            OSError: the file cannot be written.
        """
        file.seek(at)
        while at < about.size:
            end = min(at + PIECE, about.size)
            piece = self._piece(key, about, at, end)
            if piece is None:
                self._fetch_whole(key, about, file, advance)
                return
            file.write(piece)
            at += len(piece)
            advance(len(piece))
        file.truncate()

    def _piece(self, key: str, about: About, start: int, end: int) -> bytes | None:
        """Bytes of an object; None where the server has no ranges."""
        options: dict[str, Any] = {"range": (start, end)}
        if about.version.startswith('"'):
            options["if_match"] = about.version

        def get() -> bytes | None:
            try:
                result = self._api.get(self._store, key, options=options)
            except self._api.exceptions.NotSupportedError:
                return None
            if _about(result.meta) != about:
                raise ObjectChangedError(f"{self.where(key)}: has been replaced", passes=True)
            return bytes(result.bytes())

        with self._told(key):
            data = _interruptible(get)
        if data is not None and len(data) != end - start:
            raise ObjectError(f"{self.where(key)}: was cut off on its way", passes=True)
        return data

    def _fetch_whole(
        self, key: str, about: About, file: BinaryIO, advance: Callable[[int], None]
    ) -> None:
        file.seek(0)
        count = 0
        with self._told(key):
            for piece in self._api.get(self._store, key).stream(min_chunk_size=1 << 20):
                count += file.write(piece)
                advance(len(piece))
                if count > about.size:
                    break
        file.truncate()
        if count != about.size:
            raise ObjectChangedError(f"{self.where(key)}: has been replaced", passes=True)

    def put(self, key: str, data: bytes | Path, instead_of: str | None = None) -> None:
        """Write an object: others see all of it, or what was there before.

        Args:
            instead_of: the version that it replaces; "" where there must be none yet. None: what
                is there does not matter.

        Raises:
            ObjectChangedError: something else is there than ``instead_of``.
        """
        mode: Any = None
        if instead_of is not None:
            mode = {"e_tag": instead_of} if instead_of else "create"

        def put() -> None:
            if isinstance(data, Path):
                with open(data, "rb") as file:
                    self._api.put(self._store, key, file, mode=mode)
            else:
                self._api.put(self._store, key, data, mode=mode)

        with self._told(key):
            _interruptible(put)

    def delete(self, key: str) -> None:
        """Remove an object; one that is gone already is no error."""
        try:
            with self._told(key):
                _interruptible(lambda: self._api.delete(self._store, key))
        except ObjectMissingError:
            pass

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """Turn what the library raises into one of ours, without secrets."""
        errors = self._api.exceptions
        where = self.where(key)
        try:
            yield
        except FileNotFoundError as error:
            what = "there is no such bucket" if "NoSuchBucket" in str(error) else "there is nothing"
            raise ObjectMissingError(f"{where}: {what}") from None
        except (errors.PreconditionError, errors.AlreadyExistsError):
            raise ObjectChangedError(f"{where}: has been changed meanwhile", passes=True) from None
        except (errors.PermissionDeniedError, errors.UnauthenticatedError):
            raise ObjectError(
                f"{where}: access is denied (credentials are taken from the environment)"
            ) from None
        except NotImplementedError:
            raise ObjectError(f"{where}: this kind of store cannot do that") from None
        except (errors.BaseError, ValueError) as error:
            said = str(error)
            if "169.254.169.254" in said or "metadata.google" in said:
                raise ObjectError(
                    f"{where}: no credentials were found (in the environment: AWS_ACCESS_KEY_ID"
                    " and AWS_SECRET_ACCESS_KEY for s3://), and this machine has none of its own",
                    passes=True,
                ) from None
            raise ObjectError(f"{where}: {_reason(said)}", passes=True) from None


def located(url: str, *, patient: bool = True) -> tuple[Objects, str]:
    """Where a single object lies: the objects beside it, and its key.

    Raises:
        ObjectError: see ``Objects``.
    """
    checked_url(url)
    before, slash, name = url.partition("?")[0].rpartition("/")
    if "?" in url:  # signed as it is
        return Objects(url, patient=patient), ""
    if not name or not slash or before.endswith(("/", ":")):
        raise ObjectError(f"{shown_url(url)[:200]}: names no object")
    return Objects(before, patient=patient), unquote(name)


def _about(meta: Any) -> About:
    size, tag = int(meta["size"]), meta["e_tag"]
    return About(size, str(tag) if tag else f"{meta['last_modified'].timestamp():.6f} {size}")


def _reason(said: str) -> str:
    """The first line of what the library says, without queries of URLs."""
    line = _SECRET.sub(r"\1", said.strip().splitlines()[0] if said.strip() else "cannot be used")
    line = re.sub(r"^Generic \w+ error: ", "", line)
    line = re.sub(r"Error performing (\w+) \S+ in [^-]*", r"\1 ", line)
    return " ".join(line.split())[:300]


def _interruptible(call: Callable[[], T]) -> T:
    """``call()``, in a thread: the library does not look for signals, and Ctrl-C would wait."""
    if threading.current_thread() is not threading.main_thread():
        return call()
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="lipsync-objects", daemon=True).start()
    return future.result()


def _library() -> ModuleType:
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError:
        raise ObjectError(
            f"URLs need the extra 'store' (obstore is not installed): {how_to_get('store')}"
        ) from None
    module: ModuleType = obstore
    return module
