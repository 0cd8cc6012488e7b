# SPDX-License-Identifier: Apache-2.0
"""What training refuses, and why it stops."""

from __future__ import annotations

from lipsync_fast.errors import LipsyncError


class TrainingError(LipsyncError):
    """A training cannot begin, go on or end well; the message says what to do."""
