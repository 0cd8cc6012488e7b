# SPDX-License-Identifier: Apache-2.0
"""Sound: resampling to 16 kHz, and mel rows and windows over a stream."""
