# SPDX-License-Identifier: Apache-2.0
"""Data from strangers: the bounds that hold for it, and how it is read."""
