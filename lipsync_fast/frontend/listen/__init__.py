# SPDX-License-Identifier: Apache-2.0
"""The stream ports: bytes become a socket, and a socket finds its protocol."""
