# SPDX-License-Identifier: Apache-2.0
"""HAProxy and Prometheus as compose.yaml sets them up, in the network of a server that is tried.

Run by itself there, it is who comes through HAProxy: ``python deploy/beside.py TOKEN CA``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMPOSE = Path(__file__).parent / "compose"
RULES = Path(__file__).parent / "helm" / "lipsync-fast" / "files" / "rules.yaml"
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
PATIENCE_S = 60.0
ADDRESS = "172.31.84.2"
"""HAProxy's, in compose.yaml."""
HTTPS, STREAMS, PROMETHEUS = 8443, 8085, 9090
"""Ports; of streams another than compose.yaml's, which is the server's own in this network."""


def there() -> bool:
    """Whether both programs are installed here, and what makes a certificate."""
    return all(shutil.which(name, path=PATH) for name in ("haproxy", "prometheus", "openssl"))


@contextlib.contextmanager
def running(pid: int, folder: Path, token: str) -> Iterator[Path]:
    """Both programs in the network of a process, until the end; gives the certificate's file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "hosts").write_text("127.0.0.1 localhost server\n")
    (folder / "token").write_text(token)
    shutil.copy(RULES, folder / "rules.yaml")
    text = (COMPOSE / "prometheus.yml").read_text()
    (folder / "prometheus.yml").write_text(text.replace("/run/secrets", str(folder)))
    text = (COMPOSE / "haproxy.cfg").read_text()
    text = text.replace("bind :8084", f"bind :{STREAMS}")
    known = "init-addr last,libc,none"
    (folder / "haproxy.cfg").write_text(text.replace(known, f"{known} source {ADDRESS}"))
    address = ["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"]
    subprocess.run(["nsenter", "-t", str(pid), "-n", *address], check=True)
    own = _certificate(folder)
    commands = [
        ["haproxy", "-db", "-f", "haproxy.cfg"],
        ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=figures"],
    ]
    environ = {**os.environ, "PATH": PATH, "CERTIFICATE": str(folder / "both.pem")}
    mount = 'mount --bind hosts /etc/hosts; exec "$@"'
    inside = ["nsenter", "-t", str(pid), "-n", "unshare", "--mount", "sh", "-ec", mount, "sh"]
    with contextlib.ExitStack() as stack:
        for command in commands:
            log = stack.enter_context((folder / f"{command[0]}.log").open("wb"))
            process = subprocess.Popen(
                [*inside, *command], cwd=folder, env=environ, stdout=log, stderr=log
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
        yield own


def _certificate(folder: Path) -> Path:
    """A certificate for this machine, and a file with its key as HAProxy wants it."""
    own, key = folder / "own.pem", folder / "own.key"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30"
        " -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    files = ["-keyout", str(key), "-out", str(own)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    (folder / "both.pem").write_bytes(own.read_bytes() + key.read_bytes())
    return own


# ---------------------------------------------------------------- clients
async def _session(url: str, token: str, context: ssl.SSLContext) -> int:
    import lipsync_fast
    from lipsync_fast.client import UtteranceEnded

    connecting = lipsync_fast.connect(url, token=token, pace="burst", ssl=context)
    async with connecting as session:
        await session.send(bytes(2 * 16_000))
        await session.end_utterance()
        async for event in session:
            if isinstance(event, UtteranceEnded):
                return event.frames
    raise AssertionError("the session ended without the utterance's end")


def _get(url: str, context: ssl.SSLContext | None = None) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=10, context=context) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except OSError:
        return 0, b""


def _scraped() -> bool:
    _, body = _get(f"http://127.0.0.1:{PROMETHEUS}/api/v1/targets")
    targets = json.loads(body)["data"]["activeTargets"] if body else []
    return [target["health"] for target in targets] == ["up"]


def _rules() -> int:
    _, body = _get(f"http://127.0.0.1:{PROMETHEUS}/api/v1/rules")
    groups = json.loads(body)["data"]["groups"] if body else []
    return sum(len(group["rules"]) for group in groups)


def _until(found: Any, what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not found():
        if time.monotonic() > end:
            sys.exit(f"in vain for {PATIENCE_S:g} s: {what}")
        time.sleep(0.2)


def main() -> None:
    """Come through HAProxy, and ask Prometheus."""
    token, context = sys.argv[1], ssl.create_default_context(cafile=sys.argv[2])
    url = f"https://localhost:{HTTPS}"
    _until(lambda: _get(f"{url}/health", context)[0] == 200, "HAProxy finds the server")
    frames = [
        asyncio.run(_session(f"wss://localhost:{port}{path}", token, context))
        for port, path in ((HTTPS, "/ws"), (STREAMS, "/"))
    ]
    inside = {path: _get(f"{url}{path}", context)[0] for path in ("/metrics", "/stats")}
    if frames != [25, 25] or set(inside.values()) != {403}:
        sys.exit(f"{frames} frames of 25 each; {inside}")
    _until(_scraped, "Prometheus reads /metrics")
    found = {"frames_through_tls": frames, "inside": inside, "alerts": _rules()}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
