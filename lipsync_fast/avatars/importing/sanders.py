# SPDX-License-Identifier: Apache-2.0
"""The "sanders" form: a package of videos with cached rectangles.

    full_body_video.mp4           the frames
    cache/crop_rectangles.json    {"0": {"rect": [x1, y1, x2, y2]}, …}, one for each frame
    checkpoint/                   best_trainloss.pth, model_best.pth or model_best.onnx
    audio_visual_encoder.pth      the audio encoder: in the folder, near it, or named
    crops_328_video.mp4           the rectangles' contents; only held against them
    package_info.json, model_inputs_video.mp4, rois_320_video.mp4, aud_ave.npy    not needed

A frame and its rectangle give the crop, the crop gives the network's input; sound is the user's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from lipsync_fast.avatars.importing.parts import MOST_FRAMES, Problems, Source, need_file
from lipsync_fast.avatars.importing.videos import WHAT as VIDEO_WHAT
from lipsync_fast.avatars.importing.videos import check_count, source_of
from lipsync_fast.avatars.importing.weights import networks
from lipsync_fast.errors import AvatarImportError
from lipsync_fast.untrusted import limits
from lipsync_fast.untrusted.files import read_file

FORM = "sanders"
VIDEO, RECTANGLES, CROPS = (
    "full_body_video.mp4",
    "cache/crop_rectangles.json",
    "crops_328_video.mp4",
)
CHECKPOINTS = ("best_trainloss.pth", "model_best.pth", "model_best.onnx")
UNNEEDED = ("package_info.json", "model_inputs_video.mp4", "rois_320_video.mp4", "aud_ave.npy")
MARKS = (VIDEO, RECTANGLES, CROPS, *UNNEEDED[:3])
NEEDED = (VIDEO, RECTANGLES)
WHAT = 'one rectangle a frame: {"0": {"rect": [x1, y1, x2, y2]}, …}'


_MOST_VALUES = 16 * MOST_FRAMES


class _Entry(msgspec.Struct):
    rect: Annotated[list[float], msgspec.Meta(min_length=4, max_length=4)] | None = None


_DECODER = msgspec.json.Decoder(dict[str, _Entry])


def read_rectangles(path: Path, root: Path) -> NDArray[np.float64]:
    """All rectangles, N x 4; NaN where a frame has none.

    Raises:
        AvatarImportError: missing, too large, not of that form, or with numbers left out.
    """
    try:
        data = read_file(path, "rectangles", limits.RECTANGLE_BYTES, root)
    except FileNotFoundError:
        raise AvatarImportError(f"{path}: missing; expected {WHAT}") from None
    # Before anything is made of it: a million small entries would take 200 MB.
    check_count(max(1, data.count(b'"rect"')), path)
    if (values := data.count(b":")) > _MOST_VALUES:
        raise AvatarImportError(
            f"{path}: {values} values, more than {_MOST_VALUES}; expected {WHAT}"
        )
    try:
        entries = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AvatarImportError(f"{path}: {error}; expected {WHAT}") from None
    check_count(len(entries), path)
    given = np.full((len(entries), 4), np.nan)
    for i in range(len(entries)):
        entry = entries.get(str(i))
        if entry is None:
            odd = next(k for k in entries if not _is_frame(k, len(entries)))
            raise AvatarImportError(
                f"{path}: no frame {i} among its {len(entries)}, but {odd[:20]!r}; expected {WHAT}"
            )
        if entry.rect is not None:
            given[i] = entry.rect
    return given


def _is_frame(key: str, count: int) -> bool:
    return re.fullmatch("0|[1-9][0-9]{0,8}", key) is not None and int(key) < count


def find_checkpoint(path: Path) -> Path:
    """The U-Net's weights.

    Raises:
        AvatarImportError: lists the names that were looked for.
    """
    for name in CHECKPOINTS:
        if (path / "checkpoint" / name).is_file():
            return path / "checkpoint" / name
    raise AvatarImportError(
        f"{path / 'checkpoint'}: no checkpoint; expected {', '.join(CHECKPOINTS[:-1])} or"
        f" {CHECKPOINTS[-1]}, or one named with --checkpoint"
    )


def read(path: Path, checkpoint: Path | None, audio_encoder: Path | None) -> Source:
    """Look at a package; all but its pictures is read.

    Raises:
        AvatarImportError: names every part that is missing or wrong.
    """
    problems = Problems(path, FORM)
    given: NDArray[np.float64] | None = None
    with problems.gathered():
        given = read_rectangles(path / RECTANGLES, path)
    with problems.gathered():
        need_file(path / VIDEO, path, VIDEO_WHAT)
    found = checkpoint
    if found is None:
        with problems.gathered():
            found = find_checkpoint(path)
    weights = networks(problems, path, found, path / "checkpoint" / CHECKPOINTS[0], audio_encoder)
    problems.check()
    assert given is not None
    source = source_of(FORM, path, VIDEO, given, RECTANGLES, weights, (CROPS, 328))
    missing = [name for name in UNNEEDED if not (path / name).is_file()]
    if missing:
        source.notes.append(f"not there, and not needed: {', '.join(missing)}")
    others = [n for n in CHECKPOINTS if (path / "checkpoint" / n).is_file()]
    if checkpoint is None and len(others) > 1:
        source.notes.append(f"of {', '.join(others)} the first was taken")
    return source
