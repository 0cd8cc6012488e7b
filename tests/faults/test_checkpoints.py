# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: every published form is read; anything else is refused with its reason."""

from __future__ import annotations

import io
import os
import pickle
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from golden import weights
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the extra train is not installed")

from torch import Tensor  # noqa: E402

from lipsync_fast.errors import CheckpointError  # noqa: E402
from lipsync_fast.models.audio_encoder import AudioEncoder  # noqa: E402
from lipsync_fast.models.checkpoints import (  # noqa: E402
    load_audio_encoder,
    load_state,
    load_unet,
)
from lipsync_fast.models.unet import UNet  # noqa: E402

State = dict[str, Tensor]
WIDTH = 2
FIRST = "inc.inconv.0.conv.0.weight"


@pytest.fixture(scope="module")
def unet() -> State:
    """A small U-Net's tensors."""
    torch.manual_seed(0)
    return dict(UNet(WIDTH).state_dict())


@pytest.fixture(scope="module")
def encoder() -> State:
    """An audio encoder's tensors."""
    torch.manual_seed(1)
    return dict(AudioEncoder().state_dict())


def bare(state: State) -> object:
    return state


def under_model_state_dict(state: State) -> object:
    return {"model_state_dict": state, "epoch": 99, "loss": 0.1, "optimizer_state_dict": {}}


def under_state_dict(state: State) -> object:
    return {"state_dict": state, "global_step": 1}


def with_module_prefix(state: State) -> object:
    return {f"module.{n}": t for n, t in state.items()}


def wrapped_with_module_prefix(state: State) -> object:
    return {"state_dict": {f"module.{n}": t for n, t in state.items()}, "optimizer": None}


def without_counters(state: State) -> object:
    return {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}


def as_parameters(state: State) -> object:
    return {n: torch.nn.Parameter(t) if t.is_floating_point() else t for n, t in state.items()}


FORMS = [
    bare,
    under_model_state_dict,
    under_state_dict,
    with_module_prefix,
    wrapped_with_module_prefix,
    without_counters,
    as_parameters,
]


def save(path: Path, value: object, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def same(model: Any, state: State) -> None:
    loaded = model.state_dict()
    assert not model.training
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(loaded[name], tensor), name


def refused(load: Callable[[Path], object], path: Path, *words: str) -> str:
    """Refused in one line that names the file and has ``words``."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    assert "\x1b" not in message
    assert "weights_only" not in message, "no advice to run what is in the file"
    for word in words:
        assert word in message
    return message


# Forms that are read


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_unet(
    tmp_path: Path, unet: State, form: Callable[[State], object], legacy: bool
) -> None:
    path = save(tmp_path / "9.pth", form(unet), _use_new_zipfile_serialization=not legacy)
    model = load_unet(path)
    assert (model.width, model.region) == (WIDTH, 320)
    same(model, unet)


@pytest.mark.parametrize("form", [bare, under_model_state_dict, wrapped_with_module_prefix])
def test_forms_of_an_audio_encoder(
    tmp_path: Path, encoder: State, form: Callable[[State], object]
) -> None:
    same(load_audio_encoder(save(tmp_path / "a.pth", form(encoder))), encoder)
    short = {n.removeprefix("audio_encoder."): t for n, t in encoder.items()}
    same(load_audio_encoder(save(tmp_path / "b.pth", form(short))), encoder)


def test_the_audio_encoder_of_a_whole_wav2lip(tmp_path: Path, encoder: State) -> None:
    other = {"face_encoder_blocks.0.0.conv_block.0.weight": torch.zeros(16, 6, 7, 7)}
    state = {f"module.{n}": t for n, t in {**encoder, **other}.items()}
    same(load_audio_encoder(save(tmp_path / "a.pth", {"state_dict": state})), encoder)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types(tmp_path: Path, unet: State, kind: Any) -> None:
    state = {n: t.to(kind) if t.is_floating_point() else t for n, t in unet.items()}
    model = load_unet(save(tmp_path / "9.pth", state))
    same(model, {n: t.float() for n, t in state.items()})


@pytest.mark.parametrize("width", [2, 4, 16])
def test_the_width_is_read_off_the_tensors(tmp_path: Path, width: int) -> None:
    path = save(tmp_path / "9.pth", UNet(width).state_dict())
    assert load_unet(path).width == width


def test_the_reference_at_full_width(tmp_path: Path) -> None:
    state = {n: torch.from_numpy(v.copy()) for n, v in weights("unet_328_ave").items()}
    model = load_unet(save(tmp_path / "99.pth", state))
    assert model.width == 32
    same(model, state)


# Hostile ones


class Intruder:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "pickle-2"])
@pytest.mark.parametrize("load", [load_unet, load_audio_encoder])
def test_nothing_in_a_checkpoint_runs(
    tmp_path: Path, unet: State, form: str, load: Callable[[Path], object]
) -> None:
    mark = tmp_path / "intruder"
    value = {**unet, "extra": Intruder(mark)}
    path = tmp_path / "9.pth"
    if form in ("zip", "legacy"):
        save(path, value, _use_new_zipfile_serialization=form == "zip")
    else:
        path.write_bytes(pickle.dumps({"extra": Intruder(mark)}, 2 if form == "pickle-2" else 4))
    refused(load, path)
    assert not mark.exists()
    if form in ("zip", "legacy"):
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert mark.exists(), "the payload would have worked"


def test_what_it_holds_is_named(tmp_path: Path, unet: State) -> None:
    path = save(tmp_path / "9.pth", {**unet, "extra": Intruder(tmp_path / "x")})
    refused(load_unet, path, "mkdir", "more than tensors")
    refused(load_unet, save(tmp_path / "m.pth", UNet(WIDTH)), "UNet", "more than tensors")


OPEN_EACH = """
import resource, sys
from lipsync_fast.errors import CheckpointError
from lipsync_fast.models.checkpoints import load_unet

load_unet(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    try:
        load_unet(path)
    except CheckpointError:
        print("refused")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_lying_sizes_take_no_memory(tmp_path: Path, unet: State) -> None:
    """A claimed width of 256 (3 GB of weights), and tensors of 2^60 numbers, from small files."""
    good = save(tmp_path / "good.pth", unet)
    one = torch.zeros(1)
    name = "inc.inconv.0.conv.6.weight"
    lying = [
        save(tmp_path / "wide.pth", {name: one.expand(256, 512, 1, 1)}),
        save(tmp_path / "huge.pth", {**unet, FIRST: one.expand(1 << 30, 1 << 30)}),
        save(tmp_path / "wider.pth", {**unet, name: one.expand(1 << 40, 4, 1, 1)}),
        save(tmp_path / "meta.pth", {**unet, FIRST: torch.zeros(1 << 20, 1 << 20, device="meta")}),
    ]
    done = subprocess.run(
        [sys.executable, "-c", OPEN_EACH, str(good), *map(str, lying)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    )
    assert done.returncode == 0, done.stderr
    *lines, grown = done.stdout.split()
    assert lines == ["refused"] * len(lying)
    assert int(grown) < 64 << 10, "KiB"


# Others


def test_the_other_network(tmp_path: Path, unet: State, encoder: State) -> None:
    message = refused(load_unet, save(tmp_path / "a.pth", encoder), "UNet", "missing", "more")
    assert len(message) < 1_000 + len(str(tmp_path))
    refused(load_audio_encoder, save(tmp_path / "u.pth", unet), "AudioEncoder", "missing")


def test_another_family(tmp_path: Path, encoder: State) -> None:
    state = {n: torch.from_numpy(v.copy()) for n, v in weights("audio_encoder").items()}
    state |= {f"face_decoder_blocks.{i}.0.conv_block.0.weight": torch.zeros(2, 2) for i in range(7)}
    path = save(tmp_path / "wav2lip.pth", {"state_dict": state})
    refused(load_unet, path, "does not fit UNet", "missing")


def test_missing_tensors_are_named(tmp_path: Path, unet: State) -> None:
    state = {n: t for n, t in unet.items() if n not in (FIRST, "outc.conv.bias")}
    path = save(tmp_path / "9.pth", state)
    message = refused(load_unet, path, f"missing {FIRST}", "missing outc.conv.bias")
    assert "unknown" not in message


def test_extra_tensors_are_named(tmp_path: Path, unet: State) -> None:
    path = save(tmp_path / "9.pth", {**unet, "attention.weight": torch.zeros(2)})
    message = refused(load_unet, path, "unknown attention.weight")
    assert "missing" not in message


def test_wrong_shapes_are_named(tmp_path: Path, unet: State) -> None:
    shape = re.escape(str(tuple(unet[FIRST].shape)))
    path = save(tmp_path / "9.pth", {**unet, FIRST: torch.zeros(3, 3)})
    assert re.search(rf"{FIRST} is \(3, 3\), expected {shape}", refused(load_unet, path))


@pytest.mark.parametrize("width", [0, 1, 3, 258])
def test_widths_that_cannot_be(tmp_path: Path, unet: State, width: int) -> None:
    state = {**unet, "inc.inconv.0.conv.6.weight": torch.zeros(width, 12, 1, 1)}
    refused(load_unet, save(tmp_path / "9.pth", state), f"width {width}")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t * float("nan"),
        lambda t: t.double() * 1e300 + 1e300,
        lambda t: t + 1j,
        lambda t: t.to(torch.int32),
        lambda t: t > 0,
        lambda t: t.to_sparse(),
        lambda t: t.to("meta"),
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    ],
    ids=["nan", "too large", "complex", "int", "bool", "sparse", "meta", "quantized"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_numbers_that_cannot_be_weights(
    tmp_path: Path, unet: State, change: Callable[[Tensor], Tensor]
) -> None:
    path = save(tmp_path / "9.pth", {**unet, FIRST: change(unet[FIRST])})
    refused(load_unet, path)


def test_a_name_twice(tmp_path: Path, unet: State) -> None:
    path = save(tmp_path / "9.pth", {**unet, f"module.{FIRST}": torch.zeros(4, 6, 1, 1)})
    refused(load_unet, path, FIRST, "twice")


@pytest.mark.parametrize(
    "value",
    [
        [1, 2],
        {},
        {"state_dict": {}},
        {"epoch": 3},
        {"model_state_dict": {"epoch": 3}},
        {3: torch.zeros(2)},
        torch.zeros(2),
        None,
        {"x" * 10_000: 1},
    ],
    ids=lambda value: str(value)[:30],
)
def test_no_state_dict(tmp_path: Path, value: object) -> None:
    refused(load_unet, save(tmp_path / "9.pth", value))


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"\x89PNG\r\n\x1a\n" * 20, bytes(range(256)) * 40, b"PK\x05\x06" + bytes(18)],
    ids=["empty", "text", "picture", "bytes", "empty zip"],
)
def test_not_a_checkpoint(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "9.pth").write_bytes(data)
    refused(load_unet, tmp_path / "9.pth", "checkpoint")


def test_a_script_a_folder_and_nothing(tmp_path: Path) -> None:
    refused(load_unet, tmp_path, "not a checkpoint")
    refused(load_unet, tmp_path / "none.pth", "No such file")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torch_script(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "s.pth"))
    refused(load_unet, tmp_path / "s.pth", "TorchScript")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_truncated_and_changed_anywhere(tmp_path: Path, legacy: bool) -> None:
    """A damaged file is read as tensors or refused; never another error."""
    out = io.BytesIO()
    value = {"a": torch.arange(16.0), "b": torch.zeros(2, 3)}
    torch.save(value, out, _use_new_zipfile_serialization=not legacy)
    whole = out.getvalue()
    path = tmp_path / "9.pth"

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, len(whole) - 1))
    def cut(end: int) -> None:
        path.write_bytes(whole[:end])
        refused(load_state, path)

    @settings(max_examples=150, deadline=None)
    @given(st.integers(0, len(whole) - 1), st.integers(1, 255))
    def flip(at: int, bits: int) -> None:
        changed = bytearray(whole)
        changed[at] ^= bits
        path.write_bytes(changed)
        with suppress(CheckpointError):
            assert all(isinstance(t, Tensor) for t in load_state(path).values())

    cut()
    flip()
