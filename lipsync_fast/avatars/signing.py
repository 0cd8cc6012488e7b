# SPDX-License-Identifier: Apache-2.0
"""Signatures of packages, Ed25519 (extra ``sign``): who made it, and that nothing has changed.

Signed is the manifest, byte for byte. It has the checksum of every other member that can be read,
so a signature vouches for all of them; ``AvatarPackage.verify`` holds them against it. It lies in
the package itself, as the member ``manifest.sig``, and moves with it:

    {"format": "lipsync-avatar-signature", "version": 1, "signature": "<base64>"}

Keys are PEM files, as ``avatar keygen`` or OpenSSL write them.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.avatars.storage import MANIFEST, SIGNATURE
from lipsync_fast.avatars.writer import add_stored
from lipsync_fast.errors import AvatarImportError, AvatarSignatureError, OutputError
from lipsync_fast.extras import how_to_get
from lipsync_fast.untrusted import limits
from lipsync_fast.untrusted.files import read_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

FORMAT = "lipsync-avatar-signature"
_SIGNED = b"lipsync-avatar package signature 1\n"
"""Stands before the manifest in what is signed: a key's other signatures are none of a package."""
_END = b"-----END PUBLIC KEY-----"
_INSTALLED = Path(__file__).resolve().parents[1]


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    version: int
    signature: str


_SIGNATURE = msgspec.json.Decoder(_Signature)


@dataclass(frozen=True)
class TrustedKeys:
    """Public keys, any of which may have signed a package.

    Attributes:
        path: the file that they were read from.
    """

    path: Path
    keys: tuple[Ed25519PublicKey, ...]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> TrustedKeys:
        """The public keys of a PEM file, one behind the other.

        Raises:
            AvatarSignatureError: missing, no such keys, or the extra ``sign`` is not installed.
        """
        from_pem = _library().load_pem_public_key
        where = Path(path)
        data = _key_file(where)
        keys = []
        for block in data.split(_END)[:-1]:
            start = block.rfind(b"-----BEGIN")
            keys.append(_ed25519(from_pem, block[max(start, 0) :] + _END + b"\n", where, "public"))
        if not keys:
            raise AvatarSignatureError(f"{where}: holds no public key; expected PEM (Ed25519)")
        return cls(where, tuple(keys))

    def check(self, package: AvatarPackage) -> None:
        """See that the manifest was signed with one of the keys; ``verify`` covers all the rest.

        Raises:
            AvatarSignatureError: it was not, or not with one of these.
        """
        from cryptography.exceptions import InvalidSignature

        signature, signed = _signature(package), _signed(package)
        for key in self.keys:
            with contextlib.suppress(InvalidSignature):
                key.verify(signature, signed)
                return
        raise AvatarSignatureError(
            f"{package.path}: its signature does not fit its manifest and any key of {self.path}"
        )


def trusted_keys(file: str) -> TrustedKeys | None:
    """What a configuration's ``avatars.require_signed`` names; None where it is empty.

    Raises:
        AvatarSignatureError: as ``TrustedKeys.read``.
    """
    return TrustedKeys.read(file) if file else None


def open_signed(
    path: str | os.PathLike[str], keys: TrustedKeys | None, *, every_byte: bool = True
) -> AvatarPackage:
    """Open a package; with ``keys``, only if one of them has signed it.

    Args:
        every_byte: hold all members against the checksums that were signed, not their sizes alone.

    Raises:
        AvatarError: as ``AvatarPackage.open``.
        AvatarSignatureError: unsigned, signed by another, or changed since.
    """
    package = AvatarPackage.open(path)
    try:
        if keys is not None:
            keys.check(package)
            if every_byte:
                package.verify()
    except BaseException:
        package.close()
        raise
    return package


def sign_package(path: Path, key: Ed25519PrivateKey) -> None:
    """Sign a package, in place and at once: a signature that it has already is replaced.

    Raises:
        AvatarSignatureError: it came with lipsync-fast: what was installed is not changed.
        AvatarError: it cannot be used, or a member does not agree with its checksum.
        OutputError: it cannot be written.
    """
    if _INSTALLED in path.resolve().parents:
        raise AvatarSignatureError(
            f"{path.name} came with lipsync-fast, and what was installed is not changed: copy it"
            f" (cp -r {path} FOLDER) and sign the copy"
        )
    with AvatarPackage.open(path) as package:
        package.verify()  # nothing is vouched for that is broken
        text = base64.b64encode(key.sign(_signed(package))).decode()
        data = msgspec.json.encode(_Signature(FORMAT, 1, text))
        temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
        try:
            if path.is_dir():
                temporary.write_bytes(data)
                os.replace(temporary, path / SIGNATURE)
                return
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
                for name in package.member_names():
                    add_stored(archive, name, package.member(name))
                add_stored(archive, SIGNATURE, memoryview(data))
            os.replace(temporary, path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror})") from None
        finally:
            temporary.unlink(missing_ok=True)


def read_private_key(path: Path, password: Callable[[], str]) -> Ed25519PrivateKey:
    """A private key from its PEM file; ``password`` is asked for one that is encrypted.

    Raises:
        AvatarSignatureError: missing, no such key, or the extra ``sign`` is not installed.
    """
    library, data = _library(), _key_file(path)
    secret = password().encode() if b"ENCRYPTED" in data else None

    def from_pem(pem: bytes) -> object:
        return library.load_pem_private_key(pem, secret)

    key: Ed25519PrivateKey = _ed25519(from_pem, data, path, "private")
    return key


def new_key(path: Path) -> Path:
    """Make a key: the private half at ``path``, for its owner alone; the public one beside it.

    Returns:
        The public half's path, ``path`` with ``.pub`` behind.

    Raises:
        OutputError: one of them is there already, or cannot be written.
    """
    library = _library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key, public = Ed25519PrivateKey.generate(), path.with_name(f"{path.name}.pub")
    pem = library.Encoding.PEM
    private_data = key.private_bytes(pem, library.PrivateFormat.PKCS8, library.NoEncryption())
    public_data = key.public_key().public_bytes(pem, library.PublicFormat.SubjectPublicKeyInfo)
    for where, data, mode in ((path, private_data, 0o600), (public, public_data, 0o644)):
        try:
            fd = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except FileExistsError:
            raise OutputError(f"{where}: already exists; a key is not replaced") from None
        except OSError as error:
            raise OutputError(f"{where}: cannot be written ({error.strerror})") from None
        with open(fd, "wb") as file:
            file.write(data)
    return public


def _signed(package: AvatarPackage) -> bytes:
    return _SIGNED + package.member_bytes(MANIFEST)


def _signature(package: AvatarPackage) -> bytes:
    data = package.signature()
    if data is None:
        raise AvatarSignatureError(f"{package.path}: is not signed; see lipsync-fast avatar sign")
    try:
        read = _SIGNATURE.decode(data[: limits.SIGNATURE_BYTES])
        signature = base64.b64decode(read.signature, validate=True)
        good = (read.format, read.version, len(signature)) == (FORMAT, 1, 64)
    except ValueError:  # msgspec's and base64's are such
        good = False
    if not good:
        raise AvatarSignatureError(f"{package.path}: {SIGNATURE} is not a signature")
    return signature


def _library() -> ModuleType:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise AvatarSignatureError(
            "signatures need the extra 'sign' (cryptography is not installed):"
            f" {how_to_get('sign')}"
        ) from None
    return serialization


def _key_file(path: Path) -> bytes:
    try:
        return read_file(path, "a key", 16 * limits.SIGNATURE_BYTES)
    except FileNotFoundError:
        raise AvatarSignatureError(f"{path}: no such key file") from None
    except AvatarImportError as error:
        raise AvatarSignatureError(str(error)) from None


def _ed25519(from_pem: Callable[[bytes], object], data: bytes, path: Path, half: str) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ed25519

    try:
        key = from_pem(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise AvatarSignatureError(
            f"{path}: cannot be read as a {half} key; expected PEM, and its password if it has one"
        ) from None
    if not isinstance(key, (ed25519.Ed25519PrivateKey, ed25519.Ed25519PublicKey)):
        raise AvatarSignatureError(f"{path}: is a key of another kind; expected Ed25519")
    return key
