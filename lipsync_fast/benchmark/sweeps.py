# SPDX-License-Identifier: Apache-2.0
"""Cost over work: the rate for one avatar and for many, of short sounds and of long ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import trio
from numpy.typing import NDArray

from lipsync_fast.audio.windows import frame_count
from lipsync_fast.benchmark.burst import Burst, Look, in_turn
from lipsync_fast.benchmark.measure import COMPARE_EVERY, Using, compare_all, fill
from lipsync_fast.benchmark.rows import Row
from lipsync_fast.client.local import LocalServer
from lipsync_fast.timing import FRAME_SAMPLES


def avatars_in_turn(
    running: LocalServer,
    name: str,
    pcm: NDArray[np.int16],
    seconds: float,
    *,
    avatars: Mapping[str, str],
    sessions: int = 4,
) -> Row:
    """Clients that come, speak once, and go, each with the next avatar.

    Args:
        avatars: name at the server to path of the package.
    """
    row = Row(kind="sweep", name=name, settings={"sessions": sessions, "avatars": len(avatars)})
    using = Using(running)
    all_of = partial(in_turn, avatars=list(avatars), sessions=sessions, keep_every=COMPARE_EVERY)
    found, first, until = trio.run(all_of, running.url, pcm, seconds)
    fill(row, using, found, first, until)
    compare_all(row, found, avatars, pcm, exact=using.exact)
    return row


def rounds_in_turn(
    running: LocalServer,
    pcm: NDArray[np.int16],
    seconds: float,
    rounds: int,
    avatars: Mapping[str, str],
    counts: Sequence[int],
    step: Callable[[str], None],
) -> Iterator[Row]:
    """So many avatars in turn, from the fewest to the most, round after round.

    Args:
        avatars: name at the server to path of the package.
        counts: how many of them take turns.
        step: is told what is being measured.
    """
    for round_ in range(rounds):
        for count in sorted(counts):
            name = f"{count} avatar" + ("s" if count > 1 else "")
            step(f"round {round_ + 1}: {name}")
            some = dict(list(avatars.items())[:count])
            if round_ == 0:  # each is loaded and prepared by its first client
                avatars_in_turn(running, name, pcm, 0.0, avatars=some)
            row = avatars_in_turn(running, name, pcm, seconds, avatars=some)
            row.round = round_
            yield row


def one_sound(running: LocalServer, name: str, pcm: NDArray[np.int16], frames: int) -> Row:
    """One sound of so many frames, said once: the rate from its beginning to its last frame.

    Args:
        pcm: 16 kHz mono; repeated until it is long enough.
    """
    row = Row(kind="sweep", name=name, settings={"sessions": 1, "frames": frames})
    sound = np.resize(pcm, frames * FRAME_SAMPLES)
    assert frame_count(len(sound)) == frames
    using = Using(running)
    burst = Burst(0, "demo", Look(), sound, 0)
    trio.run(burst.once, running.url)
    fill(row, using, [burst], burst.begun_ns, burst.arrivals[-1])
    row.latency_ms = {"first": round((burst.arrivals[0] - burst.begun_ns) / 1e6, 2)}
    return row
