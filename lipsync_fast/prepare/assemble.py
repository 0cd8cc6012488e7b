# SPDX-License-Identifier: Apache-2.0
"""Put a prepared folder together from its parts: crops, loop, sound, report, checksums."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
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
from lipsync_fast.prepare.pose import mouth_boxes
from lipsync_fast.prepare.quality import (
    Film,
    advice,
    face_levels,
    measured_film,
    sound_warnings,
)
from lipsync_fast.prepare.report import report_lines, sheet_bytes, sheet_tile
from lipsync_fast.prepare.request import Progress, Request, Result, printable
from lipsync_fast.prepare.rest import LEAST_S, at_rest, mouth_opening
from lipsync_fast.prepare.sound import append_sound, read_sound, write_sound
from lipsync_fast.prepare.stabilise import Track, track
from lipsync_fast.timing import FPS
from lipsync_fast.version import __version__

REPORT = "report.json"
FEATURE_SIDE = 24
_AROUND = 0.3
"""Part of the crop's side by which what is around the face is compared too."""
_MEASURED = 40
OTHER_SIZE = 0.15
"""Logarithm of the ratio of two faces' sizes from which on they are said to differ."""
RESTLESS = (
    "nowhere is the mouth shut in silence for a second, so the loop is taken from frames in which"
    " it may move: film some five seconds of silence, looking at the camera, at one of the ends, or"
    " give a clip of it with --idle"
)
RESTLESS_IDLE = (
    "nowhere in the idle clip is the mouth shut in silence for a second, so the loop is taken from"
    " the video, where it is: film the idle clip with closed lips, looking at the camera"
)
RESTLESS_BOTH = (
    "neither in the idle clip nor in the video is the mouth shut in silence for a second, so the"
    " loop is taken from the idle clip as it is: film five seconds with closed lips, looking at the"
    " camera, in silence, and give them with --idle"
)

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Clip:
    """A video whose frames were all looked at: the person's, or the one to idle on.

    Attributes:
        work: where its parts are.
        corners: which landmarks span the crop, where the detector says so.
    """

    video: Path
    start_s: float
    work: WorkFolder
    corners: tuple[int, int, int] | None


@dataclass(frozen=True)
class _Looked:
    """What the parts of one clip say, or of all of them."""

    points: NDArray[np.float32]
    greys: NDArray[np.uint8]
    tracked: Track
    warnings: list[str]
    begins: Fraction = Fraction(0)


def assemble(
    request: Request,
    clips: Sequence[Clip],
    folder: Path,
    state: State,
    source: Source,
    on_progress: OnProgress,
) -> Result:
    """Write the finished folder.

    Args:
        clips: the video, and the one to idle on where there is one.
        folder: where it is put together; it is made.

    Raises:
        PrepareError: the face cannot be followed.
        OSError: it cannot be written.
    """
    on_progress(Progress("finishing", 0, 0))
    looked = [_looked(request, clip, source) for clip in clips]
    own = len(looked[0].points)
    both = looked[0] if len(looked) == 1 else _joined(*looked)
    tracked, warnings = both.tracked, both.warnings
    folder.mkdir()
    parts = (part for clip in clips for part in clip.work.parts())
    write_frames(folder, (jpeg for part in parts for jpeg in part.jpegs))
    write_faces(folder, tracked.rects, both.points)
    if request.parsing is not None:
        _write_masks(folder, request, tracked.rects, (source.width, source.height))
    sound = folder / "sound.wav"
    begins = looked[0].begins + Fraction(request.sound_late_ms).limit_denominator(1000) / 1000
    heard = _add_sound(clips[0], begins, own, sound, warnings)
    if heard and len(clips) > 1:
        _add_idle_sound(clips[1], looked[1].begins, len(looked[1].points), sound)
    warnings += tracked.warnings
    levels = face_levels(both.greys, tracked.rects, source.width)
    film = Film(
        points=both.points,
        rects=tracked.rects,
        side=tracked.side,
        levels=levels,
        spoken=own,
        pcm=read_sound(sound) if heard else None,
    )
    loop = choose(
        _features(both.greys, tracked, source.width),
        kind=request.loop,
        longest_s=request.loop_s,
        cuts=tracked.cuts,
        rest=_playable(film, tracked.cuts, own, warnings),
    )
    draft = Prepared(
        name=request.name,
        frame_width=source.width,
        frame_height=source.height,
        frame_count=len(both.points),
        jpeg=request.jpeg,
        loop=loop,
        points=both.points.shape[1],
        detector="landmarks in files" if request.landmarks else request.detector,
        sound=heard,
        synthetic=request.synthetic,
        licence=request.licence,
        provenance=printable(
            f"prepared from a video ({source.name}, SHA-256 {source.sha256[:16]}…)"
            f"{_and_idle(request)} by lipsync-fast {__version__}"
        ),
        consent=f"{request.consent} (stated by {request.stated_by} on {state.date})",
        key=state.key,
        source=msgspec.structs.replace(source, name=printable(source.name)),
        warnings=warnings,
    )
    return _finish(folder, draft, tracked, request, film)


def _looked(request: Request, clip: Clip, source: Source) -> _Looked:
    """A clip's parts, put together, and its face followed.

    Raises:
        PrepareError: the face cannot be followed.
    """
    parts = [_light(part) for part in clip.work.parts()]
    counts = {part.point_count for part in parts}
    if len(counts) > 1:
        raise PrepareError(f"detector {request.detector}: returned {sorted(counts)} points")
    points = np.concatenate([part.landmarks() for part in parts])
    tracked = track(
        corners_of(points, clip.corners, request.landmarks or request.detector),
        source.width,
        source.height,
        bridge=request.bridge,
        mouths=mouth_boxes(points),
    )
    return _Looked(
        points=points,
        greys=np.concatenate([part.pictures() for part in parts]),
        tracked=tracked,
        warnings=list(dict.fromkeys(text for part in parts for text in part.warnings)),
        begins=Fraction(parts[-1].begins),
    )


def _joined(video: _Looked, idle: _Looked) -> _Looked:
    """The video with the clip to idle on behind it; what is said of the clip is said to be."""
    if video.points.shape[1] != idle.points.shape[1]:
        raise PrepareError("the detector returned other numbers of points for the idle clip")
    frames, one, other = len(video.points), video.tracked, idle.tracked
    said = [f"idle clip: {text}" for text in (*idle.warnings, *other.warnings)]
    if abs(np.log(other.side / one.side)) > OTHER_SIZE:
        said.append(
            f"the face is {other.side:.0f} pixels wide in the idle clip and {one.side:.0f} in the"
            " video: film both from the same distance"
        )
    return _Looked(
        points=np.concatenate([video.points, idle.points]),
        greys=np.concatenate([video.greys, idle.greys]),
        tracked=Track(
            np.concatenate([one.rects, other.rects]),
            one.bridged + other.bridged,
            [*one.cuts, frames, *(frames + cut for cut in other.cuts)],
            [*one.warnings, *said],
        ),
        warnings=list(video.warnings),
    )


def _and_idle(request: Request) -> str:
    return "" if request.idle is None else f" and one to idle on ({Path(request.idle).name})"


def _playable(
    film: Film, cuts: list[int], own: int, warnings: list[str]
) -> NDArray[np.bool_] | None:
    """Which frames the loop may be taken from; None for all.

    Args:
        own: how many frames are the video's; those behind them are the clip's to idle on.
    """
    frames = len(film.points)
    rest = at_rest(film.points, film.side, film.pcm)
    if own == frames:
        if rest is None or _is_long(longest_piece(frames, cuts, rest)):
            return rest
        warnings.append(RESTLESS)
        return None
    idle = np.arange(frames) >= own
    if rest is None or _is_long(longest_piece(frames, cuts, rest & idle)):
        return idle if rest is None else rest & idle
    if _is_long(longest_piece(frames, cuts, rest)):
        warnings.append(RESTLESS_IDLE)
        return rest
    warnings.append(RESTLESS_BOTH)
    return idle


def _add_sound(clip: Clip, begins: Fraction, frames: int, file: Path, warnings: list[str]) -> bool:
    """Lay the sound beside the frames, and say what is wrong with it; whether there is any.

    Args:
        begins: where the sound of the first frame begins, without ``clip.start_s``.
    """
    try:
        found = write_sound(clip.video, _starts(clip, begins), frames, file)
    except MediaError as error:
        reason = str(error).removeprefix(f"{clip.video}: ")
        warnings.append(
            f"the video's sound cannot be used ({reason}): nothing can be trained from it"
        )
        return False
    warnings += found or []
    if found is None:
        warnings.append("the video has no sound: nothing can be trained from it")
    return found is not None


def _add_idle_sound(clip: Clip, begins: Fraction, frames: int, file: Path) -> None:
    """Lay the idle clip's sound behind the video's; silence where it has none."""
    own = file.with_name("idle.wav")
    try:
        with contextlib.suppress(MediaError):
            write_sound(clip.video, _starts(clip, begins), frames, own)
        append_sound(file, own if own.exists() else None, frames)
    finally:
        own.unlink(missing_ok=True)


def _starts(clip: Clip, begins: Fraction) -> Fraction:
    return begins + Fraction(clip.start_s).limit_denominator(1000)


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


def _finish(folder: Path, draft: Prepared, tracked: Track, request: Request, film: Film) -> Result:
    """The seam in true pictures, the report and the sheet, and last of all prepared.json."""
    frames = _Coded(folder, draft)
    loop = measured(draft.loop, frames, tracked.rects)
    draft = msgspec.structs.replace(draft, loop=loop)
    chosen = sorted({int(i) for i in np.linspace(0, draft.frame_count - 1, 12)})
    pictures, rects, faces = [], [], []
    for i in chosen:  # one at a time: twelve large pictures are much memory
        picture = frames(i)
        faces.append(picture[tracked.rect(i).slices].copy())
        small, rect = sheet_tile(picture, tracked.rect(i))
        pictures.append(small)
        rects.append(rect)
    measures = measured_film(film, faces)
    draft.warnings.extend(sound_warnings(measures, film.pcm, request.sound_late_ms))
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
        idle_frames=draft.frame_count - film.spoken,
        measures=measures,
        advice=advice(measures, mouth_opening(film.points[: film.spoken], film.side)),
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
