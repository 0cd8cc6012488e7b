# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast token new | list | revoke``: API keys, of which a server keeps hashes alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from lipsync_fast.cli.commands import SETTINGS, Command, Group, choice
from lipsync_fast.console import guarded, one_line, say, table_lines
from lipsync_fast.errors import LipsyncError
from lipsync_fast.tokens.subject import Allowance

File = Annotated[
    Path,
    typer.Option(help="The file of keys (access.api_keys).", envvar="LIPSYNC_FAST_ACCESS_API_KEYS"),
]
DAY_S = 86_400

app = typer.Typer(
    cls=Group,
    help="Make, list and revoke API keys of a server.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=SETTINGS,
)


@app.command(cls=Command)
@guarded
def new(
    name: Annotated[str, typer.Argument(help="Whose key it is, for logs and limits.")],
    file: File,
    avatar: Annotated[
        list[str] | None,
        typer.Option("--avatar", help="An avatar that it allows (may be repeated; default: all)."),
    ] = None,
    sessions: Annotated[
        int | None, typer.Option(min=1, help="Connections that it allows at once.")
    ] = None,
    speakers: Annotated[
        int | None, typer.Option(min=1, help="Sessions that may speak at once.")
    ] = None,
    pace: Annotated[
        str, choice(among=("any", "live"), help="live: sessions in real time alone.")
    ] = "any",
    seconds_per_day: Annotated[
        float | None, typer.Option(min=1.0, help="Seconds that may be spoken each day.")
    ] = None,
    connects_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Connects, and requests of HTTP, each minute.")
    ] = None,
    days: Annotated[
        float | None, typer.Option(min=0.01, help="After so many days it is worth nothing.")
    ] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="It may load and unload avatars, and use LiveKit's.")
    ] = False,
) -> None:
    """Make a key, and print it: it is shown this once. The file keeps its hash."""
    from lipsync_fast.tokens.api_keys import add_key

    wanted = {
        "avatars": tuple(avatar) if avatar else None,
        "sessions": sessions,
        "speakers": speakers,
        "pace": pace,
        "seconds_per_day": seconds_per_day,
        "connects_per_minute": connects_per_minute,
        "admin": admin,
    }
    if not 1 <= len(name) <= 200 or not name.isprintable():
        raise LipsyncError("NAME: expected 1 to 200 characters")
    try:
        allowed = msgspec.convert(wanted, Allowance)
    except msgspec.ValidationError as error:
        raise LipsyncError(f"that cannot be allowed: {error}") from None
    ends = None if days is None else round(time.time() + days * DAY_S)
    key = add_key(file, name, allowed, ends)
    typer.echo(key)
    say(f"{one_line(name)}: keep it now, it is not shown again; {one_line(str(file))} has its hash")


@app.command("list", cls=Command)
@guarded
def list_keys(
    file: File, json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """List the keys: whose they are, and what they allow."""
    from lipsync_fast.tokens.api_keys import ApiKeys

    records = ApiKeys.read(str(file), "--file").records
    if json:
        kept = [msgspec.to_builtins(record) for record in records]
        told = [{k: v for k, v in record.items() if k != "hash"} for record in kept]
        typer.echo(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
        return
    rows: list[tuple[str, ...]] = [("ID", "NAME", "MADE", "ENDS", "ALLOWS")]
    for record in records:
        limits = msgspec.to_builtins(record.allowed).items()
        ends = "never" if record.ends is None else _day(record.ends)
        allows = " ".join(f"{name}={_shown(value)}" for name, value in limits) or "all"
        rows.append((record.id, one_line(record.name), _day(record.made), ends, one_line(allows)))
    typer.echo("\n".join(table_lines(rows)))


@app.command(cls=Command)
@guarded
def revoke(
    which: Annotated[str, typer.Argument(metavar="NAME|ID", help="The key's name, or its id.")],
    file: File,
) -> None:
    """Remove a key: servers that use the file refuse it within a second."""
    from lipsync_fast.tokens.api_keys import remove_key

    record = remove_key(file, which)
    say(f"revoked: {one_line(record.name)} ({record.id})")


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
