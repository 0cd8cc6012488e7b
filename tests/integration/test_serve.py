# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast serve`` and ``status`` as a user runs them: real fronts, real engines."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from raw_websocket import RawWebSocket
from serving import Server, server, until

from lipsync_fast.config_load import load
from lipsync_fast.ipc.status import ServerStatus


def run(*args: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command line to its end."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "lipsync_fast", *args],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(environ or {})},
    )


# ---------------------------------------------------------------- serving
def speak(client: RawWebSocket, seconds: float) -> None:
    """A tone of so long, at once."""
    client.send(b"\x00\x10\x00\xf0" * int(8_000 * seconds))


def start(run_: Server, port: int) -> RawWebSocket:
    client = RawWebSocket(f"ws://127.0.0.1:{port}/")
    client.send('{"type": "session.start", "pace": "live", "idle": false}')
    message = client.receive()
    assert isinstance(message, str)
    assert json.loads(message)["type"] == "session.started", run_.log
    return client


def next_text(client: RawWebSocket, kind: str) -> dict[str, Any]:
    """The next text message of a type."""
    while True:
        message = client.receive()
        if isinstance(message, str):
            told: dict[str, Any] = json.loads(message)
            if told["type"] == kind:
                return told


def next_frame(client: RawWebSocket) -> bytes:
    """The next picture."""
    while not isinstance(message := client.receive(), bytes):
        pass
    return message


NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""On any machine."""


def test_serve_from_start_to_end() -> None:
    config = "[engines]\ngpus = 'all'\nspares = 1\n[live]\nspeakers = 2\n"
    with server(config, environ=NO_GPU) as running:
        status = running.serving()
        assert status.host == "127.0.0.1"
        assert status.default_avatar == "demo"
        assert [e.device for e in status.engines] == ["cpu", "cpu"]
        remark = "remark='no NVIDIA GPU was found; engines run on the CPU'\n"
        assert running.log.count(remark) == 1
        assert all(e.capacity > 0 and e.avatars == ["demo"] for e in status.engines)
        page = f"page    http://127.0.0.1:{status.http_port}/"
        assert page in running.log
        with urllib.request.urlopen(
            f"http://127.0.0.1:{status.http_port}/health", timeout=60
        ) as answer:
            assert json.load(answer)["healthy"]
        with start(running, status.ports[0]) as client:
            speak(client, 1.0)
            assert next_frame(client)[:4] == b"LSF1"
            told = running.when(lambda s: s if s.fronts[0].load.speaking else None)
            assert told.fronts[0].load.sessions == 1
            # Another engine ends what the killed one owes.
            worker = next(e for e in told.engines if e.state == "ready")
            os.kill(worker.pid, signal.SIGKILL)
            client.send('{"type": "utterance.end"}')
            ended = next_text(client, "utterance.ended")
            assert ended["frames"] == 25
            running.serving()
        assert running.stop() == 0


def test_what_has_begun_is_finished_before_it_stops() -> None:
    with server("drain_seconds = 50\n[engines]\nspares = 0\n") as running:
        status = running.serving(spares=0)
        with start(running, status.ports[0]) as client:
            speak(client, 2.0)
            client.send('{"type": "utterance.end"}')
            next_frame(client)
            running.signal(signal.SIGTERM)
            running.when(lambda s: s.state == "draining")
            until(lambda: refused(status.ports[0]), "until nobody is let in")
            ended = next_text(client, "utterance.ended")
            assert ended["frames"] == 50
        assert running.ended() == 0
        running.nothing_is_left()


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def refused(port: int) -> bool:
    """Whether a new client is turned away: not let in, or told to come again later."""
    try:
        with socket.create_connection(("127.0.0.1", port), 60) as client:
            client.sendall(UPGRADE)
            head = client.recv(4096).lower()
    except ConnectionError:
        return True
    return head.startswith(b"http/1.1 503 ") and b"retry-after: " in head


def test_several_fronts_share_the_ports() -> None:
    with server("fronts = 2\n[engines]\nspares = 0\n") as running:
        status = running.serving(spares=0)
        clients = []
        try:
            for _ in range(40):  # the kernel shares them out by their addresses
                clients.append(start(running, status.ports[0]))
                if all(running.when(_sessions_of_all(len(clients)))):
                    break
            assert all(running.when(_sessions_of_all(len(clients))))
        finally:
            for client in clients:
                client.socket.close()
        assert running.stop() == 0


def _sessions_of_all(count: int) -> Callable[[ServerStatus], list[int] | None]:
    """The sessions of each front, once they are so many together."""

    def look(status: ServerStatus) -> list[int] | None:
        sessions = [front.load.sessions for front in status.fronts]
        return sessions if sum(sessions) == count else None

    return look


def test_logs_as_json_are_nothing_but_json() -> None:
    with server('[engines]\nspares = 0\n[log]\nformat = "json"\n') as running:
        running.serving(spares=0)
        assert running.stop() == 0
        events = [json.loads(line) for line in running.log.splitlines()]
        assert {"supervisor", "engine-1", "front-1"} >= {e["process"] for e in events}
        assert [e for e in events if e["message"] == "serving"]


# ---------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--avatar", "nobody"], "avatar 'nobody' was not found in"),
        (
            ["--host", "0.0.0.0"],
            "listen.host: others can reach 0.0.0.0, where this server asks nobody",
        ),
        (
            ["--tls-cert", "/nonexistent"],
            "listen.tls_cert: /nonexistent: No such file or directory",
        ),
        (["--tls-key", "/x"], "--tls-key: listen.tls_key: needs listen.tls_cert: the file of the"),
        (
            ["--host", "192.0.2.1", "--insecure"],
            "cannot listen on 192.0.2.1 port 0: this machine has no such",
        ),
        (["--precision", "int8"], "--precision: engines.precision = 'int8': expected one of"),
        (["--gpus", "x"], "--gpus: engines.gpus = 'x': expected 'all', 'none', or numbers"),
        (["--fronts", "0"], "--fronts: fronts = 0: expected a whole number at least 1"),
        (["--log-level", "loud"], "--log-level: log.level = 'loud': expected one of"),
        (["--config", "/nonexistent.toml"], "/nonexistent.toml: No such file or directory"),
        (["--folder", "/tmp/" + "x" * 120], "longer than a Unix socket's path may be"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_2(args: list[str], said: str) -> None:
    done = run("serve", "--port", "0", "--http-port", "0", *args)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_gpu_that_is_not_there_is_an_error() -> None:
    done = run("serve", "--port=0", "--http-port=0", "--gpus", "0", environ=NO_GPU)
    assert done.returncode == 2
    assert done.stderr == (
        "error: engines.gpus = '0': no NVIDIA GPU was found; 'none' serves on the CPU\n"
    )


def test_a_damaged_default_avatar_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "poor").mkdir()
    (tmp_path / "poor" / "manifest.json").write_text("{}")
    done = run("serve", "--port=0", "--http-port=0", "--avatars", str(tmp_path), "--avatar", "poor")
    assert done.returncode == 2
    assert "error: avatar 'poor' cannot be used: " in done.stderr
    assert "not an avatar package" in done.stderr


# ---------------------------------------------------------------- configuration
def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("fronts = 2\ndrain_seconds = 1\n[listen]\nhost = '::1'\n")
    environ = {"LIPSYNC_FAST_FRONTS": "3", "LIPSYNC_FAST_DRAIN_SECONDS": "2"}
    args = ["--config", str(file), "--fronts", "4", "--port", "1", "--port", "2"]
    args += ["--origin", "https://a.example", "--avatars", "/a", "--avatars", "/b"]
    done = run("serve", *args, "--print-config", environ=environ)
    assert done.returncode == 0
    assert "fronts = 4  # --fronts\n" in done.stdout
    assert "drain_seconds = 2.0  # LIPSYNC_FAST_DRAIN_SECONDS\n" in done.stdout
    assert f'host = "::1"  # {file}\n' in done.stdout
    assert "ports = [1, 2]  # --port\n" in done.stdout
    assert 'folders = ["/a", "/b"]  # --avatars\n' in done.stdout
    assert "http_port = 8086  # default\n" in done.stdout
    printed = tmp_path / "printed.toml"
    printed.write_text(done.stdout)
    again = run("serve", "--config", str(printed), "--print-config")
    assert tomllib.loads(again.stdout) == tomllib.loads(done.stdout)
    assert load(printed, {}).config.listen.origins == ("https://a.example",)


def test_a_bad_key_is_named_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("[listen]\nprot = 1\n")
    done = run("serve", "--config", str(file))
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {file}: unknown key listen.prot; did you mean listen.host? "
        "there are in [listen]: host, ports, http_port, origins, token\n"
    ) or re.search(r"unknown key listen\.prot; .*there are in \[listen\]: host", done.stderr)


def test_every_flag_is_in_the_help_and_sets_a_key() -> None:
    from lipsync_fast.cli.serve import FLAGS
    from lipsync_fast.config_load import keys

    shown = run("serve", "--help", environ={"COLUMNS": "200"}).stdout
    for flag, key in FLAGS.items():
        assert re.search(rf"--{flag}\b", shown), flag
        assert key in keys()


# ---------------------------------------------------------------- status
def test_status_without_a_server(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    for args in ([], ["--json"], ["--port", "8084"], ["--folder", str(tmp_path / "x")]):
        done = run("status", *args, environ=environ)
        assert done.returncode == 2
        assert re.match(r"error: no server .*start one with: lipsync-fast serve\n$", done.stderr)


def test_status_for_people_and_programs() -> None:
    with server("[engines]\nspares = 0\n") as running:
        running.serving(spares=0)
        folder = str(running.folder)
        done = run("status", "--folder", folder, "--json")
        status = msgspec.json.decode(done.stdout, type=ServerStatus)
        assert status.pid == running.process.pid
        screen = run("status", "--folder", folder)
        assert screen.returncode == 0
        assert re.match(r"lipsync-fast \S+: serving for .*\nspeaking +0 of ", screen.stdout)
        assert re.search(r"^engine-1 +ready on cpu, ", screen.stdout, re.MULTILINE)
        done = run("status", "--folder", folder, "--full")
        assert done.returncode == 0
        ready = run("status", "--folder", folder, "--ready")
        assert (ready.returncode, ready.stdout) == (0, "ready: engine-1\n")
        checked = run("doctor", "--production", "--folder", folder, "--json", "--stop-seconds", "5")
        items = {i["name"]: i for i in json.loads(checked.stdout)["items"]}
        results = {name: item["result"] for name, item in items.items()}
        assert (results["clients"], results["health"], results["WebSocket"]) == ("ok", "ok", "ok")
        assert (results["spare engines"], results["stopping"]) == ("warning", "wrong")
        assert checked.returncode == 2
        assert "not fit for production" in checked.stderr
        text = run("doctor", "--production", "--folder", folder).stdout
        assert "? spare engines" in text
        assert f"process {status.pid}: serving" in " ".join(done.stdout.split())
        assert re.search(rf"engine-1 +cpu +ready +{status.engines[0].pid} ", done.stdout)
        assert re.search(rf"front-1 +ready +{status.fronts[0].pid} ", done.stdout)
        watch = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "lipsync_fast",
                "status",
                "--watch",
                "--json",
                "--folder",
                folder,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with watch:
            assert watch.stdout is not None
            lines = [json.loads(watch.stdout.readline()) for _ in range(2)]
            assert lines[0]["uptime_s"] < lines[1]["uptime_s"]
            assert running.stop() == 0
            _, error = watch.communicate(timeout=60)
            assert watch.returncode == 2
            assert "has stopped" in error or "no server" in error


def test_status_finds_the_only_server_there_is(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    with server("", {}, environ=environ) as running:
        # Without a folder of its own, it is found under the runtime folder.
        file = running.base / "server.toml"
        running.serving()
        assert running.stop() == 0
        text = "\n".join(file.read_text().splitlines()[1:])
        file.write_text(text)
        command = [sys.executable, "-P", str(Path(__file__).parents[1] / "stand_in.py"), "serve"]
        again = subprocess.Popen(
            [*command, str(file)], stderr=subprocess.DEVNULL, env=running.environ
        )
        try:
            done = until(
                lambda: d if (d := run("status", "--json", environ=environ)).stdout else None
            )
            status = json.loads(done.stdout)
            assert status["pid"] == again.pid
            assert [p.name for p in tmp_path.iterdir()] == [f"lipsync-fast-{status['ports'][0]}"]
            by_port = run("status", "--json", "--port", str(status["ports"][0]), environ=environ)
            assert json.loads(by_port.stdout)["pid"] == again.pid
        finally:
            again.send_signal(signal.SIGTERM)
            assert again.wait(60) == 0
        assert list(tmp_path.iterdir()) == []
