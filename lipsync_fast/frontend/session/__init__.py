# SPDX-License-Identifier: Apache-2.0
"""lipsync.v1: handshake, client audio, what is sent.

handshake      messages before the session starts
session        joins the parts of a session, and ends them
receiver       what the client sends, one message after the other
client_audio   its PCM: bytes to samples at 16 kHz, and back as an echo
intake         its utterances, as many as may be spoken
driver         ticks the playout; jobs out, answers in
shown_avatar   which avatar, and how its pictures look
media          pictures behind their headers
spoken         how each of its utterances goes
statistics     how it goes
outbox         what waits to be sent
"""
