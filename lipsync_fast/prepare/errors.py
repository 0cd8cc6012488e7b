# SPDX-License-Identifier: Apache-2.0
"""What preparing refuses."""

from __future__ import annotations

from lipsync_fast.errors import AvatarError


class PrepareError(AvatarError):
    """A video cannot become an avatar as it is, or an option does not fit; says what to do."""
