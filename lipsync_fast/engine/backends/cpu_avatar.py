# SPDX-License-Identifier: Apache-2.0
"""An avatar on the CPU: its networks in ONNX Runtime, the decoder's end in native stages."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from lipsync_fast import _native
from lipsync_fast.avatars.package import MODELS, AvatarPackage
from lipsync_fast.avatars.storage import MANIFEST
from lipsync_fast.engine.backends.decoder import SplitDecoder, split_decoder
from lipsync_fast.engine.backends.sessions import Sessions
from lipsync_fast.errors import AvatarFormatError, UnexpectedGraphError
from lipsync_fast.ipc.frame_store import FrameStore
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.engine")


class CpuAvatar:
    """An avatar's networks; made by ``CpuBackend.load``.

    Attributes:
        decoder: in ONNX Runtime; of a split one, the head.
        split: the rest of the decoder, where it has native stages.
    """

    def __init__(self, package: AvatarPackage, sessions: Sessions, kernel: str | None) -> None:
        self.package = package
        self.shared: FrameStore | None = None
        """Image halves of all engines; those that it has no room for are kept by each."""
        m = package.manifest
        # All are looked at before a runtime reads one; what it reads are those bytes.
        models = {name: package.network(name) for name in MODELS}
        self.audio_encoder = _session(package, "audio_encoder", sessions, models)
        self.image = _session(package, "image", sessions, models)
        self.levels = levels = m.levels
        self.split = (
            _split(package, models["decoder"], kernel)
            if kernel is not None and m.rules.fused
            else None
        )
        if self.split is None:
            self._heard, decoded = levels, {"region": m.made}
            self.decoder = _session(package, "decoder", sessions, models)
        else:
            joint, shape = self.split.joint
            self._heard = {n: s for n, s in levels.items() if n not in self.split.skips}
            decoded = {joint: shape}
            self.decoder = _session(package, "decoder", sessions, {"decoder": self.split.head})
        self.corner, self.audio_shape = m.corner, m.rules.audio_shape
        for name, session, inputs, outputs in (
            ("audio_encoder", self.audio_encoder, {"mel": (1, 80, 16)}, {"feature": (512,)}),
            ("image", self.image, {"image": (6, m.region, m.region)}, levels),
            ("decoder", self.decoder, {**self._heard, "audio": self.audio_shape}, decoded),
        ):
            _expect(package, name, session, inputs, outputs)
        self._try()

    def _try(self) -> None:
        """Make one frame of nothing: what cannot be run here must not be found out in a session.

        Raises:
            AvatarFormatError: it cannot be run.
        """
        m = self.package.manifest

        def zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
            return np.zeros(shape, np.float32)

        try:
            self.audio_encoder.run(None, {"mel": zeros((1, 1, 80, 16))})
            image = zeros((1, 6, m.region, m.region))
            made = self.image.run(list(self.levels), {"image": image})
            levels = dict(zip(self.levels, made, strict=True))
            self.decode(levels, zeros((1, *self.audio_shape)))
        except Exception as error:  # onnxruntime raises its own classes; MemoryError
            reason = (str(error) or repr(error)).splitlines()[0][:200]
            raise AvatarFormatError(
                f"{self.package.path}: its networks cannot be run: {reason}"
            ) from None

    def decode(
        self, levels: Mapping[str, NDArray[np.float32]], audio: NDArray[np.float32]
    ) -> NDArray[np.uint8]:
        """The generated picture, H x W x 3 uint8 RGB.

        Args:
            levels: x1 .., each 1 x C x H x W.
            audio: 1 x ``audio_shape``.
        """
        feed = {name: levels[name] for name in self._heard}
        made = self.decoder.run(None, {**feed, "audio": audio})[0][0]
        return _native.region_output(made) if self.split is None else self.split.run(made, levels)

    @property
    def level_bytes(self) -> int:
        """Bytes of one frame's image half."""
        return 4 * sum(math.prod(shape) for shape in self.levels.values())

    @property
    def identity(self) -> bytes:
        """What image halves follow from."""
        return hashlib.sha256(
            self.package.member_bytes(MANIFEST) + ort.__version__.encode()
        ).digest()

    def levels_in(self, record: memoryview) -> dict[str, NDArray[np.float32]]:
        """x1 .. of a shared record, without a copy."""
        found, at = {}, 0
        for name, shape in self.levels.items():
            count = math.prod(shape)
            found[name] = np.frombuffer(record, np.float32, count, at).reshape(1, *shape)
            at += 4 * count
        return found


def _split(package: AvatarPackage, model: bytes, kernel: str) -> SplitDecoder | None:
    """The decoder with native stages, or None where it must run as it is."""
    m = package.manifest
    try:
        split = split_decoder(model, m.region, m.window_rect, kernel)
    except UnexpectedGraphError as reason:
        log.info("the decoder runs in ONNX Runtime alone", avatar=m.name, reason=str(reason))
        return None
    for stage in split.stages:
        if stage.native.skip_shape != m.levels.get(stage.skip):
            log.info("the decoder does not fit its manifest", avatar=m.name)
            return None
    return split


def _session(
    package: AvatarPackage, name: str, sessions: Sessions, models: Mapping[str, bytes]
) -> ort.InferenceSession:
    try:
        return sessions.get(models[name])
    except Exception as error:  # onnxruntime raises its own classes, by the kind of damage
        reason = str(error).splitlines()[0][:200]
        raise AvatarFormatError(f"{package.path}: {name}.onnx cannot be loaded: {reason}") from None


def _expect(
    package: AvatarPackage,
    name: str,
    session: ort.InferenceSession,
    inputs: Mapping[str, tuple[int, ...]],
    outputs: Mapping[str, tuple[int, ...]],
) -> None:
    """Refuse a network whose inputs and outputs are not those of the manifest's family."""
    for what, wanted, found in (
        ("input", inputs, session.get_inputs()),
        ("output", outputs, session.get_outputs()),
    ):
        have = {v.name: tuple(v.shape[1:]) for v in found if v.type == "tensor(float)"}
        if have != wanted or len(found) != len(wanted):
            raise AvatarFormatError(
                f"{package.path}: {name}.onnx does not fit the manifest: {what}s are {have},"
                f" expected {wanted}"
            )
