# SPDX-License-Identifier: Apache-2.0
"""From a configuration to a running server, and its end: everything that is not the loop.

Whatever can be refused is refused before anything starts. Children start before trio is imported,
which takes as long as a tenth of what they need to be ready.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from lipsync_fast.config import ServeConfig
from lipsync_fast.errors import ConfigError, ServerError
from lipsync_fast.ipc.control import address
from lipsync_fast.logs import get_logger
from lipsync_fast.notify import Notifier
from lipsync_fast.supervisor import run_folder as place
from lipsync_fast.supervisor.avatars import AvatarsInUse
from lipsync_fast.supervisor.children import Command, Slot, own_command
from lipsync_fast.supervisor.devices import Plan, plan
from lipsync_fast.supervisor.gpus import Found
from lipsync_fast.supervisor.mps import Mps
from lipsync_fast.supervisor.ports import Bound, bind_all
from lipsync_fast.supervisor.spawner import Births, places

log = get_logger("lipsync.supervisor")
SIGNALS = signal.SIGTERM, signal.SIGINT, signal.SIGHUP


def serve(
    config: ServeConfig,
    on_ready: Callable[[list[Bound]], None] = lambda bound: None,
    command: Command = own_command,
    found: Found | None = None,
) -> int:
    """Run a server until a signal ends it; main thread only.

    Args:
        on_ready: called once, when clients can be served, with the ports.
        command: what children are run as.
        found: the machine's GPUs; looked up where None.

    Returns:
        The exit status.

    Raises:
        ServerError, ConfigError, AvatarNotFoundError, ControlError: it cannot start, or go on.
    """
    born = time.monotonic()
    with contextlib.ExitStack() as stack:
        early = stack.enter_context(_signals_kept())
        notifier = Notifier()
        stack.callback(notifier.close)
        chosen = plan(config.engines, config.fronts, found)
        avatars = AvatarsInUse(config.avatars)
        if config.log.trace:
            _check_writable("log.trace", config.log.trace)
        bound = bind_all(config.listen, config.fronts, lambda: _orphans(config))
        for each in bound:
            stack.callback(each.close)
        for path in place.remove_crashed():
            log.info("removed what a crashed server left", folder=path)
        folder = place.RunFolder.take(_folder(config, bound[0].port))
        stack.callback(folder.remove)
        address(folder.path)  # that can be used
        if chosen.remark:
            write = log.warning if chosen.alarming else log.info
            write("devices are chosen", remark=chosen.remark)
        environ = stack.enter_context(_mps(config, chosen, folder.path))
        births = Births(config, folder.path, chosen.threads, avatars, command, chosen.gpus, environ)
        slots = places(chosen, bound, config.fronts)
        stack.callback(_end_all, slots)
        _start_first(births, slots)

        import trio

        from lipsync_fast.supervisor.status import About
        from lipsync_fast.supervisor.supervisor import Parts, supervise

        ports = [each.port for each in bound]
        about = About(config=config, ports=ports[:-1], http_port=ports[-1], born=born)
        parts = Parts(
            about, births, slots, bound, notifier, early, on_ready=lambda: on_ready(bound)
        )
        return trio.run(supervise, parts)


@contextlib.contextmanager
def _mps(config: ServeConfig, chosen: Plan, folder: Path) -> Iterator[dict[str, str]]:
    """What engines on GPUs need in their environment to share them through MPS, if they are to."""
    if not config.engines.mps:
        yield {}
    elif not chosen.gpus:
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
    return Path(config.folder).absolute() if config.folder else place.run_folder(port)


def _orphans(config: ServeConfig) -> bool:
    """Whether a server of these ports has crashed: then its fronts may be leaving just now."""
    port = config.listen.ports[0] if config.listen.ports else 0
    return (port != 0 or bool(config.folder)) and place.was_running(_folder(config, port))


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


def _start_first(births: Births, slots: list[Slot]) -> None:
    """Start all but spares, engines first: they need the longest."""
    for slot in sorted(slots, key=lambda slot: slot.role):
        if not slot.spare:
            try:
                births.start(slot)
            except OSError as error:
                raise ServerError(f"cannot start a process: {error.strerror}") from None


def _end_all(slots: list[Slot]) -> None:
    """Kill and reap whoever still lives."""
    living = [slot.child for slot in slots if slot.child is not None]
    for child in living:
        child.kill("the server ends")
    for child in living:
        child.process.wait()
        child.release()
