# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast serve``: flags to a configuration, and the configuration to a server."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import typer

from lipsync_fast.config import ServeConfig
from lipsync_fast.config_load import as_toml, load
from lipsync_fast.console import say
from lipsync_fast.logs import setup_logs
from lipsync_fast.supervisor.ports import BoundPort

FLAGS = {
    "host": "listen.host",
    "port": "listen.ports",
    "http-port": "listen.http_port",
    "grpc-port": "listen.grpc_ports",
    "webrtc-port": "listen.webrtc_ports",
    "livekit-port": "listen.livekit_ports",
    "origin": "listen.origins",
    "token": "listen.token",
    "tls-cert": "listen.tls_cert",
    "tls-key": "listen.tls_key",
    "tls-client-ca": "listen.tls_client_ca",
    "insecure": "listen.insecure",
    "avatars": "avatars.folders",
    "avatar": "avatars.default",
    "require-signed": "avatars.require_signed",
    "gpus": "engines.gpus",
    "engines-per-gpu": "engines.per_gpu",
    "precision": "engines.precision",
    "mps": "engines.mps",
    "threads": "engines.threads",
    "spares": "engines.spares",
    "fronts": "fronts",
    "drain-seconds": "drain_seconds",
    "folder": "folder",
    "log-level": "log.level",
    "log-format": "log.format",
}
"""Flag to the key that it sets."""
OTHERS = {
    "grpc": "grpc    {}\n",
    "webrtc": "webrtc  http{s}://{}/whep\n",
    "livekit": "livekit http{s}://{}/v1/livekit/sessions\n",
}
"""What is said of other protocols' ports."""


def serve_command(file: Path | None, given: Mapping[str, object], *, print_config: bool) -> None:
    """Run a server until it is told to stop, or print what it would run with.

    Args:
        file: TOML file, where there is one.
        given: values of ``FLAGS``; None, or an empty list, where a flag was not given.

    Raises:
        LipsyncError: the configuration is wrong, or the server cannot start or go on.
    """
    flags = {
        FLAGS[name]: (f"--{name}", value)
        for name, value in given.items()
        if value is not None and value != []
    }
    loaded = load(file, flags=flags)
    if print_config:
        typer.echo(as_toml(loaded), nl=False)
        return
    config = loaded.config
    setup_logs(config.log, "supervisor")
    from lipsync_fast.supervisor.launch import serve

    sys.stdout.flush()
    status = serve(config, lambda bound: _say_where(config, bound))
    if status:
        raise typer.Exit(status)


def _say_where(config: ServeConfig, bound: list[BoundPort]) -> None:
    """Where to point a browser and clients; for people, so not between lines of JSON."""
    if config.log.format != "text":
        return
    host, s = url_host(config.listen.host), "s" if config.listen.tls_cert else ""
    streams = [each.port for each in bound if each.kind == "stream"]
    http = next(each.port for each in bound if each.kind == "http")
    others = "".join(
        line.format(f"{host}:{each.port}", s=s)
        for kind, line in OTHERS.items()
        for each in bound
        if each.kind == kind
    )
    urls = " ".join(f"ws{s}://{host}:{port}/" for port in streams)
    ways = f"{urls} ws{s}://{host}:{http}/ws"
    say(f"page    http{s}://{host}:{http}/\nstreams {ways}\n{others}stop    Ctrl-C")


def url_host(host: str) -> str:
    """A host as it stands in a URL that this machine can open."""
    if host in ("", "0.0.0.0", "::"):
        return "localhost"
    return f"[{host}]" if ":" in host else host
