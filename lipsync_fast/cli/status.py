# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast status``: what a running server says of itself."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import typer
import zmq

from lipsync_fast.console import clock
from lipsync_fast.errors import ServerError
from lipsync_fast.ipc.control import (
    AnyMessage,
    AvatarChanged,
    ChangeAvatar,
    StatusReply,
    StatusRequest,
)
from lipsync_fast.ipc.control_socket import Link
from lipsync_fast.ipc.status import AvatarStatus, EngineStatus, FrontStatus, ServerStatus
from lipsync_fast.names import json_bytes
from lipsync_fast.supervisor.run_folder import default_run_folder, is_running, run_folders

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

ANSWER_S = 3.0
CHANGE_S = 75.0
"""How long a change may take; the server gives it up before."""
WATCH_S = 1.0
KEPT = ("found", "missed", "kept", "refused", "evicted")
"""What engines count of frames of utterances that are kept."""


def status_command(folder: Path | None, port: int | None, *, as_json: bool, watch: bool) -> None:
    """Print the status, once or every second until Ctrl-C.

    Raises:
        ServerError: there is no server, or it does not answer.
    """
    where = running_folder(folder, port)
    with ControlClient(where) as client:
        if not watch:
            _print(client.status(), as_json)
        elif as_json:
            while True:
                _print(client.status(), as_json)
                time.sleep(WATCH_S)
        else:
            _show(client.status)


def running_folder(folder: Path | None, port: int | None) -> Path:
    """The folder of the running server that is meant.

    Raises:
        ServerError: there is none, or more than one.
    """
    if folder is not None or port is not None:
        wanted = folder if folder is not None else default_run_folder(port or 0)
        if not is_running(wanted):
            raise ServerError(f"no server runs in {wanted}; start one with: lipsync-fast serve")
        return wanted
    running = [path for path in run_folders() if is_running(path)]
    if not running:
        raise ServerError("no server of this user runs here; start one with: lipsync-fast serve")
    if len(running) > 1:
        named = ", ".join(map(str, running))
        raise ServerError(f"several servers run ({named}); say which with --port or --folder")
    return running[0]


class ControlClient:
    """A connection to a server's control socket, under a name that no other has."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._context = zmq.Context[zmq.Socket[bytes]]()
        name = f"status-{os.getpid()}-{secrets.token_hex(4)}"
        self._link = Link.connect(self._context, folder, name)

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()
        self._context.term()

    def status(self) -> ServerStatus:
        """The server's status now.

        Raises:
            ServerError: it has gone, does not answer, or is of another version.
        """
        reply = self._ask(StatusRequest(), ANSWER_S, lambda m: isinstance(m, StatusReply))
        assert isinstance(reply, StatusReply)
        try:
            return msgspec.msgpack.decode(reply.status, type=ServerStatus)
        except msgspec.MsgspecError as error:
            raise ServerError(f"a server of another version: {error}") from None

    def change(self, action: Literal["load", "unload"], name: str, path: str = "") -> AvatarChanged:
        """Have an avatar loaded, replaced or unloaded; see ``supervisor.avatar_rollout``.

        Raises:
            ServerError: the server has gone, or does not answer.
        """
        request = secrets.token_hex(8)
        change = ChangeAvatar(request=request, action=action, name=name, path=path, anywhere=True)

        def mine(message: AnyMessage) -> bool:
            return isinstance(message, AvatarChanged) and message.request == request

        reply = self._ask(change, CHANGE_S, mine)
        assert isinstance(reply, AvatarChanged)
        return reply

    def _ask(
        self, question: AnyMessage, patience_s: float, answers: Callable[[AnyMessage], bool]
    ) -> AnyMessage:
        for _ in self._link.received():
            pass  # late answers to earlier questions
        self._link.send(question)
        until = time.monotonic() + patience_s
        while (left := until - time.monotonic()) > 0:
            self._link.socket.poll(min(int(left * 1000) + 1, 1000))
            for message in self._link.received():
                if answers(message):
                    return message
            if not is_running(self._folder):
                raise ServerError(f"the server in {self._folder} has stopped")
        raise ServerError(f"the server in {self._folder} does not answer")


def _print(status: ServerStatus, as_json: bool) -> None:
    if as_json:
        typer.echo(json_bytes(status).decode())
        return
    from rich.console import Console

    Console().print(as_tables(status))


def _show(ask: Callable[[], ServerStatus]) -> None:
    """The tables, drawn anew each second."""
    from rich.live import Live

    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(as_tables(ask()), auto_refresh=False) as live,
    ):
        while True:
            time.sleep(WATCH_S)
            live.update(as_tables(ask()), refresh=True)


# ---------------------------------------------------------------- tables
def as_tables(status: ServerStatus) -> RenderableType:
    """The status for people."""
    from rich.console import Group
    from rich.text import Text

    ports = ", ".join(map(str, status.ports))
    loads = [front.load for front in status.fronts]
    head = (
        f"lipsync-fast {status.version}, process {status.pid}: {status.state} for "
        f"{clock(status.uptime_s)} on {status.host}, streams {ports}, HTTP {status.http_port}\n"
        f"{sum(load.sessions for load in loads)} sessions, "
        f"{sum(load.speaking for load in loads)} of {status.speakers} speaking, "
        f"{status.frames_per_s:.1f} frames/s sent, "
        f"{status.capacity:.0f} frames/s can be made; "
        f"default avatar {status.default_avatar}"
    )
    counts = [load.utterances for load in loads]
    hits, misses = (sum(each.get(kind, 0) for each in counts) for kind in ("hits", "misses"))
    if hits or misses:
        size = max((e.load.store_bytes for e in status.engines), default=0)
        head += f"\n{hits} utterances were known, {misses} were not; {size / 1e6:.0f} MB are kept"
    if status.ignored:
        head += f"; {status.ignored} control messages could not be read"
    tables = [*_avatars(status.avatars), *_engines(status.engines), *_fronts(status.fronts)]
    return Group(Text(head), *tables)


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        text = column in ("avatar", "engine", "front", "device", "state", "refused", "errors")
        table.add_column(column, justify="left" if text else "right", overflow="fold")
    return table


def _avatars(avatars: list[AvatarStatus]) -> list[Table]:
    table = _table("avatar", "version", "state", "for", "uses", "engines", "cached", "shared")
    for a in avatars:
        if a.state == "unloaded":
            _row(table, a.name, "-", a.state, "-", "-", "-", "-", "-")
            continue
        _row(
            table, a.name, a.version, a.state, clock(a.loaded_s), a.uses, len(a.engines),
            f"{a.cached_bytes / 1e6:.0f} MB", f"{a.shared_bytes / 1e6:.0f} MB",
        )  # fmt: skip
    return [table] if avatars else []


def _engines(engines: list[EngineStatus]) -> list[Table]:
    state = _table("engine", "device", "state", "pid", "up", "restarts", "avatars", "frames/s")
    work = _table(
        "engine", "waiting", "oldest ms", "made", "skipped", "failed", "dropped", "damaged"
    )
    kept = _table("engine", "inferences", "found", "missed", "kept", "refused", "evicted")
    kinds = list(dict.fromkeys(kind for e in engines for kind in e.load.cache_bytes))
    on_gpu = any(e.load.device_memory_total for e in engines)
    caches = _table("engine", *kinds, *(["GPU memory"] if on_gpu else []))
    for e in engines:
        load = e.load
        rate = f"{load.frames_per_s:.1f} of {e.capacity:.0f}"
        _row(
            state, e.name, e.device, _state(e), e.pid, clock(e.uptime_s), e.restarts,
            len(e.avatars), rate,
        )  # fmt: skip
        _row(
            work, e.name, load.waiting + load.in_flight, f"{load.oldest_ms:.0f}", load.made,
            load.skipped, load.failed, load.dropped, load.damaged,
        )  # fmt: skip
        counts = [load.store.get(kind, 0) for kind in KEPT]
        _row(kept, e.name, load.inferences, *counts)
        held = [f"{load.cache_bytes.get(kind, 0) / 1e6:.0f} MB" for kind in kinds]
        if on_gpu:
            used, total = load.device_memory_used, load.device_memory_total
            held.append(f"{used / 1e9:.1f} of {total / 1e9:.1f} GB" if total else "-")
        _row(caches, e.name, *held)
    return [state, work, kept, *([caches] if kinds or on_gpu else [])]


def _state(engine: EngineStatus) -> str:
    """What an engine does; of a lost one, why, and when it is tried again."""
    if engine.state == "gone":
        return f"lost ({engine.reason}), again in {engine.retry_s:.1f} s"
    return f"{engine.state} (before: {engine.reason})" if engine.reason else engine.state


def _fronts(fronts: list[FrontStatus]) -> list[Table]:
    state = _table("front", "state", "pid", "up", "restarts", "connections", "sessions", "speaking")
    work = _table(
        "front", "frames/s", "latency ms", "late", "skipped", "sent again", "refused", "errors"
    )
    for f in fronts:
        load = f.load
        _row(
            state, f.name, f.state, f.pid, clock(f.uptime_s), f.restarts, load.connections,
            load.sessions, load.speaking,
        )  # fmt: skip
        latency = ", ".join(f"{name} {value:.0f}" for name, value in load.latency_ms.items())
        _row(
            work, f.name, f"{f.frames_per_s:.1f}", latency or "-", load.late, load.skipped,
            load.redispatched, _reasons(load.refused), _reasons(load.errors),
        )  # fmt: skip
    return [state, work]


def _row(table: Table, *cells: object) -> None:
    table.add_row(*map(str, cells))


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items()) or "0"
