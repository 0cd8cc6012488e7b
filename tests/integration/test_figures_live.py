# SPDX-License-Identifier: Apache-2.0
"""Every figure that a server tells of itself moves when what it counts happens.

``FIGURES`` comes from the status's types: a figure that is in none of the tables here fails.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import os
import signal
import struct
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
from figures import FIGURES, values
from raw_websocket import RawWebSocket
from talking import in_trio, say, speak, speech, utterance
from variants import put

import lipsync_fast
from lipsync_fast.cli.status import ControlClient
from lipsync_fast.client import Session, SessionError, SessionOverloaded
from lipsync_fast.client.local import LocalServer
from lipsync_fast.ipc.status import ServerStatus
from lipsync_fast.version import __version__

pytestmark = pytest.mark.clock

TESTS = Path(__file__).resolve().parents[1]
PATIENCE_S = 100.0
LATENCIES = tuple(f"fronts.load.latency_ms.{name}" for name in ("p50", "p95", "p99", "most"))

TRUE = {
    "version", "pid", "host", "ports", "http_port", "default_avatar", "engines.slot",
    "engines.device", "fronts.name", "fronts.pid", "avatars.name", "avatars.version",
}  # fmt: skip
"""What names things: held to what is so."""

RESTING = {
    "uptime_s", "frames_per_s", "engines.uptime_s", "engines.silent_s", "engines.load.spent_s",
    "fronts.uptime_s", "fronts.frames_per_s", "fronts.load.connections", "fronts.load.sessions",
    "fronts.load.opened", "fronts.load.frames", "fronts.load.idle_frames", "fronts.load.bytes",
    "fronts.load.avatars", "avatars.uses", "avatars.loaded_s",
}  # fmt: skip
SPEAKING = {
    "engines.load.made", "engines.load.inferences", "engines.load.frames_per_s",
    "fronts.load.speaking", "fronts.load.queued_s",
}  # fmt: skip
SAID = {
    *LATENCIES, "fronts.load.latency_counts", "fronts.load.latency_sum_ms",
    "fronts.load.utterances.misses", "engines.load.store.missed",
    "engines.load.store.kept", "engines.load.store.kept_bytes", "engines.load.store_bytes",
    "fronts.load.first_picture.counts", "fronts.load.first_picture.sum_s",
    "engines.load.queue_time.counts", "engines.load.queue_time.sum_s",
    "engines.load.frame_time.counts", "engines.load.frame_time.sum_s",
}  # fmt: skip
ENDED = {"fronts.load.session_time.counts", "fronts.load.session_time.sum_s"}
AGAIN = {"engines.load.store.found", "fronts.load.utterances.hits"}
REFUSED = {"fronts.load.refused", "fronts.load.errors"}
STALLED = {
    "fronts.load.late", "engines.load.skipped", "fronts.load.rest_stride",
    "fronts.load.speech_stride", "fronts.load.left_out",
}  # fmt: skip
OLD = {"fronts.load.requests", "fronts.load.request_errors"}
ANOTHER = {
    "fronts.load.catalogue", "engines.avatars", "engines.load.avatar_bytes",
    "engines.load.avatar_shared", "engines.load.cache_bytes", "avatars.engines",
    "avatars.cached_bytes", "avatars.shared_bytes", "avatars.state",
}  # fmt: skip
KILLED = {
    "fronts.load.redispatched", "engines.name", "engines.pid", "engines.state", "engines.restarts",
    "engines.reason", "engines.capacity", "capacity",
}  # fmt: skip
OTHERS = {"engines.pid", "engines.capacity", "capacity"}
"""Numbers that become others, not more."""
FRONT_KILLED = {"fronts.state", "fronts.restarts"}
DRAINING = {"state"}

ELSEWHERE = {
    "speakers": "unit/test_server_parts.py::test_as_many_may_speak_as_engines_and_front_can_serve",
    "ignored": "faults/test_supervision.py::test_nonsense_on_the_control_socket_is_counted",
    "engines.retry_s": "faults/test_supervision.py::"
    "test_a_gpu_that_is_lost_is_told_of_and_tried_again_while_others_serve",
    "fronts.load.skipped": "integration/test_http.py::"
    "test_who_does_not_read_does_not_hold_up_the_end",
    "engines.load.waiting": "unit/test_scheduler.py::test_load_as_told_to_the_supervisor",
    "engines.load.in_flight": "unit/test_scheduler.py::test_load_as_told_to_the_supervisor",
    "engines.load.oldest_ms": "unit/test_scheduler.py::test_load_as_told_to_the_supervisor",
    "engines.load.stages": "unit/test_speed.py::test_work_is_counted_by_the_clock_and_once",
    "engines.load.failed": "unit/test_scheduler.py::test_jobs_that_cannot_be_done_say_why",
    "engines.load.dropped": "unit/test_scheduler.py::"
    "test_a_front_that_does_not_read_costs_the_others_little",
    "engines.load.damaged": "unit/test_scheduler.py::test_damaged_records_are_counted",
    "engines.load.device_memory_used": "unit/test_cuda_backend.py::"
    "test_a_devices_memory_is_told_of",
    "engines.load.device_memory_total": "unit/test_cuda_backend.py::"
    "test_a_devices_memory_is_told_of",
    "engines.load.store.refused": "unit/test_utterance_store.py::test_what_is_not_kept_is_counted",
    "engines.load.store.evicted": "unit/test_utterance_store.py::test_what_is_not_kept_is_counted",
    "engines.load.store.mended": "unit/test_utterance_store.py::test_what_is_not_kept_is_counted",
    "fronts.load.utterances.at_once": "integration/test_known_utterances.py::"
    "test_pre_rendered_it_is_said_by_name_without_a_network",
    "fronts.load.utterances.named": "integration/test_known_utterances.py::"
    "test_pre_rendered_it_is_said_by_name_without_a_network",
    **{
        f"fronts.load.{figure}": "integration/test_text.py::test_texts_are_counted"
        for figure in ("texts.said", "texts.failed", "texts.cut", "text_characters")
    },
    "engines.load.encoded": "integration/test_h264_live.py::test_a_burst_gives_every_frame",
    "engines.load.encodes_per_s": "integration/test_h264_live.py::test_a_burst_gives_every_frame",
    "fronts.load.exemplars": "integration/test_traces_live.py::"
    "test_an_utterance_is_a_span_of_its_caller",
    "fronts.load.encoding": "unit/test_encoding_cost.py::"
    "test_fewer_may_speak_where_their_pictures_are_encoded",
    **{
        f"gateways.{figure}": "integration/test_grpc.py::test_what_a_gateway_has_done_is_told"
        for figure in (
            "name",
            "state",
            "uptime_s",
            "load.calls",
            "load.begun",
            "load.failed",
            "load.refused",
            "load.pictures",
            "load.bytes",
            "load.links",
        )
    },
    **{
        f"gateways.{figure}": "integration/test_grpc.py::"
        "test_a_gateway_that_is_killed_in_mid_stream"
        for figure in ("pid", "ports", "restarts", "reason")
    },
}
"""Figures that other tests move, since no client can make a server's move, or not cheaply."""


def test_all_figures_have_a_test() -> None:
    here = TRUE | RESTING | SPEAKING | SAID | ENDED | AGAIN | REFUSED | STALLED | OLD | ANOTHER
    here |= KILLED | FRONT_KILLED | DRAINING
    assert set(FIGURES) == here | set(ELSEWHERE)
    assert not here & set(ELSEWHERE)


@pytest.mark.parametrize("figure", ELSEWHERE)
def test_another_test_asserts_it(figure: str) -> None:
    file, name = ELSEWHERE[figure].split("::")
    source = (TESTS / file).read_text()
    [function] = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
    ]
    told = [ast.unparse(node) for node in ast.walk(function) if isinstance(node, ast.Assert)]
    word = figure.rpartition(".")[2]
    assert any(word in text for text in told), f"{ELSEWHERE[figure]} asserts nothing of {word}"


class Watch:
    """A server's figures, against what they were."""

    def __init__(self, server: LocalServer) -> None:
        self.server = server
        self.base = server.status()

    @classmethod
    async def begin(cls, server: LocalServer) -> Watch:
        """Once nobody is left of what was before."""
        with trio.fail_after(PATIENCE_S):
            while any(front.load.connections for front in server.status().fronts):
                await trio.sleep(0.03)
        return cls(server)

    def mark(self) -> None:
        """What is told from now on moves from here."""
        self.base = self.server.status()

    async def moved(self, figures: set[str], least: float = 0) -> None:
        """Wait until each has moved at least once: a number up, by so much or more."""
        left, status = set(figures), self.base
        end = time.monotonic() + PATIENCE_S
        while left:
            assert time.monotonic() < end, f"{sorted(left)} stand still"
            await trio.sleep(0.03)
            status = self.server.status()
            left -= {figure for figure in left if self._has_moved(figure, status, least)}

    async def until_ready(self) -> None:
        """Wait until a front accepts clients again."""
        with trio.fail_after(PATIENCE_S):
            while [front.state for front in self.server.status().fronts] != ["ready"]:
                await trio.sleep(0.03)

    def _has_moved(self, figure: str, status: ServerStatus, least: float) -> bool:
        now, before = (
            [sum(one.values()) if isinstance(one, dict) else one for one in values(s, figure)]
            for s in (status, self.base)
        )
        numbers = all(isinstance(one, int | float) for one in (*now, *before))
        if numbers and figure not in OTHERS:
            return sum(now) > sum(before) and sum(now) >= sum(before) + least
        return now != before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("figures")


@pytest.fixture(scope="module")
def server(tiny_avatar: Path, folder: Path) -> Iterator[LocalServer]:
    put(tiny_avatar, folder / "base.lsa")
    config = {
        "avatars": {"default": "base", "folders": [str(folder)]},
        "live": {"speakers": 1, "margin_ms": 200.0, "margin_most_ms": 400.0},
        "engines": {"gpus": "none", "spares": 1, "hung_s": 20.0},
        "utterances": {"disk_mb": 64, "folder": str(folder / "kept")},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LIPSYNC_FAST_UTTERANCES_DISK_MB")
        with LocalServer(config) as made:
            yield made


@contextlib.asynccontextmanager
async def reading(server: LocalServer, **more: Any) -> AsyncIterator[Session]:
    """A session whose client reads all that comes, and looks at nothing."""
    async with (
        lipsync_fast.connect(server.url, **more) as session,
        trio.open_nursery() as nursery,
    ):

        async def read() -> None:
            try:
                async for _ in session:
                    pass
            except SessionError as error:
                if str(error) != "the server is going away":
                    raise

        nursery.start_soon(read)
        yield session
        nursery.cancel_scope.cancel()


def worker(server: LocalServer) -> int:
    """The process of the engine that works."""
    [pid] = [engine.pid for engine in server.status().engines if engine.state == "ready"]
    return pid


def test_names_are_true(server: LocalServer) -> None:
    status = server.status()
    assert (status.version, status.pid) == (__version__, server.pid)
    assert (status.host, status.default_avatar) == ("127.0.0.1", "base")
    assert status.ports == [urlsplit(server.url).port]
    assert status.http_port == urlsplit(server.http_url).port
    assert [engine.slot for engine in status.engines] == [0, 1][: len(status.engines)]
    assert {engine.device for engine in status.engines} == {"cpu"}
    [front] = status.fronts
    assert b"lipsync_fast.frontend.process" in Path(f"/proc/{front.pid}/cmdline").read_bytes()
    assert front.name == "front-1"
    assert [(a.name, a.version) for a in status.avatars] == [("base", 1)]


@in_trio
async def test_sessions_move_them(server: LocalServer) -> None:
    watch = await Watch.begin(server)
    async with reading(server) as speaker:
        await watch.moved(RESTING)
        watch.mark()
        await speaker.send(speech(4.0))
        await watch.moved(SPEAKING)
        async with lipsync_fast.connect(server.url, idle=False) as other:
            await other.send(speech(0.2))
            async for event in other:
                if isinstance(event, SessionOverloaded):
                    break
        await watch.moved(REFUSED | ENDED)
        await speaker.end_utterance()
        await watch.moved(SAID)


@in_trio
async def test_an_engine_that_stalls_moves_them(server: LocalServer) -> None:
    """Frames take long, so those that rest give way; at last some come too late."""
    watch, pid = await Watch.begin(server), worker(server)
    async with (
        reading(server),
        reading(server),
        reading(server) as speaker,
        trio.open_nursery() as nursery,
    ):

        async def stall() -> None:
            for pause_s in itertools.cycle((0.15, 0.15, 0.15, 0.15, 1.2)):
                os.kill(pid, signal.SIGSTOP)
                try:
                    await trio.sleep(pause_s)
                finally:
                    os.kill(pid, signal.SIGCONT)
                await trio.sleep(0.15)

        async def talk() -> None:  # as it is spoken, so that its frames have no time to lose
            while True:
                await speak(speaker, speech(8.0, 1.0))

        nursery.start_soon(talk)
        await watch.moved({"fronts.load.speaking"})
        nursery.start_soon(stall)
        await watch.moved(STALLED)
        nursery.cancel_scope.cancel()


@in_trio
async def test_what_is_known_moves_them(server: LocalServer) -> None:
    watch = await Watch.begin(server)
    for _ in range(2):
        async with lipsync_fast.connect(server.url, pace="burst") as session:
            await say(session, speech(0.9, 6.0))
            await utterance(session, 1)
        await watch.moved({"engines.load.store.kept"}, 23)
    await watch.moved(AGAIN)


@in_trio
async def test_old_clients_move_them(server: LocalServer) -> None:
    watch = await Watch.begin(server)
    with RawWebSocket(server.url) as client:
        for name in (b"base", b"nobody"):
            client.send(struct.pack("<I", len(name)) + name + struct.pack("<II", 1, 0))
            client.receive()
        await watch.moved(OLD)


@in_trio
async def test_avatars_move_them(server: LocalServer, tiny_avatar: Path, folder: Path) -> None:
    put(tiny_avatar, folder / "guest.lsa", 208)
    watch = await Watch.begin(server)
    with ControlClient(server.folder) as client:
        assert client.change("load", "guest").state == "loaded"
        async with reading(server, avatar="guest") as speaker:
            await say(speaker, speech(0.4))
            await watch.moved(ANOTHER)
        assert client.change("unload", "guest").state == "unloaded"
    await watch.moved({"avatars.state"})
    assert {a.state for a in server.status().avatars if a.name == "guest"} & {"unloaded"}


@in_trio
async def test_ends_move_them(server: LocalServer) -> None:
    watch = await Watch.begin(server)
    async with reading(server) as speaker:
        await say(speaker, speech(3.0, 2.0))
        await watch.moved({"fronts.load.speaking"})
        pid = worker(server)
        os.kill(pid, signal.SIGSTOP)  # so that it owes frames when it dies
        await trio.sleep(0.3)
        # None is to stand in at once, so that what can be made is nothing until one has started.
        for engine in server.status().engines:
            if engine.state != "gone":
                os.kill(engine.pid, signal.SIGKILL)
        await watch.moved(KILLED)
        assert server.status().capacity in (0.0, watch.base.capacity)
        with trio.fail_after(PATIENCE_S):
            while not (status := server.status()).capacity:
                await trio.sleep(0.03)
        ready = [engine.capacity for engine in status.engines if engine.state == "ready"]
        assert status.capacity == pytest.approx(sum(ready))
    os.kill(server.status().fronts[0].pid, signal.SIGKILL)
    await watch.moved(FRONT_KILLED)
    await watch.until_ready()
    async with reading(server) as speaker:
        await say(speaker, speech(3.0, 2.0))
        watch.mark()
        server.terminate()
        await watch.moved(DRAINING)
