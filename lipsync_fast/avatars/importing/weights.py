# SPDX-License-Identifier: Apache-2.0
"""Where the weights of an avatar lie, and the networks made of them (extra ``train``)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lipsync_fast.avatars.importing.parts import Networks, Problems
from lipsync_fast.avatars.importing.pictures import is_number
from lipsync_fast.errors import AvatarImportError, BackendError
from lipsync_fast.extras import how_to_get
from lipsync_fast.families import Family, Models

ENCODER_NAMES = ("audio_visual_encoder.pth", "audio_encoder.pth")


def find_epoch(folders: list[Path]) -> Path:
    """The highest-numbered checkpoint of the first folder that has one.

    Raises:
        AvatarImportError: lists where it was looked for.
    """
    for folder in folders:
        epochs = [p for p in folder.glob("*.pth") if is_number(p.stem)] if folder.is_dir() else []
        if epochs:
            return max(epochs, key=lambda p: int(p.stem))
    looked = ", ".join(str(f / "{epoch}.pth") for f in folders)
    raise AvatarImportError(f"no checkpoint found at {looked}; name one with --checkpoint")


def find_checkpoint(dataset: Path) -> Path:
    """The highest-numbered checkpoint of a SyncTalk_2D data set.

    Raises:
        AvatarImportError: lists where it was looked for.
    """
    near = dataset.parent.parent / "checkpoint" / dataset.name
    return find_epoch([near, dataset / "checkpoint"])


def find_audio_encoder(dataset: Path, checkpoint: Path) -> Path:
    """The audio encoder's file, near the checkpoint or the data set.

    Raises:
        AvatarImportError: lists where it was looked for.
    """
    folders = _near(dataset, checkpoint)
    found = _encoder_in(folders)
    if found is not None:
        return found
    looked = ", ".join(dict.fromkeys(str(f) for f in folders))
    raise AvatarImportError(
        f"no {' or '.join(ENCODER_NAMES)} in {looked}; name one with --audio-encoder"
    )


def _near(dataset: Path, checkpoint: Path) -> list[Path]:
    root = dataset.parent.parent
    return [
        checkpoint.parent,
        checkpoint.parent.parent,
        dataset,
        dataset / "models",
        dataset.parent,
        root / "model" / "checkpoints",
        root,
    ]


def _encoder_in(folders: list[Path]) -> Path | None:
    files = (folder / name for folder in folders for name in ENCODER_NAMES)
    return next((file for file in files if file.is_file()), None)


def networks(
    problems: Problems,
    path: Path,
    found: Path | None,
    expected: Path,
    audio_encoder: Path | None,
) -> Networks:
    """Both files; what is not found is a problem.

    Args:
        found: the U-Net's weights, if there are any.
        expected: where they would lie, to look for the audio encoder near it.
        audio_encoder: named by the user.
    """
    encoder = audio_encoder
    if encoder is None and found is not None:
        # That of a checkpoint from elsewhere may still lie in its usual place.
        encoder = _encoder_in([*_near(path, found), *_near(path, expected)])
    if encoder is None:
        with problems.gathered():
            encoder = find_audio_encoder(path, found or expected)
    return Networks(found or expected, encoder or path / ENCODER_NAMES[0])


def load_models(where: Networks, family: Family) -> Models:
    """Read a family's networks and write them as the package has them.

    Raises:
        CheckpointError: weights that are hostile, damaged or of another family.
        AvatarFormatError: what is made of them cannot be used (numbers that are not finite).
        BackendError: torch or onnx is not installed.
    """
    from lipsync_fast.onnx_io.check import check_network

    try:
        from lipsync_fast.models.exporters import EXPORTERS

        made = EXPORTERS[family.name](where.checkpoint, where.audio_encoder)
    except ImportError as error:
        raise missing_extra(error) from None
    for data, file in (
        (made.image, where.checkpoint),
        (made.decoder, where.checkpoint),
        (made.audio_encoder, where.audio_encoder),
    ):
        check_network(data, f"the network made of {file}")
    return made


def need_extra() -> None:
    """Before anything is looked at: importing needs what reads checkpoints.

    They are not loaded yet, which takes seconds: what is wrong with a folder is said before.

    Raises:
        BackendError: torch or onnx is not installed.
    """
    for name in ("onnx", "torch"):
        if find_spec(name) is None:
            raise missing_extra(ImportError(name=name))


def missing_extra(error: ImportError) -> BackendError:
    """The error for a machine without the extra ``train``."""
    return BackendError(
        f"importing checkpoints needs the extra 'train' ({error.name} is not installed):"
        f" {how_to_get('train')}"
    )
