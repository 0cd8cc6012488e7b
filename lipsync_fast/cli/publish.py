# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast avatar publish | unpublish | published``: stores of avatars (extra ``store``)."""

from __future__ import annotations

from typing import Annotated

import typer

from lipsync_fast.cli.commands import Command, complete_avatar
from lipsync_fast.console import guarded, one_line, say, table_lines

Url = Annotated[str, typer.Argument(help="The store: s3://BUCKET/PATH, file:///PATH, …")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``lipsync-fast avatar``."""
    for command in (publish, unpublish, published):
        app.command(cls=Command)(guarded(command))


def publish(
    avatar: Annotated[
        str, typer.Argument(help="The avatar's name or path.", autocompletion=complete_avatar)
    ],
    url: Url,
    name: Annotated[
        str, typer.Option("--as", help="Its name in the store (default: that of its package).")
    ] = "",
    avatars: Annotated[
        list[str] | None,
        typer.Option("--avatars", help="A folder to look for avatars in first (may be repeated)."),
    ] = None,
) -> None:
    """Put an avatar into a store, from which servers take it: new, or in another's place."""
    from lipsync_fast.avatars.library import AvatarLibrary
    from lipsync_fast.avatars.publish import publish as put

    path = AvatarLibrary(avatars or ()).find(avatar)
    done = put(path, url, name or path.resolve().name.removesuffix(".lsa"))
    already = "is there already" if done.unchanged else "published"
    signed = "signed" if done.is_signed else "not signed"
    say(
        f"{one_line(done.name)}: {already}, {done.entry.size / 1e6:.1f} MB, {signed},"
        f" SHA-256 {done.entry.sha256}"
    )


def unpublish(
    name: Annotated[str, typer.Argument(help="The avatar's name in the store.")], url: Url
) -> None:
    """Take an avatar out of a store; sessions that have it go on."""
    from lipsync_fast.avatars.publish import unpublish as take

    take(name, url)
    say(f"{one_line(name)}: is no longer in the store")


def published(
    url: Url,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """List what is in a store."""
    from lipsync_fast.avatars.store import AvatarStore
    from lipsync_fast.names import json_bytes

    index = AvatarStore(url).refresh()
    if json:
        typer.echo(json_bytes(index.avatars).decode())
        return
    if not index.avatars:
        say("the store is empty")
        return
    rows = [("NAME", "MB", "SHA-256")]
    rows += [(name, f"{e.size / 1e6:.1f}", e.sha256[:16]) for name, e in index.avatars.items()]
    typer.echo("\n".join(table_lines(rows)))
