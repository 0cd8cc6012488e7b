# SPDX-License-Identifier: Apache-2.0
"""The HTTP port does what its description says: asked by schemathesis, as strangers would ask."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from talking import ALONE, Serve

from lipsync_fast.frontend.http.openapi import document

schemathesis = pytest.importorskip(
    "schemathesis", reason="schemathesis is not installed (extra test)"
)

EXAMPLES = 15
"""Of each operation: some hundred requests in all."""
OPERATIONS = [
    (path, method)
    for path, methods in document()["paths"].items()
    for method in methods
    if path != "/models/{name}/video.mp4"  # making one takes seconds, and is tested by itself
]


@pytest.fixture(scope="module")
def described(shared_server: Serve) -> Any:
    server = shared_server({"engines": ALONE, "live": {"speakers": 1}})
    return schemathesis.openapi.from_url(f"{server.http_url}/openapi.json")


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_answers_are_as_described(described: Any, path: str, method: str) -> None:
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    operation = described[path][method.upper()]
    # A request at /ws that asks for no upgrade is never accepted: 426 is the answer to it.
    unasked = [positive_data_acceptance] if path == "/ws" else []

    @given(case=operation.as_strategy())
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        case.call_and_validate(timeout=60, excluded_checks=unasked)

    ask()
