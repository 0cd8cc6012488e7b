# SPDX-License-Identifier: Apache-2.0
"""Training of an avatar's network on a prepared folder (extra ``train``).

``data`` says what a step learns from, ``losses`` and ``sync`` what it is told, ``trainer`` does the
steps, ``state`` keeps them over kills, ``validate`` looks at held-out frames, ``finish`` packs.
"""
