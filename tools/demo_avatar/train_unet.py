# SPDX-License-Identifier: Apache-2.0
"""Train the demo avatar's U-Net (width 16, region 256) on two processor cores.

    python train_unet.py WORK [--minutes 45]

Needs dataset.py's and speech/train_encoder.py's output; the audio encoder stays as it is. Batch
norms are left out while training (a bias in their place; the exported weights have identity norms)
and the two last stages run only on a window around the mouth: together four times the speed.
Resumes from WORK/unet-state.pt. Writes WORK/out/unet.pth and WORK/unet-validation.png.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import sys
import time

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from lipsync_fast.models.unet import InvertedResidual, UNet

WIDTH, REGION, BORDER = 16, 256, 4
BEFORE, AFTER = 14, 2
WINDOW_H, WINDOW_W = 112, 144
MOUTH_BOX = (508, 276, 772, 512)
DATA_WINDOW = (476, 244, 804, 572)


# ---------------------------------------------------------------- the network without batch norms
def without_norms(net: UNet) -> UNet:
    """Replace each convolution + batch norm by a convolution with bias, initialised for ReLU."""
    for module in net.modules():
        pairs = []
        if isinstance(module, InvertedResidual):
            pairs = [(module.conv, 0, 1), (module.conv, 3, 4), (module.conv, 6, 7)]
        for seq, c, b in pairs:
            conv = seq[c]
            fan = conv.weight[0].numel()
            gain = 2.0 if c != 6 else 0.2 if module.residual else 1.0
            nn.init.normal_(conv.weight, 0, math.sqrt(gain / fan))
            conv.bias = nn.Parameter(torch.zeros(conv.out_channels))
            seq[b] = nn.Identity()
    for name in ("3", "5"):
        conv = getattr(net.audio_model, f"conv{name}")
        nn.init.normal_(conv.weight, 0, math.sqrt(2.0 / conv.weight[0].numel()))
        setattr(net.audio_model, f"bn{name}", nn.Identity())
    return net


@torch.no_grad()
def pass_picture_through(net: UNet) -> UNet:
    """Make an untrained network give back the unmasked picture, so that it only learns changes.

    The first block's channels 0..2 carry the picture (nothing in it is negative, so ReLU keeps
    it), the last stage takes them from the skip, and 4.4 (y - 0.5) is close to the logit of y.
    """
    skip = WIDTH  # the skip's first channel in the last stage's input
    for block, first in ((net.inc.inconv[0], 0), (net.up5.conv.double_conv[0], skip)):
        expand, depthwise, project = block.conv[0], block.conv[3], block.conv[6]
        expand.weight[:3] = 0
        depthwise.weight[:3] = 0
        project.weight[:3] = 0
        for k in range(3):
            expand.weight[k, first + k] = 1
            depthwise.weight[k, 0, 1, 1] = 1
            project.weight[k, k] = 1
    net.up5.conv.double_conv[1].conv[6].weight[:3] = 0
    net.outc.conv.weight *= 0.3
    for k in range(3):
        net.outc.conv.weight[k, :3] = 0
        net.outc.conv.weight[k, k] = 4.4
    net.outc.conv.bias.fill_(-2.2)
    return net


def reference_state(net_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the normless network under the family's names, with identity batch norms."""
    out: dict[str, Tensor] = {}
    names = UNet(WIDTH, REGION).state_dict()
    for name, like in names.items():
        stem, _, leaf = name.rpartition(".")
        head, _, number = stem.rpartition(".")
        if name in net_state and name.endswith("weight") and like.shape == net_state[name].shape:
            out[name] = net_state[name]
        elif leaf == "bias" and number.isdigit() and f"{head}.{int(number) - 1}.bias" in net_state and f"{head}.conv" not in stem:
            out[name] = net_state[f"{head}.{int(number) - 1}.bias"]
        elif name in net_state:
            out[name] = net_state[name]
        elif leaf in ("weight", "running_var"):
            out[name] = torch.ones_like(like) if leaf == "weight" else torch.full_like(like, 1 - 1e-5)
        else:
            out[name] = torch.zeros_like(like)
    return out


def upsample_window(x: Tensor, size: int, start: tuple[int, int], box: tuple[int, int, int, int]) -> Tensor:
    """Rows and columns of the x2 bilinear upsampling (corners aligned) of a size x size map.

    ``x`` holds the map from (row, column) ``start`` on; ``box`` is y0, x0, y1, x1 of the result.
    """
    for axis, lo, hi, first in ((2, box[0], box[2], start[0]), (3, box[1], box[3], start[1])):
        position = torch.arange(lo, hi, dtype=torch.float64) * (size - 1) / (2 * size - 1)
        a = position.floor().clamp(max=size - 2)
        f = (position - a).to(x.dtype)
        f = f[:, None] if axis == 2 else f
        i = a.long() - first
        x = x.index_select(axis, i) * (1 - f) + x.index_select(axis, i + 1) * f
    return x


def decode_window(net: UNet, levels: tuple[Tensor, ...], audio: Tensor, oy: int, ox: int) -> tuple[Tensor, Tensor]:
    """The generated window at (oy, ox) and the audio branch's output."""
    x1, x2, x3, x4, x5, x6 = levels
    heard = net.audio_model(audio)
    x = net.fuse_conv(torch.cat([x6, heard], 1))
    x = net.up3(net.up2(net.up1(x, x5), x4), x3)
    half = REGION // 2
    y0, x0 = max(0, oy // 2 - 5), max(0, ox // 2 - 5)
    y1, x1_ = min(half, (oy + WINDOW_H) // 2 + 5), min(half, (ox + WINDOW_W) // 2 + 5)
    up = upsample_window(x, REGION // 4, (0, 0), (y0, x0, y1, x1_))
    x = net.up4.conv(torch.cat([up, x2[:, :, y0:y1, x0:x1_]], 1))
    up = upsample_window(x, half, (y0, x0), (oy, ox, oy + WINDOW_H, ox + WINDOW_W))
    x = net.up5.conv(torch.cat([up, x1[:, :, oy : oy + WINDOW_H, ox : ox + WINDOW_W]], 1))
    return torch.sigmoid(net.outc(x).float()), heard


# ---------------------------------------------------------------- data
class Data:
    """Idle loop, canonical mouth pictures, and the audio blocks that go with them."""

    def __init__(self, work: pathlib.Path) -> None:
        with np.load(work / "loop.npz") as z:
            self.frames, self.rects, self.maps = z["frames"], z["rects"], z["maps"]
            self.people, self.walls = z["people"], z["walls"]
        with np.load(work / "dataset.npz") as z:
            self.pictures, self.controls, self.area = z["pictures"], z["controls"], z["area"]
            names, numbers, self.validation = z["names"], z["frames"], z["validation"]
        folder = work / "speech" / "features"
        self.utterances: list[tuple[NDArray[np.float16], NDArray[np.float32]]] = []
        for entry in json.loads((folder / "index.json").read_text()):
            if entry["split"] == "train":
                with np.load(folder / f"{entry['name']}.npz") as z:
                    self.utterances.append((z["features"], z["controls"]))
        self.feature_of = {str(n): np.load(folder / f"{n}-0.npz")["features"] for n in sorted(set(names))}
        self.where = [(str(n), int(i)) for n, i in zip(names, numbers, strict=True)]
        self.idle = np.stack([f[r[1] : r[3], r[0] : r[2]] for f, r in zip(self.frames, self.rects, strict=True)])
        self._neighbours(names)

    def _neighbours(self, names: NDArray[np.str_]) -> None:
        """Other frames of the training speech, augmented too, that ask for almost the same mouth."""
        features = [(k, i) for k, (_, c) in enumerate(self.utterances) for i in range(0, len(c), 2)]
        table = np.stack([self.utterances[k][1][i] for k, i in features])
        scale = np.array([3.0, 2.0, 1.2, 1.2, 1.0, 1.3, 1.5, 0.7], np.float32)
        self.like: list[list[tuple[int, int]]] = []
        tree_points = table * scale
        from scipy.spatial import cKDTree

        tree = cKDTree(tree_points)
        distance, index = tree.query(self.controls * scale, k=24)
        for d, i in zip(distance, index, strict=True):
            near = [features[j] for j, dj in zip(i, d, strict=True) if dj < 0.10]
            self.like.append(near)

    def block(self, features: NDArray[np.float16], i: int) -> NDArray[np.float32]:
        """The 32 x 16 x 16 audio block of frame i."""
        padded = np.concatenate([features[:1], features, features[-1:]])
        out = np.zeros((BEFORE + AFTER, 512), np.float32)
        lo, hi = max(0, i - BEFORE), min(len(padded), i + AFTER)
        if hi > lo:
            out[lo - (i - BEFORE) : hi - (i - BEFORE)] = padded[lo:hi]
        return out.reshape(32, 16, 16)

    def audio(self, sample: int, rng: np.random.RandomState) -> NDArray[np.float32]:
        """An audio block for a picture: its own frame's, or that of a frame like it."""
        near = self.like[sample]
        if near and rng.rand() < 0.75:
            k, i = near[rng.randint(len(near))]
            return self.block(self.utterances[k][0], i)
        name, i = self.where[sample]
        return self.block(self.feature_of[name], i)

    def target(self, sample: int, frame: int) -> NDArray[np.uint8]:
        """The face square (264 x 264 RGB) of an idle frame with a sample's mouth."""
        person = self.people[frame].copy()
        x0, y0 = MOUTH_BOX[0] - DATA_WINDOW[0], MOUTH_BOX[1] - DATA_WINDOW[1]
        h, w = self.pictures.shape[1:3]
        person[y0 : y0 + h, x0 : x0 + w] = self.pictures[sample]
        m = self.maps[frame]
        moved = cv2.remap(person.astype(np.float32), m[0], m[1], cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE) / 255
        moved = np.clip(moved, 0, 1)
        rgb = moved[..., :3] + self.walls[frame].astype(np.float32) * (1 - moved[..., 3:])
        return np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8)


def planes(square: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A face square (RGB) to the region's 3 x 256 x 256 BGR in 0..1."""
    inner = square[BORDER:-BORDER, BORDER:-BORDER, ::-1]
    return np.ascontiguousarray(inner.transpose(2, 0, 1)).astype(np.float32) / 255


def image_input(square: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The six input channels of an idle face square."""
    region = planes(square)
    masked = region.copy()
    masked[:, 5 : REGION - 10, 5 : REGION - 5] = 0
    return np.concatenate([region, masked])


# ---------------------------------------------------------------- training
class Trainer:
    """The network, its average, the optimiser, and where training stands."""

    def __init__(self, work: pathlib.Path, minutes: float) -> None:
        torch.manual_seed(2)
        self.work, self.seconds = work, minutes * 60
        self.net = pass_picture_through(without_norms(UNet(WIDTH, REGION))).to(memory_format=torch.channels_last)
        self.head = nn.Linear(16 * WIDTH, 8)
        self.parameters = [*self.net.parameters(), *self.head.parameters()]
        self.optimiser = torch.optim.AdamW(self.parameters, 1e-3, betas=(0.9, 0.98), weight_decay=1e-3)
        self.average = {k: v.clone() for k, v in self.net.state_dict().items()}
        self.spent, self.step, self.heard = 0.0, 0, 0
        self.state_file = work / "unet-state.pt"
        if self.state_file.exists():
            state = torch.load(self.state_file, weights_only=True)
            self.net.load_state_dict(state["net"])
            self.head.load_state_dict(state["head"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.average, self.spent, self.step, self.heard = state["average"], state["spent"], state["step"], state["heard"]
        self.data = Data(work)
        self.rng = np.random.RandomState(31 + self.step + self.heard)
        self.train = np.nonzero(~self.data.validation)[0]

    def save(self) -> None:
        """Checkpoint and exported weights, each appearing whole."""
        state = {"net": self.net.state_dict(), "head": self.head.state_dict(), "optimiser": self.optimiser.state_dict(), "average": self.average, "spent": self.spent, "step": self.step, "heard": self.heard}
        for path, what in ((self.state_file, state), (self.work / "out" / "unet.pth", reference_state(self.average))):
            partial = path.with_suffix(".part")
            torch.save(what, partial)
            os.replace(partial, path)

    def listen(self, steps: int) -> None:
        """Teach the audio branch to tell the controls, before any picture."""
        losses = []
        branch = [*self.net.audio_model.parameters(), *self.head.parameters()]
        optimiser = torch.optim.AdamW(branch, 1.5e-3)
        while self.heard < steps:
            for group in optimiser.param_groups:
                group["lr"] = 1.5e-3 * min(1, (self.heard + 1) / 30) * (0.1 + 0.9 * (1 - self.heard / steps))
            xs, ys = [], []
            for _ in range(64):
                features, controls = self.data.utterances[self.rng.randint(len(self.data.utterances))]
                i = self.rng.randint(len(controls))
                xs.append(self.data.block(features, i))
                ys.append(controls[i])
            with torch.autocast("cpu", torch.bfloat16):
                heard = self.net.audio_model(torch.from_numpy(np.stack(xs)).to(memory_format=torch.channels_last))
            predicted = self.head(heard.float().mean((2, 3)))
            loss = functional.smooth_l1_loss(predicted, torch.from_numpy(np.stack(ys)), beta=0.1)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(branch, 1.0)
            optimiser.step()
            losses.append(loss.item())
            self.heard += 1
            if self.heard % 100 == 0:
                print(f"audio branch {self.heard}/{steps}: {np.mean(losses[-100:]):.4f}", flush=True)
                self.save()

    def learn(self) -> None:
        """One step: two idle frames, six mouths each, one window."""
        d, rng = self.data, self.rng
        frames = rng.choice(len(d.idle), 2, replace=False)
        samples = rng.choice(self.train, 12)
        if rng.rand() < 0.65:
            oy, ox = 16 + rng.randint(-8, 12), 58 + rng.randint(-16, 17)
        else:
            oy, ox = rng.randint(0, REGION - WINDOW_H - 16), rng.randint(8, REGION - WINDOW_W - 8)
        targets = np.stack([planes(d.target(s, frames[k // 6])) for k, s in enumerate(samples)])
        audio = np.stack([d.audio(s, rng) for s in samples])
        images = np.stack([image_input(d.idle[f]) for f in frames])
        idle = np.repeat(images[:, :3], 6, 0)
        window = np.s_[:, :, oy : oy + WINDOW_H, ox : ox + WINDOW_W]
        goal, before = torch.from_numpy(targets[window]), torch.from_numpy(idle[window])
        with torch.autocast("cpu", torch.bfloat16):
            levels = self.net.encode_image(torch.from_numpy(images).to(memory_format=torch.channels_last))
            levels = tuple(x.repeat_interleave(6, 0) for x in levels)
            made, heard = decode_window(self.net, levels, torch.from_numpy(audio).to(memory_format=torch.channels_last), oy, ox)
        predicted = self.head(heard.float().mean((2, 3)))
        aux = functional.smooth_l1_loss(predicted, torch.from_numpy(d.controls[samples]), beta=0.1)
        moving = (goal - before).abs().amax(1, keepdim=True)
        weight = 0.5 + 6 * functional.avg_pool2d((moving > 0.03).float(), 7, 1, 3)
        inner = np.s_[:, :, 3:-3, 3:-3]
        error = (made - goal)[inner]
        loss = (error.abs() * weight[inner]).mean()
        for dim in (2, 3):
            loss = loss + 0.7 * (torch.diff(error, dim=dim).abs()).mean()
        total = loss + 0.1 * aux
        self.optimiser.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        decay = min(0.998, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            for name, value in self.net.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)
        self.step += 1
        self.losses.append((loss.item(), aux.item()))

    def sheet(self) -> float:
        """Write the validation picture; returns the mean error around the mouth in grey levels."""
        d = self.data
        net = UNet(WIDTH, REGION).eval()
        net.load_state_dict(reference_state(self.average))
        rows, errors = [], []
        held = np.nonzero(d.validation)[0]
        for n, s in enumerate(held[:24]):
            frame = (7 * n) % len(d.idle)
            name, i = d.where[s]
            goal = planes(d.target(s, frame))
            with torch.no_grad():
                made = net(torch.from_numpy(image_input(d.idle[frame]))[None], torch.from_numpy(d.block(d.feature_of[name], i))[None])[0].numpy()
            errors.append(np.abs(made - goal)[:, 30:150, 60:200].mean() * 255)
            if n < 12:
                rows.append(np.concatenate([made, goal], 2).transpose(1, 2, 0))
        grid = np.concatenate([np.concatenate(rows[k : k + 3], 1) for k in range(0, 12, 3)], 0)
        cv2.imwrite(str(self.work / "unet-validation.png"), np.clip(grid * 255, 0, 255).astype(np.uint8))
        return float(np.mean(errors))

    def run(self, listen_steps: int) -> None:
        """Train for the wall-clock time."""
        self.listen(listen_steps)
        self.losses: list[tuple[float, float]] = []
        last = saved = time.time()
        while self.spent < self.seconds:
            part = self.spent / self.seconds
            for group in self.optimiser.param_groups:
                group["lr"] = 1.2e-3 * min(1, (self.step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part)))
            self.learn()
            now = time.time()
            self.spent, last = self.spent + now - last, now
            if now - saved > 120 or self.spent >= self.seconds:
                self.save()
                error = self.sheet()
                a, b = np.mean(self.losses, 0)
                print(f"{self.spent:5.0f} s step {self.step} loss {a:.4f} aux {b:.4f} validation {error:.2f} grey levels", flush=True)
                self.losses = []
                last = saved = time.time()


def main() -> None:
    """Train, resuming where a former run stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--listen", type=int, default=1200)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    (args.work / "out").mkdir(exist_ok=True)
    Trainer(args.work, args.minutes).run(args.listen)


if __name__ == "__main__":
    main()
