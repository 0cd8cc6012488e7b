# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast avatar load | unload``: avatars of a running server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lipsync_fast.cli.commands import Command
from lipsync_fast.console import guarded, one_line
from lipsync_fast.errors import AvatarError, AvatarNotFoundError, ServerError

if TYPE_CHECKING:
    from lipsync_fast.ipc.control import AvatarChanged

Name = Annotated[str, typer.Argument(help="The avatar's name, as clients say it.")]
Folder = Annotated[
    Path | None, typer.Option(help="The server's private folder; needed where several servers run.")
]
Port = Annotated[
    int | None, typer.Option(help="The server's first stream port, for the same purpose.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a sentence.")]


@guarded
def load(
    name: Name,
    path: Annotated[
        Path | None,
        typer.Argument(help="Its package (default: the one of that name in the server's folders)."),
    ] = None,
    folder: Folder = None,
    port: Port = None,
    json: Json = False,
) -> None:
    """Make a running server load an avatar, or the newer one that has replaced it.

    Sessions that begin afterwards get it; those that have begun keep what they have.
    """
    where = "" if path is None else str(path.absolute())
    _print_outcome(_changed("load", name, where, folder, port), json)


@guarded
def unload(name: Name, folder: Folder = None, port: Port = None, json: Json = False) -> None:
    """Make a running server refuse an avatar to new sessions, until it is loaded again."""
    _print_outcome(_changed("unload", name, "", folder, port), json)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(cls=Command)(load)
    app.command(cls=Command)(unload)


def _changed(
    action: Literal["load", "unload"],
    name: str,
    path: str,
    folder: Path | None,
    port: int | None,
) -> AvatarChanged:
    from lipsync_fast.cli.status import ControlClient, running_folder

    if not name.isprintable() or not 0 < len(name) <= 1000 or len(path) > 4096:
        raise AvatarNotFoundError(f"there is no avatar {one_line(name[:64])!r}")
    with ControlClient(running_folder(folder, port)) as client:
        return client.change(action, name, path)


def _print_outcome(done: AvatarChanged, as_json: bool) -> None:
    """Print what became of a change.

    Raises:
        AvatarError, ServerError: it was not done.
    """
    if as_json:
        from lipsync_fast.names import json_bytes

        outcome = {"name": done.name, "version": done.version, "state": done.state}
        typer.echo(json_bytes(outcome | {"reason": done.reason}).decode())
    if done.state == "late":
        raise ServerError(f"avatar {done.name}: {done.reason}")
    if done.state in ("missing", "refused"):
        raise AvatarError(f"avatar {done.name}: {done.reason}")
    if as_json:
        return
    version = f", version {done.version}" if done.version else ""
    reason = f": {one_line(done.reason)}" if done.reason else ""
    typer.echo(f"{done.name}: {done.state}{version}{reason}")
