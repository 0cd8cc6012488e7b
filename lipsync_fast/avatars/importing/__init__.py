# SPDX-License-Identifier: Apache-2.0
"""Bringing in avatars that other software made: one module a form, ``build`` for all of them."""
