# SPDX-License-Identifier: Apache-2.0
"""From a configuration to a running server, and its end: everything that is not the loop.

Whatever can be refused is refused before anything starts. Children start before trio is imported,
which takes as long as a tenth of what they need to be ready.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import msgspec

from lipsync_fast import places
from lipsync_fast.config import ServeConfig
from lipsync_fast.errors import ConfigError, ServerError
from lipsync_fast.ipc.control_socket import address
from lipsync_fast.logs import get_logger
from lipsync_fast.machine import raise_open_files
from lipsync_fast.notify import Notifier
from lipsync_fast.speech import check_engine
from lipsync_fast.supervisor.avatar_catalogue import AvatarCatalogue
from lipsync_fast.supervisor.avatar_folders import AvatarFolders
from lipsync_fast.supervisor.avatar_mirror import open_mirrors
from lipsync_fast.supervisor.children import ChildSlot, Command, own_command, why_not_started
from lipsync_fast.supervisor.devices import DevicePlan, plan_devices
from lipsync_fast.supervisor.exposure import check_exposure
from lipsync_fast.supervisor.gateways import plan_gateway
from lipsync_fast.supervisor.gpus import DetectedGpus
from lipsync_fast.supervisor.mps import Mps
from lipsync_fast.supervisor.ports import BoundPort, bind_ports
from lipsync_fast.supervisor.run_folder import (
    RunFolder,
    default_run_folder,
    remove_crashed,
    was_running,
)
from lipsync_fast.supervisor.spawner import Spawner, child_slots
from lipsync_fast.tls import read_certificate
from lipsync_fast.tokens.identities import check as check_identities
from lipsync_fast.tokens.tickets import new_memory as tickets_memory
from lipsync_fast.tracing import check_tracing

log = get_logger("lipsync.supervisor")
SIGNALS = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
LEAST_FILES = 64
"""Open files for each process, with which one avatar is served and a dead engine replaced."""


def serve(
    config: ServeConfig,
    on_ready: Callable[[list[BoundPort]], None] = lambda ports: None,
    command: Command = own_command,
    gpus: DetectedGpus | None = None,
) -> int:
    """Run a server until a signal ends it; main thread only.

    Args:
        on_ready: called once, when clients can be served, with the ports.
        command: what children are run as.
        gpus: of the machine; detected here where None.

    Returns:
        The exit status.

    Raises:
        ServerError, ConfigError, AvatarNotFoundError, ControlError: it cannot start, or go on.
    """
    started_at = time.monotonic()
    files = raise_open_files()  # children inherit it
    if files < LEAST_FILES:
        raise ServerError(
            f"a process may have {files} files open here (ulimit -n), and a server needs"
            f" {LEAST_FILES} at least"
        )
    exposed = check_exposure(config.listen, config.access)
    certificate = read_certificate(config.listen)
    config = _kept_somewhere(config)
    check_engine(config.speech)
    check_identities(config)
    check_tracing(config.tracing)
    with contextlib.ExitStack() as stack:
        early_signals = stack.enter_context(_signals_kept())
        notifier = Notifier()
        stack.callback(notifier.close)
        devices = plan_devices(config.engines, config.fronts, gpus)
        avatars, mirrors = open_mirrors(config.avatars)
        for mirror in mirrors:
            stack.callback(mirror.close)
        config = msgspec.structs.replace(config, avatars=avatars)
        catalogue = AvatarCatalogue(AvatarFolders(avatars, mirrors))
        if config.log.trace:
            _check_writable("log.trace", config.log.trace)
        if config.log.audit:
            _check_writable("log.audit", config.log.audit)
        ports = bind_ports(config.listen, config.fronts, lambda: _has_orphans(config))
        for port in ports:
            stack.callback(port.close)
        if exposed:
            log.warning("others can reach this server", host=config.listen.host, which=exposed)
        gateway = plan_gateway(config, started_at)
        if gateway is not None:
            stack.callback(gateway.close)
        for path in remove_crashed():
            log.info("removed what a crashed server left", folder=path)
        folder = RunFolder.take(_folder(config, ports[0].port))
        stack.callback(folder.remove)
        address(folder.path)  # that can be used
        if devices.remark:
            write = log.warning if devices.alarming else log.info
            write("devices are chosen", remark=devices.remark)
        environ = stack.enter_context(_mps(config, devices, folder.path))
        tickets = tickets_memory()
        stack.callback(os.close, tickets)
        spawner = Spawner(
            config,
            folder.path,
            devices.threads,
            catalogue,
            command,
            devices.gpus,
            environ,
            gateway,
            certificate,
            tickets,
        )
        slots = child_slots(devices, ports, config.fronts, gateway)
        stack.callback(_end_all, slots)
        _start_first(spawner, slots)

        import trio

        from lipsync_fast.supervisor.status import ServerFacts
        from lipsync_fast.supervisor.supervisor import ServerParts, supervise

        *stream_ports, http_port = (port.port for port in ports)
        gateway_ports = gateway.ports if gateway is not None else {}
        facts = ServerFacts(config, stream_ports, http_port, started_at, gateway_ports)
        ports += [*gateway.bound, gateway.inner] if gateway is not None else []
        parts = ServerParts(
            facts,
            spawner,
            slots,
            ports,
            notifier,
            folder,
            _spoken_file(stream_ports[0]),
            early_signals,
            lambda: on_ready(ports),
        )
        return trio.run(supervise, parts)


def _spoken_file(port: int) -> Path | None:
    """Where it is kept how long was spoken today; None where there is no place for it."""
    folder = places.state_folder()
    return None if folder is None else folder / f"spoken-{port}.json"


def _kept_somewhere(config: ServeConfig) -> ServeConfig:
    """The configuration, without keeping utterances where there is no place for them."""
    kept = config.utterances
    if not kept.disk_mb or kept.folder or places.state_folder() is not None:
        return config
    reason = "there is no home folder; utterances.folder names another place"
    log.info("utterances are not kept", reason=reason)
    return msgspec.structs.replace(config, utterances=msgspec.structs.replace(kept, disk_mb=0))


@contextlib.contextmanager
def _mps(config: ServeConfig, devices: DevicePlan, folder: Path) -> Iterator[dict[str, str]]:
    """What engines on GPUs need in their environment to share them through MPS, if they are to."""
    if not config.engines.mps:
        yield {}
    elif not devices.gpus:
        log.info("engines.mps: no engine runs on a GPU, so no MPS daemon is used")
        yield {}
    else:
        with contextlib.closing(Mps.use(folder)) as daemon:
            yield daemon.environ


def _check_writable(key: str, path: str) -> None:
    try:
        open(path, "ab").close()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{key}: {path!r} cannot be written ({reason})") from None


def _folder(config: ServeConfig, port: int) -> Path:
    return Path(config.folder).absolute() if config.folder else default_run_folder(port)


def _has_orphans(config: ServeConfig) -> bool:
    """Whether a server of these ports has crashed: then its fronts may be leaving just now."""
    port = config.listen.ports[0] if config.listen.ports else 0
    return (port != 0 or bool(config.folder)) and was_running(_folder(config, port))


@contextlib.contextmanager
def _signals_kept() -> Iterator[list[int]]:
    """Keep signals for the loop, which obeys them once it runs."""
    came: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, keep) for number in SIGNALS}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_first(spawner: Spawner, slots: list[ChildSlot]) -> None:
    """Start all but spares, engines first: they need the longest."""
    for slot in sorted(slots, key=lambda slot: slot.role):
        if not slot.spare:
            try:
                spawner.start(slot)
            except OSError as error:
                raise ServerError(f"cannot start a process: {why_not_started(error)}") from None


def _end_all(slots: list[ChildSlot]) -> None:
    """Kill and reap whoever still lives."""
    living = [slot.child for slot in slots if slot.child is not None]
    for child in living:
        child.kill("the server ends")
    for child in living:
        child.process.wait()
        child.release()
