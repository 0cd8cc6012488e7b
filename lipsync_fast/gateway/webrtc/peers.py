# SPDX-License-Identifier: Apache-2.0
"""All peers of a gateway: how they begin, how they are found, and that all of them end."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable

from lipsync_fast import canonical
from lipsync_fast.config import ServeConfig
from lipsync_fast.errors import LipsyncError, PeerError
from lipsync_fast.gateway.adapters import Counts
from lipsync_fast.gateway.fronts import Client, Fronts
from lipsync_fast.gateway.visitors import Visitors
from lipsync_fast.gateway.webrtc import offers
from lipsync_fast.gateway.webrtc.ice import Places
from lipsync_fast.gateway.webrtc.peer import WELL, Peer
from lipsync_fast.tokens.subject import Subject

MOST_COMING = 32
"""Peers that have an answer and have not come yet."""
MOST_USE, LOOK_S = 0.85, 2.0
"""Share of a processor beyond which nobody new is let in: one loop serves all, so all would have
late pictures. It is looked at over so long."""
REMEMBERED = 256
"""Peers whose end can still be asked for."""
GOING = "the server is going away"


class Peers:
    """Begins, finds and ends peers. One loop."""

    def __init__(
        self, config: ServeConfig, fronts: Fronts, counts: Counts, visitors: Visitors
    ) -> None:
        self.places = Places(config)
        self._config, self._fronts, self._counts = config, fronts, counts
        self._peers: dict[str, Peer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends: OrderedDict[str, str] = OrderedDict()
        self._draining = False
        self._proxies = config.listen.proxies
        self._use = Use()
        self._visitors = visitors

    async def begin(self, call: str, sdp: str, avatar: str, client: Client) -> tuple[Peer, str]:
        """A new peer, and the answer to its offer.

        Args:
            call: what it is counted as.

        Raises:
            PeerError: the offer cannot be answered.
            FrontError: no front takes it.
            ValueError: there is no such avatar, by its name alone.
        """
        who = self.who(client)
        if self._draining:
            raise PeerError(GOING, 503)
        offer = offers.read(sdp, self.places.helped)
        self._check_room(client)
        peer = Peer(
            str(uuid.uuid4()),
            client,
            self._fronts,
            self.places,
            self._counts,
            avatar,
            self._config.webrtc.bitrate,
            who.account,
        )
        answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._peers[peer.id] = peer
        task = asyncio.create_task(self._live(call, peer, offer, answered))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return peer, await answered
        except asyncio.CancelledError:  # who asked has gone
            peer.close("the client did not wait for its answer")
            raise

    def who(self, client: Client) -> Subject:
        """Who asks; to be known before anything that is sent is read.

        Raises:
            PeerError: nobody who may.
        """
        return self._visitors.who(client, counts=False)

    def _check_room(self, client: Client) -> None:
        """See that there is room for one more.

        Raises:
            PeerError: there is none.
        """
        if self._use.share > MOST_USE:
            raise PeerError("the server's gateway has no time for one more; try again later", 503)
        coming = [canonical.network(p.client.address) for p in self._peers.values() if p.coming]
        if len(coming) >= MOST_COMING:
            raise PeerError("as many are connecting as may at once; try again later", 503)
        network = canonical.network(client.address)
        own = canonical.is_among(client.address, self._proxies) or canonical.is_loopback(
            client.address
        )
        if not own and coming.count(network) >= MOST_COMING * 3 // 4:
            raise PeerError("too many are connecting from this address; try again later", 429)

    async def _live(
        self, call: str, peer: Peer, offer: offers.Offer, answered: asyncio.Future[str]
    ) -> None:
        try:
            with self._counts.call(call):
                await peer.live(offer, answered)
        finally:
            del self._peers[peer.id]
        if answered.cancelled() or answered.exception() is not None:
            return  # its client is told that by words
        if peer.end not in WELL and not self._draining:
            self._counts.failed()
        self._ends[peer.id] = peer.end
        while len(self._ends) > REMEMBERED:
            self._ends.popitem(last=False)

    def find(self, id: str, client: Client) -> Peer:
        """A peer that lives, for whoever has begun it.

        Raises:
            PeerError: there is none, or it is somebody else's.
        """
        who = self._visitors.who(client)
        peer = self._peers.get(id)
        if peer is None or peer.end:
            why = self._ends.get(id) if peer is None else peer.end
            raise PeerError(f"this session has ended: {why}" if why else "no such session", 404)
        if peer.account != who.account:
            raise PeerError("the session is another's; show the token of who has begun it", 403)
        return peer

    async def watch(self) -> None:
        """Look at what is used, for ever."""
        while True:
            self._use.look()
            await asyncio.sleep(LOOK_S / 4)

    async def drain(self, seconds: float) -> None:
        """Take nobody new; those that are there may stay until their sessions end, or so long."""
        self._draining = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for peer in list(self._peers.values()):
            peer.close(GOING)
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=5.0)
            for task in left:
                task.cancel()


class Use:
    """The share of a processor that this process uses.

    Args:
        clock, used: seconds, and those of processor time.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.process_time,
    ) -> None:
        self._clock, self._used = clock, used
        self._looks: deque[tuple[float, float]] = deque([(clock(), used())])

    def look(self) -> None:
        """Note what was used until now; once in a while."""
        now = self._clock()
        self._looks.append((now, self._used()))
        while len(self._looks) > 2 and now - self._looks[1][0] >= LOOK_S:
            self._looks.popleft()

    @property
    def share(self) -> float:
        """Of the last seconds; 1 is all of one processor. 0 before that is known."""
        (began, before), (now, after) = self._looks[0], self._looks[-1]
        return (after - before) / (now - began) if now - began >= LOOK_S / 2 else 0.0


def words_of(error: LipsyncError | ValueError) -> str:
    """What a client is told: one line."""
    return " ".join(str(error).split())
