# SPDX-License-Identifier: Apache-2.0
"""The supervisor: the process that starts, watches and replaces fronts and engines.

launch  ─► place (private folder, lock), ports (listening sockets), mps (sharing a GPU)
        ─► gpus (what the machine shows), devices (which engines it gets)
        ─► births (children), before anything slow is imported here
life    ─► one loop: deaths, messages, silence, signals, and what follows from them
           roster (who there is), talk (the control socket), avatars (who loads what),
           replicas (which engines hold it), pairs (rings), report (what is told of it all)
"""
