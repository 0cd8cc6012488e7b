# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast avatar keygen | sign | verify``: signatures of packages (extra ``sign``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipsync_fast.cli.commands import Command
from lipsync_fast.console import guarded, one_line, say

Folders = Annotated[
    list[str] | None,
    typer.Option("--avatars", help="A folder to look for avatars in first (may be repeated)."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to ``lipsync-fast avatar``."""
    for command in (keygen, sign, verify):
        app.command(cls=Command)(guarded(command))


def keygen(
    file: Annotated[
        Path, typer.Argument(help="The file for the private key; the public one gets FILE.pub.")
    ],
) -> None:
    """Make a pair of keys to sign avatars with."""
    from lipsync_fast.avatars.signing import new_key

    public = new_key(file)
    say(f"private key: {one_line(str(file))} (keep it to yourself)")
    say(f"public key:  {one_line(str(public))} (for verify, and serve --require-signed)")


def sign(
    avatar: Annotated[str, typer.Argument(help="The avatar's name, or its package's path.")],
    key: Annotated[Path, typer.Option(help="The private key (PEM, Ed25519).")],
    avatars: Folders = None,
) -> None:
    """Sign all of an avatar's package; the signature is put into it."""
    from lipsync_fast.avatars.library import AvatarLibrary
    from lipsync_fast.avatars.signing import read_private_key, sign_package

    def password() -> str:
        return str(typer.prompt("password", hide_input=True, err=True))

    path = AvatarLibrary(avatars or ()).find(avatar)
    sign_package(path, read_private_key(key, password))
    say(f"signed: {one_line(str(path))}")


def verify(
    avatar: Annotated[str, typer.Argument(help="The avatar's name, or its package's path.")],
    key: Annotated[
        Path, typer.Option(help="The public key, or several in one file (PEM, Ed25519).")
    ],
    avatars: Folders = None,
) -> None:
    """Check a package's signature, and every byte that it vouches for."""
    from lipsync_fast.avatars.library import AvatarLibrary
    from lipsync_fast.avatars.signing import TrustedKeys, open_signed

    path = AvatarLibrary(avatars or ()).find(avatar)
    open_signed(path, TrustedKeys.read(key)).close()
    say(f"signed with a key of {one_line(str(key))}, and unchanged: {one_line(str(path))}")
