# SPDX-License-Identifier: Apache-2.0
"""Signed packages: whatever has changed is found, and nobody else's signature counts."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trust import edit, everything, linked, replace

from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.avatars.signing import (
    TrustedKeys,
    new_key,
    open_signed,
    read_private_key,
    sign_package,
)
from lipsync_fast.avatars.writer import pack
from lipsync_fast.errors import AvatarError, AvatarSignatureError, OutputError

pytest.importorskip("cryptography", reason="the extra sign is not installed")


def no_password() -> str:
    raise AssertionError("asked for a password")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the keys ``ann`` and ``eve``."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ann", "eve"):
        new_key(folder / name)
    return folder


@pytest.fixture(scope="module")
def signed(tiny_avatar: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that ann has signed; ``linked`` before it is changed."""
    path = linked(tiny_avatar, tmp_path_factory.mktemp("signed") / "tiny")
    sign_package(path, read_private_key(keys / "ann", no_password))
    return path


@pytest.fixture
def ann(keys: Path) -> TrustedKeys:
    return TrustedKeys.read(keys / "ann.pub")


def refused(path: Path, keys: TrustedKeys, *words: str) -> None:
    with pytest.raises(AvatarError) as caught:
        open_signed(path, keys)
    assert str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_signed_folder_and_a_signed_file(
    signed: Path, ann: TrustedKeys, keys: Path, tiny_avatar: Path, tmp_path: Path
) -> None:
    open_signed(signed, ann).close()
    pack(signed, tmp_path / "packed.lsa")  # a signature moves with its package
    open_signed(tmp_path / "packed.lsa", ann).close()
    pack(tiny_avatar, tmp_path / "tiny.lsa")
    refused(tmp_path / "tiny.lsa", ann, "is not signed")
    sign_package(tmp_path / "tiny.lsa", read_private_key(keys / "ann", no_password))
    with (
        open_signed(tmp_path / "tiny.lsa", ann) as package,
        AvatarPackage.open(tiny_avatar) as plain,
    ):
        for name in plain.member_names():
            assert package.member(name) == plain.member(name)
    with zipfile.ZipFile(tmp_path / "tiny.lsa") as archive:
        assert archive.testzip() is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["packed.lsa", "tiny.lsa"]


def test_signed_anew_by_another(signed: Path, ann: TrustedKeys, keys: Path, tmp_path: Path) -> None:
    """The last one counts, and any of several keys will do."""
    pack(signed, tmp_path / "x.lsa")
    for path in (linked(signed, tmp_path / "x"), tmp_path / "x.lsa"):
        sign_package(path, read_private_key(keys / "eve", no_password))
        refused(path, ann, "does not fit")
        open_signed(path, TrustedKeys.read(keys / "eve.pub")).close()
        both = tmp_path / "both.pub"
        both.write_bytes((keys / "ann.pub").read_bytes() + (keys / "eve.pub").read_bytes())
        open_signed(path, TrustedKeys.read(both)).close()
    open_signed(signed, ann).close()


def test_any_byte_of_a_folder(signed: Path, ann: TrustedKeys, tmp_path: Path) -> None:
    package = linked(signed, tmp_path / "changed")
    names = sorted(str(p.relative_to(signed)) for p in signed.rglob("*") if p.is_file())
    assert "manifest.sig" in names

    @settings(max_examples=120, deadline=None)
    @given(data=st.data(), bits=st.integers(1, 255))
    def flip(data: st.DataObject, bits: int) -> None:
        name = data.draw(st.sampled_from(names))
        raw = bytearray((signed / name).read_bytes())
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= bits
        replace(package / name, bytes(raw))
        refused(package, ann)
        replace(package / name, (signed / name).read_bytes())

    flip()
    open_signed(package, ann).close()


def test_any_byte_of_a_file(signed: Path, ann: TrustedKeys, tmp_path: Path) -> None:
    """Where it says something: what lies between members says nothing, and changes nothing."""
    file = tmp_path / "packed.lsa"
    pack(signed, file)
    whole, said = file.read_bytes(), everything_said(file, ann)
    refusals = 0

    @settings(max_examples=120, deadline=None)
    @given(st.integers(0, len(whole) - 1), st.integers(1, 255))
    def flip(at: int, bits: int) -> None:
        nonlocal refusals
        raw = bytearray(whole)
        raw[at] ^= bits
        replace(file, bytes(raw))
        try:
            found = everything_said(file, ann)
        except AvatarError:
            refusals += 1
        else:
            assert found == said

    flip()
    assert refusals > 60


def everything_said(file: Path, keys: TrustedKeys) -> list[bytes]:
    with open_signed(file, keys) as package:
        return [bytes(package.member(name)) for name in package.member_names()]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 10_000,
        b"{}",
        b"[" * 4_000,
        b'{"format": "lipsync-avatar-signature", "version": 2, "signature": ""}',
        b'{"format": "lipsync-avatar-signature", "version": 1, "signature": "AA=="}',
        b'{"format": "lipsync-avatar-signature", "version": 1, "signature": "%%"}',
        msgspec.json.encode(
            {"format": "lipsync-avatar-signature", "version": 1, "signature": "A" * 86 + "=="}
        ),
    ],
    ids=lambda data: f"{data[-30:]!r}",
)
def test_what_is_no_signature(signed: Path, ann: TrustedKeys, tmp_path: Path, data: bytes) -> None:
    package = linked(signed, tmp_path / "x")
    replace(package / "manifest.sig", data)
    refused(package, ann, "signature")


def test_a_signature_of_another_package(
    signed: Path, ann: TrustedKeys, keys: Path, tmp_path: Path
) -> None:
    other = linked(signed, tmp_path / "other")
    edit(other, licence="all mine")
    refused(other, ann, "does not fit")
    sign_package(other, read_private_key(keys / "ann", no_password))
    open_signed(other, ann).close()
    package = linked(signed, tmp_path / "x")
    replace(package / "manifest.sig", (other / "manifest.sig").read_bytes())
    refused(package, ann, "does not fit")


def test_a_signature_that_leads_out(signed: Path, ann: TrustedKeys, tmp_path: Path) -> None:
    package = linked(signed, tmp_path / "x")
    shutil.move(package / "manifest.sig", tmp_path / "sig")
    (package / "manifest.sig").symlink_to(tmp_path / "sig")
    refused(package, ann, "leads out")


def test_what_the_manifest_does_not_list_is_not_read(
    signed: Path, ann: TrustedKeys, tmp_path: Path
) -> None:
    package = linked(signed, tmp_path / "x")
    (package / "masks.bin").write_bytes(b"x")
    with open_signed(package, ann) as opened, pytest.raises(AvatarError, match="not listed"):
        opened.member("masks.bin")


def test_what_is_broken_is_not_signed(signed: Path, keys: Path, tmp_path: Path) -> None:
    package = linked(signed, tmp_path / "x")
    raw = bytearray((package / "frames.bin").read_bytes())
    raw[-1] ^= 1
    replace(package / "frames.bin", bytes(raw))
    before = everything(tmp_path)
    with pytest.raises(AvatarError, match="checksum"):
        sign_package(package, read_private_key(keys / "ann", no_password))
    assert everything(tmp_path) == before


def test_a_library_lists_what_is_not_signed_as_such(
    signed: Path, tiny_avatar: Path, ann: TrustedKeys, tmp_path: Path
) -> None:
    linked(signed, tmp_path / "good")
    linked(tiny_avatar, tmp_path / "plain")
    found = {i.name: i.error for i in AvatarLibrary([tmp_path], ann).list()}
    assert found["good"] is None
    assert "is not signed" in str(found["plain"])


# Keys


def test_keys_are_never_replaced_and_private(keys: Path, tmp_path: Path) -> None:
    assert (keys / "ann").stat().st_mode & 0o777 == 0o600
    for name in ("ann", "ann.pub"):
        shutil.copy(keys / name, tmp_path / name)
        with pytest.raises(OutputError, match="already exists"):
            new_key(tmp_path / "ann")
        (tmp_path / "ann").unlink(missing_ok=True)


def pem(kind: str) -> bytes:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    ed, other = ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
    public = s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo
    if kind == "encrypted":
        how = s.BestAvailableEncryption(b"secret")
        return ed.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, how)
    if kind == "other private":
        return other.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    return other.public_key().public_bytes(*public)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        b"-----END PUBLIC KEY-----" * 50,
        pem("other public"),
        b"x" * 100_000,
        b"\0" * 200,
    ],
    ids=lambda data: f"{data[:30]!r}-{len(data)}",
)
def test_files_that_are_no_keys(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "k").write_bytes(data)
    for read in (TrustedKeys.read, lambda path: read_private_key(path, no_password)):
        with pytest.raises(AvatarSignatureError, match="/k:"):
            read(tmp_path / "k")


def test_keys_that_cannot_be_read(keys: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "ec").write_bytes(pem("other private"))
    for path, word in ((tmp_path / "none", "no such"), (tmp_path / "pipe", "not a file")):
        with pytest.raises(AvatarSignatureError, match=word):
            TrustedKeys.read(path)
    with pytest.raises(AvatarSignatureError, match="another kind"):
        read_private_key(tmp_path / "ec", no_password)
    with pytest.raises(AvatarSignatureError, match="private key"):
        read_private_key(keys / "ann.pub", no_password)
    with pytest.raises(AvatarSignatureError, match="no public key"):
        TrustedKeys.read(keys / "ann")


def test_a_key_with_a_password(tmp_path: Path, signed: Path) -> None:
    (tmp_path / "k").write_bytes(pem("encrypted"))
    key = read_private_key(tmp_path / "k", lambda: "secret")
    sign_package(linked(signed, tmp_path / "x"), key)
    with pytest.raises(AvatarSignatureError, match="password"):
        read_private_key(tmp_path / "k", lambda: "wrong")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_keys_of_openssl_by_the_command_line(tiny_avatar: Path, tmp_path: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            arguments, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )

    def avatar(*arguments: str) -> subprocess.CompletedProcess[str]:
        return call(sys.executable, "-m", "lipsync_fast", "avatar", *arguments)

    linked(tiny_avatar, tmp_path / "tiny")
    call("openssl", "genpkey", "-algorithm", "ed25519", "-out", "k")
    call("openssl", "pkey", "-in", "k", "-pubout", "-out", "k.pub")
    done = avatar("verify", "./tiny", "--key", "k.pub")
    assert (done.returncode, done.stderr) == (
        2,
        "error: tiny: is not signed; see lipsync-fast avatar sign\n",
    )
    assert avatar("sign", "./tiny", "--key", "k").returncode == 0
    assert "unchanged" in avatar("verify", "./tiny", "--key", "k.pub").stderr
    assert avatar("sign", "./tiny", "--key", "k.pub").returncode == 2


def test_without_the_library_the_extra_is_named(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from lipsync_fast.avatars.signing import TrustedKeys\n"
        "try: TrustedKeys.read('x')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.startswith("AvatarSignatureError signatures need the extra 'sign'")
    assert io.StringIO(done.stdout).read().count("\n") == 1
