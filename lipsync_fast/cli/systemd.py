# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast systemd``: a unit that runs the server and lets it do nothing that it need not."""

from __future__ import annotations

import contextlib
import math
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer

from lipsync_fast.config import ServeConfig
from lipsync_fast.config_load import DEFAULT, Loaded, load
from lipsync_fast.console import say
from lipsync_fast.errors import ConfigError
from lipsync_fast.whole_files import write_whole

NAME = "lipsync-fast"
FOLDER = Path("/etc/systemd/system")
ENVIRONMENT = f"/etc/{NAME}.env"
"""Where tokens are kept from those who may read command lines and configurations."""
ENDING_S = 10
"""For what follows utterances' end: children that do not stop are killed after 2 s."""
PRIVATE = ("/home/", "/root/", "/run/user/")
"""What ``ProtectHome`` hides."""
USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
GPUS = re.compile(r"all|none|\d+(,\d+)*")

UNIT = """\
# /etc/systemd/system/lipsync-fast.service
[Unit]
Description=Live lip sync
After=network.target

[Service]
Type=notify
ExecStart={start}
ExecReload=/bin/sh -c 'kill -HUP ${{MAINPID}}'
Environment=LIPSYNC_FAST_FOLDER=/run/lipsync-fast{asked}
EnvironmentFile=-/etc/lipsync-fast.env
{user}
RuntimeDirectory=lipsync-fast
RuntimeDirectoryMode=0700
StateDirectory=lipsync-fast
StateDirectoryMode=0700
CacheDirectory=lipsync-fast
CacheDirectoryMode=0700
Restart=on-failure
WatchdogSec=10
KillMode=mixed
TimeoutStopSec={stop_s}
LimitNOFILE=65536

# What it does not need, it cannot do.
CapabilityBoundingSet={capabilities}
AmbientCapabilities={capabilities}
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
{devices}
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
LockPersonality=yes
MemoryDenyWriteExecute={no_gpu}
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
UMask=0077

[Install]
WantedBy=multi-user.target
"""
NO_GPU = "PrivateDevices=yes\nDevicePolicy=closed"
GPU = """\
# What NVIDIA's driver is reached by; CUDA makes code while it runs.
DevicePolicy=closed
DeviceAllow=char-nvidia rw
DeviceAllow=char-nvidia-frontend rw
DeviceAllow=char-nvidia-uvm rw
DeviceAllow=char-nvidia-caps rw"""


@dataclass(frozen=True)
class UnitRequest:
    """What a unit is to be like.

    Attributes:
        user: that it runs as; systemd makes one for the time that it runs where empty.
        gpus: as ``engines.gpus``; where empty, as configured, and none where nothing is.
        config: the server's file, where there is one.
        program: the command that it starts.
    """

    user: str = ""
    gpus: str = ""
    config: Path | None = None
    program: Path = Path("/opt/lipsync/bin/lipsync-fast")


def systemd_command(user: str, gpus: str, config: Path | None, *, install: bool) -> None:
    """Print the unit, or put it where systemd looks.

    Raises:
        LipsyncError: the configuration cannot be used, or the unit not written.
    """
    request = UnitRequest(user, gpus, config, program())
    loaded = load(config, environ={})
    unit = unit_of(request, loaded)
    for doubt in doubts(request, loaded.config):
        say(f"warning: {doubt}")
    if not install:
        typer.echo(unit, nl=False)
        return
    file = put(unit, FOLDER)
    if Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "daemon-reload"], check=False)
    say(f"wrote {file}\nstart it with: systemctl enable --now {NAME}")


def program() -> Path:
    """The command as it is installed: beside this interpreter, or where the shell finds it."""
    beside = Path(sys.prefix) / "bin" / NAME
    found = beside if beside.exists() else shutil.which(NAME)
    if found is None:
        raise ConfigError(f"the command {NAME} is not installed here; see `pip install`")
    return Path(found).absolute()


def unit_of(request: UnitRequest, loaded: Loaded) -> str:
    """The text of a unit for a server of that configuration.

    Raises:
        ConfigError: names what cannot be used.
    """
    if request.user and USER.fullmatch(request.user) is None:
        raise ConfigError(f"--user {request.user[:40]!r}: is no name of a user")
    if request.gpus and GPUS.fullmatch(request.gpus) is None:
        raise ConfigError(f"--gpus {request.gpus[:40]!r}: expected all, none, or numbers: 0,2")
    words = [str(request.program), "serve"]
    if request.config is not None:
        words += ["--config", str(request.config.absolute())]
    settings = loaded.config
    configured = loaded.sources["engines.gpus"] != DEFAULT
    gpus = request.gpus or (settings.engines.gpus if configured else "none")
    listen = settings.listen
    low = any(0 < port < 1024 for port in (*listen.ports, listen.http_port))
    return UNIT.format(
        start=" ".join(map(quoted, words)),
        asked=f" LIPSYNC_FAST_ENGINES_GPUS={gpus}" if request.gpus else "",
        user=f"User={request.user}" if request.user else "DynamicUser=yes",
        stop_s=math.ceil(settings.drain_seconds) + ENDING_S,
        capabilities="CAP_NET_BIND_SERVICE" if low else "",
        devices=NO_GPU if gpus == "none" else GPU,
        no_gpu="yes" if gpus == "none" else "no",
    )


def quoted(word: str) -> str:
    """A word of ExecStart, as systemd reads it.

    Raises:
        ConfigError: no unit can hold it.
    """
    if not word.isprintable():
        raise ConfigError(f"{word!r}: a unit cannot name this path; use another one")
    plain = word.replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[\w@%+=:,./$-]+", plain):
        return plain
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def doubts(request: UnitRequest, settings: ServeConfig) -> Iterator[str]:
    """What would keep the service from starting, as far as can be seen from here."""
    named = [request.program, *([request.config] if request.config else [])]
    named += [Path(folder) for folder in settings.avatars.folders]
    named += [Path(settings.avatars.default)] if "/" in settings.avatars.default else []
    for path in named:
        if str(path.absolute()).startswith(PRIVATE):
            yield f"{path} is in a home, which the service does not see; put it into /opt or /srv"
    if request.config is not None:
        with contextlib.suppress(OSError):
            if not request.user and not request.config.stat().st_mode & 0o004:
                yield (
                    f"{request.config} cannot be read by the service: chmod o+r, and put tokens"
                    f" into {ENVIRONMENT} (mode 0600), as LIPSYNC_FAST_LISTEN_TOKEN=…"
                )
    if settings.folder not in ("", "/run/lipsync-fast"):
        yield f"folder = {settings.folder} is passed over: the service has /run/lipsync-fast"
    if request.user:
        try:
            pwd.getpwnam(request.user)
        except KeyError:
            yield f"there is no user {request.user} here: useradd --system {request.user}"


def put(unit: str, folder: Path) -> Path:
    """Write the unit, whole or not at all; an older one is replaced.

    Raises:
        ConfigError: it cannot be written there.
    """
    file = folder / f"{NAME}.service"
    try:
        write_whole(file, unit.encode(), 0o644)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; --install is for root") from None
    return file
