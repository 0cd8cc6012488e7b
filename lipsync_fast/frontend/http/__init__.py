# SPDX-License-Identifier: Apache-2.0
"""The HTTP port: the page, /ws, and what the server tells of itself.

serving.py    connections, by Hypercorn's trio worker
guard.py      who may ask, and what headers every answer has
app.py        the routes
websocket.py  /ws as a ``access.socket.Socket``
content.py    bytes with an ETag, whole or in ranges
metrics.py    numbers for Prometheus
openapi.py    the routes, described
"""
