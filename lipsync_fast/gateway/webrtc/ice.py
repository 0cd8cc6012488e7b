# SPDX-License-Identifier: Apache-2.0
"""Where media goes in and out: addresses and ports of this machine, and helpers of ICE.

aioice takes all addresses but the loopback ones, and any port; here both can be chosen. What is
replaced for that is a method of each connection (``get_component_candidates``).
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from aioice import Candidate
from aioice.candidate import candidate_foundation, candidate_priority
from aioice.ice import Connection, StunProtocol, server_reflexive_candidate
from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection

from lipsync_fast import canonical
from lipsync_fast.config import ServeConfig, WebRtc
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.gateway")
BUFFER = 1 << 20
"""Bytes of a socket's buffers."""
STUN_S = 2.0
"""How long a STUN server is waited for, by each offer."""
MOST_OF_STUN = 3
"""The first byte of a STUN message, at most (RFC 7983)."""
TRIES = 64
"""Ports that are tried, of a range, for an address."""


class Met(StunProtocol):
    """A socket that hears its peer: where media comes from an address that ICE has not met, or is
    nothing at all, it is dropped here, since aiortc would take it, and queue it without end.

    Args:
        heard: called for whatever comes from the peer: media, reports, or that it is still there.
    """

    def __init__(self, connection: Connection, heard: Callable[[], None]) -> None:
        super().__init__(connection)
        self._heard = heard

    def datagram_received(self, data: bytes | str, addr: tuple[Any, ...]) -> None:
        """What has come, from whomever."""
        peers = (pair.remote_addr for pair in self.receiver._check_list)
        met = (addr[0], addr[1]) in peers
        if met:
            self._heard()
        first = data[0] if isinstance(data, bytes) and data else MOST_OF_STUN + 1
        if first > MOST_OF_STUN and not (met and data):
            return
        try:
            super().datagram_received(data, addr)
        except Exception:  # of a stranger's datagram, in somebody else's parser
            log.debug("a datagram cannot be read", peer=addr[0])


class Places:
    """Where peers are met.

    Args:
        config: of the server.

    Attributes:
        helped: there are STUN or TURN servers: peers may be elsewhere than they seem, and are
            looked for where they say.
    """

    def __init__(self, config: ServeConfig) -> None:
        webrtc = config.webrtc
        self._addresses = webrtc.addresses or _listening(config.listen.host)
        self._public, self._ports = webrtc.public_address, canonical.ports(webrtc.udp_ports)
        self._servers = _servers(webrtc)
        self.helped = bool(self._servers)

    def configuration(self) -> RTCConfiguration:
        """Of a peer connection."""
        return RTCConfiguration(iceServers=self._servers)

    def links(self) -> list[str]:
        """The same servers for a client, as WHEP writes them into headers."""
        found = []
        for server in self._servers:
            line = f'<{server.urls}>; rel="ice-server"'
            if server.username:
                line += f'; username="{server.username}"; credential="{server.credential}"'
                line += '; credential-type="password"'
            found.append(line)
        return found

    def choose(self, pc: RTCPeerConnection, heard: Callable[[], None]) -> None:
        """Have a peer connection, whose offer is known, use these places.

        Args:
            heard: see ``Met``.
        """
        transports = [t.receiver.transport for t in pc.getTransceivers()]
        if pc.sctp is not None:
            transports.append(pc.sctp.transport)
        for transport in transports:
            connection: Any = transport.transport.iceGatherer._connection
            if "get_component_candidates" not in vars(connection):
                connection.get_component_candidates = self._gather(connection, heard)

    def _gather(
        self, connection: Any, heard: Callable[[], None]
    ) -> Callable[..., Awaitable[list[Candidate]]]:
        others = connection.get_component_candidates

        async def gather(component: int, addresses: list[str], timeout: int = 5) -> list[Candidate]:
            protocols = []
            for address in self._addresses or addresses:
                protocol = await self._bind(connection, address, component, heard)
                if protocol is not None:
                    protocols.append(protocol)
            connection._protocols += protocols
            found = [protocol.local_candidate for protocol in protocols]
            if connection.stun_server:
                asked = [
                    asyncio.create_task(server_reflexive_candidate(each, connection.stun_server))
                    for each in protocols
                    if ":" not in each.local_candidate.host
                ]
                done, late = await asyncio.wait(asked, timeout=STUN_S) if asked else ((), ())
                found += [task.result()[0] for task in done if task.exception() is None]
                for task in late:
                    task.cancel()
            stun, connection.stun_server = connection.stun_server, None
            try:
                relayed: list[Candidate] = await others(component, [], timeout)
                return found + relayed
            finally:
                connection.stun_server = stun

        return gather

    async def _bind(
        self, connection: Connection, address: str, component: int, heard: Callable[[], None]
    ) -> StunProtocol | None:
        """A socket at an address, and the candidate that it is; None where none can be had."""
        loop = asyncio.get_running_loop()
        for port in self._tries():
            with suppress(OSError):
                transport, protocol = await loop.create_datagram_endpoint(
                    lambda: Met(connection, heard), local_addr=(address, port)
                )
                break
        else:
            return None
        bound = transport.get_extra_info("socket")
        for which in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            bound.setsockopt(socket.SOL_SOCKET, which, BUFFER)
        host, port = transport.get_extra_info("sockname")[:2]
        protocol.local_candidate = Candidate(
            foundation=candidate_foundation("host", "udp", host),
            component=component,
            transport="udp",
            priority=candidate_priority(component, "host"),
            host=self._public or host,
            port=port,
            type="host",
        )
        return protocol

    def _tries(self) -> list[int]:
        if not self._ports:
            return [0]
        return random.sample(self._ports, min(TRIES, len(self._ports)))


def _listening(host: str) -> tuple[str, ...]:
    """The address of what a server listens on; none where that is all of them."""
    address = canonical.listening_address(host)[1]
    return () if address in ("0.0.0.0", "::") else (address,)


def _servers(webrtc: WebRtc) -> list[RTCIceServer]:
    return [
        RTCIceServer(url)
        if url.startswith("stun:")
        else RTCIceServer(url, webrtc.ice_username or None, webrtc.ice_credential or None)
        for url in webrtc.ice_servers
    ]
