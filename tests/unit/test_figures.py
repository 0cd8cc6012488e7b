# SPDX-License-Identifier: Apache-2.0
"""Every figure of the status is shown where it is said to be, and described."""

from __future__ import annotations

import io
import re
from functools import cache
from pathlib import Path

import pytest
from figures import COUNTED, FIGURES, changed
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from lipsync_fast.cli.status import ready_line
from lipsync_fast.cli.status_screen import LINES, WIDTH, as_screen
from lipsync_fast.cli.status_tables import as_tables
from lipsync_fast.errors import ServerError
from lipsync_fast.frontend.http.metrics import metrics_text
from lipsync_fast.histograms import Durations
from lipsync_fast.ipc.control import Load
from lipsync_fast.ipc.status import (
    AvatarStatus,
    EngineStatus,
    FrontLoad,
    FrontStatus,
    GatewayLoad,
    GatewayStatus,
    ServerStatus,
)

OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"

LOAD = Load(
    waiting=1, in_flight=2, made=3, skipped=4, failed=5, dropped=6, damaged=7, inferences=8,
    encoded=18, encodes_per_s=19.0,
    store=dict.fromkeys(COUNTED["engines.load.store"], 9), store_bytes=10**6, frames_per_s=10.0,
    oldest_ms=11.0, cache_bytes={"image halves": 12 * 10**6}, spent_s={"encode": 13.0},
    device_memory_used=14 * 10**9, device_memory_total=15 * 10**9, avatar_bytes={"a": 16},
    avatar_shared={"a": 17}, queue_time=Durations({"0.1": 1}, 0.05),
    frame_time=Durations({"0.1": 1}, 0.06), stages={"decoder": Durations({"0.1": 1}, 0.04)},
)  # fmt: skip
FRONT = FrontLoad(
    connections=1, sessions=2, speaking=3, encoding=0.5, opened=4, refused={"utterance": 5},
    requests=6,
    request_errors=7, frames=8, idle_frames=9, late=10, skipped=11, bytes=12,
    errors={"internal": 13}, latency_ms=dict.fromkeys(COUNTED["fronts.load.latency_ms"], 14.0),
    latency_counts={"0.07": 20, "+Inf": 21}, latency_sum_ms=22.0,
    first_picture=Durations({"0.1": 1}, 0.09), session_time=Durations({"60": 1}, 50.0),
    queued_s=15.0, redispatched=16, rest_stride=1, avatars={"a": 17}, catalogue=18,
    speech_stride=1, left_out=20, utterances=dict.fromkeys(COUNTED["fronts.load.utterances"], 19),
    texts=dict.fromkeys(COUNTED["fronts.load.texts"], 23), text_characters=24,
)  # fmt: skip
GATEWAY = GatewayLoad(
    calls={"grpc": 1}, begun={"grpc/GetStats": 2}, failed={"grpc": 3},
    refused={"grpc": 4}, pictures={"grpc": 5}, bytes={"grpc": 6 * 10**6}, links=7,
)  # fmt: skip
STATUS = ServerStatus(
    version="1.2", pid=1, state="serving", uptime_s=2.0, host="here", ports=[3], http_port=4,
    default_avatar="demo", capacity=5.0, speakers=6, frames_per_s=7.0, ignored=8,
    engines=[
        EngineStatus(
            name="engine-1", slot=1, pid=2, device="cuda:0", state="gone", uptime_s=3.0,
            restarts=4, avatars=["a"], capacity=5.0, silent_s=6.0, load=LOAD,
            reason="signal 9", retry_s=7.0,
        )
    ],
    fronts=[
        FrontStatus(
            name="front-1", pid=1, state="ready", uptime_s=2.0, restarts=3, load=FRONT,
            frames_per_s=4.0,
        )
    ],
    avatars=[
        AvatarStatus(
            name="demo", version=2, state="current", uses=3, engines=["engine-1"], loaded_s=4.0,
            cached_bytes=5 * 10**6, shared_bytes=6 * 10**6,
        )
    ],
    gateways=[
        GatewayStatus(
            name="gateway-1", pid=3, state="ready", uptime_s=4.0, restarts=5,
            ports={"grpc": [6]}, load=GATEWAY, reason="signal 9",
        )
    ],
)  # fmt: skip

NOT_METRICS = {
    "pid": "names a process", "host": "where it listens", "ports": "where it listens",
    "http_port": "where it listens", "default_avatar": "of the configuration",
    "engines.pid": "names a process", "engines.reason": "words", "engines.retry_s": "passes",
    "engines.uptime_s": "engine_restarts says it", "engines.avatars": "avatar_engines says it",
    "engines.load.in_flight": "what waits says it",
    "engines.load.store.mended": "warned of in the log",
    "engines.load.avatar_bytes": "avatar_cache_bytes says it",
    "engines.load.avatar_shared": "avatar_cache_bytes says it",
    "fronts.pid": "names a process", "fronts.state": "one that is not ready tells nothing",
    "fronts.uptime_s": "a name is never used again", "fronts.restarts": "names count them",
    "fronts.frames_per_s": "the rate of frames_sent",
    **{f"fronts.load.latency_ms.{name}": "the histogram says it"
       for name in COUNTED["fronts.load.latency_ms"]},
    "fronts.load.avatars": "avatar_uses says it",
    "fronts.load.catalogue": "for the supervisor alone",
    "fronts.load.exemplars": "of OpenMetrics alone",
    "gateways.pid": "names a process", "gateways.ports": "where it listens",
    "gateways.uptime_s": "a name is never used again", "gateways.reason": "words",
}  # fmt: skip
"""Figures that /metrics leaves out, and why; /stats has all."""

NOT_TABLES = {
    "engines.slot", "engines.silent_s", "engines.load.store.kept_bytes",
    "engines.load.encodes_per_s", "fronts.load.encoding",
    "engines.load.store.mended", "engines.load.spent_s", "engines.load.avatar_bytes",
    "engines.load.avatar_shared", "fronts.load.opened", "fronts.load.requests",
    "fronts.load.request_errors", "fronts.load.frames", "fronts.load.idle_frames",
    "fronts.load.bytes", "fronts.load.latency_counts", "fronts.load.latency_sum_ms",
    "fronts.load.queued_s", "fronts.load.rest_stride",
    "fronts.load.speech_stride", "fronts.load.left_out",
    "fronts.load.avatars", "fronts.load.catalogue", "fronts.load.exemplars",
    "fronts.load.utterances.at_once",
    *(f"fronts.load.texts.{result}" for result in COUNTED["fronts.load.texts"]),
    "fronts.load.text_characters",
    "fronts.load.utterances.named", "fronts.load.first_picture.counts",
    "fronts.load.first_picture.sum_s", "fronts.load.session_time.counts",
    "fronts.load.session_time.sum_s", "engines.load.queue_time.counts",
    "engines.load.queue_time.sum_s", "engines.load.frame_time.counts",
    "engines.load.frame_time.sum_s", "engines.load.stages",
}  # fmt: skip
"""Figures that the tables for people leave out: ``--json`` has all."""


@cache
def metrics(figure: str = "") -> dict[str, list[object]]:
    """What /metrics tells; where a figure is named, when that is another."""
    status = changed(STATUS, figure) if figure else STATUS
    families = text_string_to_metric_families(metrics_text(status)[0].decode())
    return {family.name: list(family.samples) for family in families}


@cache
def tables(figure: str = "") -> str:
    """What people are shown; where a figure is named, when that is another."""
    out = io.StringIO()
    Console(file=out, width=400).print(as_tables(changed(STATUS, figure) if figure else STATUS))
    return out.getvalue()


@pytest.mark.parametrize("figure", FIGURES)
def test_metrics_have_it(figure: str) -> None:
    assert (metrics(figure) != metrics()) == (figure not in NOT_METRICS)


@pytest.mark.parametrize("figure", FIGURES)
def test_the_tables_have_it(figure: str) -> None:
    assert (tables(figure) != tables()) == (figure not in NOT_TABLES)


@pytest.mark.parametrize("figure", FIGURES)
def test_it_is_described(figure: str) -> None:
    status = OPERATIONS.read_text().split("\n## Status\n", 1)[1].split("\n## ", 1)[0]
    name = figure.rpartition(".")[2]
    assert re.search(rf"`([\w\[\].]*\.)?{name}`", status), f"docs/operations.md: no {name}"


def test_no_metric_stands_still() -> None:
    before, moved = metrics(), {"lipsync_fast_up"}
    for figure in FIGURES:
        after = metrics(figure)
        moved |= {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert moved == set(before)
    assert metrics_text(None)[0] != metrics_text(STATUS)[0], "up"


def test_ready_is_a_server_that_serves_by_an_engine_that_works() -> None:
    working = replace(STATUS, engines=[replace(STATUS.engines[0], state="ready")])
    assert ready_line(working) == "ready: engine-1"
    for status in (STATUS, replace(working, state="draining"), replace(working, engines=[])):
        with pytest.raises(ServerError, match="not ready"):
            ready_line(status)


# ---------------------------------------------------------------- the screen
USUAL = replace(
    STATUS,
    uptime_s=7384.0, host="127.0.0.1", ports=[8084], http_port=8086, capacity=250.0, speakers=8,
    frames_per_s=149.7, ignored=0, gateways=[],
    engines=[
        EngineStatus(
            name=f"engine-{n}", slot=n, pid=n, device="cpu", state=state, uptime_s=7380.0,
            restarts=0, avatars=["demo"], capacity=250.0, silent_s=0.1,
            load=Load(frames_per_s=frames, waiting=2 * n),
        )
        for n, state, frames in ((2, "spare", 0.0), (1, "ready", 150.2))
    ],
    fronts=[
        FrontStatus(
            name="front-1", pid=3, state="ready", uptime_s=7380.0, restarts=0, frames_per_s=149.7,
            load=FrontLoad(
                connections=9, sessions=8, speaking=6, late=12,
                latency_ms={"p50": 61.7, "p95": 72.4, "p99": 88.1, "most": 140.0},
                refused={"wrong_token": 2, "utterance": 5},
            ),
        )
    ],
    avatars=[
        AvatarStatus(name="anna", version=2, state="leaving", uses=3),
        AvatarStatus(name="demo", version=1, state="current", uses=5),
        AvatarStatus(name="bert", version=0, state="unloaded"),
    ],
)  # fmt: skip
SHOWN = """\
lipsync-fast 1.2: serving for 2:03:04 on 127.0.0.1, streams 8084, HTTP 8086
speaking  6 of 8, 8 sessions, 9 connections
pictures  150/s sent, 250/s can be made, from sound to picture p50 62, p95 72, p99 88 ms
          12 late, 0 skipped, 0 left out, 0 sent again
avatars   demo 1 (5), anna 2 leaving (3)
engine-1  ready on cpu, 150 of 250/s, 2 wait
engine-2  spare on cpu, 4 wait
front-1   ready, 8 sessions, 150/s sent
refused   utterance 5, wrong_token 2"""


def test_the_screen_of_a_usual_server() -> None:
    assert as_screen(USUAL) == SHOWN
    assert SHOWN in OPERATIONS.read_text()


def test_a_screen_is_a_screen_however_large_the_server_is() -> None:
    [engine], [front], [gateway] = STATUS.engines, STATUS.fronts, STATUS.gateways
    lost = replace(engine, name="engine-77", reason="exit status 1: " + "no memory " * 30)
    well = replace(engine, state="ready", reason="")
    load = replace(
        front.load,
        refused={f"reason_{n}": n for n in range(40)},
        errors={f"code_{n}": n for n in range(40)},
    )
    large = replace(
        STATUS,
        host="::" * 70,
        engines=[*[replace(well, name=f"engine-{n}") for n in range(20)], lost],
        fronts=[replace(front, load=load, name=f"front-{n}") for n in range(30)],
        gateways=[gateway],
        avatars=[replace(STATUS.avatars[0], name=f"avatar-{n}") for n in range(200)],
    )
    lines = as_screen(large).splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= WIDTH
    shown = "\n".join(lines)
    assert "engine-77 lost (exit status 1: no memory" in shown, "trouble comes first"
    assert "and 14 more engines; --full shows all" in shown
    assert "reason_39 1170" in shown


def test_the_screen_of_a_server_that_starts() -> None:
    lines = as_screen(replace(STATUS, engines=[], fronts=[], avatars=[], gateways=[])).splitlines()
    assert lines[1] == "speaking  0 of 6, 0 sessions, 0 connections"
    assert lines[2] == "pictures  7/s sent, 5/s can be made"
