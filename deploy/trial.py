# SPDX-License-Identifier: Apache-2.0
"""Serves from an image that ``bare_root`` has made, as an operator would, and talks to it.

Run by itself in the server's network, it is the clients: ``python deploy/trial.py PORT TOKEN``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import struct
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import beside
from bare_root import Builder, Image, as_user

HEALTHY_S = 180.0
STATE = "/var/lib/lipsync-fast"
CHUNK = 24_000 * 2 * 40 // 1000
"""Bytes of 40 ms of the old service's sound."""
WINDOW = 16 * CHUNK
REQUESTS = 50
COMPILERS = ("cc", "gcc", "g++", "c++", "pip", "pip3", "make", "nvcc")


class TrialError(Exception):
    """The image does not do what it should."""


class Container:
    """A server in a sandbox as an engine's: by its user, without capabilities, read-only.

    Args:
        env: its environment, beside the image's own.
    """

    def __init__(self, builder: Builder, image: Image, env: dict[str, str]) -> None:
        self._image, self._env = image, env
        state = builder.work / "state"
        state.mkdir(exist_ok=True, mode=0o700)
        uid, _, gid = image.user.partition(":")
        os.chown(state, int(uid), int(gid))
        ours, theirs = os.pipe()
        volume = ["--bind", str(state), STATE, "--info-fd", str(theirs)]
        self._log = builder.work / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                builder.run(image, volume, env), stderr=log, stdout=log, pass_fds=[theirs]
            )
        os.close(theirs)
        with open(ours) as told:
            text = told.read()
        if not text:
            raise TrialError(f"the sandbox has not started: {self.log}")
        self.pid = int(json.loads(text)["child-pid"])

    @property
    def log(self) -> str:
        """What the server has written."""
        return self._log.read_text(errors="replace")

    def execute(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as ``docker exec`` does."""
        env = [f"{name}={value}" for name, value in {**self._image.env, **self._env}.items()]
        inside = ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "-r", "-w"]
        user = as_user(self._image.user, ["--no-new-privs"])
        return subprocess.run(
            [*inside, *user, "env", "-i", *env, *command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def until_healthy(self) -> float:
        """Wait until HEALTHCHECK's own command is content; seconds that it took."""
        begun = time.monotonic()
        command = json.loads(self._image.health)
        while self.process.poll() is None and time.monotonic() - begun < HEALTHY_S:
            if self.execute(command).returncode == 0:
                return time.monotonic() - begun
            time.sleep(0.2)
        raise TrialError(f"{command} is never content: {self.log}")

    def stop(self) -> int:
        """Stop it by the image's own signal; its exit status."""
        os.kill(self.pid, signal.Signals[self._image.stop_signal])
        return self.process.wait(60)

    def kill(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.process.wait()


def attempt(builder: Builder, image: Image) -> dict[str, Any]:
    """Serve from an image, talk to it, look at it, and stop it; what was found.

    Raises:
        TrialError: something is not as it should be.
    """
    token = secrets.token_hex(16)
    # A proxy with TLS stands before it, as in compose.yaml.
    env = {
        "LIPSYNC_FAST_LISTEN_TOKEN": token,
        "LIPSYNC_FAST_LISTEN_PROXIES": beside.ADDRESS,
        "LIPSYNC_FAST_LISTEN_GRPC_PORTS": "50051",
    }
    container = Container(builder, image, env)
    try:
        found: dict[str, Any] = {"healthy_s": round(container.until_healthy(), 1)}
        found["processes"] = _processes(container, image)
        _read_only(container)
        found |= client(container.pid, "trial.py", "8084", token)
        if beside.there():
            with beside.running(container.pid, builder.work / "beside", token) as own:
                found["compose"] = client(container.pid, "beside.py", token, str(own))
        found["checklist"] = checklist(container.execute, token, ["--stop-seconds", "20"])
        status = container.stop()
        if status:
            raise TrialError(f"ended with {status}: {container.log}")
        for word in ("error", "Traceback", "Read-only"):
            if word in container.log:
                raise TrialError(f"its log says {word!r}: {container.log}")
    finally:
        container.kill()
    return found


def _processes(container: Container, image: Image) -> int:
    """See that every process is the user's and has no capability; how many the server has."""
    listed = container.execute(["sh", "-c", "grep -H . /proc/[0-9]*/status"]).stdout
    uid, own = image.user.partition(":")[0], ("grep", "sh")
    names = [line.split()[-1] for line in listed.splitlines() if ":Name:" in line]
    users = {line.split()[1] for line in listed.splitlines() if ":Uid:" in line}
    able = {line.split()[-1] for line in listed.splitlines() if ":CapEff:" in line}
    if users != {uid} or able != {"0" * 16}:
        raise TrialError(f"processes of {users} with capabilities {able}")
    return sum(name not in own for name in names)


def _read_only(container: Container) -> None:
    """See that nothing can be written but /tmp and the volume, and nothing be built."""
    for place in ("/", "/opt/lipsync", "/usr/bin", "/etc", "/avatars"):
        if container.execute(["touch", f"{place}/x"]).returncode == 0:
            raise TrialError(f"{place} can be written")
    for place in ("/tmp", STATE):
        if container.execute(["touch", f"{place}/x"]).returncode:
            raise TrialError(f"{place} cannot be written")
    named = " ".join(COMPILERS)
    there = container.execute(["sh", "-c", f"command -v {named}"]).stdout.split()
    if there:
        raise TrialError(f"there are {there}")


def client(pid: int, program: str, *words: str) -> dict[str, Any]:
    """Run one of our programs in the network of a process; what it prints.

    Raises:
        TrialError: it was not content.
    """
    inside = ["nsenter", "-t", str(pid), "-n"]
    here = Path(__file__).parent
    done = subprocess.run(
        [*inside, sys.executable, "-P", str(here / program), *words],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "PYTHONPATH": str(here)},
    )
    if done.returncode:
        raise TrialError(f"{program}: {done.stderr}")
    return dict(json.loads(done.stdout))


def checklist(
    execute: Callable[[list[str]], subprocess.CompletedProcess[str]], token: str, more: list[str]
) -> dict[str, list[str]]:
    """What ``doctor --production`` finds, by result; once the spare engine is there."""
    command = ["env", f"LIPSYNC_FAST_TOKEN={token}", "/opt/lipsync/bin/lipsync-fast", "doctor"]
    end = time.monotonic() + HEALTHY_S
    while True:
        done = execute([*command, "--production", "--json", *more])
        found: dict[str, list[str]] = {}
        for item in json.loads(done.stdout)["items"]:
            found.setdefault(item["result"], []).append(item["name"])
        if "spare engines" in found["ok"] or time.monotonic() > end:
            return found
        time.sleep(1)


# ---------------------------------------------------------------- clients
def _windows(pcm: bytes) -> Iterator[bytes]:
    """The windows that the old service's client sends: 640 ms each, 40 ms apart."""
    for start in range(0, len(pcm) - WINDOW, CHUNK):
        yield pcm[start : start + WINDOW]


def old_client(port: int, token: str, pcm: bytes) -> int:
    """Ask for pictures as clients of the old service do; how many came.

    Args:
        pcm: s16le, 24 kHz.
    """
    from websockets.sync.client import connect

    got = 0
    headers = {"Authorization": f"Bearer {token}"}
    with connect(f"ws://127.0.0.1:{port}/", additional_headers=headers, max_size=None) as socket:
        for number, window in zip(range(REQUESTS), _windows(pcm), strict=False):
            name = b"default_model"
            head = struct.pack("<I", len(name)) + name + struct.pack("<II", number, len(window))
            socket.send(head + window)
            while isinstance(reply := socket.recv(30), str):
                pass  # the old service's statistics, unasked
            kind, echoed, _, size = struct.unpack_from("<BIII", reply)
            jpeg = reply[13 : 13 + size].rstrip(b"\0")
            assert (kind, echoed) == (1, number), reply[13:200]
            assert jpeg.startswith(b"\xff\xd8")
            assert jpeg.endswith(b"\xff\xd9")
            bounds = struct.unpack_from("<4f", reply, 13 + size + 4)
            assert bounds[0] < bounds[2]
            got += 1
    return got


async def new_client(port: int, token: str, pcm: bytes) -> int:
    """Say it in a session of lipsync.v1; how many spoken frames came."""
    import lipsync_fast
    from lipsync_fast.client import UtteranceEnded

    url = f"ws://127.0.0.1:{port}/"
    async with lipsync_fast.connect(url, sample_rate=24_000, token=token, pace="burst") as session:
        await session.send(pcm)
        await session.end_utterance()
        async for event in session:
            if isinstance(event, UtteranceEnded):
                return event.frames
    raise AssertionError("the session ended without the utterance's end")


def grpc_client(port: int, token: str) -> bool:
    """Ask the old service's gRPC how it does."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        metadata = [("authorization", f"Bearer {token}")]
        request = health_pb2.HealthCheckRequest()
        answer = stub.Check(request, timeout=30, wait_for_ready=True, metadata=metadata)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def speech() -> bytes:
    """The demo's recording as 24 kHz s16le."""
    import numpy as np
    import soxr

    from lipsync_fast.avatars.library import shipped_folder

    with wave.open(str(_recording(shipped_folder()))) as file:
        assert file.getsampwidth() == 2
        rate, raw = file.getframerate(), file.readframes(file.getnframes())
        sound = np.frombuffer(raw, "<i2").reshape(-1, file.getnchannels())[:, 0]
    return bytes(np.asarray(soxr.resample(sound, rate, 24_000), "<i2").tobytes())


def _recording(avatars: Path) -> Path:
    return avatars.parent / "demo" / "speech.wav"


def main(out: IO[str] = sys.stdout) -> None:
    """Be the clients."""
    port, token = int(sys.argv[1]), sys.argv[2]
    pcm = speech()
    old = old_client(port, token, pcm)
    new = asyncio.run(new_client(port, token, pcm[: 2 * 24_000 * 2]))
    rpc = grpc_client(50051, token)
    if old != REQUESTS or new != 50 or not rpc:
        sys.exit(f"{old} of {REQUESTS} pictures, {new} of 50 frames, gRPC serves: {rpc}")
    json.dump({"old_client_pictures": old, "lipsync_v1_frames": new, "grpc_serves": rpc}, out)


if __name__ == "__main__":
    main()
