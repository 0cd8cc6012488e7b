# SPDX-License-Identifier: Apache-2.0
"""The HTTP port's description against its routes, its numbers, and who may ask."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from typing import Any

import msgspec
import pytest
from entering import entrance, refused
from prometheus_client.parser import text_string_to_metric_families

from lipsync_fast.config import Listen
from lipsync_fast.frontend.http import app as http_app
from lipsync_fast.frontend.http.guard import is_open
from lipsync_fast.frontend.http.metrics import metrics_text
from lipsync_fast.frontend.http.openapi import document
from lipsync_fast.histograms import Durations
from lipsync_fast.ipc.control import Load
from lipsync_fast.ipc.status import EngineStatus, FrontLoad, FrontStatus, ServerStatus

STATUS = ServerStatus(
    version="1.2.3",
    pid=1,
    state="serving",
    uptime_s=12.5,
    host="127.0.0.1",
    ports=[8084],
    http_port=8086,
    default_avatar="demo",
    engines=[
        EngineStatus(
            name=f"engine-{n}",
            slot=n,
            pid=10 + n,
            device="cpu",
            state=state,
            uptime_s=1.0,
            restarts=n,
            avatars=["demo"],
            capacity=100.0,
            silent_s=0.1,
            load=Load(
                made=5 * n,
                failed=1,
                cache_bytes={"faces": 7},
                queue_time=Durations({"0.001": 4, "+Inf": 1}, 0.25),
                stages={"decoder": Durations({"0.016": 5, "+Inf": 0}, 0.06)},
            ),
        )
        for n, state in ((1, "ready"), (2, "spare"))
    ],
    fronts=[
        FrontStatus(
            name=f"front-{n}",
            pid=20 + n,
            state="ready",
            uptime_s=1.0,
            restarts=0,
            load=FrontLoad(
                connections=n,
                frames=100 * n,
                refused={'a "reason"\n': 2},
                latency_counts={"0.06": 3, "0.07": 40, "+Inf": 2},
                latency_sum_ms=2_900.0,
                session_time=Durations({"60": 2, "+Inf": 1}, 400.0),
            ),
        )
        for n in (1, 2)
    ],
    capacity=100.0,
    speakers=3,
    frames_per_s=50.0,
    ignored=0,
)


def test_the_numbers_are_such_as_prometheus_likes_them() -> None:
    """``promtool check metrics``, where it is installed, and what it looks at by ourselves."""
    for status in (STATUS, None):
        text, _ = metrics_text(status)
        for family in text_string_to_metric_families(text.decode()):
            assert family.documentation, family.name
            names = {sample.name for sample in family.samples}
            labels = {label for sample in family.samples for label in sample.labels}
            if family.type == "histogram":
                ends = [s.labels["le"] for s in family.samples if s.name.endswith("_bucket")]
                assert "+Inf" in ends
                assert {f"{family.name}_{end}" for end in ("bucket", "sum", "count")} == names
                continue
            assert family.type in ("counter", "gauge"), family.name
            assert not labels & {"le", "quantile"}, family.name
            wanted = f"{family.name}_total" if family.type == "counter" else family.name
            assert names <= {wanted}, "a counter's name ends in _total, and no other's does"
        tool = shutil.which("promtool")
        if tool is not None:
            done = subprocess.run([tool, "check", "metrics"], input=text, capture_output=True)
            assert (done.returncode, done.stderr + done.stdout) == (0, b"")


def test_every_route_is_described_and_nothing_else() -> None:
    assert set(document()["paths"]) == {route.path for route in http_app.routes(None, None, None)}


def test_references_lead_somewhere() -> None:
    whole = msgspec.json.encode(document()).decode()
    names = set(re.findall(r'"#/components/schemas/(\w+)"', whole))
    assert {"ServerStatus", "Health", "Avatars", "Problem", "EngineStatus"} <= names
    assert names <= set(document()["components"]["schemas"])


def test_what_needs_a_token_says_so() -> None:
    for path, operations in document()["paths"].items():
        answers = operations.get("get", operations.get("post"))["responses"]
        assert is_open(path) == ("401" not in answers), path


def numbers(status: ServerStatus | None) -> dict[tuple[str, frozenset[Any]], float]:
    text, kind = metrics_text(status)
    assert kind.startswith("text/plain")
    return {
        (sample.name.removeprefix("lipsync_fast_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_numbers_of_all_processes() -> None:
    found = numbers(STATUS)

    def of(name: str, **labels: str) -> float:
        return found[name, frozenset(labels.items())]

    assert of("up") == 1
    assert of("speakers_limit") == 3
    assert of("frames_sent_total", front="front-2") == 200
    assert of("connections", front="front-1") == 1
    assert of("engine_frames_total", engine="engine-2", result="made") == 10
    assert of("engine_state", engine="engine-2", device="cpu", state="spare") == 1
    assert of("engine_state", engine="engine-2", device="cpu", state="ready") == 0
    assert of("engine_cache_bytes", engine="engine-1", cache="faces") == 7
    assert of("engine_restarts_total", slot="2") == 2
    assert of("refused_total", front="front-1", reason='a "reason"\n') == 2
    assert of("latency_seconds_bucket", front="front-1", le="0.06") == 3
    assert of("latency_seconds_bucket", front="front-1", le="0.07") == 43
    assert of("latency_seconds_bucket", front="front-1", le="+Inf") == 45
    assert of("latency_seconds_count", front="front-1") == 45
    assert of("latency_seconds_sum", front="front-1") == pytest.approx(2.9)
    assert of("session_duration_seconds_bucket", front="front-2", le="60.0") == 2
    assert of("session_duration_seconds_count", front="front-2") == 3
    assert of("session_duration_seconds_sum", front="front-2") == 400
    assert of("first_picture_seconds_count", front="front-2") == 0
    assert of("engine_queue_seconds_bucket", engine="engine-1", le="0.001") == 4
    assert of("engine_queue_seconds_count", engine="engine-1") == 5
    assert of("engine_frame_seconds_count", engine="engine-1") == 0
    assert of("engine_stage_seconds_count", engine="engine-2", stage="decoder") == 5


def test_numbers_without_a_status() -> None:
    assert numbers(None) == {("up", frozenset()): 0}


def asked(listen: Listen, path: str = "/ws", **headers: str) -> int | None:
    found = refused(entrance(listen).admit(headers.get, path, "192.0.2.1"))
    return None if found is None else found.status


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8086", True),
        ("localhost:8086", True),
        ("LOCALHOST", True),
        ("[::1]:8086", True),
        ("evil.example:8086", False),
        ("127.0.0.1.evil.example", False),
        ("[", False),
        ("", False),
        ("demo.example", True),
    ],
)
def test_a_local_server_is_called_by_local_names_alone(host: str, allowed: bool) -> None:
    listen = Listen(origins=("https://demo.example",))
    assert (asked(listen, Host=host) is None) is allowed


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:8086", True),
        ("https://friend.example", True),
        ("HTTPS://Friend.Example:443", True),
        ("http://localhost:3000", False),
        ("http://localhost", False),
        ("https://evil.example", False),
        ("null", False),
        ("http://[", False),
    ],
)
def test_foreign_pages_are_refused(origin: str, allowed: bool) -> None:
    listen = Listen(origins=("https://friend.example",))
    status = asked(listen, Host="localhost:8086", Origin=origin)
    assert status == (None if allowed else 403)


@pytest.mark.parametrize("host", ["friend.example", "Friend.example:443"])
def test_a_page_of_the_server_itself_may_connect_whatever_port_a_proxy_names(host: str) -> None:
    assert asked(Listen(host="0.0.0.0"), Host=host, Origin="https://friend.example") is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "::ffff:127.0.0.1", "127.9.9.9"])
def test_whatever_name_of_this_machine_it_listens_to_foreign_ones_are_refused(host: str) -> None:
    assert asked(Listen(host=host), Host="evil.example:8086") == 403
    assert asked(Listen(host=host), Host="localhost:8086") is None


def test_the_token_is_shown_either_way() -> None:
    listen = Listen(token="Sesam öffne")
    assert asked(listen) == 401
    assert asked(listen, path="/ws?token=sesam") == 401
    assert asked(listen, path="/ws?token=Sesam+%C3%B6ffne") is None
    assert asked(listen, Authorization="bearer Sesam öffne") is None
    assert asked(listen, Authorization="Basic Sesam öffne") == 401
    wire = "Sesam öffne".encode().decode("latin-1")  # as servers read a header's bytes
    assert asked(listen, Authorization=f"Bearer {wire}") is None


def test_a_page_shows_the_token_as_a_subprotocol() -> None:
    listen = Listen(token="Sesam öffne??>")
    word = base64.urlsafe_b64encode(listen.token.encode()).decode().rstrip("=")
    name = "Sec-WebSocket-Protocol"
    assert asked(listen, **{name: f"lipsync.v1, lipsync.token.{word}"}) is None
    assert asked(listen, **{name: f"lipsync.token.{word},lipsync.v1"}) is None
    for wrong in (f"lipsync.v1, {word}", f"lipsync.token.{word[:-2]}", "lipsync.token.", "ü, ,="):
        assert asked(listen, **{name: wrong}) == 401, wrong
    assert asked(listen, **{name: "lipsync.token.!, lipsync.token.a"}) == 401
