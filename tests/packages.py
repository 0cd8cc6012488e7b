# SPDX-License-Identifier: Apache-2.0
"""Avatars laid out as other software leaves them, from frames, rectangles and weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from lipsync_fast import _native
from lipsync_fast.geometry import Rect

Rgb = NDArray[np.uint8]
Rects = Sequence[Rect]


def lossless(path: Path, pictures: Sequence[Rgb]) -> Path:
    """An .mp4 that decodes to the very pictures (H.264 in RGB, without loss)."""
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264rgb", rate=25)
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt = "rgb24"
        video.options = {"preset": "ultrafast", "crf": "0"}
        for picture in pictures:
            file.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(video.encode())
    return path


def crops(pictures: Sequence[Rgb], rects: Rects) -> list[Rgb]:
    """The rectangles' contents, 328 x 328."""
    return [
        _native.resize_cubic(picture[rect.slices], 328, 328)
        for picture, rect in zip(pictures, rects, strict=True)
    ]


def masked(regions: Sequence[Rgb]) -> list[Rgb]:
    """The inner 320 x 320 with the mouth covered."""
    out = [np.array(crop[4:324, 4:324]) for crop in regions]
    for region in out:
        region[5:310, 5:315] = 0
    return out


def sanders(folder: Path, pictures: Sequence[Rgb], rects: Rects) -> Path:
    """A package of the "sanders" form, without weights."""
    for name in ("cache", "checkpoint"):
        (folder / name).mkdir(parents=True)
    cut = crops(pictures, rects)
    lossless(folder / "full_body_video.mp4", pictures)
    lossless(folder / "crops_328_video.mp4", cut)
    lossless(folder / "rois_320_video.mp4", [crop[4:324, 4:324] for crop in cut])
    lossless(folder / "model_inputs_video.mp4", masked(cut))
    entries = {str(i): {"rect": list(rect.corners)} for i, rect in enumerate(rects)}
    (folder / "cache" / "crop_rectangles.json").write_text(json.dumps(entries, indent=1))
    (folder / "package_info.json").write_text(json.dumps({"frames": len(pictures)}))
    np.save(folder / "aud_ave.npy", np.zeros((len(pictures), 512), np.float32))
    return folder


def default_model(folder: Path, pictures: Sequence[Rgb], rects: Rects) -> Path:
    """A package of the older "default_model" form, without weights."""
    for name in ("face_bounds", "models"):
        (folder / name).mkdir(parents=True)
    cut = crops(pictures, rects)
    lossless(folder / "video.mp4", pictures)
    lossless(folder / "face_regions_320.mp4", [crop[4:324, 4:324] for crop in cut])
    lossless(folder / "masked_regions_320.mp4", masked(cut))
    for i, rect in enumerate(rects):
        numbers = [*rect.corners, *rect.size][: 5 + i % 2]
        np.save(folder / "face_bounds" / f"{i}.npy", np.array(numbers, np.float64))
    np.save(folder / "aud_ave.npy", np.zeros((len(pictures), 512), np.float32))
    return folder
