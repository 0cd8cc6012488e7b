# SPDX-License-Identifier: Apache-2.0
"""Several processes keep frames in one file, and are killed at any moment."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from lipsync_fast.utterances.store import Row, Store

WRITER = """
import sys
from pathlib import Path
from lipsync_fast.errors import StoreError
from lipsync_fast.utterances.store import Row, Store
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
store = Store(folder, 3_000_000, 5.0)
name = store.begin_name("anna", f"name {seed}", b"v", bytes(400)) if seed == 0 else 0
print("ready", flush=True)
for batch in range(10_000):
    numbers = range(seed * 1_000_000 + 20 * batch, seed * 1_000_000 + 20 * batch + 20)
    rows = [Row(n.to_bytes(16, "big"), 1, 1.0, n.to_bytes(4, "big") * 1_500) for n in numbers]
    try:
        store.add(rows, name if batch < 5 else 0)
    except StoreError as error:
        print(error, flush=True)
"""
KILLS = 6


def writer(folder: Path, seed: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(seed)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def row(number: int) -> Row:
    return Row(number.to_bytes(16, "big"), 1, 1.0, number.to_bytes(4, "big") * 1_500)


def test_killed_writers_leave_nothing_half_written(tmp_path: Path) -> None:
    """What others read meanwhile is whole; the bound holds; the file is sound at the end."""
    rng = random.Random(3)
    writers = [writer(tmp_path, seed) for seed in range(3)]
    reader, found = Store(tmp_path, 3_000_000), 0
    seeds = 3
    try:
        for _ in range(KILLS):
            until = time.monotonic() + rng.uniform(0.1, 0.4)
            while time.monotonic() < until:
                number = rng.randrange(seeds) * 1_000_000 + rng.randrange(400)
                kept = reader.find(row(number).sound, 1, 1.0)
                if kept is not None:
                    found += 1
                    assert kept.value == row(number).value
                assert not reader.bad
            victim = writers.pop(rng.randrange(len(writers)))
            end(victim)
            writers.append(writer(tmp_path, seeds))
            seeds += 1
    finally:
        for each in writers:
            end(each)
    assert found > 0
    again = Store(tmp_path, 3_000_000, 5.0)
    assert again.used_bytes() <= 3_000_000 + 4096
    assert again.add([row(5)])[0] in (0, 1)
    with sqlite3.connect(tmp_path / "utterances.sqlite") as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        numbers = [int.from_bytes(s, "big") for (s,) in raw.execute("SELECT sound FROM frames")]
        batches = {number // 20 for number in numbers if number != 5}
        pinned = raw.execute("SELECT count(*) FROM frames WHERE pins > 0").fetchall()
        pins = raw.execute("SELECT count(*) FROM pins").fetchall()
    raw.close()
    assert pinned == pins, "each is pinned as often as names say"
    assert len(batches) > 5
    reader.close()
    again.close()
