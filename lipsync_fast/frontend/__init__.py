# SPDX-License-Identifier: Apache-2.0
"""The front process: what clients connect to; it owns sessions, and makes no pictures itself.

listen    bytes become a socket, and a socket finds its protocol
access    who may
session   lipsync.v1: handshake, client audio, what is sent
playout   which picture is due when: no I/O, the time is given
engines   jobs out, answers in
http, legacy, page   the other doors
"""
