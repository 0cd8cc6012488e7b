# SPDX-License-Identifier: Apache-2.0
"""/v1/avatars: which there are, and their loading and unloading."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import quote

import msgspec
import trio
from msgspec import Meta
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from lipsync_fast.errors import AvatarError, EngineLostError, OverloadedError
from lipsync_fast.frontend.http.answers import as_json, problem
from lipsync_fast.frontend.services import Services
from lipsync_fast.ipc.control import Change
from lipsync_fast.ipc.status import AvatarStatus
from lipsync_fast.tokens.refusals import RETRY_S, retry_after
from lipsync_fast.tokens.subject import Subject

MOST_BODY = 64 << 10
BODY_S = 10.0
"""How long the body of a request may take to come."""
STATUSES: dict[Change, int] = {
    "loaded": 200,
    "unchanged": 200,
    "unloaded": 200,
    "missing": 404,
    "refused": 409,
    "late": 503,
}


class AvatarFacts(msgspec.Struct):
    """An avatar in /v1/avatars: its size in pixels, its frames, whose it is, where to look, and how
    it is served now.

    Attributes:
        version: 1 is the first one of that name; 0 while nobody has asked for it.
        uses: sessions, old clients and requests; of all its versions.
        engines: how many hold it.
        loaded_s: since it came into use.
        cached_bytes: what engines' caches hold of it; shared_bytes: what they hold in common.
    """

    name: str
    width: int
    height: int
    fps: int
    frames: int
    loop: str
    synthetic: bool
    licence: str
    provenance: str
    consent: str
    thumbnail: str
    video: str
    version: int = 0
    uses: int = 0
    engines: int = 0
    loaded_s: float = 0.0
    cached_bytes: int = 0
    shared_bytes: int = 0


class Avatars(msgspec.Struct):
    """The answer of /v1/avatars; ``unloaded``: names that are refused until they are loaded."""

    default: str
    avatars: list[AvatarFacts]
    unloaded: list[str]


class AvatarChange(msgspec.Struct):
    """What became of a change.

    Attributes:
        version: that sessions get now; 0 for none.
        reason: a sentence; empty where there is nothing to say.
    """

    name: str
    version: int
    state: Change
    reason: str


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a POST; may be left out.

    Attributes:
        path: of the package, directly in one of the folders of avatars; looked for by its name
            where empty.
    """

    path: Annotated[str, Meta(max_length=4096)] = ""


_WANTED = msgspec.json.Decoder(Wanted)


def facts_of(services: Services, name: str, subject: Subject) -> AvatarFacts:
    """What can be told to somebody of an avatar (opens it: for a thread).

    Raises:
        AvatarError: there is none, or it cannot be used.
    """
    package = services.avatars.peek(name, subject)
    m, part = package.manifest, quote(name, safe="")
    facts = AvatarFacts(
        name,
        m.frame_width,
        m.frame_height,
        m.fps,
        m.frame_count,
        m.loop,
        m.synthetic,
        m.licence,
        m.provenance,
        m.consent,
        f"/v1/avatars/{part}/thumbnail.jpg",
        f"/models/{part}/video.mp4",
    )
    current = services.avatars.catalogue.current(name or services.avatars.default)
    facts.version = 0 if current is None else current.number
    status = services.statistics.server  # a second old at most
    versions = [a for a in status.avatars if a.name == name] if status is not None else []
    facts.uses = sum(version.uses for version in versions)
    for version in versions:
        if version.state == "current" and version.version == facts.version:
            _add_figures(facts, version)
    return facts


def _add_figures(facts: AvatarFacts, current: AvatarStatus) -> None:
    facts.engines = len(current.engines)
    facts.loaded_s = round(current.loaded_s, 3)
    facts.cached_bytes, facts.shared_bytes = current.cached_bytes, current.shared_bytes


def all_facts(services: Services, subject: Subject) -> Avatars:
    """What can be told to somebody of all avatars; opens them: for a thread."""
    avatars, found = services.avatars, []
    for name in avatars.names(subject):
        try:
            found.append(facts_of(services, name, subject))
        except AvatarError:  # gone or damaged since it was listed
            continue
    unloaded = sorted(filter(subject.may_use, avatars.catalogue.unloaded))
    return Avatars(avatars.default_of(subject), found, unloaded)


async def change_avatar(services: Services, request: Request, subject: Subject) -> Response:
    """Load, replace (POST) or unload (DELETE); answers when that is done."""
    name: str = request.path_params["name"]
    if not name.isprintable() or len(name) > 1000 or not subject.may_use(name):
        missing = AvatarChange(name[:1000], 0, "missing", "there is no avatar of that name")
        return as_json(missing, STATUSES["missing"])
    wanted = Wanted()
    if request.method == "POST":
        try:
            wanted = await _body(request)
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            return problem(400, f"the body cannot be read: {error}")
        except ClientDisconnect:
            return problem(400, "the client has gone")  # nobody reads it
        except trio.TooSlowError:
            return problem(408, f"the body has not come within {BODY_S:g} s")
    action: Literal["load", "unload"] = "load" if request.method == "POST" else "unload"
    try:
        done = await services.avatar_changes.change(action, name, wanted.path)
    except (OverloadedError, EngineLostError) as error:
        answer = problem(503, error)
        answer.headers["Retry-After"] = retry_after(RETRY_S)
        return answer
    change = AvatarChange(done.name, done.version, done.state, done.reason)
    return as_json(change, STATUSES[done.state])


async def _body(request: Request) -> Wanted:
    """What a client wants.

    Raises:
        msgspec.MsgspecError: it cannot be read.
        trio.TooSlowError: it does not come.
    """
    data = b""
    with trio.fail_after(BODY_S):
        async for piece in request.stream():
            data += piece
            if len(data) > MOST_BODY:
                raise msgspec.DecodeError(f"more than {MOST_BODY} bytes")
    return _WANTED.decode(data) if data.strip() else Wanted()
