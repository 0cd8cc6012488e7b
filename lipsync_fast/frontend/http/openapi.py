# SPDX-License-Identifier: Apache-2.0
"""The HTTP port's description (OpenAPI 3.1), as /openapi.json gives it.

Written by hand beside the routes; schemas come from the types that are sent. Tests hold it against
the routes and against what they answer.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from lipsync_fast.frontend.http.metrics import OPEN_METRICS
from lipsync_fast.ipc.status import ServerStatus
from lipsync_fast.version import __version__
from lipsync_fast_client.protocol import SUBPROTOCOL

JPEG, MP4, WAV = "image/jpeg", "video/mp4", "audio/wav"
Answers = dict[str, Any]


@cache
def document() -> dict[str, Any]:
    """The whole document."""
    from lipsync_fast.frontend.http.answers import Problem, Ticket
    from lipsync_fast.frontend.http.avatars import AvatarChange, AvatarFacts, Avatars, Wanted
    from lipsync_fast.frontend.http.health import Health, Live, Readiness

    types = (
        AvatarChange,
        AvatarFacts,
        Avatars,
        Health,
        Live,
        Problem,
        Readiness,
        ServerStatus,
        Ticket,
        Wanted,
    )
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lipsync-fast",
            "version": __version__,
            "summary": "Speech in, lip-synced frames of an avatar out.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(),
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "query": {"type": "apiKey", "in": "query", "name": "token"},
            },
        },
    }


def _paths() -> dict[str, Any]:
    name = {
        "name": "name",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": "An avatar's name.",
    }
    health = _schema("Health")
    readiness = _schema("Readiness")
    unready = {
        "name": "unready",
        "in": "query",
        "schema": {"type": "string", "enum": ["200", "404", "503"], "default": "503"},
        "description": "The status of an answer that says no, for balancers that close the"
        " sessions of servers that fail.",
    }
    cached = {"304": {"description": "As known by its ETag."}}
    ranged = cached | {
        "206": {"description": "The range that was asked for."},
        "416": {"description": "The range lies outside."},
    }
    missing = {"404": _answer("There is none.", _schema("Problem"))}
    html: Answers = {"text/html": {}}
    text: Answers = {"text/plain": {"schema": {"type": "string"}}}
    open_metrics: Answers = {OPEN_METRICS: {"schema": {"type": "string"}}}
    return {
        "/": _get("The page.", html, ranged, private=False),
        "/assets/{name}": _get(
            "A file of the page.", {"*/*": {}}, ranged | missing, [name], private=False
        ),
        "/favicon.ico": _get("The page's icon.", {"image/svg+xml": {}}, ranged, private=False),
        "/health": _get(
            "Whether frames can be made; in the old service's words.",
            health,
            {"503": _answer("They cannot.", health)},
            private=False,
        ),
        "/health/live": _get("Whether it answers at all.", _schema("Live"), {}, private=False),
        "/health/ready": _get(
            "Whether new sessions may come.",
            readiness,
            {
                "400": _answer("No such status.", _schema("Problem")),
                "404": _answer("They may not, where this status was asked for.", readiness),
                "503": _answer("They may not: it drains, or no engine works.", readiness),
            },
            [unready],
            private=False,
        ),
        "/openapi.json": _get("This document.", {"application/json": {}}, {}, private=False),
        "/stats": _get(
            "All that the server knows of itself.",
            _schema("ServerStatus"),
            {"503": _answer("Not known yet; see Retry-After.", _schema("Problem"))},
        ),
        "/metrics": _get("The same as numbers for Prometheus.", text | open_metrics, {}),
        "/v1/avatars": _get("The avatars that can be used.", _schema("Avatars"), {}),
        "/v1/avatars/{name}": _get("One of them.", _schema("AvatarFacts"), missing, [name])
        | {
            "post": _change(
                "Load an avatar, or what has taken its place: sessions that begin get it, others go"
                " on with what they have. Answers when that is done.",
                name,
                _schema("Wanted"),
            ),
            "delete": _change(
                "Unload an avatar: no session begins with it until it is loaded again.", name, None
            ),
        },
        "/v1/avatars/{name}/thumbnail.jpg": _get(
            "A small picture of an avatar.", {JPEG: {}}, ranged | missing, [name]
        ),
        "/v1/tickets": {
            "post": {
                "summary": "A ticket for whoever shows a token: it stands for the token in one"
                " upgrade to WebSocket (ticket=…, or the subprotocol lipsync.ticket.…), soon.",
                "responses": {
                    "201": _answer("It is made.", _schema("Ticket")),
                    "400": _answer("The token allows too much by name.", _schema("Problem")),
                    "401": {"description": "The token is not shown."},
                    "403": {"description": "Called by a name, or from a page, not allowed."},
                    "429": {"description": WRONG},
                },
                "security": [{}, {"bearer": []}, {"query": []}],
            }
        },
        "/v1/sample.wav": _get("A recording to try it with.", {WAV: {}}, ranged | missing),
        "/models/{name}/video.mp4": _get(
            "An avatar's frames, once from the first to the last; made when first asked for.",
            {MP4: {}},
            ranged | missing | {"500": _answer("It cannot be made.", _schema("Problem"))},
            [name],
        ),
        "/ws": _get(
            f"The stream: WebSocket, with subprotocol {SUBPROTOCOL} or the old protocols.",
            None,
            {
                "101": {"description": "It is open."},
                "400": {"description": "An upgrade that cannot be read."},
                "426": _answer("Not an upgrade to WebSocket.", _schema("Problem")),
                "503": _answer("Full; see Retry-After.", text),
            },
        ),
    }


WRONG = "Too many wrong tokens came from this address; see Retry-After."


def _schema(*names: str) -> Answers:
    """JSON of a type, or of one of several."""
    refs = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    return {"application/json": {"schema": refs[0] if len(refs) == 1 else {"oneOf": refs}}}


def _answer(description: str, content: Answers) -> Answers:
    return {"description": description, "content": content}


def _get(
    summary: str,
    content: Answers | None,
    others: Answers,
    parameters: list[Answers] | None = None,
    private: bool = True,
) -> Answers:
    """A path's only operation; ``private`` where a configured token must be shown."""
    answers = dict(others)
    if content is not None:
        answers["200"] = _answer("All of it.", content)
    answers["403"] = {"description": "Called by a name, or from a page, that is not allowed."}
    if private:
        answers["401"] = {"description": "The token is not shown."}
        answers["429"] = {"description": WRONG}
    operation: Answers = {"summary": summary, "responses": dict(sorted(answers.items()))}
    if parameters:
        operation["parameters"] = parameters
    operation["security"] = [{}, {"bearer": []}, {"query": []}] if private else []
    return {"get": operation}


def _change(summary: str, name: Answers, body: Answers | None) -> Answers:
    """An operation on an avatar, for this machine or with the admin token."""
    change = _schema("AvatarChange")
    answers = {
        "200": _answer("So it is now.", change),
        "400": _answer("The body cannot be read.", _schema("Problem")),
        "401": {"description": "The token is not shown."},
        "403": {"description": "Neither from this machine nor with the admin token."},
        "404": _answer("There is no such avatar.", change),
        "408": _answer("The body has not come in time.", _schema("Problem")),
        "409": _answer("It cannot be; all is as it was.", change),
        "429": {"description": WRONG},
        "503": _answer(
            "Not done in time, or too much is being changed; see Retry-After.",
            _schema("AvatarChange", "Problem"),
        ),
    }
    if body is None:
        del answers["400"], answers["408"]
    operation: Answers = {
        "summary": summary,
        "responses": answers,
        "parameters": [name],
        "security": [{}, {"bearer": []}],
    }
    if body is not None:
        operation["requestBody"] = {"required": False, "content": body}
    return operation
