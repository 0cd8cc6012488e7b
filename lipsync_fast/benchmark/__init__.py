# SPDX-License-Identifier: Apache-2.0
"""What this machine reaches, next to the ways of working that lipsync-fast replaces.

``lipsync-fast bench`` and ``bench/run.py`` run it. The real server is measured over real sockets;
peers are written here as straightforwardly as their projects work, and make the same pictures.
"""
