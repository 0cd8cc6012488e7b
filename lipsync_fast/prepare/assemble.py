# SPDX-License-Identifier: Apache-2.0
"""Put a prepared folder together from its parts: crops, loop, sound, report, checksums."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsync_fast.avatars.importing.pictures import keep_mask, read_picture
from lipsync_fast.avatars.jpeg import decode
from lipsync_fast.avatars.members import PileWriter, packed_mask, replace_with, thumbnail
from lipsync_fast.errors import MediaError, OutputError, PrepareError
from lipsync_fast.geometry import Rect
from lipsync_fast.names import json_bytes
from lipsync_fast.prepare.detectors import corners_of
from lipsync_fast.prepare.folder import NAME, Prepared, PreparedAvatar, Source
from lipsync_fast.prepare.loop import Loop, choose, longest_piece
from lipsync_fast.prepare.members import write_faces, write_frames, write_head
from lipsync_fast.prepare.parts import Part, State, WorkFolder, sync_folder
from lipsync_fast.prepare.report import report_lines, sheet_bytes, sheet_tile
from lipsync_fast.prepare.request import Progress, Request, Result, printable
from lipsync_fast.prepare.rest import LEAST_S, at_rest
from lipsync_fast.prepare.sound import read_sound, write_sound
from lipsync_fast.prepare.stabilise import Track, track
from lipsync_fast.timing import FPS
from lipsync_fast.version import __version__

REPORT = "report.json"
FEATURE_SIDE = 24
_AROUND = 0.3
"""Part of the crop's side by which what is around the face is compared too."""
_MEASURED = 40
RESTLESS = (
    "nowhere is the mouth shut in silence for a second, so the loop is taken from frames in which"
    " it may move: film some five seconds of silence, looking at the camera, at one of the ends"
)

OnProgress = Callable[[Progress], None]


def assemble(
    request: Request,
    work: WorkFolder,
    state: State,
    source: Source,
    corners: tuple[int, int, int] | None,
    on_progress: OnProgress,
) -> Result:
    """Write the finished folder to ``work.made``.

    Args:
        corners: which landmarks span the crop, where the detector says so.

    Raises:
        PrepareError: the face cannot be followed.
        OSError: it cannot be written.
    """
    on_progress(Progress("finishing", 0, 0))
    parts = [_light(part) for part in work.parts()]
    counts = {part.point_count for part in parts}
    if len(counts) > 1:
        raise PrepareError(f"detector {request.detector}: returned {sorted(counts)} points")
    points = np.concatenate([part.landmarks() for part in parts])
    spec = request.landmarks or request.detector
    tracked = track(
        corners_of(points, corners, spec), source.width, source.height, bridge=request.bridge
    )
    features = _features(np.concatenate([p.pictures() for p in parts]), tracked, source.width)
    begins = Fraction(parts[-1].begins)
    warnings = list(dict.fromkeys(text for part in parts for text in part.warnings))
    folder = work.made
    folder.mkdir()
    write_frames(folder, (jpeg for part in work.parts() for jpeg in part.jpegs))
    write_faces(folder, tracked.rects, points)
    if request.parsing is not None:
        _write_masks(folder, request, tracked.rects, (source.width, source.height))
    starts = begins + Fraction(source.start).limit_denominator(1000)
    sound = _add_sound(Path(request.video), starts, len(points), folder / "sound.wav", warnings)
    warnings += tracked.warnings
    pcm = read_sound(folder / "sound.wav") if sound else None
    rest = at_rest(points, tracked.side, pcm)
    if rest is not None and not _is_long(longest_piece(len(rest), tracked.cuts, rest)):
        warnings.append(RESTLESS)
        rest = None
    loop = choose(
        features, kind=request.loop, longest_s=request.loop_s, cuts=tracked.cuts, rest=rest
    )
    draft = Prepared(
        name=request.name,
        frame_width=source.width,
        frame_height=source.height,
        frame_count=len(points),
        jpeg=request.jpeg,
        loop=loop,
        points=points.shape[1],
        detector="landmarks in files" if request.landmarks else request.detector,
        sound=sound,
        synthetic=request.synthetic,
        licence=request.licence,
        provenance=printable(
            f"prepared from a video ({source.name}, SHA-256 {source.sha256[:16]}…)"
            f" by lipsync-fast {__version__}"
        ),
        consent=f"{request.consent} (stated by {request.stated_by} on {state.date})",
        key=state.key,
        source=msgspec.structs.replace(source, name=printable(source.name)),
        warnings=warnings,
    )
    return _finish(folder, draft, tracked, request)


def _add_sound(video: Path, begins: Fraction, frames: int, file: Path, warnings: list[str]) -> bool:
    """Lay the sound beside the frames, and say what is wrong with it; whether there is any."""
    try:
        found = write_sound(video, begins, frames, file)
    except MediaError as error:
        reason = str(error).removeprefix(f"{video}: ")
        warnings.append(
            f"the video's sound cannot be used ({reason}): nothing can be trained from it"
        )
        return False
    warnings += found or []
    if found is None:
        warnings.append("the video has no sound: nothing can be trained from it")
    return found is not None


def _is_long(piece: tuple[int, int]) -> bool:
    return piece[1] - piece[0] >= LEAST_S * FPS


def _light(part: Part) -> Part:
    """``part`` without its coded frames, which are read again when they are written."""
    part.jpegs = []
    return part


def _features(greys: NDArray[np.uint8], tracked: Track, width: int) -> NDArray[np.float32]:
    """The face and what is around it in each small picture: N x (24 x 24), grey levels.

    The cut is the same in all frames, so that a head that moves differs from itself.
    """
    r = tracked.rects
    height = greys.shape[1]
    scale = greys.shape[2] / width
    around = _AROUND * tracked.side
    x1, y1 = (max(0, int((v - around) * scale)) for v in np.percentile(r[:, :2], 5, axis=0))
    x2, y2 = (int(np.ceil((v + around) * scale)) for v in np.percentile(r[:, 2:], 95, axis=0))
    right, bottom = max(x1 + 2, min(x2, greys.shape[2])), max(y1 + 2, min(y2, height))
    seen = Rect.from_corners(x1, y1, right, bottom)
    out = np.empty((len(greys), FEATURE_SIDE * FEATURE_SIDE), np.float32)
    for i, grey in enumerate(greys):
        cut = Image.fromarray(grey[seen.slices])
        small = cut.convert("F").resize((FEATURE_SIDE, FEATURE_SIDE), Image.Resampling.BOX)
        out[i] = np.asarray(small).ravel()
    return out


def _write_masks(
    folder: Path, request: Request, rects: NDArray[np.int32], size: tuple[int, int]
) -> None:
    """Where the original stays, from SyncTalk_2D's parsing maps; frames without a map have none."""
    first, found = round(request.start_s * FPS), False
    with closing(PileWriter(folder / "masks.bin")) as masks:
        for i, (x1, y1, x2, y2) in enumerate(rects):
            file = Path(request.parsing or "") / f"{first + i}.png"
            packed = b""
            if file.exists():
                found = True
                labels, _ = read_picture(file)
                if (labels.shape[1], labels.shape[0]) != size:
                    raise PrepareError(
                        f"{file}: {labels.shape[1]} x {labels.shape[0]}, but frames are"
                        f" {size[0]} x {size[1]}"
                    )
                keep = keep_mask(labels[y1:y2, x1:x2])
                packed = packed_mask(keep)
            masks.add(packed)
        masks.write_index()
    if not found:
        raise PrepareError(f"{request.parsing}: holds no parsing map of any frame (0.png …)")


def _finish(folder: Path, draft: Prepared, tracked: Track, request: Request) -> Result:
    """The seam in true pictures, the report and the sheet, and last of all prepared.json."""
    frames = _Coded(folder, draft)
    loop = measured(draft.loop, frames, tracked.rects)
    draft = msgspec.structs.replace(draft, loop=loop)
    chosen = sorted({int(i) for i in np.linspace(0, draft.frame_count - 1, 12)})
    pictures, rects = [], []
    for i in chosen:  # one at a time: twelve large pictures are much memory
        small, rect = sheet_tile(frames(i), tracked.rect(i))
        pictures.append(small)
        rects.append(rect)
    (folder / "thumbnail.jpg").write_bytes(thumbnail(frames(loop.first), tracked.rect(loop.first)))
    (folder / "sheet.jpg").write_bytes(sheet_bytes(pictures, chosen, rects, loop))
    result = Result(
        name=draft.name,
        path=".",
        video=draft.source.name,
        frames=draft.frame_count,
        width=draft.frame_width,
        height=draft.frame_height,
        seconds=draft.frame_count / FPS,
        source_rate=draft.source.rate,
        detector=draft.detector,
        points=draft.points,
        bridged=tracked.bridged,
        face=int(tracked.side),
        loop=loop.kind,
        loop_first=loop.first,
        loop_count=loop.count,
        seam=loop.seam,
        step=loop.step,
        sound=draft.sound,
        bytes=sum(path.stat().st_size for path in folder.iterdir()),
        warnings=draft.warnings,
    )
    (folder / REPORT).write_bytes(json_bytes(result, indent=1))
    (folder / "report.txt").write_text("\n".join(report_lines(result)) + "\n", encoding="utf-8")
    write_head(folder, draft)
    sync_folder(folder)
    PreparedAvatar.open(folder).close()  # what we write, we can read
    return msgspec.structs.replace(result, path=str(request.dest), video=request.video)


class _Coded:
    """Frames of a folder under construction."""

    def __init__(self, folder: Path, draft: Prepared) -> None:
        self._file = folder / "frames.bin"
        self._offsets = np.load(folder / "frames.npy")
        self._size = draft.frame_width, draft.frame_height

    def __call__(self, index: int) -> NDArray[np.uint8]:
        with open(self._file, "rb") as file:
            file.seek(int(self._offsets[index]))
            data = file.read(int(self._offsets[index + 1] - self._offsets[index]))
        return decode(data, self._size, f"frame {index}")


def measured(
    loop: Loop, picture: Callable[[int], NDArray[np.uint8]], rects: NDArray[np.int32]
) -> Loop:
    """``loop`` with its seam and step as true pictures have them, around the face."""
    first, last = loop.first, loop.first + loop.count - 1
    part = rects[first : last + 1]
    around = int(_AROUND * np.median(part[:, 2] - part[:, 0]))
    x1, y1 = np.maximum(0, part[:, :2].min(axis=0) - around)
    x2, y2 = part[:, 2:].max(axis=0) + around

    def grey(index: int) -> NDArray[np.float32]:
        cut = Image.fromarray(picture(index)[y1:y2, x1:x2])
        return np.asarray(cut.convert("L"), np.float32)

    def between(a: int, b: int) -> float:
        return float(np.abs(grey(a) - grey(b)).mean())

    if loop.count == 1:
        return msgspec.structs.replace(loop, seam=0.0, step=0.0)
    chosen = sorted({int(i) for i in np.linspace(first, last - 1, min(_MEASURED, loop.count - 1))})
    step = float(np.median([between(i, i + 1) for i in chosen]))
    if loop.kind == "cycle":
        seam = between(last, first)
    else:
        seam = max(between(first, first + 1), between(last - 1, last))
    return msgspec.structs.replace(loop, seam=round(seam, 3), step=round(step, 3))


def install(made: Path, dest: Path) -> None:
    """Give the finished folder its name; one that was prepared before makes room.

    Raises:
        OutputError: something else has appeared there.
    """
    if dest.is_dir() and any(dest.iterdir()):
        if not (dest / NAME).is_file():
            raise OutputError(
                f"{dest}: holds something other than a prepared video, and is left alone"
            )
        old = dest.parent / f".{dest.name}.old"
        shutil.rmtree(old, ignore_errors=True)  # of one that was killed right here
        replace_with(made, dest, old)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(made, dest)
