# SPDX-License-Identifier: Apache-2.0
"""A server that is traced: what a collector gets of it, and what one that never answers costs."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from serving import Server, server
from talking import assert_whole, in_trio, say, speech, spoken, utterance

import lipsync_fast

pytest.importorskip("opentelemetry.sdk", reason="the extra tracing is not installed")
from collector import QUICK, Collector, attributes, collecting

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
CONFIG = """
[avatars]
default = "{avatar}"
[live]
margin_ms = 400
margin_most_ms = 400
half_rate = false
[engines]
spares = 0
hung_s = 20.0
[tracing]
endpoint = "{collector}"
"""


class Traced(NamedTuple):
    """A server, and where its traces go."""

    server: Server
    collector: Collector
    url: str
    http_url: str


@pytest.fixture(scope="module")
def traced(tiny_avatar: Path) -> Iterator[Traced]:
    with collecting() as collector:
        config = CONFIG.format(avatar=tiny_avatar, collector=collector.url)
        with server(config, environ=QUICK) as made:
            status = made.serving(spares=0)
            host = f"127.0.0.1:{status.http_port}"
            yield Traced(made, collector, f"ws://127.0.0.1:{status.ports[0]}", f"http://{host}")


async def one_utterance(url: str, headers: dict[str, str]) -> None:
    """Say half a second, and see that all of it comes."""
    async with lipsync_fast.connect(url, headers=headers, idle=False) as session:
        await say(session, speech(0.5))
        ended, before = await utterance(session, 1)
        assert_whole(ended, spoken(before), 13)


@in_trio
async def test_an_utterance_is_a_span_of_its_caller(traced: Traced) -> None:
    for number, url in enumerate((traced.url, traced.http_url.replace("http", "ws") + "/ws"), 1):
        await one_utterance(url, PARENT)
        span = traced.collector.wait(number)[-1]
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN), url
        said = attributes(span)
        assert said["lipsync.ended"] == "end"
        assert said["lipsync.frames"] == 13
        assert said["lipsync.sound_s"] == 0.5
        assert said["lipsync.engines"] == ["engine-1"]
        assert said["lipsync.first_ms"] > 0
        assert not span.status.code
    await one_utterance(traced.url, {"traceparent": "garbage"})
    assert traced.collector.wait(3)[-1].trace_id.hex() != TRACE
    traces = {span.trace_id.hex() for span in traced.collector.spans}
    kinds = {"lipsync_fast_latency_seconds", "lipsync_fast_first_picture_seconds"}
    traced.server.when(lambda status: with_exemplars(traced.http_url, traces) == kinds, "for both")
    (front,) = traced.server.status().fronts
    assert {e.trace_id for e in front.load.exemplars["first_picture"].values()} <= traces


def with_exemplars(url: str, traces: set[str]) -> set[str]:
    """Histograms that name some of these traces in OpenMetrics."""
    asked = urllib.request.Request(
        f"{url}/metrics", None, {"Accept": "application/openmetrics-text"}
    )
    with urllib.request.urlopen(asked) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        text = answer.read().decode()
    return {
        family.name
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.exemplar and sample.exemplar.labels["trace_id"] in traces
    }


@in_trio
async def test_a_collector_that_never_answers_costs_no_picture_and_no_patience(
    traced: Traced,
) -> None:
    traced.collector.manner = "silent"
    before = traced.collector.asked
    for _ in range(2):
        await one_utterance(traced.url, {})
    assert traced.server.stop() == 0
    assert traced.collector.asked > before
    assert "signal 9" not in traced.server.log, "each process has left by itself"
