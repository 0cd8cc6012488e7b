# SPDX-License-Identifier: Apache-2.0
"""The server's status as numbers for Prometheus.

Everything is taken from the supervisor's status when it is asked for: nothing is counted here, and
every front tells the same of all. A process's counters begin at 0 with it; ``engine`` and ``front``
name processes, and a name is never used again, so that no counter ever falls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, samples
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from lipsync_fast.histograms import Durations, Exemplar
from lipsync_fast.ipc.status import (
    AvatarStatus,
    EngineStatus,
    FrontStatus,
    GatewayStatus,
    ServerStatus,
)

P = "lipsync_fast_"
KEPT = ("found", "missed", "kept", "refused", "evicted")
UTTERANCES = ("hits", "misses", "at_once", "named")
TEXTS = ("said", "failed", "cut")
STATES = ("starting", "ready", "spare", "draining", "gone")
OPEN_METRICS = "application/openmetrics-text"


def metrics_text(status: ServerStatus | None, accept: str = "") -> tuple[bytes, str]:
    """The text, and its Content-Type; without a status, that there is none.

    Args:
        accept: what is asked for, as in a request's Accept: OpenMetrics, which has exemplars, where
            that is named; else Prometheus's own text.
    """
    registry = CollectorRegistry()
    registry.register(StatusCollector(status))
    if any(each.partition(";")[0].strip() == OPEN_METRICS for each in accept.lower().split(",")):
        written: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        return written, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


class StatusCollector(Collector):
    """Metrics of one status."""

    def __init__(self, status: ServerStatus | None) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        status = self._status
        yield _gauge("up", "Whether the supervisor's status is known.", float(status is not None))
        if status is None:
            return
        info = GaugeMetricFamily(P + "info", "Always 1.", labels=["version"])
        info.add_metric([status.version], 1)
        yield info
        yield _gauge("uptime_seconds", "Since the server's start.", status.uptime_s)
        yield _gauge("draining", "Whether it is about to go.", float(status.state == "draining"))
        yield _gauge("capacity_fps", "Frames a second that all engines can make.", status.capacity)
        yield _gauge("speakers_limit", "Sessions that may speak at once.", status.speakers)
        yield _gauge(
            "frames_per_second", "Frames sent a second, of lipsync.v1.", status.frames_per_s
        )
        yield _counter(
            "control_ignored", "Control messages that could not be read.", status.ignored
        )
        yield from _avatars(status.avatars)
        yield from _engines(status.engines)
        yield from _fronts(status.fronts)
        if status.gateways:
            yield from _gateways(status.gateways)


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(P + name, about, value=value)


def _counter(name: str, about: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(P + name, about, value=value)


def _histogram(name: str, about: str, *labels: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(P + name, about, labels=labels)


def _add(
    family: HistogramMetricFamily,
    labels: Sequence[str],
    durations: Durations,
    exemplars: Mapping[str, Exemplar] | None = None,
) -> None:
    """A process's part of a histogram; where nothing was counted yet, that there was none."""
    counts = durations.counts or {"+Inf": 0}
    shown = {
        end: samples.Exemplar({"trace_id": e.trace_id}, e.seconds, e.at_s)
        for end, e in (exemplars or {}).items()
    }
    buckets: list[Any] = [
        # OpenMetrics has whole numbers in this form alone.
        (end if end == "+Inf" else str(float(end)), count, shown.get(end))
        for end, count in zip(counts, accumulate(counts.values()), strict=True)
    ]
    family.add_metric(labels, buckets, durations.sum_s)


def _avatars(avatars: Sequence[AvatarStatus]) -> Iterator[Metric]:
    number = GaugeMetricFamily(
        P + "avatar_version", "That sessions get which begin now; 0 for none.", labels=["avatar"]
    )
    labels = ["avatar", "version"]
    plain = {
        "avatar_uses": "Sessions, old clients and requests that use a version.",
        "avatar_engines": "Engines that hold it.",
        "avatar_loaded_seconds": "Since it came into use.",
    }
    gauges = {n: GaugeMetricFamily(P + n, about, labels=labels) for n, about in plain.items()}
    cache_bytes = GaugeMetricFamily(
        P + "avatar_cache_bytes", "What engines hold of it.", labels=[*labels, "kind"]
    )
    current = {a.name: 0 for a in avatars} | {
        a.name: a.version for a in avatars if a.state == "current"
    }
    for name, version in current.items():
        number.add_metric([name], version)
    for a in avatars:
        if a.state == "unloaded":
            continue
        who = [a.name, str(a.version)]
        values = (a.uses, len(a.engines), a.loaded_s)
        for gauge, value in zip(gauges.values(), values, strict=True):
            gauge.add_metric(who, value)
        cache_bytes.add_metric([*who, "own"], a.cached_bytes)
        cache_bytes.add_metric([*who, "shared"], a.shared_bytes)
    yield from (number, *gauges.values(), cache_bytes)


def _engines(engines: Sequence[EngineStatus]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        P + "engine_state", "1 for the state that it is in.", labels=["engine", "device", "state"]
    )
    restarts = CounterMetricFamily(
        P + "engine_restarts", "How often a place was filled again.", labels=["slot"]
    )
    frames = CounterMetricFamily(
        P + "engine_frames", "Jobs answered, by result.", labels=["engine", "result"]
    )
    inferences = CounterMetricFamily(
        P + "engine_inferences", "Frames that a network made.", labels=["engine"]
    )
    encoded = CounterMetricFamily(
        P + "engine_encoded", "Pictures of streams of H.264.", labels=["engine"]
    )
    kept = CounterMetricFamily(
        P + "utterance_frames",
        "Frames of utterances: found, missed, kept, refused, evicted.",
        labels=["engine", "result"],
    )
    kept_bytes = CounterMetricFamily(
        P + "utterance_kept_bytes", "Of frames that were kept.", labels=["engine"]
    )
    cache_bytes = GaugeMetricFamily(
        P + "engine_cache_bytes", "Memory that a cache holds.", labels=["engine", "cache"]
    )
    memory = GaugeMetricFamily(
        P + "engine_device_memory_bytes",
        "Of an engine's GPU, whoever uses it.",
        labels=["engine", "device", "kind"],
    )
    spent = CounterMetricFamily(
        P + "engine_cpu_seconds", "Processor time, by what for.", labels=["engine", "part"]
    )
    queued = _histogram(
        "engine_queue_seconds", "That spoken frames waited before they were begun.", "engine"
    )
    took = _histogram(
        "engine_frame_seconds", "From a spoken frame's beginning to its picture.", "engine"
    )
    stages = _histogram(
        "engine_stage_seconds", "What that is spent on, of a frame or a batch.", "engine", "stage"
    )
    plain = {
        "engine_capacity_fps": "Frames a second, measured.",
        "engine_frames_per_second": "Frames being made a second.",
        "engine_waiting_jobs": "Jobs that wait in the engine.",
        "engine_oldest_job_seconds": "How long the oldest has waited.",
        "engine_silent_seconds": "Since its last heartbeat.",
        "engine_encodes_per_second": "Pictures of H.264 that could be encoded a second.",
    }
    gauges = {n: GaugeMetricFamily(P + n, about, labels=["engine"]) for n, about in plain.items()}
    for e in engines:
        for name in STATES:
            state.add_metric([e.name, e.device, name], float(e.state == name))
        restarts.add_metric([str(e.slot)], e.restarts)
        load = e.load
        results = ("made", load.made), ("skipped", load.skipped), ("failed", load.failed)
        for result, count in (*results, ("dropped", load.dropped), ("damaged", load.damaged)):
            frames.add_metric([e.name, result], count)
        inferences.add_metric([e.name], load.inferences)
        encoded.add_metric([e.name], load.encoded)
        for result in KEPT:
            kept.add_metric([e.name, result], load.store.get(result, 0))
        kept_bytes.add_metric([e.name], load.store.get("kept_bytes", 0))
        for cache, size in load.cache_bytes.items():
            cache_bytes.add_metric([e.name, cache], size)
        if load.device_memory_total:
            memory.add_metric([e.name, e.device, "used"], load.device_memory_used)
            memory.add_metric([e.name, e.device, "total"], load.device_memory_total)
        for part, seconds in load.spent_s.items():
            spent.add_metric([e.name, part], seconds)
        _add(queued, [e.name], load.queue_time)
        _add(took, [e.name], load.frame_time)
        for stage, durations in load.stages.items():
            _add(stages, [e.name, stage], durations)
        oldest_s, encodes = load.oldest_ms / 1e3, load.encodes_per_s
        values = (e.capacity, load.frames_per_s, load.waiting, oldest_s, e.silent_s, encodes)
        for gauge, value in zip(gauges.values(), values, strict=True):
            gauge.add_metric([e.name], value)
    yield from (state, restarts, frames, inferences, encoded, kept, kept_bytes)
    yield from (cache_bytes, memory, spent, queued, took, stages)
    yield from gauges.values()
    yield _gauge(
        "utterance_store_bytes",
        "Of all frames that are kept, pre-rendered ones among them.",
        max((e.load.store_bytes for e in engines), default=0),
    )


def _fronts(fronts: Sequence[FrontStatus]) -> Iterator[Metric]:
    counted = {
        "connections_opened": "Connections of clients, ever.",
        "requests": "Requests of the old protocols, answered with a picture.",
        "request_errors": "The same, answered with an error.",
        "frames_sent": "Frames sent, of lipsync.v1.",
        "idle_frames_sent": "Of these, without speech.",
        "frames_late": "Slots of speech that showed the last frame again.",
        "frames_skipped": "Frames not sent to clients that read slowly.",
        "frames_left_out": "Frames of speech not made, on purpose.",
        "sent_bytes": "Of pictures.",
        "text_characters": "Of texts that were given to the speech synthesis.",
        "jobs_redispatched": "Jobs given to another engine when theirs had died.",
    }
    now = {
        "connections": "Clients connected.",
        "sessions": "Sessions of lipsync.v1.",
        "speaking": "Sessions that speak.",
        "encoding": "What encoding H.264 costs those that speak besides, in speakers.",
        "queued_seconds": "Sound of all sessions that has no slot yet.",
        "rest_stride": "Sessions that rest are shown one slot in so many.",
        "speech_stride": "Sessions that speak are shown one frame in so many.",
    }
    counters = {
        n: CounterMetricFamily(P + n, about, labels=["front"]) for n, about in counted.items()
    }
    gauges = {n: GaugeMetricFamily(P + n, about, labels=["front"]) for n, about in now.items()}
    refused = CounterMetricFamily(P + "refused", "Refused, by reason.", labels=["front", "reason"])
    errors = CounterMetricFamily(
        P + "errors", "Of clients and of the server, by code.", labels=["front", "code"]
    )
    utterances = CounterMetricFamily(
        P + "utterances",
        "Utterances: whose beginning was kept (hits) or not (misses), begun at once, said by name.",
        labels=["front", "result"],
    )
    texts = CounterMetricFamily(
        P + "texts", "Texts spoken: said to their end, failed, cut.", labels=["front", "result"]
    )
    latency = _histogram(
        "latency_seconds", "From a spoken frame's last sample to the socket.", "front"
    )
    first = _histogram(
        "first_picture_seconds", "From an utterance's first sound to its first picture.", "front"
    )
    lasted = _histogram("session_duration_seconds", "Of sessions that have ended.", "front")
    for f in fronts:
        load = f.load
        values: tuple[float, ...] = (
            load.opened,
            load.requests,
            load.request_errors,
            load.frames,
            load.idle_frames,
            load.late,
            load.skipped,
            load.left_out,
            load.bytes,
            load.text_characters,
            load.redispatched,
        )
        for counter, value in zip(counters.values(), values, strict=True):
            counter.add_metric([f.name], value)
        values = (
            load.connections,
            load.sessions,
            load.speaking,
            load.encoding,
            load.queued_s,
            load.rest_stride,
            load.speech_stride,
        )
        for gauge, value in zip(gauges.values(), values, strict=True):
            gauge.add_metric([f.name], value)
        for reason, count in load.refused.items():
            refused.add_metric([f.name, reason], count)
        for code, count in load.errors.items():
            errors.add_metric([f.name, code], count)
        for result in UTTERANCES:
            utterances.add_metric([f.name, result], load.utterances.get(result, 0))
        for result in TEXTS:
            texts.add_metric([f.name, result], load.texts.get(result, 0))
        took, traced = load.latency_sum_ms / 1e3, load.exemplars
        _add(latency, [f.name], Durations(load.latency_counts, took), traced.get("latency"))
        _add(first, [f.name], load.first_picture, traced.get("first_picture"))
        _add(lasted, [f.name], load.session_time)
    yield from (*counters.values(), *gauges.values(), refused, errors, utterances, texts)
    yield from (latency, first, lasted)


def _gateways(gateways: Sequence[GatewayStatus]) -> Iterator[Metric]:
    up = GaugeMetricFamily(P + "gateway_up", "Whether it serves.", labels=["gateway"])
    begun = CounterMetricFamily(
        P + "gateway_calls", "Calls ever, by name.", labels=["gateway", "protocol", "call"]
    )
    links = GaugeMetricFamily(
        P + "gateway_links", "Connections from it to fronts.", labels=["gateway"]
    )
    labels = ["gateway", "protocol"]
    calls = GaugeMetricFamily(
        P + "gateway_calls_now", "Calls that are being answered.", labels=labels
    )
    counted = {
        "gateway_calls_failed": "Calls that ended with a status, not with an answer.",
        "gateway_requests_refused": "Requests answered by words instead of a picture.",
        "gateway_pictures": "Pictures sent.",
        "gateway_sent_bytes": "Of pictures.",
    }
    counters = {n: CounterMetricFamily(P + n, about, labels=labels) for n, about in counted.items()}
    for g in gateways:
        load = g.load
        up.add_metric([g.name], float(g.state == "ready"))
        links.add_metric([g.name], load.links)
        for name, count in load.begun.items():
            protocol, _, call = name.partition("/")
            begun.add_metric([g.name, protocol, call], count)
        for protocol, count in load.calls.items():
            calls.add_metric([g.name, protocol], count)
        all_counts = (load.failed, load.refused, load.pictures, load.bytes)
        for counter, counts in zip(counters.values(), all_counts, strict=True):
            for protocol, count in counts.items():
                counter.add_metric([g.name, protocol], count)
    yield from (up, begun, calls, links, *counters.values())
    restarts = sum(g.restarts for g in gateways)
    yield _counter("gateway_restarts", "How often its place was filled again.", restarts)
