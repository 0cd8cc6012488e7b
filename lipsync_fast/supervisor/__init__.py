# SPDX-License-Identifier: Apache-2.0
"""The supervisor: the process that starts, watches and replaces fronts and engines.

launch  ─► place (private folder, lock), ports (listening sockets), devices (which engines)
        ─► births (children), before anything slow is imported here
life    ─► one loop: deaths, messages, silence, signals, and what follows from them
           roster (who there is), talk (the control socket), avatars (who loads what),
           pairs (rings), report (what is told of it all)
"""
