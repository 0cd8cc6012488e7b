# SPDX-License-Identifier: Apache-2.0
"""A campaign of bad and good messages of the older protocols against a real server.

    python tools/fuzz_old_clients.py --seconds 600

Clients send what old clients send, the same with bytes changed, cut off, put in or repeated, and
plain noise; some vanish in the middle of a message. Each checks that every message got one reply,
in order, wherever the connection lasts. At the end the front's memory and descriptors are compared
with those after a tenth of the time. Exits with 1 where anything is wrong; the seed repeats the
messages, not their timing.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import struct
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from raw_websocket import BINARY, ClosedError, RawWebSocket

from lipsync_fast.client.local import LocalServer

CLIENTS = 4
MOST_GROWTH_KB = 64 << 10
MOST_MESSAGE = 9_000_000
TYPES = [
    "get_stats", "switch_to_binary", "test_binary", "get_models", "list_models", "get_model_stats",
    "get_metadata", "get_video_frame", "inference", "", "dance",
]  # fmt: skip
VALUES = [
    "",
    "demo",
    "default_model",
    "x",
    -1,
    7,
    2**40,
    1.5,
    None,
    True,
    [],
    {},
    [[]],
    "full_body",
]


def request(noise: random.Random) -> bytes:
    """A valid request, with sound of some length."""
    name = noise.choice([b"", b"demo", b"default_model", b"nobody"])
    audio = noise.randbytes(noise.choice([0, 1, 1920, 15 * 1920, 30_720, 30_720, 30_721]))
    head = struct.pack("<I", len(name)) + name
    return head + struct.pack("<II", noise.getrandbits(32), len(audio)) + audio


def text(noise: random.Random) -> str:
    """A JSON request, with some fields wrong."""
    fields: dict[str, object] = {"type": noise.choice(TYPES)}
    for name in ("model_name", "frame_id", "video_type", "request_id", "batch_frames"):
        if noise.random() < 0.4:
            fields[name] = noise.choice(VALUES)
    if noise.random() < 0.3:
        fields["audio_override"] = base64.b64encode(noise.randbytes(3_000)).decode()
    if noise.random() < 0.2:
        fields["batch_frames"] = [{"frame_id": k} for k in range(noise.randrange(6))]
    return json.dumps(fields)


def mutated(data: bytes, noise: random.Random) -> bytes:
    """Bytes changed, taken out, put in or repeated, in a few places."""
    out = bytearray(data)
    for _ in range(noise.randrange(1, 5)):
        at = noise.randrange(len(out) + 1)
        kind = noise.randrange(4)
        if kind == 0 and at < len(out):
            out[at] = noise.getrandbits(8)
        elif kind == 1:
            del out[at : at + noise.randrange(1, 9)]
        elif kind == 2:
            out[at:at] = noise.randbytes(noise.randrange(1, 9))
        else:
            out[at:at] = out[at : at + noise.randrange(64)] * noise.randrange(1, 40)
    return bytes(out)


def message(noise: random.Random) -> str | bytes:
    """Anything a client may send."""
    kind = noise.randrange(10)
    if kind < 3:
        return request(noise)
    if kind < 5:
        return text(noise)
    if kind < 7:
        return mutated(request(noise), noise)
    if kind == 7:
        return mutated(text(noise).encode(), noise).decode("utf-8", "replace")
    if kind == 8:
        return noise.randbytes(noise.choice([0, 1, 5, 9, 100, 70_000]))
    if noise.random() < 0.02:
        return request(noise) + bytes(noise.randrange(MOST_MESSAGE))
    return noise.choice(["[", '{"a":', "\0"]) * noise.randrange(2_000)


def converse(url: str, noise: random.Random) -> int:
    """One connection; the number of messages that were answered.

    Raises:
        AssertionError: a reply is missing, empty, or out of order.
    """
    with RawWebSocket(url, 120.0) as client:
        marks = 0
        for _ in range(noise.randrange(1, 6)):
            sent = [message(noise) for _ in range(noise.randrange(1, 13))]
            for one in sent:
                client.send(one)
            marks += 1
            client.send(json.dumps({"type": "inference", "model_name": 5, "request_id": marks}))
            replies = 0
            while True:
                reply = client.receive()
                assert reply, "an empty reply"
                told = json.loads(reply) if isinstance(reply, str) else {}
                if told.get("request_id") == marks and told.get("frame_id") == 0:
                    break
                # Statistics may come unasked.
                replies += told.get("type") != "stats"
            asked = sum(1 for one in sent if not _asks_stats(one))
            assert replies == asked, f"{asked} messages, {replies} replies"
        if noise.random() < 0.3:
            half = RawWebSocket.frame(BINARY, request(noise))
            client.socket.sendall(half[: noise.randrange(len(half))])
        if noise.random() < 0.5:
            client.reset()
        return marks


def _asks_stats(one: str | bytes) -> bool:
    try:
        return isinstance(one, str) and json.loads(one).get("type") == "get_stats"
    except (ValueError, AttributeError, RecursionError):
        return False


def resources(pid: int) -> tuple[int, int]:
    """Resident kB and open descriptors of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = next(int(s.split()[1]) for s in status.splitlines() if s.startswith("VmRSS"))
    return kilobytes, len(os.listdir(f"/proc/{pid}/fd"))


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    failed: list[str] = []
    count = [0] * CLIENTS

    with LocalServer() as server:
        end = time.monotonic() + arguments.seconds

        def client(number: int) -> None:
            noise = random.Random(f"{arguments.seed}-{number}")
            doors = [server.url, server.http_url + "/ws"]
            while time.monotonic() < end and not failed:
                try:
                    count[number] += converse(noise.choice(doors), noise)
                except (AssertionError, ClosedError, OSError) as error:
                    failed.append(f"client {number}: {error!r}")

        front = server.status().fronts[0].pid
        threads = [threading.Thread(target=client, args=(k,)) for k in range(CLIENTS)]
        for thread in threads:
            thread.start()
        time.sleep(arguments.seconds / 10)
        before = resources(front)
        for thread in threads:
            thread.join()
        status = server.status()
        if status.fronts[0].pid != front:
            failed.append("the front has died")
        else:
            after = resources(front)
            print(f"front: {before[0]} kB, {before[1]} descriptors; then {after[0]}, {after[1]}")
            if after[0] > before[0] + MOST_GROWTH_KB or after[1] > before[1] + 2 * CLIENTS:
                failed.append("it grows")
        if any("internal" in f.load.errors for f in status.fronts):
            failed.append(f"internal errors: {status.fronts[0].load.errors}")
        if any(e.restarts for e in status.engines):
            failed.append("an engine has died")
        print(f"{sum(count)} rounds of messages; {status.fronts[0].load}")
        if failed:
            print("\n".join(failed), server.log()[-4000:], sep="\n", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
