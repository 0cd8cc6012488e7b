# SPDX-License-Identifier: Apache-2.0
"""The cache that is bounded by bytes, against what it promises."""

from __future__ import annotations

import threading
from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from lipsync_fast.engine.caches import ByteLru, within_memory

KEYS = st.tuples(st.sampled_from("ab"), st.integers(0, 5))


@given(
    limit=st.integers(1, 40),
    steps=st.lists(st.tuples(KEYS, st.integers(1, 15)) | st.sampled_from("ab"), max_size=60),
)
def test_the_least_recently_used_goes_first(
    limit: int, steps: list[tuple[tuple[str, int], int] | str]
) -> None:
    cache: ByteLru[int] = ByteLru(limit)
    model: OrderedDict[tuple[str, int], int] = OrderedDict()
    for step in steps:
        if isinstance(step, str):
            cache.forget(step)
            model = OrderedDict((k, v) for k, v in model.items() if k[0] != step)
        else:
            key, size = step
            made: list[int] = []
            value = cache.get(key, lambda size=size, made=made: (made.append(size) or size, size))
            assert bool(made) == (key not in model)
            assert value == model.get(key, size)
            model.setdefault(key, size)
            model.move_to_end(key)
            while sum(model.values()) > limit and len(model) > 1:
                model.popitem(last=False)
        assert cache.used == sum(model.values())
        for key in model:  # ``find`` counts as a use: bring both into the same order
            assert cache.find(key) == model[key]


def test_what_is_dear_to_keep_is_kept_from_the_second_use() -> None:
    cache: ByteLru[str] = ByteLru(100, uses=2)
    made = []

    def make() -> tuple[str, int]:
        made.append(1)
        return "value", 10

    for asked, expected in ((1, 0), (2, 10), (3, 10)):
        assert cache.get(("a", 1), make) == "value"
        assert cache.used == expected
        assert len(made) == min(asked, 2)
    cache.forget("a")
    assert cache.used == 0
    cache.get(("a", 1), make)
    assert cache.used == 0, "it is forgotten that it was asked for, too"
    cache.clear()


def test_a_value_larger_than_the_limit_is_held_alone() -> None:
    cache: ByteLru[int] = ByteLru(10)
    cache.get(("a", 1), lambda: (1, 5))
    cache.get(("a", 2), lambda: (2, 500))
    assert cache.find(("a", 1)) is None
    assert cache.find(("a", 2)) == 2
    cache.get(("a", 3), lambda: (3, 5))
    assert cache.used == 5


def test_many_threads_leave_the_count_right() -> None:
    cache: ByteLru[int] = ByteLru(300)
    start = threading.Barrier(4)

    def use(seed: int) -> None:
        start.wait(30)
        for k in range(2000):
            n = (k * 7 + seed * 13) % 60
            assert cache.get(("a", n), lambda n=n: (n, 10)) == n

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = [n for n in range(60) if cache.find(("a", n)) is not None]
    assert cache.used == 10 * len(held) <= 300


def test_bounds_follow_the_machine() -> None:
    assert within_memory(1000) == 1000
    assert 0 < within_memory(1 << 60) < 1 << 50
