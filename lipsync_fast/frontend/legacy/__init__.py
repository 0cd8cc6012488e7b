# SPDX-License-Identifier: Apache-2.0
"""The protocols of the system that this one replaces, for clients that speak them already.

    wire          binary requests and replies, byte for byte
    json_messages the text messages on the same socket
    stitch        which sound a client's window shows, found by its contents
    pictures      one picture for a request, from any engine
    answers       what each message is answered
    connection    one connection: many requests at a time, replies in their order
    service       all connections of a front, and what they have in common
    video         an avatar's frames as an MP4
    counts        what the statistics of these protocols tell

``docs/old-clients.md`` says what clients may expect.
"""
