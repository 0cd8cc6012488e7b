# SPDX-License-Identifier: Apache-2.0
"""A session of lipsync.v1: handshake, client audio, what is sent, and its end."""
