# SPDX-License-Identifier: Apache-2.0
"""Who asks, and what that one may: what a request's head is resolved to, once."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from lipsync_fast.errors import AvatarNotFoundError

MOST_NAME = 200
"""Characters of a subject's name."""
Name = Annotated[str, Meta(min_length=1, max_length=MOST_NAME)]
AtLeastOne = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Pace = Literal["live", "any"]


class Allowance(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """What a token allows: the claim ``lipsync`` of a JWT, or what stands beside an API key.

    A field that is not known makes it unreadable: a limit that is spelt wrongly is none.

    Attributes:
        avatars: that may be used; all where None.
        sessions: connections at once; speakers: sessions that speak at once; seconds_per_day: of
            speech; connects_per_minute: upgrades, and requests of HTTP. Where None, what the
            configuration says of every subject (``limits.…_per_subject``).
        pace: "live": sessions in real time alone.
        admin: may load and unload avatars, and send avatars to rooms of LiveKit.
    """

    avatars: tuple[Name, ...] | None = None
    sessions: AtLeastOne | None = None
    speakers: AtLeastOne | None = None
    seconds_per_day: Seconds | None = None
    connects_per_minute: AtLeastOne | None = None
    pace: Pace = "any"
    admin: bool = False


class Subject(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who asks.

    Attributes:
        name: the JWT's ``sub``, or the API key's name; empty for whoever shows the shared token,
            or none where none is asked for.
        by: how that is known; a JWT's "anna" is not the key's.
        key: id of the API key; signer: ``mark`` of the key that has signed the JWT.
    """

    name: str = ""
    by: Literal["", "jwt", "key"] = ""
    key: str = ""
    signer: str = ""
    allowed: Allowance = Allowance()

    @property
    def account(self) -> str:
        """What it is counted under; empty where it has no name."""
        return f"{self.by}:{self.name}" if self.name else ""

    def may_use(self, avatar: str) -> bool:
        """Whether it may use an avatar, by its name."""
        return self.allowed.avatars is None or avatar in self.allowed.avatars

    def avatar(self, asked: str, default: str) -> str:
        """The avatar that is meant by a name; by none, the server's default, or, where that may not
        be used, the first that may.

        Raises:
            AvatarNotFoundError: it may not be used, which is told like one that is not there.
        """
        name = asked or default
        if self.may_use(name):
            return name
        if not asked and self.allowed.avatars:
            return self.allowed.avatars[0]
        raise AvatarNotFoundError(f"there is no avatar {name[:64]!r} for this token")


ANYONE = Subject()
"""Whoever shows the shared token, or none where none is asked for."""
