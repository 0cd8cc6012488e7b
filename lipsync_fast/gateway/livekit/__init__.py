# SPDX-License-Identifier: Apache-2.0
"""LiveKit: agents ask by HTTP for an avatar, which joins their room."""
