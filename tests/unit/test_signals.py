# SPDX-License-Identifier: Apache-2.0
"""News for all who wait, and the bell of one who sleeps."""

from __future__ import annotations

import trio
import trio.testing

from lipsync_fast.signals import Changes, WakeUp


def test_changes_wake_all_who_wait_and_are_not_kept() -> None:
    woken: list[int] = []

    async def main() -> None:
        changes = Changes()
        changes.notify()

        async def waiter(number: int) -> None:
            await changes.wait()
            woken.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(waiter, number)
            await trio.testing.wait_all_tasks_blocked()
            assert woken == [], "what came before is no news"
            changes.notify()
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(woken) == [0, 1, 2]

    trio.run(main)


def test_a_bell_that_was_rung_ends_the_next_wait_and_that_alone() -> None:
    async def main() -> None:
        bell = WakeUp()
        bell.ring()
        bell.ring()
        with trio.fail_after(5):
            await bell.wait()
        for ring in (False, True):
            if ring:
                bell.ring()
                bell.clear()
            with trio.move_on_after(0.01) as patience:
                await bell.wait()
            assert patience.cancelled_caught
        bell.ring()
        with trio.fail_after(5):
            await bell.wait()

    trio.run(main)
