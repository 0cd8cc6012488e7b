# SPDX-License-Identifier: Apache-2.0
"""WebRTC for browsers (extra ``webrtc``): WHEP, and the routes of LiveTalking's web clients.

    POST /whep, /offer ─► offers ─► peers ─► peer ⇄ a session of lipsync.v1
                                              ├─ tracks: its access units and its sound, as they are
                                              └─ hearing: a microphone, or a recording, to PCM

A peer is a browser with a session of its own. Nothing is encoded here but sound (Opus), and nothing
decoded but what peers say.
"""
