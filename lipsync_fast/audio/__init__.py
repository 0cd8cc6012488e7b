# SPDX-License-Identifier: Apache-2.0
"""Sound: reading media, resampling to 16 kHz, and mel rows and windows over a stream."""

SAMPLE_RATE = 16_000
"""Samples a second of everything after the door."""

FRAME_SAMPLES = 640
"""Samples of one video frame (40 ms at 16 kHz, 25 frames a second)."""
