# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast status``: what a running server says of itself."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import typer
import zmq

from lipsync_fast.cli.status_screen import as_screen
from lipsync_fast.config import ServeConfig
from lipsync_fast.errors import ServerError
from lipsync_fast.ipc.control import (
    AnyMessage,
    AvatarChanged,
    ChangeAvatar,
    SettingsReply,
    SettingsRequest,
    StatusReply,
    StatusRequest,
)
from lipsync_fast.ipc.control_socket import Link
from lipsync_fast.ipc.status import ServerStatus, read_status
from lipsync_fast.names import json_bytes
from lipsync_fast.rounding import rounded
from lipsync_fast.supervisor.run_folder import default_run_folder, is_running, run_folders

if TYPE_CHECKING:
    from rich.console import RenderableType

ANSWER_S = 3.0
CHANGE_S = 75.0
"""How long a change may take; the server gives it up before."""
WATCH_S = 1.0


def status_command(
    folder: Path | None, port: int | None, *, as_json: bool, full: bool, watch: bool, ready: bool
) -> None:
    """Print the status, once or every second until Ctrl-C; or whether the server is ready.

    Raises:
        ServerError: there is no server, it does not answer, or it is not ready.
    """
    where = running_folder(folder, port)
    with ControlClient(where) as client:
        if ready:
            typer.echo(ready_line(client.status()))
        elif not watch:
            _print(client.status(), as_json, full)
        elif as_json:
            while True:
                _print(client.status(), as_json, full)
                time.sleep(WATCH_S)
        else:
            _show(client.status, full)


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
            return read_status(reply.status)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise self._of_another_version(error) from None

    def settings(self) -> ServeConfig:
        """What the server was configured with; its secrets are covered.

        Raises:
            ServerError: it has gone, does not answer, or is of another version.
        """
        reply = self._ask(SettingsRequest(), ANSWER_S, lambda m: isinstance(m, SettingsReply))
        assert isinstance(reply, SettingsReply)
        try:
            return msgspec.msgpack.decode(reply.settings, type=ServeConfig)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise self._of_another_version(error) from None

    def _of_another_version(self, error: Exception) -> ServerError:
        return ServerError(f"the server in {self._folder} is of another version: {error}")

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


def ready_line(status: ServerStatus) -> str:
    """Who works, where clients can be served.

    Raises:
        ServerError: they cannot.
    """
    working = [engine.name for engine in status.engines if engine.state == "ready"]
    if status.state != "serving" or not working:
        raise ServerError(f"not ready: it is {status.state}, and {len(working)} engines work")
    return f"ready: {', '.join(working)}"


def _print(status: ServerStatus, as_json: bool, full: bool) -> None:
    if as_json:
        typer.echo(json_bytes(rounded(status)).decode())
        return
    if not full:
        typer.echo(as_screen(status))
        return
    from rich.console import Console

    from lipsync_fast.cli.status_tables import as_tables

    Console().print(as_tables(status))


def _show(ask: Callable[[], ServerStatus], full: bool) -> None:
    """The screen, or the tables, drawn anew each second until Ctrl-C, which is passed on."""
    from rich.live import Live
    from rich.text import Text

    from lipsync_fast.cli.status_tables import as_tables

    def drawn() -> RenderableType:
        return as_tables(ask()) if full else Text(as_screen(ask()))

    with Live(drawn(), auto_refresh=False) as live:
        while True:
            time.sleep(WATCH_S)
            live.update(drawn(), refresh=True)
