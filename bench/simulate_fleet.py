# SPDX-License-Identifier: Apache-2.0
"""Simulate 1 to 500 servers with up to 100,000 sessions. A simulation, not a measurement.

    python bench/simulate_fleet.py [--parts nodes sizes unequal days] [--out FOLDER] [--quick]
    python bench/simulate_fleet.py --draw

What has been simulated of other parts before is kept, so they may be run one by one.

simulate.py says what one server with its GPUs can serve; here a server is a node with so many
*places*: sessions that may speak at once. Sessions come, speak 5 s and listen 10 s in turns (both
exponential), and go after ten minutes. An utterance for which its node has no place is refused; it
is tried again, every 2 s, on the same node, since a session cannot move (or, "moves", its client
begins anew where fewest speak, as of a second ago). Time goes in steps of a second, and sessions of
a node are alike, so a node is two numbers: how many it has, and how many of them speak.

    arrivals, those who come back ─► balancers: place each, by what they know ─► node
    node: begins to speak (or is refused) ─► ends ─► session ends
    a node fails: its sessions come back, their utterances are cut off; it is back after a while
    a node is upgraded: sessions at rest come back at once, others as they end; then it restarts

What is asked: how much of all places can be taken until one utterance in a thousand is refused, by
the number of nodes, their size, and what the balancer does; a day with failures and an upgrade; and
how fast pods must come when their number follows the load.

Not in it: the network, frames (simulate.py), avatars that not every node holds, who tries again
beyond what is said above, and a balancer's own limits (docs/scale.md has its cost, measured).
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.benchmark import program

HERE = Path(__file__).resolve().parent / "results" / "simulate"
SPEAK_S, LISTEN_S, SESSION_S, RETRY_S = 5.0, 10.0, 600.0, 2.0
SPEAKING = SPEAK_S / (SPEAK_S + LISTEN_S)
"""Share of sessions that speak, where none is refused."""
NODES = 1, 3, 10, 50, 100, 500
PLACES = 100
"""Of a node: about what is predicted for one H200 (122, results/simulate/simulate.json)."""
GOAL = 1e-3
"""Share of utterances that may be refused."""
SCRAPED_S = 15
"""How old what metrics say of speakers is."""
HOUR, DAY = 3600, 86_400
Counts = NDArray[np.int64]
POLICIES = {
    "random": "random",
    "two": "two at random, the one with fewer connections",
    "least": "least connections",
    "least-8": "least connections, 8 balancers that know their own alone",
    "speakers": f"fewest speakers, as known {SCRAPED_S} s ago",
    "two-speakers": f"two at random, the one with fewer speakers {SCRAPED_S} s ago",
    "weighted": "least connections for each place",
    "moves": "least connections; who is refused begins anew where fewest speak",
}


@dataclass(frozen=True)
class Plan:
    """What happens to a fleet.

    Attributes:
        places: of each node.
        sessions: how many there would be at a moment, in seconds, if nobody were lost.
        policy: how they are placed, of ``POLICIES``.
        fails_every_s: a node, on the average; 0: never. down_s: until it is back.
        upgrade_at: when a rolling upgrade begins; at_once: nodes that leave together; drain_s: how
            long utterances may go on; restart_s: until a node serves again.
        scaled: only as many nodes as ``share`` of places asks for; start_s: until a new one serves.
    """

    places: Counts
    sessions: Callable[[float], float]
    policy: str = "least"
    fails_every_s: float = 0.0
    down_s: float = 900.0
    upgrade_at: float | None = None
    at_once: int = 1
    drain_s: float = 60.0
    restart_s: float = 90.0
    scaled: bool = False
    share: float = 0.7
    start_s: float = 120.0


class Fleet:
    """Nodes, and the sessions that they have."""

    def __init__(self, plan: Plan, seed: int = 1) -> None:
        self.plan, self.random = plan, np.random.default_rng(seed)
        count = len(plan.places)
        self.balancers = 8 if plan.policy == "least-8" else 1
        self.sessions = np.zeros((self.balancers, count), np.int64)
        self.speaking = np.zeros(count, np.int64)
        self.retrying = np.zeros(count, np.int64)
        self.back_at = np.zeros(count)
        """When a node serves, again; infinite for one that was not asked for."""
        self.draining = np.zeros(count, bool)
        self.drained_by = np.full(count, np.inf)
        self.for_good = np.zeros(count, bool)
        """Draining, and not asked for behind that."""
        self.to_upgrade: deque[int] = deque()
        self.known: deque[Counts] = deque([self.speaking.copy()], maxlen=SCRAPED_S)
        self.few_since = 0.0
        self.coming = 0
        """Sessions that come back in the next step."""
        self.eager = 0
        """Of these, who were refused, and speak as soon as they are elsewhere."""
        self.asked = self.refused = self.cut_off = self.moved = self.homeless = 0
        if plan.scaled:
            self.back_at[self._wanted(plan.sessions(0)) :] = np.inf

    # ------------------------------------------------------------ a second
    def step(self, now: float) -> None:
        """Let a second pass."""
        plan, random = self.plan, self.random
        serves = self.back_at <= now
        if plan.fails_every_s:
            failed = serves & (random.random(len(serves)) < 1 / plan.fails_every_s)
            for node in np.flatnonzero(failed):
                self._lose(int(node), now + plan.down_s)
        if plan.upgrade_at is not None:
            self._upgrade(now)
        if plan.scaled and now % 30 == 0:
            self._scale(now)
        serves = self.back_at <= now
        self._go()
        self._speak(serves)
        self._drain(now)
        open_ = (self.back_at <= now) & ~self.draining  # a node may have left just now
        arrivals = self.coming + random.poisson(max(0.0, plan.sessions(now)) / SESSION_S)
        eager, self.coming, self.eager = self.eager, 0, 0
        if open_.any():
            self._place(arrivals, open_)
            self._speak_at_once(eager, open_)
        else:
            self.coming, self.homeless = arrivals, self.homeless + arrivals
        self.known.append(self.speaking.copy())

    def _go(self) -> None:
        """Sessions end, of those at rest for the most part."""
        gone = self.random.binomial(self.sessions, 1 / SESSION_S)
        self.sessions -= gone
        total = self.sessions.sum(0)
        self.speaking = np.minimum(self.speaking, total)
        self.retrying = np.minimum(self.retrying, total - self.speaking)

    def _speak(self, serves: NDArray[np.bool_]) -> None:
        random, total = self.random, self.sessions.sum(0)
        rest = np.maximum(0, total - self.speaking - self.retrying)
        self.speaking -= random.binomial(self.speaking, 1 / SPEAK_S)
        first = random.binomial(rest, 1 / LISTEN_S)
        again = random.binomial(self.retrying, 1 / RETRY_S)
        room = np.where(serves & ~self.draining, self.plan.places - self.speaking, 0)
        begun = np.minimum(first + again, np.maximum(room, 0))
        begun_first = np.maximum(0, begun - again)
        refused = first - begun_first
        self.speaking += begun
        self.asked += int(first[~self.draining].sum())
        if self.plan.policy == "moves":
            self.eager += self._leave(np.where(self.draining, 0, refused))
            self.retrying -= np.minimum(begun, again)
            return
        self.refused += int(refused[~self.draining].sum())
        self.retrying += refused - np.minimum(begun, again)

    def _speak_at_once(self, count: int, open_: NDArray[np.bool_]) -> None:
        """Who was refused goes where most places are free, as known a second ago, and speaks."""
        where, came = np.flatnonzero(open_), np.zeros_like(self.speaking)
        came[where] = filled(self.known[-1][where], count, np.ones(len(where)), self.random)
        self.sessions[0] += came
        begun = np.minimum(came, np.maximum(0, self.plan.places - self.speaking))
        self.speaking += begun
        self.retrying += came - begun
        self.refused += int((came - begun).sum())

    # ------------------------------------------------------------ placing
    def _place(self, arrivals: int, open_: NDArray[np.bool_]) -> None:
        where = np.flatnonzero(open_)
        shares = self.random.multinomial(arrivals, [1 / self.balancers] * self.balancers)
        for own, count in zip(self.sessions, shares, strict=True):
            own[where] += self._chosen(int(count), own[where], where)

    def _chosen(self, count: int, own: Counts, where: NDArray[np.intp]) -> Counts:
        """How many each of these nodes gets."""
        policy, random, size = self.plan.policy, self.random, len(where)
        if policy == "random":
            picked = random.integers(0, size, count)
        elif policy in ("two", "two-speakers"):
            looked_at = own if policy == "two" else self.known[0][where]
            pair = random.integers(0, size, (count, 2))
            fewer = looked_at[pair[:, 0]] <= looked_at[pair[:, 1]]
            picked = np.where(fewer, pair[:, 0], pair[:, 1])
        elif policy == "speakers":
            picked = np.full(count, int(np.argmin(self.known[0][where] + random.random(size))))
        else:
            weights = self.plan.places[where] if policy == "weighted" else np.ones(size)
            return filled(own, count, weights, random)
        return np.bincount(picked, minlength=size).astype(np.int64)

    # ------------------------------------------------------------ leaving nodes
    def _leave(self, counts: Counts) -> int:
        """So many sessions of each node go elsewhere; how many in all.

        They are among ``coming``, but for those who are eager.
        """
        counts = np.minimum(counts, self.sessions.sum(0))
        for node in np.flatnonzero(counts):
            own = self.random.multivariate_hypergeometric(self.sessions[:, node], counts[node])
            self.sessions[:, node] -= own
        total = int(counts.sum())
        self.moved += total
        return total

    def _lose(self, node: int, back_at: float) -> None:
        self.cut_off += int(self.speaking[node])
        lost = int(self.sessions[:, node].sum())
        self.coming += lost
        self.moved += lost
        self.sessions[:, node] = self.speaking[node] = self.retrying[node] = 0
        self.back_at[node], self.draining[node] = back_at, False

    def _upgrade(self, now: float) -> None:
        if now == self.plan.upgrade_at:
            self.to_upgrade = deque(range(len(self.speaking)))
        away = int(self.draining.sum()) + int(((self.back_at > now) & (self.back_at < 1e12)).sum())
        while self.to_upgrade and away < self.plan.at_once:
            node = self.to_upgrade.popleft()
            if self.back_at[node] <= now:
                self.draining[node], self.drained_by[node] = True, now + self.plan.drain_s
                away += 1

    def _drain(self, now: float) -> None:
        if not self.draining.any():
            return
        self.retrying[self.draining] = 0
        rest = self.sessions.sum(0) - self.speaking
        self.coming += self._leave(np.where(self.draining, rest, 0))
        for node in np.flatnonzero(self.draining):
            if self.speaking[node] == 0 or now >= self.drained_by[node]:
                back = np.inf if self.for_good[node] else now + self.plan.restart_s
                self.for_good[node] = False
                self._lose(int(node), back)

    # ------------------------------------------------------------ as many as are needed
    def _wanted(self, sessions: float) -> int:
        places = float(self.plan.places.mean()) * self.plan.share
        return min(len(self.speaking), max(2, int(np.ceil(sessions * SPEAKING / places))))

    def _scale(self, now: float) -> None:
        """As the chart's ScaledObject: more at once, fewer one by one after ten quiet minutes."""
        wanted = self._wanted(float(self.speaking.sum()) / SPEAKING)
        asked = np.flatnonzero((self.back_at < 1e12) & ~self.draining)
        if wanted > len(asked):
            most = max(2, len(asked) // 4)
            spare = np.flatnonzero(self.back_at == np.inf)[: min(wanted - len(asked), most)]
            self.back_at[spare] = now + self.plan.start_s
        if wanted >= len(asked):
            self.few_since = now
        elif now - self.few_since >= 600 and now % 120 == 0:
            leaving = asked[-max(1, len(asked) // 100) :]
            self.draining[leaving] = self.for_good[leaving] = True
            self.drained_by[leaving] = now + self.plan.drain_s


def filled(own: Counts, count: int, weights: Any, random: np.random.Generator) -> Counts:
    """What each gets of ``count`` that go one by one to who has the least for its weight.

    As water fills a vessel: up to one level; among equals, by chance.
    """
    if count == 0:
        return np.zeros_like(own)
    order = np.argsort(own / weights)
    # The level, if the first nodes alone got anything; it counts where it reaches no further one.
    levels = (count + np.cumsum(own[order])) / np.cumsum(weights[order])
    reached = np.append(own[order][1:] / weights[order][1:], np.inf)
    level = levels[int(np.argmax(levels <= reached))]
    given = np.maximum(0, np.floor(level * weights - own + 1e-9)).astype(np.int64)
    rest = count - int(given.sum())
    order = np.lexsort((random.random(len(own)), (own + given + 1) / weights))
    given[order[:rest]] += 1
    return given


# ---------------------------------------------------------------- what is asked
def run(plan: Plan, seconds: int, warm: int = 0, every: int = 0, seed: int = 1) -> dict[str, Any]:
    """Let time pass; what came of it behind the first ``warm`` seconds.

    Args:
        every: note the state every so many seconds; 0: never.
    """
    fleet, rows, last = Fleet(plan, seed), [], (0, 0)
    busy: list[float] = []
    for now in range(seconds):
        if now == warm:
            fleet.asked = fleet.refused = fleet.cut_off = fleet.moved = 0
            last = (0, 0)
        fleet.step(float(now))
        serving = (fleet.back_at <= now) & ~fleet.draining
        places = int(plan.places[serving].sum())
        if now >= warm:
            busy.append(fleet.speaking.sum() / max(1, places))
        if every and now % every == every - 1:
            asked, refused = fleet.asked - last[0], fleet.refused - last[1]
            last = fleet.asked, fleet.refused
            rows.append(
                {
                    "h": round((now + 1) / HOUR, 3),
                    "sessions": int(fleet.sessions.sum()),
                    "nodes": int(serving.sum()),
                    "taken": round(float(fleet.speaking.sum()) / max(1, places), 4),
                    "refused": round(refused / max(1, asked), 6),
                }
            )
    found = {
        "utterances": fleet.asked,
        "refused": round(fleet.refused / max(1, fleet.asked), 6),
        "cut_off": fleet.cut_off,
        "moved": fleet.moved,
        "taken": round(float(np.mean(busy)), 4),
        "taken_most": round(float(np.max(busy)), 4),
    }
    return found | ({"rows": rows} if every else {})


def equal(nodes: int, places: int) -> Counts:
    """Nodes that are alike."""
    return np.full(nodes, places, np.int64)


def unequal(nodes: int) -> Counts:
    """A third of them half as large, a third twice as large."""
    return np.array([(50, 100, 200)[n % 3] for n in range(nodes)], np.int64)


def steady(places: Counts, load: float, policy: str, seconds: int, warm: int) -> dict[str, Any]:
    """Sessions that want ``load`` of all places on the average."""
    sessions = load * float(places.sum()) / SPEAKING
    # There at once: an hour's waiting for nothing else.
    plan = Plan(places, lambda now: sessions * (SESSION_S if now == 0 else 1.0), policy)
    return run(plan, seconds, warm)


def most_load(places: Counts, policy: str, quick: bool) -> float:
    """The share of places that can be wanted until one utterance in a thousand is refused."""
    # The fewer sessions there are, the longer until all that may happen has happened.
    seconds = 900 if quick else (7200 if len(places) <= 10 else 3600)
    warm = 300 if quick else 1200
    low, high = 0.02, 1.0
    while high - low > 0.01:
        middle = (low + high) / 2
        fits = steady(places, middle, policy, seconds, warm)["refused"] <= GOAL
        low, high = (middle, high) if fits else (low, middle)
    return round(low, 3)


def of_a_day(most: float) -> Callable[[float], float]:
    """Sessions over a day: a fifth at four in the morning, all of them at eight in the evening."""

    def sessions(now: float) -> float:
        wave = 0.5 - 0.5 * np.cos(2 * np.pi * (now / DAY - 4 / 24))
        evening = np.exp(-(((now / HOUR - 20) / 2.5) ** 2))
        return float(most * min(1.0, 0.2 + 0.5 * wave + 0.3 * evening + 0.1 * wave * evening))

    return sessions


def by_nodes(quick: bool) -> list[dict[str, Any]]:
    """What can be taken of nodes that are alike."""
    return [
        {"nodes": n, "policy": p, "load": most_load(equal(n, PLACES), p, quick)}
        for p, n in itertools.product(POLICIES, (1, 10) if quick else NODES)
        if p != "weighted"
    ]


def by_places(quick: bool) -> list[dict[str, Any]]:
    """What can be taken of a hundred nodes, by their size."""
    return [
        {"places": size, "policy": p, "load": most_load(equal(100, size), p, quick)}
        for p, size in itertools.product(("least",), (3, 10, 30, 100, 300, 1000))
    ]


def by_policy(quick: bool) -> list[dict[str, Any]]:
    """What can be taken of nodes that are not alike."""
    return [
        {"policy": p, "load": most_load(unequal(99), p, quick)}
        for p in ("random", "least", "weighted", "moves")
    ]


def days(quick: bool) -> dict[str, Any]:
    """Fleets at two thirds of their places in the evening, and what may happen to them.

    Each node fails once a month in all of them. Upgrades: 500 nodes, from six in the evening to
    ten; as many nodes as are needed: up to 50, a whole day.
    """
    month, places = 30.0 * DAY, equal(10 if quick else NODES[-1], PLACES)
    curve = of_a_day(float(places.sum()) * 2 / 3 / SPEAKING)
    evening: dict[str, dict[str, Any]] = {
        "nothing else": {},
        "an upgrade, a hundredth at once": {"at_once": max(1, len(places) // 100)},
        "an upgrade, a tenth at once": {"at_once": max(1, len(places) // 10)},
    }
    found = {}
    for name, options in evening.items():
        at = 1.0 * HOUR if options else None
        # Those who are there already come at once.
        begun = Plan(
            places,
            lambda now: curve(now + 18 * HOUR) * (SESSION_S if now == 0 else 1.0),
            fails_every_s=month,
            upgrade_at=at,
            **options,
        )
        found[f"{len(places)} nodes, {name}"] = run(begun, 4 * HOUR, warm=1800, every=300)
    few = equal(10 if quick else 50, PLACES)
    whole = of_a_day(float(few.sum()) * 2 / 3 / SPEAKING)
    for minutes in (2, 10):
        scaled = Plan(few, whole, fails_every_s=month, scaled=True, start_s=60.0 * minutes)
        name = f"as many of {len(few)} as are needed, {minutes} minutes to start"
        found[name] = run(scaled, DAY, warm=1800, every=300)
    return found


def main() -> None:
    """Run, draw, write."""
    from fleet_report import draw

    args = program.options(
        __doc__, parts=["nodes", "sizes", "unequal", "days"], out=HERE, quick=False, draw=False
    )
    written, picture = args.out / "fleet.json", args.out / "fleet.png"
    if args.draw:
        draw(json.loads(written.read_text()), POLICIES, picture)
        return
    found = json.loads(written.read_text()) if written.exists() else {}
    found |= {
        "what": "a simulation, not a measurement",
        "assumed": {
            "speak_s": SPEAK_S, "listen_s": LISTEN_S, "session_s": SESSION_S,
            "retry_s": RETRY_S, "places": PLACES, "refused": GOAL, "known_s": SCRAPED_S,
        },
    }  # fmt: skip
    parts: dict[str, Callable[[bool], Any]] = {
        "nodes": by_nodes,
        "sizes": by_places,
        "unequal": by_policy,
        "days": days,
    }
    for part in args.parts:
        found[part] = parts[part](args.quick)
        program.write(written, found | program.about_this_run())
        print(part, flush=True)
    if found.keys() >= parts.keys():
        draw(found, POLICIES, picture)


if __name__ == "__main__":
    main()
