# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast doctor --production``: the checklist, held against the server that runs."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from lipsync_fast.cli.serve import url_host
from lipsync_fast.cli.status import ControlClient, running_folder
from lipsync_fast.config import Listen
from lipsync_fast.errors import ServerError
from lipsync_fast.ipc.status import ServerStatus
from lipsync_fast.names import json_bytes
from lipsync_fast.production.checks import Item, judge, warning
from lipsync_fast.production.facts import look
from lipsync_fast.production.outside import place_of, probe

TOKEN = "LIPSYNC_FAST_TOKEN"
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
MARKS = {"ok": " ", "warning": "?", "wrong": "!"}


@dataclass(frozen=True)
class ProductionRequest:
    """Which server, and what is known of it.

    Attributes:
        url: where clients reach it; its own HTTP port where empty.
        folder, port: as of ``status``.
        stop_s: that whoever manages it waits before killing it; None where that is not known.
    """

    url: str
    folder: Path | None
    port: int | None
    stop_s: float | None


def production_command(request: ProductionRequest, *, as_json: bool) -> None:
    """Check everything, and say it.

    Raises:
        ServerError: no server can be asked, or something is wrong with it.
        ConfigError: the URL is none.
    """
    items = examine(request, os.environ.get(TOKEN, ""))
    if as_json:
        typer.echo(json_bytes({"items": items}, indent=2).decode())
    else:
        typer.echo("\n".join(line for item in items for line in item_lines(item)))
    wrong = [item.name for item in items if item.result == "wrong"]
    if wrong:
        raise ServerError(f"not fit for production: {', '.join(wrong)}")


def examine(request: ProductionRequest, token: str) -> list[Item]:
    """The items: of the server on this machine, where there is one, and of its address."""
    place = place_of(request.url, token) if request.url else None
    try:
        folder = running_folder(request.folder, request.port)
    except ServerError:
        if place is None or request.folder is not None or request.port is not None:
            raise
        return probe(place)  # it runs on another machine, or is another user's
    with ControlClient(folder) as client:
        status, settings = client.status(), client.settings()
    facts = look(settings, status, request.stop_s)
    return [*judge(facts), *(probe(place) if place else probe_own(settings.listen, status, token))]


def probe_own(listen: Listen, status: ServerStatus, token: str) -> list[Item]:
    """What the server's own HTTP port answers on this machine."""
    if listen.tls_client_ca:
        advice = "ask from where clients are, at an address that lets you in"
        return [warning("health", "not asked: it wants certificates of clients", advice)]
    scheme = "https" if listen.tls_cert else "http"
    host = EVERYWHERE.get(status.host) or url_host(status.host)  # containers may know no localhost
    place = place_of(f"{scheme}://{host}:{status.http_port}", token)
    return probe(replace(place, trusted=listen.tls_cert))


def item_lines(item: Item) -> list[str]:
    """An item for people: what was found, and below it what to do."""
    lines = [f"{MARKS[item.result]} {item.name:<16}{item.found}"]
    return lines + [f"{'':<18}-> {item.advice}"] * bool(item.advice)
