# SPDX-License-Identifier: Apache-2.0
"""What a made picture is compared by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lipsync_fast.errors import CheckpointError
from lipsync_fast.train.losses import Perceptual, find_vgg, load_perceptual, mouth, pixel_loss
from lipsync_fast.train.sync import PairNetwork, pair_loss, sync_loss


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads for so little work only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def vgg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as torchvision puts VGG19's into torch's cache, with random weights."""
    torch.manual_seed(2)
    state = Perceptual().state_dict() | {"features.16.weight": torch.zeros(3)}
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / "vgg19-dcbb9e9d.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return folder / "vgg19-dcbb9e9d.pth"


def test_weights_are_found_in_the_cache_and_nowhere_else(
    vgg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_vgg() == vgg
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "elsewhere"))
    assert find_vgg() is None


def test_the_perceptual_loss_is_of_conv3_3(vgg: Path) -> None:
    loss = load_perceptual(vgg)
    assert [type(layer).__name__ for layer in loss.features].count("Conv2d") == 7
    assert type(loss.features[14]).__name__ == "Conv2d"
    assert len(loss.features) == 15
    made = torch.rand(1, 3, 32, 32, requires_grad=True)
    assert loss(made, made.detach()).item() == 0
    target = torch.rand(1, 3, 32, 32)
    value = loss(made, target)
    assert value.item() == pytest.approx(
        ((loss.features(made) - loss.features(target)) ** 2).mean().item()
    )
    value.backward()
    assert made.grad is not None
    assert made.grad.abs().sum() > 0
    made.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        half = loss(made, target)
    assert half.item() == pytest.approx(value.item(), rel=0.05)
    half.backward()
    assert made.grad.abs().sum() > 0
    assert all(p.grad is None for p in loss.parameters())


def test_what_are_no_vgg_weights(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(64, 1, 3, 3)}, tmp_path / "vgg19-0.pth")
    with pytest.raises(CheckpointError, match=r"features\.0\.weight is \(64, 1, 3, 3\), exp"):
        load_perceptual(tmp_path / "vgg19-0.pth")


def test_pixels_count_alike() -> None:
    assert pixel_loss(torch.full((1, 3, 4, 4), 0.75), torch.full((1, 3, 4, 4), 0.5)) == 0.25


@pytest.mark.slow
def test_the_judge_learns_which_mouth_goes_with_which_sound() -> None:
    torch.manual_seed(0)
    pairs = PairNetwork(224)
    top, bottom, left, right = mouth(224)
    regions, sounds = torch.full((4, 3, 224, 224), 0.5), torch.randn(4, 32, 16, 16)
    for k in range(4):
        regions[k, :, top:bottom, left:right] = k / 4
    optimiser = torch.optim.Adam(pairs.parameters(), 1e-3)
    other = sounds.roll(1, 0)
    first = pair_loss(pairs, regions, sounds, other).item()
    for _ in range(30):
        loss = pair_loss(pairs, regions, sounds, other)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.3 < first
    assert sync_loss(pairs, regions, sounds) < sync_loss(pairs, regions, other)


def test_what_is_told_to_the_maker_leaves_the_judge_alone() -> None:
    torch.manual_seed(0)
    pairs = PairNetwork(224)
    pairs.requires_grad_(False)
    made = torch.rand(1, 3, 224, 224, requires_grad=True)
    sync_loss(pairs, made, torch.randn(1, 32, 16, 16)).backward()
    top, bottom, left, right = mouth(224)
    assert made.grad is not None
    assert made.grad[:, :, top:bottom, left:right].abs().sum() > 0
    assert made.grad[:, :, :top].abs().sum() == 0
