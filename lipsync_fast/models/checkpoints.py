# SPDX-License-Identifier: Apache-2.0
"""Read checkpoints in every form in which they are published (torch, extra ``train``).

A state dict may be bare, or lie under ``model_state_dict`` or ``state_dict``; names may begin with
``module.``; the audio encoder's may lack their ``audio_encoder.`` prefix. Pickles are read with
``weights_only``, so nothing in them runs, and only once it was seen that they do no more than list
tensors (``models.pickle_check``).
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from lipsync_fast.errors import CheckpointError, UnsafePickleError
from lipsync_fast.families.wav2lip import ENCODERS, PUBLISHED_WIDTH
from lipsync_fast.models.audio_encoder import AudioEncoder
from lipsync_fast.models.unet import UNet
from lipsync_fast.models.wav2lip import Wav2Lip
from lipsync_fast.untrusted import limits
from lipsync_fast.untrusted.pickles import check_checkpoint

_WRAPPERS = ("model_state_dict", "state_dict")
_NAMED = 5
Network = TypeVar("Network", bound=torch.nn.Module)


def load_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, by name.

    Raises:
        CheckpointError: missing, too large, not a checkpoint, or holding more than tensors.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    if not path.is_file() or size > limits.CHECKPOINT_BYTES:
        raise CheckpointError(f"{path}: not a checkpoint file (of 1 byte to 4 GiB)")
    try:
        check_checkpoint(path)
        with warnings.catch_warnings(action="ignore"):  # of odd files; those are refused below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnsafePickleError as reason:
        raise CheckpointError(f"{path}: refused as a checkpoint: {reason}") from None
    except Exception as error:  # a damaged pickle can raise anything; nothing of it has run
        raise CheckpointError(f"{path}: refused as a checkpoint: {_reason(error)}") from None
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(f"{path}: holds no state dict, but a {type(loaded).__name__}")
    state: dict[str, Tensor] = {}
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: entry {str(name)[:80]!r} is not a named tensor")
        plain = name.removeprefix("module.")
        if plain in state:
            raise CheckpointError(f"{path}: holds {plain[:80]!r} twice, with and without 'module.'")
        state[plain] = value
    return state


def _reason(error: Exception) -> str:
    """Why torch refused a file; without its advice to load the file all the same."""
    text = str(error).strip()
    foreign = re.search(r"(?:GLOBAL|class) ([\w.]+) (?:was not an allowed|whose module)", text)
    if foreign:
        return f"it holds {foreign[1][:100]}, more than tensors (nothing of it has run)"
    if "TorchScript" in text:
        return "it is a TorchScript archive, expected a state dict"
    if isinstance(error, RuntimeError) and text:
        return text.splitlines()[0][:200]
    return "it is damaged, or no checkpoint at all"


def _usable(tensor: Tensor) -> bool:
    """Whether a tensor holds its numbers itself, as floating-point ones."""
    return tensor.layout is torch.strided and tensor.is_floating_point() and not tensor.is_meta


def fit(
    path: str | os.PathLike[str], state: Mapping[str, Tensor], make: Callable[[], Network]
) -> Network:
    """The network that ``make`` builds, with ``state``; built only if names and shapes fit.

    Raises:
        CheckpointError: names the tensors that are missing, extra, of another shape or no numbers.
    """
    with torch.device("meta"):  # shapes alone: a lying checkpoint takes no memory
        model = make()
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    optional = {n for n in shapes if n.endswith("num_batches_tracked")}
    wanted = {n: shape for n, shape in shapes.items() if n not in optional}
    problems = [f"missing {n}" for n in wanted if n not in state]
    problems += [f"unknown {n[:80]}" for n in state if n not in shapes]
    problems += [
        f"{n} is {tuple(state[n].shape)}, expected {shape}"
        for n, shape in wanted.items()
        if n in state and tuple(state[n].shape) != shape
    ]
    problems += [
        f"{n} is not a dense tensor of floating-point numbers"
        for n in wanted
        if n in state and not _usable(state[n])
    ]
    if not problems:
        problems += [
            f"{n} holds numbers that are not finite"
            for n in wanted
            if not bool(torch.isfinite(state[n].float()).all())
        ]
    if problems:
        more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise CheckpointError(
            f"{path}: does not fit {type(model).__name__}: {'; '.join(problems[:_NAMED])}{more}"
        )
    counters = {n: torch.zeros(shapes[n], dtype=torch.int64) for n in optional}
    model = model.to_empty(device="cpu")
    model.load_state_dict({**counters, **{n: state[n] for n in wanted}})
    return model.eval()


def load_unet(path: str | os.PathLike[str], region: int = 320) -> UNet:
    """A U-Net of the family from its checkpoint; the width is read off its tensors.

    Raises:
        CheckpointError: unreadable, or not of this family.
    """
    state = load_state(path)
    first = state.get("inc.inconv.0.conv.6.weight")
    width = int(first.shape[0]) if first is not None and first.ndim == 4 else 32
    if not 2 <= width <= 256 or width % 2:
        raise CheckpointError(f"{path}: base width {width} is not one of the family's (2 to 256)")
    return fit(path, state, lambda: UNet(width, region))


def load_wav2lip(path: str | os.PathLike[str]) -> Wav2Lip:
    """A wav2lip network from its checkpoint; width and side are read off its tensors.

    Raises:
        CheckpointError: unreadable, or not of this family.
    """
    state = load_state(path)
    first = state.get("face_encoder_blocks.0.0.conv_block.0.weight")
    width = int(first.shape[0]) if first is not None and first.ndim == 4 else PUBLISHED_WIDTH
    if not 2 <= width <= 256:
        raise CheckpointError(f"{path}: base width {width} is not one of wav2lip's (2 to 256)")
    stages = {n.split(".")[1] for n in state if n.startswith("face_encoder_blocks.")}
    region = next((r for r, s in ENCODERS.items() if len(s) == len(stages)), min(ENCODERS))
    return fit(path, state, lambda: Wav2Lip(width, region))


def load_audio_encoder(path: str | os.PathLike[str]) -> AudioEncoder:
    """The audio encoder from its checkpoint, with or without the names' prefix.

    Raises:
        CheckpointError: unreadable, or another network.
    """
    state = load_state(path)
    if not any(n.startswith("audio_encoder.") for n in state):
        state = {f"audio_encoder.{n}": t for n, t in state.items()}
    else:  # whole wav2lip checkpoints hold the face networks too
        state = {n: t for n, t in state.items() if n.startswith("audio_encoder.")}
    return fit(path, state, AudioEncoder)
