# SPDX-License-Identifier: Apache-2.0
"""Two threads between those who ask for frames and the device.

    add ─► ready tasks, by avatar ─► launcher: a batch for each free lane ─► device
                                                                               │ one event a batch
    workers: finish, futures ◄─ results read, lane free ◄─ completion thread ◄─┘

The launcher takes what is there when a lane becomes free, of the avatar whose task came first: one
task on an idle device begins at once, and while the device is busy, batches grow by themselves. It
alone plans, and owns all that is planned with; others give it calls to make between batches.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from torch import Tensor

from lipsync_fast.engine.backends.cuda.avatar import CudaAvatar
from lipsync_fast.engine.backends.cuda.batch import Batch
from lipsync_fast.engine.backends.cuda.budget import Budget, lost
from lipsync_fast.engine.backends.cuda.device import Device, Fault
from lipsync_fast.engine.backends.cuda.graphs import first_batch
from lipsync_fast.engine.backends.cuda.lanes import LANES, Lane, Streams
from lipsync_fast.engine.backends.cuda.sounds import Sounds
from lipsync_fast.engine.backends.cuda.tasks import Task
from lipsync_fast.engine.cpu_time import CpuTime
from lipsync_fast.errors import BackendError, DeviceLostError, LipsyncError
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.engine")
Result = TypeVar("Result")


class Launcher:
    """Makes batches of tasks, and brings them onto the device and back; for any thread.

    Args:
        sounds: the audio vectors; the launcher's from now on.
        tables: quantisation tables of the qualities 1 .. 100, on the device.
        finish: gets each batch's tasks with what was made of them, in the completion thread; it
            ends their futures.
        lanes: batches in flight.
    """

    def __init__(
        self,
        device: Device,
        budget: Budget,
        sounds: Sounds,
        tables: Tensor,
        finish: Callable[[list[Task], list[Any]], None],
        cpu_time: CpuTime,
        lanes: int = LANES,
    ) -> None:
        self._device, self._budget, self._sounds, self._tables = device, budget, sounds, tables
        self._finish, self._cpu_time = finish, cpu_time
        self.streams = Streams.of(device)
        self._changed = threading.Condition()
        self._ready: dict[CudaAvatar, deque[Task]] = {}
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._lanes = [Lane(device) for _ in range(lanes)]
        self._flying: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self.begun = self.ended = 0
        """Numbers of the last batch begun, and of the last one that has ended."""
        self._closing = False
        self.lost: DeviceLostError | None = None
        self.batches = self.frames = 0
        self._threads = [
            threading.Thread(target=self._launch_all, name="lipsync-launch"),
            threading.Thread(target=self._complete_all, name="lipsync-complete"),
        ]
        for thread in self._threads:
            thread.start()

    # ------------------------------------------------------------ for any thread
    def add(self, tasks: list[Task]) -> None:
        """Tasks whose faces are there. They end with an error when the device is lost."""
        with self._changed:
            if self.lost is None and not self._closing:
                for task in tasks:
                    waiting = self._ready.setdefault(task.avatar, deque())
                    waiting.append(task)
                self._changed.notify_all()
                return
        error = self.lost or BackendError("the backend is closed")
        fail(tasks, error)

    def call(self, act: Callable[[], Result]) -> Result:
        """Have something done between two batches, with the compute stream as the current one.

        Raises:
            BackendError: it is closed; the device is lost.
        """
        if threading.current_thread() is self._threads[0]:
            return act()
        future: Future[Result] = Future()
        with self._changed:
            if self._closing:
                raise BackendError("the backend is closed")
            if self.lost is not None:
                raise self.lost
            self._calls.append((act, future))
            self._changed.notify_all()
        return future.result()

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is on the device."""
        return not self._ready and self.begun == self.ended

    def close(self) -> None:
        """End the threads: what is on the device is finished, the rest is cancelled."""
        with self._changed:
            self._closing = True
            left = [task for waiting in self._ready.values() for task in waiting]
            self._ready.clear()
            self._changed.notify_all()
        for task in left:
            task.future.cancel()
        for thread in self._threads:
            thread.join()

    def lose(self, error: DeviceLostError) -> None:
        """The device has failed: end all that waits with that."""
        with self._changed:
            self.lost = self.lost or error
            left = [task for waiting in self._ready.values() for task in waiting]
            calls = list(self._calls)
            self._ready.clear()
            self._calls.clear()
            self._changed.notify_all()
        fail(left, error)
        for _, future in calls:
            future.set_exception(error)

    # ------------------------------------------------------------ the launcher
    def _launch_all(self) -> None:
        with self._device.on(self.streams.compute):
            while True:
                with self._changed:
                    while not (self._calls or self._closing or (self._ready and self._lanes)):
                        self._changed.wait()
                    if self._calls:
                        act, future = self._calls.popleft()
                    elif self._closing:
                        break
                    else:
                        act, future = self._launch_next, Future()
                        future.add_done_callback(_note)
                try:
                    future.set_result(act())
                except BaseException as error:
                    future.set_exception(error)
                del act, future  # what they hold may be unloaded while this thread waits
        self._flying.put(None)

    def _launch_next(self) -> None:
        """Begin a batch of the tasks that came first."""
        with self._changed:
            if not self._ready:
                return
            avatar = min(self._ready, key=lambda a: self._ready[a][0].number)
            waiting = self._ready[avatar]
            size, count = first_batch(len(waiting), avatar.decoder.ready)
            tasks = [waiting.popleft() for _ in range(count)]
            if not waiting:
                del self._ready[avatar]
            lane = self._lanes.pop()
        with self._cpu_time.on("launch"):
            self._launch(tasks, lane, size)

    def _launch(self, tasks: list[Task], lane: Lane, size: int) -> None:
        batch: Batch | None = None
        try:
            what = f"a batch of {len(tasks)}"
            batch = self._budget.with_room(lambda: self._begin(tasks, lane, size), what)
        except Exception as error:
            self._give_up(tasks, error)
        if batch is None or not batch.tasks:
            with self._changed:
                self._lanes.append(lane)
        if batch is None:
            return
        left = tasks[len(batch.tasks) :]
        if left:
            self._put_back(left, wait=not batch.tasks)

    def _put_back(self, tasks: list[Task], wait: bool) -> None:
        """Tasks for which there was no room: again, and not before another batch has ended."""
        with self._changed:
            ended = self.ended
            if self._closing or self.lost is not None:
                error = self.lost or BackendError("the backend is closed")
            else:
                self._ready.setdefault(tasks[0].avatar, deque()).extendleft(reversed(tasks))
                while wait and self.ended == ended and self.begun > ended and not self._closing:
                    self._changed.wait()
                return
        fail(tasks, error)

    def _begin(self, tasks: list[Task], lane: Lane, size: int) -> Batch:
        """Plan a batch and put it on the device; nothing is left of it where that fails."""
        number, ended = self.begun + 1, self.ended
        batch = Batch(number, tasks, lane, size)
        heard, halves = batch.plan(self._sounds, ended)
        if not batch.tasks:
            self._sounds.undo(heard)
            if self.begun == ended:
                raise BackendError("not enough device memory for one frame")
            return batch
        images = tasks[0].avatar.images
        try:
            batch.launch(self._device, self.streams, self._sounds, self._tables, heard, halves)
        except BaseException:
            self._sounds.undo(heard)
            images.undo(halves)
            self.streams.synchronize()
            raise
        self.begun = number
        self.batches += 1
        self.frames += len(batch.tasks)
        self._flying.put(batch)
        return batch

    def _give_up(self, tasks: list[Task], error: Exception) -> None:
        if not isinstance(error, LipsyncError):
            if self._device.fault(error) is Fault.LOST:
                error = lost(self._device, error)
            else:
                log.error("a batch has failed", frames=len(tasks), exc_info=error)
                error = BackendError(f"a batch failed: {error}")
        if isinstance(error, DeviceLostError):
            self.lose(error)
        fail(tasks, error)

    # ------------------------------------------------------------ completion
    def _complete_all(self) -> None:
        while (batch := self._flying.get()) is not None:
            tasks, made, error = batch.tasks, [], None
            try:
                batch.lane.done.synchronize()
                with self._cpu_time.on("results"):
                    made = batch.read()
            except Exception as caught:
                error = caught
            with self._changed:
                self.ended = batch.number
                self._lanes.append(batch.lane)
                self._changed.notify_all()
            if error is not None:
                self._give_up(tasks, error)
            else:
                self._finish(tasks, made)
            del batch, tasks, made, error


def fail(tasks: list[Task], error: Exception) -> None:
    """End tasks with an error."""
    for task in tasks:
        if task.future.set_running_or_notify_cancel():
            task.future.set_exception(error)


def _note(future: Future[Any]) -> None:
    error = future.exception()
    if error is not None:
        log.error("the launcher has failed", exc_info=error)
