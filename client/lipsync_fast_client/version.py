# SPDX-License-Identifier: Apache-2.0
"""The version: that of the server, with which it is released (a test compares the two)."""

__version__ = "0.1.0"
