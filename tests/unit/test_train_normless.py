# SPDX-License-Identifier: Apache-2.0
"""The U-Net without norms: the same pictures, whole or in a window, and back in its own form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.errors import CheckpointError
from lipsync_fast.geometry import Rect
from lipsync_fast.models.export import export_audio_encoder, export_unet
from lipsync_fast.models.normless import (
    decode_window,
    new_network,
    pass_sound_through,
    passing_network,
    reference_network,
    without_norms,
)
from lipsync_fast.models.packed import constants, packed_encoder, packed_unet
from lipsync_fast.models.unet import UNet

REGION = 224


def trained(width: int = 2) -> UNet:
    """A network whose norms do something."""
    torch.manual_seed(3)
    net = UNet(width, REGION).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return net


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(4)
    return torch.rand(2, 6, REGION, REGION), torch.rand(2, 32, 16, 16)


def test_norms_are_folded_and_come_back(inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    with torch.no_grad():
        wanted = trained()(*inputs)
        net = without_norms(trained())
        assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
        torch.testing.assert_close(net(*inputs), wanted, rtol=0, atol=1e-5)
        again = reference_network(net.state_dict(), 2, REGION)
        torch.testing.assert_close(again(*inputs), wanted, rtol=0, atol=1e-5)
    with pytest.raises(TypeError, match="folded already"):
        without_norms(net)


@pytest.mark.parametrize("window", [Rect(40, 30, 120, 100), Rect(0, 0, REGION, REGION)])
def test_a_window_is_what_the_whole_has_there(
    window: Rect, inputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    net = without_norms(trained())
    with torch.no_grad():
        whole = net(*inputs)[(..., *window.slices)]
        heard = net.audio_model(inputs[1])
        made = decode_window(net, net.encode_image(inputs[0]), heard, window)
        inner = np_s(3)
        torch.testing.assert_close(made[inner], whole[inner], rtol=0, atol=1e-5)


def np_s(margin: int) -> tuple[slice, slice, slice, slice]:
    """All but the outermost pixels."""
    inner = slice(margin, -margin)
    return slice(None), slice(None), inner, inner


def test_gradients_of_a_window_are_those_of_the_whole(
    inputs: tuple[torch.Tensor, torch.Tensor],
) -> None:
    window = Rect(0, 0, REGION, REGION)
    nets = [without_norms(trained()) for _ in range(2)]
    nets[0](*inputs).square().sum().backward()
    heard = nets[1].audio_model(inputs[1])
    made = decode_window(nets[1], nets[1].encode_image(inputs[0]), heard, window)
    made.square().sum().backward()
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_a_new_network_gives_the_picture_back() -> None:
    torch.manual_seed(1)
    image = torch.rand(1, 6, 256, 256)
    with torch.no_grad():
        net = new_network(16, 256)
        made = net(image, torch.rand(1, 32, 16, 16))
        assert (made - image[:, :3]).abs().mean() < 0.05
        net.outc.conv.weight[:, 3:] = 0  # what it will learn
        made = net(image, torch.rand(1, 32, 16, 16))
    error = (made - image[:, :3]).abs()
    assert error.mean() < 0.006
    assert error.max() < 0.02
    assert new_network(2, REGION).width == 2


def test_one_with_norms_between_its_ends_gives_it_back_too_and_packs_as_it_is() -> None:
    torch.manual_seed(1)
    image, audio = torch.rand(1, 6, 256, 256), torch.rand(1, 32, 16, 16)
    net = passing_network(16, 256).eval()
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.down3.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.up5.modules())
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    with torch.no_grad():
        made = net(image, audio)
        assert (made - image[:, :3]).abs().mean() < 0.05
        again = reference_network(net.state_dict(), 16, 256)(image, audio)
    torch.testing.assert_close(again, made, rtol=0, atol=1e-5)


def test_networks_come_back_out_of_a_package(
    tiny_avatar: Path, inputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    with AvatarPackage.open(tiny_avatar) as package:
        m = package.manifest
        graphs = [bytes(package.network(n)) for n in ("image", "decoder", "audio_encoder")]
    net = packed_unet(graphs[0], graphs[1], m.width, m.region, "tiny")
    again = export_unet(reference_network(net.state_dict(), m.width, m.region))
    for graph, made in zip(graphs[:2], again, strict=True):
        have, want = constants(made), constants(graph)
        assert have.keys() == want.keys()
        for name, value in want.items():
            torch.testing.assert_close(
                torch.from_numpy(have[name].copy()),
                torch.from_numpy(value.copy()),
                rtol=1e-4,
                atol=1e-5,
            )
    encoder = packed_encoder(graphs[2], "tiny")
    have, want = constants(export_audio_encoder(encoder)), constants(graphs[2])
    for name, value in want.items():
        torch.testing.assert_close(
            torch.from_numpy(have[name].copy()),
            torch.from_numpy(value.copy()),
            rtol=1e-4,
            atol=1e-5,
        )


def test_graphs_of_others_are_refused(tiny_avatar: Path) -> None:
    with AvatarPackage.open(tiny_avatar) as package:
        m = package.manifest
        image, encoder = (bytes(package.network(n)) for n in ("image", "audio_encoder"))
    with pytest.raises(CheckpointError, match="other weights than lipsync-fast writes"):
        packed_unet(image, image, m.width, m.region, "tiny")
    with pytest.raises(CheckpointError, match="other weights than lipsync-fast writes"):
        packed_encoder(image, "tiny")
    assert encoder


def test_sound_passes_through_to_be_learnt_from() -> None:
    """What changes in the chosen channels changes what comes out more than in all others."""
    torch.manual_seed(5)
    branch = passing_network(8, 224).audio_model.train()
    sounds = 2 + torch.rand(6, 32, 16, 16)

    def moved(channel: int) -> float:
        """How far what comes out moves where a channel is another sound's."""
        other = sounds.clone()
        other[:, channel] = sounds.roll(1, 0)[:, channel]
        with torch.no_grad():
            return float((branch(other) - branch(sounds)).abs().mean())

    plain = [moved(channel) for channel in (3, 26, 27)]
    pass_sound_through(branch, 26, 2)
    aside, first, second = (moved(channel) for channel in (3, 26, 27))
    assert min(first, second) > 2 * aside
    assert max(plain) < 1.5 * min(plain)
    narrow = passing_network(2, 224).audio_model
    same = {name: tensor.clone() for name, tensor in narrow.state_dict().items()}
    pass_sound_through(narrow, 20, 6)
    assert all(torch.equal(same[name], tensor) for name, tensor in narrow.state_dict().items())
