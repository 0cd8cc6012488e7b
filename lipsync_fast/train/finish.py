# SPDX-License-Identifier: Apache-2.0
"""The last step of a training: the best weights as graphs, packed with the prepared frames."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lipsync_fast.audio.windows import AudioWindow
from lipsync_fast.avatars.manifest import Window
from lipsync_fast.families.synctalk2d import REGION_BORDER
from lipsync_fast.geometry import Rect
from lipsync_fast.models.export import export_audio_encoder, export_unet
from lipsync_fast.models.unet import UNet
from lipsync_fast.prepare.folder import PreparedAvatar, pack_prepared
from lipsync_fast.prepare.request import printable
from lipsync_fast.train.look import with_mouths
from lipsync_fast.train.options import Options
from lipsync_fast.train.progress import StepProgress
from lipsync_fast.train.sound import Encoder
from lipsync_fast.train.state import Best
from lipsync_fast.version import __version__

if TYPE_CHECKING:
    from lipsync_fast.train.lessons import Following
    from lipsync_fast.train.trainer import Trainer

SHUT_ENOUGH = 0.97
"""Part of a loop's frames whose mouth must be shut for it to be taken as it was filmed."""


def pack(
    prepared: PreparedAvatar,
    dest: Path,
    weights: dict[str, torch.Tensor],
    options: Options,
    encoder: bytes,
    provenance: str,
    *,
    overwrite: bool,
) -> Path:
    """Write the avatar package.

    Args:
        prepared: its frames.
        dest: a folder, or a file if its name ends in ``.lsa``.
        weights: of the U-Net.
        options: of the training.
        encoder: the graph of the audio encoder that the U-Net was trained with.
        provenance: see ``provenance_of``.
        overwrite: replace a package that is there.

    Raises:
        OutputError: ``dest`` cannot be written.
    """
    net = UNet(options.width, options.region)
    net.load_state_dict(weights)
    image, decoder = export_unet(net.eval())
    audio: AudioWindow = options.audio
    return pack_prepared(
        prepared,
        dest,
        {"audio_encoder": encoder, "image": image, "decoder": decoder},
        width=options.width,
        region=options.region,
        audio=audio,
        overwrite=overwrite,
        provenance=provenance,
    )


def pack_following(
    prepared: PreparedAvatar,
    dest: Path,
    weights: dict[str, torch.Tensor],
    options: Options,
    follows: Following,
    provenance: str,
    progress: StepProgress,
    *,
    overwrite: bool,
) -> Path:
    """Write the package of an avatar that follows the sound.

    Where mouths of the loop are not shut, the network shuts them: what an avatar shows while it
    idles, and what it is given as its picture while it speaks, must say nothing.

    Args:
        follows: the window, the tuned encoder, and the mouths of the film.
        progress: is told when mouths are shut.

    Raises:
        OutputError: ``dest`` cannot be written.
    """
    net = UNet(options.width, options.region)
    net.load_state_dict(weights)
    net.eval()
    loop = prepared.manifest.loop
    gaps = follows.mouths.opening[loop.first : loop.first + loop.count]
    shut = float(np.mean(np.nan_to_num(gaps, nan=1.0) <= follows.mouths.shut_limit))
    shutting = None
    if shut < SHUT_ENOUGH:
        progress.say(
            f"in {100 * (1 - shut):.0f}% of the loop's frames the mouth is not shut: the network"
            " shuts them"
        )
        shutting = Shutting(prepared, net, follows.window, follows.silence)
    image, decoder = export_unet(net, window=follows.window)
    box = follows.window
    return pack_prepared(
        prepared,
        dest,
        {
            "audio_encoder": export_audio_encoder(follows.hearing.encoder.cpu().eval()),
            "image": image,
            "decoder": decoder,
        },
        width=options.width,
        region=options.region,
        audio=options.audio,
        window=Window(x=box.x, y=box.y, width=box.width, height=box.height),
        overwrite=overwrite,
        provenance=provenance,
        changed=shutting,
    )


class Shutting:
    """Pictures of a prepared folder, their mouths shut by a network.

    Args:
        prepared: the folder.
        net: of the family, for inference.
        window: what of the region is taken.
        silence: the audio block of silence.
    """

    def __init__(
        self, prepared: PreparedAvatar, net: UNet, window: Rect, silence: NDArray[np.float32]
    ) -> None:
        self._prepared, self._net, self._window = prepared, net, window
        self._silence = silence[None]

    def __call__(self, index: int) -> NDArray[np.uint8]:
        """A frame, H x W x 3 uint8 RGB."""
        picture = self._prepared.picture(index).copy()
        rect = self._prepared.rect(index)
        crop = self._prepared.crop(index, self._net.region + 2 * REGION_BORDER)
        (shut,) = with_mouths(self._net, [crop], self._silence, self._window, torch.device("cpu"))
        width, height = rect.size
        scaled = Image.fromarray(shut).resize((width, height), Image.Resampling.BICUBIC)
        part = self._window
        across, down = width / crop.shape[1], height / crop.shape[0]
        left, right = (round((v + REGION_BORDER) * across) for v in (part.x, part.x + part.width))
        top, bottom = (round((v + REGION_BORDER) * down) for v in (part.y, part.y + part.height))
        inside = np.asarray(scaled)[top:bottom, left:right]
        picture[rect.slices][top:bottom, left:right] = inside
        return picture


def provenance_of(
    prepared: PreparedAvatar,
    options: Options,
    encoder: Encoder,
    best: Best,
    trainer: Trainer,
    trained: int,
    held: int,
) -> str:
    """What was trained, on which data, for how long, with which seed and versions."""
    o, source = options, prepared.manifest.source
    with_losses = ["pixel"]
    if o.perceptual:
        with_losses.append("perceptual (VGG19)")
    if o.sync_loss > 0:
        with_losses.append(f"sync (x {o.sync_loss:g}, judge trained alongside)")
    begun = f"; begun with weights of SHA-256 {o.start}" if o.start else ""
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    found = (
        f"held-out difference {best.loss:.2f} grey levels, {best.mouth:.2f} at the mouth"
        if best.follows is None
        else f"mouth follows unheard sound with r {best.follows.r:.2f}"
    )
    tuned = "" if best.follows is None else ", tuned to the voice of the film"
    return printable(
        f"U-Net of width {o.width} at region {o.region} trained by lipsync-fast {__version__}"
        f" (torch {torch.__version__}, {o.device}, {o.precision}), ended on {day}, on {trained}"
        f" frames of {source.name} (SHA-256 {source.sha256}), {held} held out; {trainer.step} steps"
        f" of {o.batch} frames in {trainer.seconds / 60:.1f} min, learning rate {o.rate:g}, seed"
        f" {o.seed}, losses: {', '.join(with_losses)}{begun}; weights of step {best.step},"
        f" {found}; audio encoder: {encoder.source}{tuned}"
    )
