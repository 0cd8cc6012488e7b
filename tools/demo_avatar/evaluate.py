# SPDX-License-Identifier: Apache-2.0
"""Evaluate the demo avatar on real speech that no training step has seen.

    python evaluate.py WORK --avatar PATH [--out FOLDER]
    python evaluate.py WORK --rendered          # the ceiling: rendered mouths, no network
    python evaluate.py WORK --poses             # what to render for the comparison alone

Runs the held-out recordings through ``lipsync_fast.open(PATH).render(pcm, 16000)`` and measures
the lip gap in the pixels (mouth_measure.py), against the gap that the aligned phones ask for.
Needs WORK with corpus.py's, render.py's and dataset.py's output. Writes report.json, report.md,
opening.png and sheet.jpg to FOLDER (WORK/evaluation). Exit status 1 when a goal is missed.
``--poses`` writes WORK/poses.npy, see README.md.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from geometry import Geometry, Mouths, load_rgba, opening_px
from mouth_measure import (
    CLOSED_PX,
    F32,
    SEALED_PX,
    U8,
    Gap,
    Poses,
    Seam,
    lip_gap,
    seam,
    sharpness,
)
from numpy.typing import NDArray

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "speech"))
from phones import CLOSURES

import lipsync_fast
from lipsync_fast.avatars.package import AvatarPackage

RATE, FPS = 16_000, 25
SHORTEST_S = 1.5
LAGS = 6
BORDER = 4
COMPARED = 60
"""Frames whose mouth is also rendered, for sharpness and the contact sheet."""
GOALS = {"r": 0.85, "abs_lag_frames": 1.0, "closed": 0.90}
OPEN_PX = 4.0
ROTATIONS = (1, 7, 13)
"""Shuffled speech: each recording against the pictures of the one so many further on."""


@dataclass(frozen=True)
class Recording:
    """A held-out recording: sound, controls and expected lip gap per frame, closures in seconds."""

    name: str
    pcm: NDArray[np.int16]
    controls: F32
    expected: F32
    speech: NDArray[np.bool_]
    closures: list[tuple[str, float, float]]


@dataclass
class Track:
    """What was measured on one recording's frames."""

    recording: Recording
    start: int
    gaps: list[Gap] = field(default_factory=list)


@dataclass
class Pictures:
    """What was measured on the pictures as such."""

    outside: list[int] = field(default_factory=list)
    seams: list[Seam] = field(default_factory=list)
    sharp: list[tuple[float, float]] = field(default_factory=list)
    pairs: list[tuple[U8, U8, str]] = field(default_factory=list)


def recordings(work: pathlib.Path, geometry: Geometry) -> list[Recording]:
    """The real recordings of the test split that last SHORTEST_S or longer."""
    folder = work / "speech" / "corpus"
    out = []
    for entry in json.loads((folder / "index.json").read_text()):
        if (entry["split"], entry["origin"]) != ("test", "real") or entry["seconds"] < SHORTEST_S:
            continue
        with np.load(folder / f"{entry['name']}.npz") as z:
            pcm, controls = z["pcm"], z["controls"]
            phones = list(zip(z["phone_names"], z["phone_times"], strict=True))
        middles = (np.arange(len(controls)) + 0.5) / FPS
        speech = np.zeros(len(controls), bool)
        for name, (start, end) in phones:
            speech |= (middles >= start) & (middles < end) & (name != "SIL")
        shut = [(str(n), float(s), float(e)) for n, (s, e) in phones if n in CLOSURES]
        gap = opening_px(geometry, controls)
        out.append(Recording(entry["name"], pcm, controls, gap, speech, shut))
    return out


def compared_poses(chosen: list[Recording]) -> F32:
    """Controls (N x 8) of the frames whose mouth ``measure`` compares with a rendered one."""
    controls = np.concatenate([r.controls for r in chosen])
    some = controls[:: max(1, len(controls) // COMPARED)]
    return some[some.sum(axis=1) > 0.02]


# ---------------------------------------------------------------- where pictures come from
class Rendered:
    """Frames without a network: the rendered mouth that the controls ask for, moved by the loop."""

    def __init__(self, work: pathlib.Path, geometry: Geometry, poses: Poses) -> None:
        self.poses, self.mouths = poses, Mouths(work, geometry)
        with np.load(work / "loop.npz") as z:
            self.frames, self.people, self.walls = z["frames"], z["people"], z["walls"]

    def square(self, controls: F32, frame: int) -> U8:
        """The face square with the mouth of ``controls``, as the training pictures are made."""
        person = self.people[frame].astype(np.float32) / 255
        person[self.poses.layout.mouth_in_window] = self.mouths.picture(controls)[0]
        m = self.poses.maps[frame]
        moved = cv2.remap(person, m[0], m[1], cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE)
        moved = np.clip(moved, 0, 1)
        rgb = moved[..., :3] + self.walls[frame].astype(np.float32) * (1 - moved[..., 3:])
        out: U8 = np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8)
        return out

    def play(self, recording: Recording, start: int) -> Iterator[tuple[int, U8]]:
        """Whole frames, with the number of the loop's frame under each."""
        n = len(self.frames)
        for i, controls in enumerate(recording.controls):
            at = (i + start) % (2 * n - 2)
            at = at if at < n else 2 * n - 2 - at
            image = self.frames[at].copy()
            x0, y0, x1, y1 = self.poses.rects[at]
            image[y0:y1, x0:x1] = self.square(controls, at)
            yield at, image


def play_avatar(
    avatar: lipsync_fast.Avatar, recording: Recording, start: int
) -> Iterator[tuple[int, U8]]:
    """Frames of the public API, with the number of the avatar's frame under each."""
    for frame in avatar.render(recording.pcm, RATE, start_frame=start):
        yield frame.avatar_frame, frame.image


def generated_area(package: AvatarPackage, index: int) -> NDArray[np.bool_]:
    """Pixels of a whole frame that the network may change."""
    x0, y0, x1, y1 = package.rect(index).corners
    inner = np.zeros((y1 - y0, x1 - x0), bool)
    by, bx = (round(BORDER * n / package.manifest.crop) for n in inner.shape)
    inner[by:-by, bx:-bx] = True
    mask = package.mask(index)
    if mask is not None:
        inner &= mask == 0
    width, height = package.frame_size
    out = np.zeros((height, width), bool)
    out[y0:y1, x0:x1] = inner
    return out


# ---------------------------------------------------------------- measuring
def measure(
    work: pathlib.Path, geometry: Geometry, path: str | None, chosen: list[Recording]
) -> tuple[list[Track], Pictures]:
    """Play every recording and measure its frames; ``path`` None plays rendered mouths."""
    poses, pictures = Poses(work / "loop.npz", geometry), Pictures()
    rendered = Rendered(work, geometry, poses)
    avatar = lipsync_fast.open(path, threads=2) if path else None
    if avatar is not None:
        check_loop(avatar.package, poses)
    total, seen, tracks = sum(len(r.controls) for r in chosen), 0, []
    every = max(1, total // COMPARED)
    for n, recording in enumerate(chosen):
        track = Track(recording, 37 * n % 100)
        frames = (
            play_avatar(avatar, recording, track.start)
            if avatar is not None
            else rendered.play(recording, track.start)
        )
        for i, (at, image) in enumerate(frames):
            track.gaps.append(poses.gap(image, at))
            if seen % every == 0:
                square = poses.square(image, at)
                wanted = rendered.square(recording.controls[i], at)
                compare(pictures, poses, at, square, wanted, f"{recording.name[5:]} {i}")
                if avatar is not None:
                    check_outside(pictures, avatar.package, at, image)
            seen += 1
        if len(track.gaps) != len(recording.controls):
            wrong = f"{len(track.gaps)} frames, expected {len(recording.controls)}"
            raise SystemExit(f"{recording.name}: {wrong}")
        tracks.append(track)
        print(f"{n + 1}/{len(chosen)} {recording.name}", flush=True)
    if avatar is not None:
        avatar.close()
    return tracks, pictures


def check_loop(package: AvatarPackage, poses: Poses) -> None:
    """Stop where the avatar was not made from WORK's idle loop."""
    rects = np.array([package.rect(i).corners for i in range(package.manifest.frame_count)])
    if rects.shape != poses.rects.shape or not np.array_equal(rects, poses.rects):
        raise SystemExit(f"{package.path}: its face rectangles are not those of WORK/loop.npz")


def compare(pictures: Pictures, poses: Poses, at: int, made: U8, wanted: U8, label: str) -> None:
    """Sharpness of a generated and of the rendered mouth, and the pair for the sheet."""
    a, b = poses.lips(made, at), poses.lips(wanted, at)
    pictures.sharp.append((sharpness(a), sharpness(b)))
    pictures.pairs.append((made, wanted, label))


def check_outside(pictures: Pictures, package: AvatarPackage, at: int, image: U8) -> None:
    """Largest difference outside the generated area, and the steps across its edge."""
    original, area = package.picture(at), generated_area(package, at)
    difference = np.abs(image.astype(np.int16) - original).max(2)
    pictures.outside.append(int(difference[~area].max()))
    pictures.seams.append(seam(image, original, area))


def validation(work: pathlib.Path, geometry: Geometry) -> dict[str, float]:
    """How well the pixel measure tells the true gap, on the rendered mouths."""
    table = np.load(work / "render" / "controls.npy")
    files = [(i, work / "render" / "mouths" / f"{i:04d}.png") for i in range(len(table))]
    files = [(i, path) for i, path in files if path.exists()]
    true = opening_px(geometry, table[[i for i, _ in files]])
    pictures = (np.round(load_rgba(path)[..., :3] * 255).astype(np.uint8) for _, path in files)
    seen = np.array([lip_gap(p, geometry.person.tints).middle for p in pictures])
    return {
        "pictures": len(files),
        "r": correlation(seen, true),
        "mean_error_px": float(np.abs(seen - true).mean()),
        "closed_called_open": float((seen[true == 0] > CLOSED_PX).mean()),
        "open_2px_called_closed": float((seen[true >= 2] <= CLOSED_PX).mean()),
    }


# ---------------------------------------------------------------- figures
def correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Pearson's r; 0 where either does not vary."""
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 1e-6 and b.std() > 1e-6 else 0.0


def best_lag(pairs: list[tuple[NDArray[np.floating], F32]]) -> tuple[float, list[float]]:
    """The lag (frames; positive: the picture is late) of the largest correlation, by parabola."""
    curve = []
    for lag in range(-LAGS, LAGS + 1):
        a = [g[max(0, lag) : len(g) + min(0, lag)] for g, _ in pairs]
        b = [e[max(0, -lag) : len(e) + min(0, -lag)] for _, e in pairs]
        curve.append(correlation(np.concatenate(a), np.concatenate(b)))
    k = int(np.argmax(curve))
    shift = 0.0
    if 0 < k < len(curve) - 1:
        left, middle, right = curve[k - 1 : k + 2]
        bend = left - 2 * middle + right
        shift = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return k - LAGS + shift, curve


def closed_share(
    pairs: list[tuple[NDArray[np.floating], Recording]], threshold: float
) -> dict[str, list[int]]:
    """Per phone, [closed, all]: some frame of the segment +-1 frame is at most ``threshold``."""
    out: dict[str, list[int]] = {}
    for gaps, recording in pairs:
        for name, start, end in recording.closures:
            first = max(0, int(np.floor(start * FPS)) - 1)
            near = gaps[first : int(np.ceil(end * FPS)) + 1]
            count = out.setdefault(name, [0, 0])
            count[0] += bool(len(near) and near.min() <= threshold)
            count[1] += 1
    return out


def share(counts: dict[str, list[int]]) -> float:
    """All phones' closed part."""
    return sum(c for c, _ in counts.values()) / max(1, sum(n for _, n in counts.values()))


def closures(tracks: list[Track]) -> dict[str, Any]:
    """Closed lips at p, b, m: in the middle, over the whole width, and both by chance."""
    out: dict[str, Any] = {}
    for key, axis, threshold in (("closed", 0, CLOSED_PX), ("sealed", 1, SEALED_PX)):
        gaps = [np.array(t.gaps)[:, axis] for t in tracks]
        own = closed_share([(g, t.recording) for g, t in zip(gaps, tracks, strict=True)], threshold)
        by_chance = []
        for by in ROTATIONS:
            pairs = [(g, t.recording) for g, t in zip(rotated(gaps, by), tracks, strict=True)]
            by_chance.append(share(closed_share(pairs, threshold)))
        out[key], out[f"{key}_by_phone"] = share(own), own
        out[f"shuffled_{key}"] = float(np.mean(by_chance))
    return out


def rotated(gaps: list[NDArray[np.floating]], by: int) -> list[NDArray[np.floating]]:
    """For each recording another's gaps, repeated or cut to its length."""
    return [np.resize(gaps[(i + by) % len(gaps)], len(g)) for i, g in enumerate(gaps)]


def of_pictures(pictures: Pictures) -> dict[str, float | None]:
    """Sharpness, what lies outside, and the seam."""
    sharp = np.array(pictures.sharp)
    seams = pictures.seams
    return {
        "sharpness_ratio_median": float(np.median(sharp[:, 0] / sharp[:, 1])),
        "outside_largest_difference": max(pictures.outside, default=None),
        "seam_step": float(np.mean([s.generated for s in seams])) if seams else None,
        "seam_step_in_original": float(np.mean([s.original for s in seams])) if seams else None,
    }


def figures(tracks: list[Track], pictures: Pictures) -> dict[str, Any]:
    """Everything that the report says of the avatar."""
    gaps = [np.array(t.gaps)[:, 0] for t in tracks]
    expected = [t.recording.expected for t in tracks]
    speech = np.concatenate([t.recording.speech for t in tracks])
    seen, wanted = np.concatenate(gaps), np.concatenate(expected)
    lag, curve = best_lag(list(zip(gaps, expected, strict=True)))
    shuffled = [correlation(np.concatenate(rotated(gaps, by)), wanted) for by in ROTATIONS]
    each = [correlation(g, e) for g, e in zip(gaps, expected, strict=True)]
    return {
        "recordings": len(tracks),
        "seconds": sum(len(t.recording.pcm) for t in tracks) / RATE,
        "frames": len(seen),
        "r": correlation(seen, wanted),
        "r_speech_frames_only": correlation(seen[speech], wanted[speech]),
        "r_median_per_recording": float(np.median(each)),
        "r_worst_recording": float(np.min(each)),
        "r_by_recording": dict(zip([t.recording.name for t in tracks], each, strict=True)),
        "shuffled_r": float(np.mean(shuffled)),
        "gain": float(np.polyfit(wanted, seen, 1)[0]),
        "lag_frames": lag,
        "lag_curve": curve,
        "open_when_open_expected": float((seen[wanted >= OPEN_PX] > CLOSED_PX).mean()),
        **closures(tracks),
        **of_pictures(pictures),
    }


def verdicts(found: dict[str, Any]) -> dict[str, bool]:
    """Which goals are met."""
    out = {
        "correlation": found["r"] >= GOALS["r"],
        "lag": abs(found["lag_frames"]) <= GOALS["abs_lag_frames"],
        "closures": found["closed"] >= GOALS["closed"],
        "fails on shuffled speech": found["shuffled_r"] < 0.5,
    }
    if found["outside_largest_difference"] is not None:
        out["outside unchanged"] = found["outside_largest_difference"] == 0
    return out


def main() -> None:
    """Measure, report, and say by the exit status whether the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--avatar", help="package: a folder, an .lsa file or a name")
    source.add_argument("--rendered", action="store_true", help="no network: rendered mouths")
    source.add_argument("--poses", action="store_true", help="write WORK/poses.npy, measure none")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--limit", type=int, help="only the first recordings, for a quick look")
    args = parser.parse_args()
    from evaluate_report import write

    geometry = Geometry(args.work)
    chosen = recordings(args.work, geometry)[: args.limit]
    if args.poses:
        np.save(args.work / "poses.npy", compared_poses(chosen))
        return
    out = args.out or args.work / "evaluation"
    out.mkdir(parents=True, exist_ok=True)
    tracks, pictures = measure(args.work, geometry, args.avatar, chosen)
    found = figures(tracks, pictures)
    met = verdicts(found)
    subject = pathlib.Path(args.avatar).name if args.avatar else "rendered mouths (no network)"
    write(out, subject, found, met, validation(args.work, geometry), tracks, pictures.pairs)
    print((out / "report.md").read_text())
    raise SystemExit(0 if all(met.values()) else 1)


if __name__ == "__main__":
    main()
