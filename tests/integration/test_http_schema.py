# SPDX-License-Identifier: Apache-2.0
"""The HTTP port does what its description says: asked by schemathesis, as strangers would ask."""

from __future__ import annotations

import pytest

pytest.importorskip("schemathesis", reason="schemathesis is not installed (extra test)")

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from talking import ALONE, Serve

EXAMPLES = 15
"""Of each operation: some hundred requests in all."""


@pytest.fixture
def described(shared_server: Serve) -> schemathesis.BaseSchema:
    server = shared_server({"engines": ALONE, "live": {"speakers": 1}})
    schema = schemathesis.openapi.from_url(f"{server.http_url}/openapi.json")
    # Making a video takes seconds, and is tested by itself.
    return schema.exclude(path="/models/{name}/video.mp4")


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_answers_are_as_described(case: Case) -> None:
    case.call_and_validate(timeout=60)
