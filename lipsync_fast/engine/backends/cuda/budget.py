# SPDX-License-Identifier: Apache-2.0
"""Device memory: who may have how much, and what happens when there is none left.

    networks, graphs, staging    what they need; an avatar that finds no room is refused
    image halves, faces          caches: a share each of what was free at the beginning
    batches                      no larger than fits into a share

Where an allocation fails all the same (others use the device, too), the caches are shed and it is
tried once more. Numbers only; whoever owns a cache says how it is shed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lipsync_fast.engine.backends.cuda.device import Device, Fault
from lipsync_fast.errors import BackendError, DeviceLostError
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.engine")
IMAGE_SHARE, FACE_SHARE, BATCH_SHARE = 0.5, 0.125, 0.25
Result = TypeVar("Result")


class Budget:
    """What may be used of a device; for any thread.

    Attributes:
        images: bytes for image halves, of all avatars.
        faces: bytes for what composing needs.
        batch: bytes that a batch may need while it is made.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        free, self.total = device.memory()
        self.images, self.faces = int(free * IMAGE_SHARE), int(free * FACE_SHARE)
        self.batch = int(free * BATCH_SHARE)
        self._shedders: list[Callable[[], int]] = []
        self.shed_count = 0

    def may_shed(self, shed: Callable[[], int]) -> None:
        """Add what can be given up; the first one added is the first to go.

        Args:
            shed: frees what it can and returns how many bytes that were; in any thread.
        """
        self._shedders.append(shed)

    def shed(self) -> int:
        """Give up the caches; how many bytes that were."""
        self.shed_count += 1
        freed = sum(shed() for shed in self._shedders)
        self._device.release_unused()
        log.warning(
            "out of memory; caches are given up", device=self._device.name, megabytes=freed >> 20
        )
        return freed

    def with_room(self, act: Callable[[], Result], what: str) -> Result:
        """Do something that allocates; without room, shed the caches and do it once more.

        Args:
            act: leaves nothing behind where it fails.
            what: it is, for the message.

        Raises:
            DeviceLostError: the device has failed.
            BackendError: there is no room for it.
        """
        for last in (False, True):
            try:
                return act()
            except Exception as error:
                fault = self._device.fault(error)
                if fault is Fault.LOST:
                    raise lost(self._device, error) from error
                if fault is Fault.OTHER:
                    raise
                if last:
                    free = self._device.memory()[0] >> 20
                    raise BackendError(
                        f"{self._device.name} has not enough memory for {what} ({free} MB are"
                        " free): load fewer avatars, or give the engine a GPU of its own"
                    ) from error
            self.shed()
        raise AssertionError("unreachable")


def lost(device: Device, error: BaseException) -> DeviceLostError:
    """What to raise when a device has failed."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return DeviceLostError(f"{device.name} has failed: {lines[0][:200]}")
