# SPDX-License-Identifier: Apache-2.0
"""Import avatars that other software made (needs the extra ``train`` for their checkpoints).

The forms and their parts are in ``avatars.importing``; this is what the rest of the package uses.
"""

from __future__ import annotations

from lipsync_fast.avatars.importing.build import (
    Imported,
    Statements,
    import_avatar,
    import_synctalk,
)
from lipsync_fast.avatars.importing.landmarks import LANDMARKS, crop_rectangle, read_landmarks
from lipsync_fast.avatars.importing.pictures import keep_mask, numbered_pictures, read_picture
from lipsync_fast.avatars.importing.weights import find_audio_encoder, find_checkpoint

__all__ = [
    "LANDMARKS",
    "Imported",
    "Statements",
    "crop_rectangle",
    "find_audio_encoder",
    "find_checkpoint",
    "import_avatar",
    "import_synctalk",
    "keep_mask",
    "numbered_pictures",
    "read_landmarks",
    "read_picture",
]
