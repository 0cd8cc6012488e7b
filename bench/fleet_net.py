# SPDX-License-Identifier: Apache-2.0
"""Three machines and a balancer in network namespaces, for fleet.py.

    clients, balancer 10.77.0.1:8080 ── bridge ─┬─ namespace a, 10.77.0.11: lipsync-fast serve
                                                ├─ namespace b, 10.77.0.12
                                                └─ namespace c, 10.77.0.13

All of it lives in a network and mount namespace of this program's own, which goes with it: the
machine's network is not touched, and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from lipsync_fast.benchmark.processes import usage
from lipsync_fast.client.local import LocalServer
from lipsync_fast.errors import LipsyncError

NAMES = "abc"
GATE = "10.77.0.1"
PORT, HTTP_PORT = 8080, 8086
INSIDE = "LIPSYNC_FLEET_INSIDE"
CPU = Path("/sys/fs/cgroup/cpu")
DEPLOY = Path(__file__).resolve().parents[1] / "deploy" / "fleet"


def address(name: str) -> str:
    """Of a machine."""
    return f"10.77.0.{11 + NAMES.index(name)}"


def enter_own_network() -> None:
    """Go on in a network of this program's own: it is started anew there, with the same arguments.

    Raises:
        LipsyncError: this user may not.
    """
    if os.environ.get(INSIDE):
        return
    for tool in ("ip", "unshare"):
        if shutil.which(tool) is None:
            raise LipsyncError(f"{tool} is not installed (Debian's iproute2 and util-linux)")
    if os.geteuid() != 0:
        raise LipsyncError("network namespaces need root: run it with sudo")
    os.environ[INSIDE] = "1"
    command = ["unshare", "--net", "--mount", "--", sys.executable, *sys.argv]
    os.execvp(command[0], command)


def ip(*words: str) -> None:
    """Run ``ip``."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise LipsyncError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def build_network() -> None:
    """The bridge and the machines' namespaces."""
    Path("/run/netns").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/netns"], check=True)
    ip("link", "set", "lo", "up")
    ip("link", "add", "br0", "type", "bridge")
    ip("addr", "add", f"{GATE}/24", "dev", "br0")
    ip("link", "set", "br0", "up")
    for name in NAMES:
        ip("netns", "add", name)
        ip("link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", f"to-{name}", "master", "br0", "up")
        ip("-n", name, "addr", "add", f"{address(name)}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", "eth0", "up")


class Machine:
    """One of the servers: started, stopped in order, cut off, slowed down.

    Args:
        name: of its namespace; its avatar is called machine-NAME, so that clients know who serves.
        avatars: folder of the avatars.
        config: of the server.
    """

    def __init__(self, name: str, avatars: Path, config: dict[str, object]) -> None:
        self.name = name
        self._config = config | {
            "listen": {
                "host": "0.0.0.0",
                "insecure": True,  # nobody else is in these networks
                "ports": [8084],
                "http_port": HTTP_PORT,
                "proxies": [GATE],
            },
            "avatars": {"folders": [str(avatars)], "default": f"machine-{name}"},
            "utterances": {"disk_mb": 64, "folder": str(avatars / f"said-{name}")},
        }
        self.server: LocalServer | None = None

    def start(self) -> None:
        """Start the server, and wait until it serves."""
        serve = [sys.executable, "-P", "-m", "lipsync_fast", "serve"]
        command = ["ip", "netns", "exec", self.name, *serve]
        self.server = LocalServer(self._config, command=command, start_s=120)
        self.server.__enter__()

    def drain(self) -> None:
        """SIGTERM."""
        assert self.server is not None
        self.server.terminate()

    def left(self, timeout: float) -> None:
        """Wait until it has left in order."""
        assert self.server is not None
        status = self.server.wait(timeout)
        if status:
            raise LipsyncError(f"server {self.name} has left with status {status}")
        self.server.close()
        self.server = None

    def cut_off(self, gone: bool) -> None:
        """Take the machine's cable out, or put it back."""
        ip("link", "set", f"to-{self.name}", "down" if gone else "up")

    @contextlib.contextmanager
    def slowed(self, processors: float) -> Iterator[None]:
        """Give all of its processes together so much of a processor (a control group)."""
        group = CPU / f"lipsync-fleet-{os.getpid()}"
        if not (CPU / "cpu.cfs_quota_us").exists():
            raise LipsyncError(f"{CPU} is no control group of version 1: no machine can be slowed")
        group.mkdir()
        try:
            (group / "cpu.cfs_period_us").write_text("20000")
            (group / "cpu.cfs_quota_us").write_text(str(int(20_000 * processors)))
            for pid in self._pids():
                (group / "cgroup.procs").write_text(str(pid))
            yield
        finally:
            for pid in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    (CPU / "cgroup.procs").write_text(pid)
            group.rmdir()

    def _pids(self) -> list[int]:
        assert self.server is not None
        status = self.server.status()
        children = [*status.engines, *status.fronts, *status.gateways]
        return [self.server.pid, *(child.pid for child in children if child.pid)]

    def close(self) -> None:
        """End it, however it is."""
        self.cut_off(False)
        if self.server is not None:
            self.server.close()
            self.server = None


class Balancer:
    """HAProxy or Envoy, with the configuration in deploy/fleet; a context.

    Args:
        kind: "haproxy" or "envoy".
        program: its path.
        closes: whether it ends sessions of a machine that is gone; else only the client finds out.
    """

    def __init__(self, kind: str, program: str, closes: bool = True) -> None:
        self._kind, self._program, self._closes = kind, program, closes

    def __enter__(self) -> Balancer:
        self._folder = Path(tempfile.mkdtemp(prefix="lsf-balancer-"))
        if self._kind == "haproxy":
            text = (DEPLOY / "haproxy.cfg").read_text()
            path = self._folder / "haproxy.cfg"
            if not self._closes:
                text = text.replace(" on-marked-down shutdown-sessions", "")
            arguments = ["-db", "-f", str(path)]
        else:
            text = (DEPLOY / "envoy.yaml").read_text()
            path = self._folder / "envoy.yaml"
            if not self._closes:
                kept, _, rest = text.partition("    upstream_connection_options:")
                text = kept + "    load_assignment:" + rest.partition("    load_assignment:")[2]
            arguments = ["-c", str(path), "--concurrency", "1", "--disable-hot-restart"]
        path.write_text(text)
        self.log_path = self._folder / "log"
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [self._program, *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self._until_it_listens()
        return self

    def _until_it_listens(self) -> None:
        end, said = time.monotonic() + 20, b""
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((GATE, PORT), 1) as asked:
                asked.sendall(b"GET /health HTTP/1.1\r\nHost: fleet\r\n\r\n")
                said = asked.recv(200)
                if b" 200 " in said:
                    return
            time.sleep(0.1)
        log = self.log_path.read_text(errors="replace")[-2000:]
        self.close()
        raise LipsyncError(f"{self._kind} does not serve: {said!r}\n{log}")

    def cpu_s(self) -> float:
        """What it has used of processors."""
        found = usage(self._process.pid)
        return 0.0 if found is None else found.cpu_s

    def version(self) -> str:
        """As it names itself."""
        flag = "-v" if self._kind == "haproxy" else "--version"
        said = subprocess.run([self._program, flag], capture_output=True, text=True).stdout
        line = next(line.strip() for line in said.splitlines() if "ersion" in line)
        return line.replace(self._program, "Envoy").replace("  ", " ")

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
