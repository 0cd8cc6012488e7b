# SPDX-License-Identifier: Apache-2.0
"""Time as all parts count it: frames, slots and samples."""

from __future__ import annotations

FPS = 25
"""Video frames a second."""
SAMPLE_RATE = 16_000
"""Samples a second of all sound within."""
FRAME_SAMPLES = SAMPLE_RATE // FPS
"""Samples of one video frame."""
NS_PER_S = 1_000_000_000
SLOT_NS = NS_PER_S // FPS
"""Nanoseconds of one video frame."""
