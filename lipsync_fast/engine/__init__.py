# SPDX-License-Identifier: Apache-2.0
"""The engine: from audio windows and avatar frames to pictures."""
