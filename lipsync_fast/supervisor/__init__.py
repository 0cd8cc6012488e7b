# SPDX-License-Identifier: Apache-2.0
"""The supervisor: the process that starts, watches and replaces fronts and engines.

launch   ─► place (private folder, lock), ports (listening sockets), devices (which engines)
         ─► children (processes), before anything slow is imported here
life     ─► one loop: deaths, control messages, heartbeats; what follows from them
            avatars (who has loaded what), pairs (rings), report (what is told of it all)
"""
