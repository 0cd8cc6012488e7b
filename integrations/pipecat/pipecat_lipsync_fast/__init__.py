# SPDX-License-Identifier: Apache-2.0
"""A face for Pipecat's voice agents."""

from pipecat_lipsync_fast.video import LipsyncFastVideoService

__all__ = ["LipsyncFastVideoService"]
