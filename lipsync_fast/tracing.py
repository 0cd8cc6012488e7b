# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry traces (extra ``tracing``): a span for each utterance, for an operator's collector.

    upgrade ─► caller ─► begin ─► UtteranceSpan ─► end ─► queue ─► thread ─► OTLP/HTTP

Who speaks waits for nobody: a span that has ended goes into the SDK's queue, which is bounded and
drops, and a thread of the SDK sends it. A collector that is gone, slow, or answers nonsense costs
spans, and a line in the log once a minute. What is said is in no span.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from lipsync_fast.config import Tracing as TracingConfig
from lipsync_fast.errors import ConfigError, words_of
from lipsync_fast.extras import how_to_get
from lipsync_fast.logs import get_logger
from lipsync_fast.version import __version__

log = get_logger("lipsync.tracing")
Value = bool | int | float | str | list[str]
HEADERS = {"traceparent": 512, "tracestate": 4096}
"""Of an upgrade, those that say whose part it is, and their most characters: longer ones are
passed over."""
FLUSH_S = 1.0
"""For what waits to be sent, at the end."""
WARN_S = 60.0
"""How often it is said that a collector takes nothing."""


class UtteranceSpan:
    """The span of an utterance; one thread.

    Attributes:
        trace_id: 32 digits, where it is sampled; else nothing.
    """

    __slots__ = ("_error", "_span", "_wall_ns", "trace_id")

    def __init__(self, span: Any, wall_ns: int, error: Callable[[str], Any]) -> None:
        self._span, self._wall_ns, self._error = span, wall_ns, error
        context = span.get_span_context()
        self.trace_id = f"{context.trace_id:032x}" if context.trace_flags.sampled else ""

    def happened(self, event: str) -> None:
        """Something has happened in it now, in words that never vary."""
        self._span.add_event(event, timestamp=time.monotonic_ns() + self._wall_ns)

    def end(self, attributes: Mapping[str, Value], failure: str = "") -> None:
        """It ends now.

        Args:
            attributes: how it went.
            failure: why it failed; nothing where it did not.
        """
        if self._span.is_recording():
            self._span.set_attributes({f"lipsync.{k}": v for k, v in attributes.items()})
            if failure:
                self._span.set_status(self._error(failure))
        self._span.end(time.monotonic_ns() + self._wall_ns)


class Tracing:
    """The spans of one process, from its start to ``close``.

    Args:
        config: with an endpoint.
        process: this one's name.

    Raises:
        ConfigError: the extra is not installed, or variables of OpenTelemetry's say what cannot be.
    """

    def __init__(self, config: TracingConfig, process: str) -> None:
        try:
            from opentelemetry.context import Context
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace import SpanKind, Status, StatusCode
            from opentelemetry.trace.propagation import tracecontext
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"tracing.endpoint needs OpenTelemetry ({error.name} is not installed):"
                f" {how_to_get('tracing')}"
            ) from None
        _say_seldom()
        own = {"service.name": "lipsync-fast", "service.version": __version__}
        try:
            variables = OTELResourceDetector().detect().attributes
            self._provider = TracerProvider(
                sampler=ParentBased(TraceIdRatioBased(config.sample)),
                resource=Resource.create({**own, "lipsync.process": process, **variables}),
                shutdown_on_exit=False,
            )
            exporter = OTLPSpanExporter(endpoint=config.endpoint, session=_session())
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        except (ValueError, TypeError, OSError) as error:
            raise ConfigError(
                f"tracing: an OTEL_ variable cannot be used: {words_of(error)}"
            ) from None
        self._tracer = self._provider.get_tracer("lipsync-fast", __version__)
        self._nobody, self._kind = Context(), SpanKind.SERVER
        self._extract = tracecontext.TraceContextTextMapPropagator().extract
        self._error = lambda reason: Status(StatusCode.ERROR, reason)

    def caller(self, header: Callable[[str], str | None]) -> Any:
        """Whose part a connection's utterances are, for ``begin``; what is none is passed over.

        Args:
            header: a header of its upgrade, by name; None where there is none.
        """
        given = {name: header(name) or "" for name in HEADERS}
        fine = {name: text for name, text in given.items() if len(text) <= HEADERS[name]}
        return self._extract(fine, self._nobody)

    def begin(self, caller: Any, begun_ns: int, attributes: Mapping[str, Value]) -> UtteranceSpan:
        """An utterance has begun.

        Args:
            caller: of its connection.
            begun_ns: when, on CLOCK_MONOTONIC.
            attributes: what is known of it.
        """
        wall_ns = time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span(
            "utterance",
            caller,
            self._kind,
            {f"lipsync.{k}": v for k, v in attributes.items()},
            start_time=begun_ns + wall_ns,
        )
        return UtteranceSpan(span, wall_ns, self._error)

    def close(self) -> None:
        """Send what waits, for ``FLUSH_S`` at most."""
        # In a thread: the SDK's own bounds are no bounds for a collector that never answers.
        ending = threading.Thread(target=self._provider.shutdown, name="tracing-end", daemon=True)
        ending.start()
        ending.join(FLUSH_S)


def open_tracing(config: TracingConfig, process: str) -> Tracing | None:
    """The traces of a process; None where none are wanted.

    Raises:
        ConfigError: see ``Tracing``.
    """
    return Tracing(config, process) if config.endpoint else None


def check_tracing(config: TracingConfig) -> None:
    """See that it can be traced as configured; nothing is sent.

    Raises:
        ConfigError: see ``Tracing``.
    """
    tried = open_tracing(config, "")
    if tried is not None:
        tried.close()


def _session() -> Any:
    """What requests to a collector are made with: its status is all that is read of an answer, so
    that none can be too long, and it is not followed elsewhere."""
    import requests

    def status_alone(answer: requests.Response, **options: object) -> requests.Response:
        if answer.is_redirect:
            answer.close()
            raise requests.TooManyRedirects("the collector redirects; see tracing.endpoint")
        found = requests.Response()
        found.status_code, found.reason = answer.status_code, answer.reason
        found.headers, found.url, found.request = answer.headers, answer.url, answer.request
        answer.close()
        return found

    session = requests.Session()
    session.stream = True
    session.hooks["response"] = [status_alone]
    return session


class _Seldom(logging.Handler):
    """What OpenTelemetry says, once a minute."""

    _next_s = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Say it, or nothing."""
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + WARN_S
            log.warning("OpenTelemetry warns", reason=record.getMessage())


def _say_seldom() -> None:
    """Have the library's messages, several for each attempt, said once a minute."""
    logger = logging.getLogger("opentelemetry")
    logger.handlers[:], logger.propagate = [_Seldom(logging.WARNING)], False
