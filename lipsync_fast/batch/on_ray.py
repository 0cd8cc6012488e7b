# SPDX-License-Identifier: Apache-2.0
"""Workers as actors of a Ray cluster (extra ``ray``): on all nodes, also those that come later.

An actor holds ``threads`` processors, and keeps its avatars open. When a node dies, so do its
actors, and what they had in hand is done again by others; Ray is asked for no retries of its own,
so that each is counted once. This program, avatars and recordings must be there on each node (or
lie at URLs), and outputs go to a folder that all share, or to a URL.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Collection
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from lipsync_fast.batch.run import Lost
from lipsync_fast.batch.tasks import Checked, Outcome, Recording, Settings
from lipsync_fast.errors import ServerError, words_of
from lipsync_fast.extras import how_to_get
from lipsync_fast.names import json_bytes, json_value
from lipsync_fast.version import __version__

LOOK_EVERY_S = 2.0
"""How often nodes are counted."""
NOBODY_S = 120.0
"""How long it is waited for a node, where there is none that could work."""
CHECK_S = 120.0
KNOCK_S = 5.0


class Actor:
    """A worker, as Ray runs it; what goes in and out is JSON."""

    def __init__(self, settings: bytes) -> None:
        from lipsync_fast.batch.work import Worker

        self._worker = Worker(json_value(settings, Settings))

    def ready(self) -> bool:
        """Whether it is there."""
        return True

    def do(self, recording: bytes) -> bytes:
        """See ``Worker.do``."""
        return json_bytes(self._worker.do(json_value(recording, Recording)))


def _check(settings: bytes, avatars: list[str]) -> bytes:
    from lipsync_fast.batch.work import check

    return json_bytes(check(json_value(settings, Settings), avatars))


@dataclass
class _Place:
    """An actor, what it has in hand, and Ray's promise of its end; before that, of its start."""

    actor: Any
    promise: Any
    recording: Recording | None = None
    is_ready: bool = False


class RayWorkers:
    """Actors on all nodes of a cluster; see ``run.Workers``."""

    def __init__(self, settings: Settings, address: str, most: int | None) -> None:
        """Connect to a cluster.

        Args:
            address: of its head, HOST:PORT; or "auto", on one of its nodes.
            most: actors at a time; as many as the nodes have processors for, where None.

        Raises:
            ServerError: Ray is not installed, or the cluster cannot be reached.
        """
        self._ray = _library()
        self._settings, self._most = settings, most
        self._places: dict[int, _Place] = {}
        self._number, self._looked_at = 0, 0.0
        self._seen_at = time.monotonic()
        self._knock(address)
        try:
            self._ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
        except Exception as error:  # Ray's own, of gRPC, OSError …
            reason = " ".join(str(error).split())[:300]
            raise ServerError(f"--ray {address}: cannot be reached ({reason})") from None
        self._class = self._ray.remote(
            num_cpus=settings.threads,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )(Actor)

    def _knock(self, address: str) -> None:
        """See that somebody listens at an address: Ray itself tries for minutes.

        Raises:
            ServerError: nobody does.
        """
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():  # auto, or what Ray is to understand
            return
        hosts = [host.strip("[]")]
        if hosts[0] in ("localhost", "127.0.0.1"):  # as Ray has it: what this machine is called
            hosts.append(self._ray.util.get_node_ip_address())
        for each in hosts:
            try:
                socket.create_connection((each, int(port)), KNOCK_S).close()
                return
            except (OSError, OverflowError) as error:
                reason = words_of(error)
        raise ServerError(f"--ray {address}: cannot be reached ({reason})")

    def check(self, avatars: list[str]) -> None:
        """See that each node can do the work.

        Raises:
            ServerError: none can, or one that is there cannot; says which.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = self._nodes()
        if not nodes:
            raise ServerError(
                f"no node of the cluster has {self._settings.threads} processors for a worker"
            )
        ask = self._ray.remote(max_retries=0, num_cpus=0)(_check)
        asked = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            promise = ask.options(scheduling_strategy=there).remote(
                json_bytes(self._settings), avatars
            )
            asked[promise] = node["NodeManagerAddress"]
        done, late = self._ray.wait(list(asked), num_returns=len(asked), timeout=CHECK_S)
        for promise in late:
            raise ServerError(f"node {asked[promise]} has not answered in {CHECK_S:.0f} s")
        for promise in done:
            try:
                said: Checked = json_value(self._ray.get(promise), Checked)
            except Exception as error:  # whatever was raised there
                reason = " ".join(str(error).split())[-300:]
                raise ServerError(f"node {asked[promise]}: {reason}") from None
            if said.version != __version__:
                raise ServerError(
                    f"node {asked[promise]} has lipsync-fast {said.version}, this is {__version__}"
                )
            if said.error:
                raise ServerError(f"node {asked[promise]}: {said.error}")

    def idle(self) -> Collection[int]:
        """See ``run.Workers``."""
        places = self._places.items()
        return [number for number, each in places if each.is_ready and each.recording is None]

    def give(self, worker: int, recording: Recording) -> None:
        """See ``run.Workers``."""
        place = self._places[worker]
        place.recording = recording
        place.promise = place.actor.do.remote(json_bytes(recording))

    def wait(self, seconds: float) -> list[Outcome | Lost]:
        """See ``run.Workers``.

        Raises:
            ServerError: no node has been able to work for a while.
        """
        self._adjust()
        waited = {
            each.promise: number
            for number, each in self._places.items()
            if each.recording is not None or not each.is_ready
        }
        if not waited:
            time.sleep(seconds)
            return []
        done, _ = self._ray.wait(list(waited), num_returns=1, timeout=seconds)
        if done:  # and whatever else has come meanwhile
            done, _ = self._ray.wait(list(waited), num_returns=len(waited), timeout=0)
        ends = []
        for promise in done:
            end = self._end(waited[promise], promise)
            if end is not None:
                ends.append(end)
        return ends

    def close(self) -> None:
        """See ``run.Workers``."""
        for place in self._places.values():
            self._ray.kill(place.actor)
        self._places.clear()
        self._ray.shutdown()

    # ------------------------------------------------------------ parts
    def _end(self, number: int, promise: Any) -> Outcome | Lost | None:
        """What has become of a promise."""
        place = self._places[number]
        recording = place.recording
        try:
            answer = self._ray.get(promise)
        except Exception as error:  # the actor's death, its node's, or a defect of it
            del self._places[number]
            self._ray.kill(place.actor)
            if recording is None:
                return None
            return Lost(recording=recording, reason=_how_lost(error))
        self._seen_at = time.monotonic()
        if recording is None:
            place.is_ready = True
            return None
        place.recording = None
        outcome: Outcome = json_value(answer, Outcome)
        return outcome

    def _adjust(self) -> None:
        """Have as many actors as the nodes have room for."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        room = sum(
            int(node["Resources"]["CPU"] // self._settings.threads) for node in self._nodes()
        )
        wanted = room if self._most is None else min(room, self._most)
        while len(self._places) < wanted:
            actor = self._class.remote(json_bytes(self._settings))
            self._places[self._number] = _Place(actor, actor.ready.remote())
            self._number += 1
        if any(place.is_ready for place in self._places.values()):
            self._seen_at = now
        elif now - self._seen_at > NOBODY_S:
            raise ServerError(f"no node of the cluster could work for {NOBODY_S:.0f} s")

    def _nodes(self) -> list[dict[str, Any]]:
        """Those that live and have processors enough for a worker."""
        threads = self._settings.threads
        return [
            node
            for node in self._ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU", 0) >= threads
        ]


def _how_lost(error: Exception) -> str:
    """How an actor has ended, in a few words."""
    kind = type(error).__name__
    if "Node" in kind or "node" in str(error)[:2000].lower():
        return f"its worker is gone, or its node ({kind})"
    return f"its worker has ended unexpectedly ({kind})"


def _library() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of this
    try:
        import ray
    except ImportError:
        raise ServerError(
            f"--ray needs the extra 'ray' (ray is not installed): {how_to_get('ray')}"
        ) from None
    module: ModuleType = ray
    return module
