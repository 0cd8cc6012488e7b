# SPDX-License-Identifier: Apache-2.0
"""Traces: whose part an utterance is, what its span says, and what a bad collector costs."""

from __future__ import annotations

import copy
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from test_http_described import STATUS

from lipsync_fast import canonical
from lipsync_fast.config import Tracing as Config
from lipsync_fast.errors import ConfigError
from lipsync_fast.frontend.http.metrics import metrics_text
from lipsync_fast.frontend.playout.playout import Ended, Flag, Picture
from lipsync_fast.frontend.session.spoken import SpokenUtterances
from lipsync_fast.frontend.statistics import FrontStatistics
from lipsync_fast.tracing import FLUSH_S, Tracing, check_tracing

pytest.importorskip("opentelemetry.sdk", reason="the extra tracing is not installed")
from collector import QUICK, Collector, attributes, collecting, nobody

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}
NOBODY = {"traceparent": ""}


def tracing(url: str, sample: float = 1.0) -> Tracing:
    return Tracing(Config(endpoint=canonical.collector(url), sample=sample), "front-1")


def session(
    traces: Tracing, headers: dict[str, str], front: FrontStatistics | None = None
) -> SpokenUtterances:
    caller = traces.caller(headers.get)
    begin = partial(traces.begin, caller)
    return SpokenUtterances(front or FrontStatistics(), 7, True, begin)


def picture(utterance: int) -> Picture:
    return Picture(0, 0, 0, Flag(0), utterance, None, None, 0)


def spans_of(say: Callable[[SpokenUtterances], None], headers: dict[str, str]) -> Collector:
    """What a collector gets of what a session of those headers says."""
    with collecting() as collector:
        traces = tracing(collector.url)
        say(session(traces, headers))
        traces.close()
    return collector


def test_an_utterance_is_a_span_of_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")

    def say(spoken: SpokenUtterances) -> None:
        spoken.on_heard(1, "anna", 8_000, time.monotonic_ns() - 250_000_000)
        spoken.on_asked("engine-1", living)
        spoken.on_heard(1, "anna", 8_000, time.monotonic_ns())
        for _ in range(3):  # jobs that it owed
            spoken.on_lost()
        spoken.on_asked("engine-2", living)
        spoken.on_asked("engine-1", living)  # which has less to do
        spoken.on_asked("engine-2", living)
        spoken.on_asked("engine-3", ["engine-3"].__contains__)
        spoken.on_sent(picture(1), 70.0)
        spoken.on_left_out(3)
        spoken.end(Ended(1, frames=25, dropped=1, left_out=2))

    living = ["engine-1", "engine-2"].__contains__
    before = time.time_ns()
    collector = spans_of(say, PARENT)
    (span,) = collector.spans
    assert span.name == "utterance"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN)
    assert span.trace_state == "vendor=1"
    said = attributes(span)
    assert said.pop("lipsync.first_ms") >= 250
    assert said == {
        "lipsync.session": 7,
        "lipsync.utterance": 1,
        "lipsync.avatar": "anna",
        "lipsync.pace": "live",
        "lipsync.ended": "end",
        "lipsync.engines": ["engine-1", "engine-2", "engine-3"],
        "lipsync.sound_s": 1.0,
        "lipsync.pictures": 1,
        "lipsync.late": 0,
        "lipsync.skipped": 3,
        "lipsync.slowest_ms": 70.0,
        "lipsync.frames": 25,
        "lipsync.dropped": 1,
        "lipsync.left_out": 2,
    }
    assert before - 10**9 < span.start_time_unix_nano < span.end_time_unix_nano
    assert span.end_time_unix_nano - span.start_time_unix_nano >= 250_000_000
    assert [event.name for event in span.events] == ["engine lost"] * 2, (
        "once each, whatever it owed"
    )
    assert not span.status.code
    resource = collector.resources[0]
    assert resource["service.name"] == "lipsync-fast"
    assert resource["lipsync.process"] == "front-1"
    assert resource["deployment.environment"] == "test"


def test_how_it_failed_is_told() -> None:
    def say(spoken: SpokenUtterances) -> None:
        for number in (1, 2, 3):
            spoken.on_heard(number, "anna", 16_000, time.monotonic_ns())
        spoken.on_lost()  # there was no engine, so none was lost
        spoken.end(Ended(1, frames=25, dropped=25))
        spoken.break_off("interrupted")
        spoken.on_heard(4, "anna", 16_000, time.monotonic_ns())
        spoken.break_off("the session has ended", "the avatar was damaged")

    collector = spans_of(say, NOBODY)
    said = {attributes(span)["lipsync.utterance"]: span for span in collector.spans}
    assert [said[n].status.code for n in (1, 2, 3, 4)] == [2, 0, 0, 2]
    assert said[1].status.message == "none of its frames was made in time"
    assert said[4].status.message == "the avatar was damaged"
    assert attributes(said[2])["lipsync.ended"] == "interrupted"
    assert not any(span.events for span in said.values())
    assert len({span.trace_id for span in said.values()}) == 4, "each is its own trace"


@pytest.fixture(scope="module")
def sampled() -> Tracing:
    with nobody() as url:
        return tracing(url)


GARBAGE = (
    "", "00", "x" * 10_000, f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
    f"ff-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01, 00-{TRACE}-{SPAN}-01",
    f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE}-{SPAN}-zz", "00-\x00-\udcff-é",
)  # fmt: skip


@pytest.mark.parametrize("header", GARBAGE)
def test_what_is_no_parent_is_passed_over(header: str, sampled: Tracing) -> None:
    caller = sampled.caller({"traceparent": header}.get)
    trace = sampled.begin(caller, time.monotonic_ns(), {}).trace_id
    assert len(trace) == 32
    assert trace != TRACE


@given(parent=st.text(), state=st.text())
def test_any_header_can_come(parent: str, state: str, sampled: Tracing) -> None:
    for headers in ({"traceparent": parent, "tracestate": state}, PARENT | {"tracestate": state}):
        assert sampled.begin(sampled.caller(headers.get), 1, {}).trace_id


def test_a_share_is_sampled_unless_the_caller_has_decided() -> None:
    decided = {"traceparent": PARENT["traceparent"][:-2] + "00"}
    with collecting() as collector:
        never, always = tracing(collector.url, 0.0), tracing(collector.url, 1.0)
        for traces, headers in ((never, NOBODY), (never, PARENT), (always, decided)):
            span = traces.begin(traces.caller(headers.get), time.monotonic_ns(), {})
            assert bool(span.trace_id) is (headers is PARENT), "an exemplar can be looked at"
            span.happened("engine lost")
            span.end({"pictures": 1}, "failed")
        some = tracing(collector.url, 0.5)
        nobodys = some.caller(NOBODY.get)
        kept = sum(bool(some.begin(nobodys, 1, {}).trace_id) for _ in range(1000))
        assert 350 < kept < 650
        for traces in (never, always, some):
            traces.close()
    assert len(collector.spans) == 1


# ---------------------------------------------------------------- exemplars
def test_histograms_name_traces_where_openmetrics_is_asked_for(sampled: Tracing) -> None:
    front = FrontStatistics()
    spoken = session(sampled, PARENT, front)
    spoken.on_heard(1, "anna", 320, time.monotonic_ns() - 250_000_000)
    front.latencies.add(65.0, spoken.trace_of(picture(1)))
    spoken.on_sent(picture(1), 65.0)
    assert not spoken.trace_of(picture(5)), "of which nothing is known"
    status = copy.deepcopy(STATUS)
    load = status.fronts[0].load
    load.latency_counts = front.latencies.ever.counts
    load.first_picture = front.first_picture.durations
    kinds = {"latency": front.latencies.ever, "first_picture": front.first_picture}
    load.exemplars = {name: kind.exemplars for name, kind in kinds.items()}
    wanted = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.5,*/*;q=0.2"
    text, kind = metrics_text(status, wanted)
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    found = {
        (sample.name.removeprefix("lipsync_fast_"), sample.labels["le"]): sample.exemplar
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.exemplar
    }
    assert len(found) == 2
    latency = found["latency_seconds_bucket", "0.07"]
    assert latency.labels == {"trace_id": TRACE}
    assert latency.value == pytest.approx(0.065)
    assert float(latency.timestamp) == pytest.approx(time.time(), abs=600)
    assert any(name == "first_picture_seconds_bucket" for name, _ in found)
    for accept in ("", "*/*", "text/plain;version=0.0.4", "text/html, application/json"):
        plain, kind = metrics_text(status, accept)
        assert kind.startswith("text/plain; version=0.0.4")
        assert TRACE.encode() not in plain


# ---------------------------------------------------------------- bad collectors
@pytest.mark.parametrize("manner", ["endless", "elsewhere"])
def test_what_a_collector_answers_holds_nothing_up(
    manner: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    with collecting() as collector:
        traces = tracing(collector.url)
        nobodys = traces.caller(NOBODY.get)
        collector.manner = manner  # type: ignore[assignment]
        traces.begin(nobodys, 1, {"utterance": 1}).end({})
        end = time.monotonic() + 60
        while not collector.asked:
            assert time.monotonic() < end
            time.sleep(0.01)
        collector.manner = "well"
        traces.begin(nobodys, 1, {"utterance": 2}).end({})
        collector.wait(1 if manner == "elsewhere" else 2)
        traces.close()
    last = attributes(collector.spans[-1])
    assert last["lipsync.utterance"] == 2
    told = [r.getMessage() for r in caplog.records if r.name == "lipsync.tracing"]
    assert len(told) == (manner == "elsewhere"), told


def test_a_collector_that_is_gone_costs_a_line_and_a_bounded_queue(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "50")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    with nobody() as url:
        traces = tracing(url)
        nobodys = traces.caller(NOBODY.get)
        for _ in range(1000):
            traces.begin(nobodys, 1, {}).end({})
        began = time.monotonic()
        traces.close()
    assert time.monotonic() - began < 60, "it ends; how long it may take: FLUSH_S"
    told = [r.getMessage() for r in caplog.records if r.name == "lipsync.tracing"]
    assert len(told) == 1, "in a minute"
    assert told[0].startswith("OpenTelemetry warns reason=")


def test_nothing_of_it_runs_on_where_it_is_only_checked() -> None:
    before = threading.active_count()
    with nobody() as url:
        check_tracing(Config(endpoint=url))
    assert threading.active_count() == before
    check_tracing(Config())
    assert FLUSH_S <= 2


# ---------------------------------------------------------------- what cannot be
def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"tracing\.endpoint needs OpenTelemetry .*pip install"):
        check_tracing(Config(endpoint="http://127.0.0.1:4318"))


def test_variables_that_cannot_be_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with pytest.raises(ConfigError, match="OTEL_"):
        check_tracing(Config(endpoint="http://127.0.0.1:4318"))


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("", ""),
        (" http://otel:4318/ ", "http://otel:4318/v1/traces"),
        ("https://[::1]:4318", "https://[::1]:4318/v1/traces"),
        ("https://otel.example/api/otlp/v1/traces", "https://otel.example/api/otlp/v1/traces"),
    ],
)
def test_a_collector_is_named_by_its_url(text: str, form: str) -> None:
    assert canonical.collector(text) == form


@pytest.mark.parametrize(
    "text",
    [
        "otel:4318", "grpc://otel:4317", "http://", "http://otel:x", "http://o tel", "http://[",
        "http://me:secret@otel", "http://otel/?key=secret", "http://otel/#x", "http://otél/",
    ],
)  # fmt: skip
def test_what_is_no_collector_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"URL|OTEL_EXPORTER_OTLP_HEADERS"):
        canonical.collector(text)
