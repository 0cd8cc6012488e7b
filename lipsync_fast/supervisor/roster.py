# SPDX-License-Identifier: Apache-2.0
"""Which children there are, which of them work, and who takes over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lipsync_fast.supervisor.children import Child, ChildSlot

ServerState = Literal["starting", "serving", "draining"]


@dataclass
class Roster:
    """All slots of a server and who fills them.

    Attributes:
        state: of the server.
    """

    slots: list[ChildSlot]
    state: ServerState = "starting"
    _measured: dict[str, list[float]] = field(default_factory=dict)
    """By device: what the engines that started first have measured."""

    @property
    def children(self) -> list[Child]:
        """All that live."""
        return [slot.child for slot in self.slots if slot.child is not None]

    @property
    def engines(self) -> list[Child]:
        """Engines that live."""
        return [child for child in self.children if child.role == "engine"]

    @property
    def fronts(self) -> list[Child]:
        """Fronts that live."""
        return [child for child in self.children if child.role == "front"]

    @property
    def gateways(self) -> list[Child]:
        """Gateways that live."""
        return [child for child in self.children if child.role == "gateway"]

    @property
    def last(self) -> list[Child]:
        """Who fills each slot, or has filled it last."""
        return [slot.last for slot in self.slots if slot.last is not None]

    def by_name(self, name: str) -> Child | None:
        """Who lives under a name."""
        return next((child for child in self.children if child.name == name), None)

    @property
    def can_serve(self) -> bool:
        """Whether all fronts accept, and an engine works; and the gateway, unless it fails."""
        fronts = [slot.child for slot in self.slots if slot.role == "front"]
        accept = all(front is not None and front.state == "ready" for front in fronts)
        if not accept or not any(engine.state == "ready" for engine in self.engines):
            return False
        gateways = [slot for slot in self.slots if slot.role == "gateway"]
        return all(_is_ready(slot) or slot.failures or slot.restarts for slot in gateways)

    # ------------------------------------------------------------ engines
    def enrol(self, engine: Child, capacity: float) -> None:
        """An engine is ready: it works, or is a spare where enough do."""
        engine.capacity = self._nominal_capacity(engine, capacity)
        engine.state = "spare" if self.has_enough_engines else "ready"

    @property
    def has_enough_engines(self) -> bool:
        """Whether as many engines work as are to."""
        working = sum(engine.state == "ready" for engine in self.engines)
        return working >= sum(slot.role == "engine" and not slot.spare for slot in self.slots)

    def _nominal_capacity(self, engine: Child, measured: float) -> float:
        """Frames a second that an engine counts for.

        Those that start first measure at the same time, with nothing else to do, which is what
        their device gives each of them. Spares and successors measure beside the others' work:
        they count for what the first ones have measured.
        """
        first = self._measured.setdefault(engine.device, [])
        if self.state == "starting" or not first:
            first.append(measured)
            return measured
        return sum(first) / len(first)

    def known_capacity(self, device: str) -> float:
        """What the first engines on a device have measured; 0 while none has."""
        first = self._measured.get(device)
        return sum(first) / len(first) if first and self.state != "starting" else 0.0

    def promote_spare(self, lost: Child) -> None:
        """Turn a spare active, one on the same device where there is one."""
        spares = [engine for engine in self.engines if engine.state == "spare"]
        heir = min(spares, key=lambda spare: spare.device != lost.device, default=None)
        if heir is not None:
            heir.state = "ready"


def _is_ready(slot: ChildSlot) -> bool:
    return slot.child is not None and slot.child.state == "ready"
