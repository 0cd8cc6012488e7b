# SPDX-License-Identifier: Apache-2.0
"""The families of networks: what each is, in a module of its own, and which there are."""

from __future__ import annotations

from typing import Literal

from lipsync_fast.families.base import CropRule, Family, Models
from lipsync_fast.families.synctalk2d import SYNCTALK2D
from lipsync_fast.families.wav2lip import WAV2LIP

FamilyName = Literal["synctalk2d", "wav2lip"]
FAMILIES: dict[str, Family] = {family.name: family for family in (SYNCTALK2D, WAV2LIP)}

__all__ = ["FAMILIES", "CropRule", "Family", "FamilyName", "Models"]
