# SPDX-License-Identifier: Apache-2.0
"""What of this person's mouth can be heard: the audio encoder, tuned to one voice.

    film: sound around a frame -> mouth     a kernel machine, exact on the frames it has seen
    its answers for countless variants  ->  the encoder learns them: its vectors are these answers
    the film's sound and its variants   ->  what is heard at each of their frames

Half a minute of film is too little for a network to learn from what a mouth sounds like, but enough
for kernel regression on mel windows, which has one number to choose. The encoder learns what that
machine answers, for mixtures, other levels, other vocal tracts and noise, and silence is a shut
mouth. What the encoder then gives is what it heard: eight numbers, each at a quarter of the places
of one of a vector's two channels, for the family's network looks at channels place by place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lipsync_fast.arrays import F32
from lipsync_fast.audio.windows import FEATURE_SIZE, WINDOW_ROWS, AudioWindow
from lipsync_fast.families.synctalk2d import AUDIO_SHAPE, VECTORS
from lipsync_fast.models.audio_encoder import AudioEncoder, ConvBlock
from lipsync_fast.train.mouths import MEASURES, Mouths

MELS = 80
ROWS_A_FRAME = 3.2
"""Mel rows from one frame to the next."""
SILENT = -4.0
"""Mel value of digital silence; a unit is 12.5 dB."""
DB = 0.08
"""Of a mel value."""
AHEAD_ROWS, BEHIND_ROWS = 24, 16
"""Silence around a sound."""
LAGS = 2, 1, 0
"""How many frames before a frame the vector may begin that tells of its mouth. The window of the
first lies around the frame's middle. Lips move before they are heard, and a film's sound may be
late: which of them tells most is found for each film."""
LAG_FRAMES = 2000
"""Of a film, at most, by which that is found."""
TAPER = 3.5
"""Rows from a window's middle in which what is heard counts 0.78; those farther off count less."""
RIDGE = 0.05
MOST_FRAMES = 6000
"""Of a film that the kernel machine knows: more would take memory and add little."""
QUIET = 32
"""Windows of silence that it knows."""
QUIET_FROM, QUIET_TO, QUIET_NOISE = -4.0, -2.8, 0.15
GUARD = 6
"""Frames next to held-out ones that are not learnt from: windows overlap."""
FOLDS = 4
BATCH, RATE, HEAD_RATE = 40, 5e-4, 3.0
"""Of the encoder's tuning."""
WARM = 20
MIXED, NOISY, ROUGH = 0.5, 0.5, 0.5
"""Parts of a batch."""
LEVELS_DB, EVENED_DB = (-15.0, 10.0), (-5.0, 5.0)
"""What is quieter and louder than the film, of sound as it comes and behind automatic gain control,
which leaves that little to learn."""
VARIANTS = 3
"""Other tempi, vocal tracts and levels of the film's sound among the sounds to choose from."""
MOST_GAIN = 2.0
TOLD_SCALE, TOLD_OFFSET = 0.5, 4.0
"""How measures are written into vectors, in which nothing may be negative."""
SEEN_BATCH = 64


def _padded(mel: F32) -> F32:
    return np.pad(mel, ((BEHIND_ROWS, AHEAD_ROWS), (0, 0)), constant_values=SILENT)


def _window(padded: F32, row: int) -> F32:
    """16 x 80 from a row of the sound on; silence before and behind it."""
    first = min(max(0, row + BEHIND_ROWS), len(padded) - WINDOW_ROWS)
    return padded[first : first + WINDOW_ROWS]


def _begins(frame: int, lag: int) -> int:
    """The row at which the window begins that tells of a frame's mouth."""
    return int(ROWS_A_FRAME * (frame - lag))


def _silence(rng: np.random.Generator, rows: int = WINDOW_ROWS) -> F32:
    level = rng.uniform(QUIET_FROM, QUIET_TO)
    noise = level + QUIET_NOISE * rng.standard_normal((rows, MELS))
    return np.clip(noise, SILENT, 4).astype(np.float32)


def _tapered(windows: F32) -> F32:
    """Windows, N x 16 x 80, with their middles weighing most: N x 1280."""
    aside = (np.arange(WINDOW_ROWS) - (WINDOW_ROWS - 1) / 2) / TAPER
    weight = np.exp(-(aside**2) / 4).astype(np.float32)
    return (windows * weight[:, None]).reshape(len(windows), -1)


def _distances(a: F32, b: F32) -> F32:
    """Squared, between the rows of two matrices."""
    apart = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * (a @ b.T)
    return np.asarray(np.maximum(apart, 0), np.float32)


class Kernel:
    """Kernel ridge regression from mel windows to mouths.

    Args:
        windows: N x 16 x 80.
        measures: N x 8.

    Attributes:
        hearable: how well each measure is foretold where it has not been seen, as r.
        gain: by how much told measures must swing more to swing as far as true ones.
    """

    def __init__(self, windows: F32, measures: F32, shut: F32, rng: np.random.Generator) -> None:
        self._mean, self._spread = windows.mean(0), windows.std(0) + 1e-6
        known = self._placed(windows)
        apart = _distances(known, known)
        self._width = float(np.median(apart)) + 1e-6
        self.hearable, self.gain = self._tried(np.exp(-apart / self._width), measures)
        quiet = np.stack([_silence(rng) for _ in range(QUIET)])
        self._known = np.concatenate([known, self._placed(quiet)])
        gram = np.exp(-_distances(self._known, self._known) / self._width)
        gram[np.diag_indices(len(gram))] += RIDGE
        wanted = np.concatenate([measures, np.repeat(shut[None], QUIET, 0)])
        self._weights = np.linalg.solve(gram.astype(np.float64), wanted).astype(np.float32)

    @staticmethod
    def _tried(gram: F32, measures: F32) -> tuple[F32, F32]:
        """r and gain of each measure by cross-validation over parts of the film."""
        count = len(gram)
        told = np.zeros_like(measures)
        part = np.arange(count) * FOLDS // count
        for fold in range(FOLDS):
            own, rest = part == fold, part != fold
            inner = gram[np.ix_(rest, rest)] + RIDGE * np.eye(int(rest.sum()))
            told[own] = gram[np.ix_(own, rest)] @ np.linalg.solve(inner, measures[rest])
        spread = told.std(0) + 1e-6
        r = ((told - told.mean(0)) * (measures - measures.mean(0))).mean(0) / spread
        r = r / (measures.std(0) + 1e-6)
        gain = np.clip(1 / spread, 1, MOST_GAIN)
        return np.clip(r, 0, 1).astype(np.float32), gain.astype(np.float32)

    def __call__(self, windows: F32) -> F32:
        """N x 16 x 80 to N x 8."""
        apart = _distances(self._placed(windows), self._known)
        out: F32 = np.exp(-apart / self._width) @ self._weights
        return out

    def _placed(self, windows: F32) -> F32:
        return _tapered((windows - self._mean) / self._spread)


def roughened(window: F32, rng: np.random.Generator, levels_db: tuple[float, float]) -> F32:
    """A window as of another vocal tract, level (between two, against its own), or line."""
    out = window
    if rng.random() < 0.3:
        out = _stretched(out, float(np.exp(rng.uniform(-0.1, 0.1))))
    if rng.random() < 0.4:
        out = np.clip(out + np.float32(DB * rng.uniform(*levels_db)), SILENT, 4)
    if rng.random() < 0.3:
        out = np.maximum(out, rng.uniform(-4, -1.5) + 0.3 * rng.standard_normal(out.shape))
    if rng.random() < 0.2:
        width = int(rng.integers(4, 14))
        low = int(rng.integers(MELS - width))
        out = out.copy()
        out[:, low : low + width] = out[:, low : low + width].mean()
    return out.astype(np.float32)


def _stretched(rows: F32, by: float) -> F32:
    """Mel rows with their frequencies moved, as by a longer or shorter vocal tract."""
    at = np.clip(np.arange(MELS) * by, 0, MELS - 1.001)
    left = at.astype(int)
    part = (at - left).astype(np.float32)
    out: F32 = rows[:, left] * (1 - part) + rows[:, left + 1] * part
    return out


def variant(mel: F32, rng: np.random.Generator) -> F32:
    """The same sound faster or slower, of another vocal tract, at another level, in noise."""
    out = _stretched(mel, float(np.exp(rng.uniform(-0.1, 0.1))))
    at = np.arange(0, len(out) - 1, rng.uniform(0.8, 1.25))
    left = at.astype(int)
    part = (at - left)[:, None].astype(np.float32)
    out = out[left] * (1 - part) + out[np.minimum(left + 1, len(out) - 1)] * part
    out = np.clip(out + np.float32(DB * rng.uniform(-12, 8)), SILENT, 4)
    if rng.random() < 0.3:
        out = np.maximum(out, rng.uniform(-4, -2) + 0.3 * rng.standard_normal(out.shape))
    return np.asarray(out, np.float32)


@torch.no_grad()
def features_of(encoder: AudioEncoder, mel: F32, device: torch.device) -> F32:
    """The encoder's vectors of a sound, one for each frame and two behind: F + 2 x 512."""

    def encode(windows: F32) -> F32:
        shown = np.ascontiguousarray(windows.transpose(0, 2, 1)[:, None])
        made: F32 = encoder(torch.from_numpy(shown).to(device)).cpu().numpy()
        return made

    return track(encode, mel)


def track(encode: Callable[[F32], F32], mel: F32) -> F32:
    """``features_of`` by any encoder: of mel windows N x 16 x 80 it makes N x 512."""
    padded = _padded(mel)
    rows = [int(ROWS_A_FRAME * j) for j in range(int(len(mel) / ROWS_A_FRAME) + 2)]
    parts = (rows[first : first + SEEN_BATCH] for first in range(0, len(rows), SEEN_BATCH))
    return np.concatenate([encode(np.stack([_window(padded, r) for r in part])) for part in parts])


class Sounds:
    """Features of some sounds, one behind the other, and the audio blocks in them.

    Args:
        tracks: of each sound, F + 2 x 512.
        window: which vectors a frame sees.
    """

    def __init__(self, tracks: Sequence[F32], window: AudioWindow) -> None:
        self._window = window
        before = np.zeros((window.before, FEATURE_SIZE), np.float32)
        self._starts: list[int] = []
        pieces: list[F32] = []
        at = 0
        for track in tracks:
            behind = np.repeat(track[-1:], window.after, 0)
            pieces += [before, track[:1], track, behind]
            self._starts += range(at, at + len(track) - 2)
            at += len(before) + 1 + len(track) + len(behind)
        self._vectors = np.concatenate(pieces)

    def __len__(self) -> int:
        return len(self._starts)

    def block(self, index: int) -> F32:
        """32 x 16 x 16."""
        first = self._starts[index]
        return self._vectors[first : first + VECTORS].reshape(AUDIO_SHAPE)


def told(features: F32, lag: int) -> F32:
    """What is heard at each frame of a sound, F x 8: read out of a tuned encoder's vectors."""
    side = AUDIO_SHAPE[1] // 2
    tiles = features.reshape(len(features), 2, side, 2, side, 2)
    out = tiles.mean((2, 4)).reshape(len(features), MEASURES) / TOLD_SCALE - TOLD_OFFSET
    at = np.arange(len(features) - 2) - lag
    return np.asarray(out[np.maximum(at, 0)], np.float32)


@torch.no_grad()
def _tell(encoder: AudioEncoder, head: nn.Linear) -> None:
    """Make an encoder's last layer give what a linear layer gives for what comes into it."""
    at = np.arange(FEATURE_SIZE)
    row, column = at % AUDIO_SHAPE[2] ** 2 // AUDIO_SHAPE[2], at % AUDIO_SHAPE[2]
    which = torch.from_numpy(at // AUDIO_SHAPE[2] ** 2 * 4 + row % 2 * 2 + column % 2)
    block = encoder.audio_encoder[-1]
    assert isinstance(block, ConvBlock)
    conv, norm = block.conv_block
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert conv.bias is not None
    assert norm.running_var is not None
    conv.weight.copy_(TOLD_SCALE * head.weight[which][:, :, None, None])
    conv.bias.copy_(TOLD_SCALE * (head.bias[which] + TOLD_OFFSET))
    norm.reset_parameters()
    norm.running_var.fill_(1 - norm.eps)


@dataclass(frozen=True, slots=True)
class Hearing:
    """What came of it.

    Attributes:
        encoder: tuned; ``told`` reads measures out of its vectors.
        lag: how many frames before a frame the vector begins that tells of it.
        hearable: r of each measure, foretold where it was not seen.
        gain, told_mean: told measures become as large as true ones by
            ``(told - told_mean) * gain``.
        shut: the measures of a shut mouth.
    """

    encoder: AudioEncoder
    lag: int
    hearable: F32
    gain: F32
    told_mean: F32
    shut: F32

    def state(self) -> dict[str, object]:
        """As tensors."""
        return {
            "encoder": self.encoder.state_dict(),
            "lag": torch.tensor(self.lag),
            "numbers": torch.from_numpy(
                np.stack([self.hearable, self.gain, self.told_mean, self.shut])
            ),
        }

    @classmethod
    def restored(cls, state: dict[str, dict[str, Tensor]]) -> Hearing:
        """From ``state``."""
        encoder = AudioEncoder().eval()
        encoder.load_state_dict(state["encoder"])
        numbers, lag = state["numbers"], state["lag"]
        assert isinstance(numbers, Tensor)
        assert isinstance(lag, Tensor)
        return cls(encoder, int(lag), *(np.array(row) for row in numbers.numpy()))

    def to(self, device: torch.device) -> Hearing:
        """Move the network."""
        self.encoder.to(device)
        return self

    def swung(self, heard: F32) -> F32:
        """Told measures as large as true ones."""
        out: F32 = (heard - self.told_mean) * self.gain
        return out


class Tuning:
    """Tunes an encoder to a film, step by step, so that it can be interrupted.

    Args:
        encoder: to begin with; it is changed.
        mel: of the film.
        mouths: of the film.
        device: where it learns.
        seed: of everything random.
        steps: in all.
        levelled: the sound has passed automatic gain control.
    """

    def __init__(
        self,
        encoder: AudioEncoder,
        mel: F32,
        mouths: Mouths,
        device: torch.device,
        seed: int,
        steps: int,
        levelled: bool = False,
    ) -> None:
        rng = np.random.default_rng([seed, 17])
        self._seed, self._device, self._steps = seed, device, steps
        self._levels_db = EVENED_DB if levelled else LEVELS_DB
        self._padded = _padded(mel)
        frames = _guarded(mouths)
        self._shut = mouths.measures[mouths.shut].mean(0)
        few = _some(frames, LAG_FRAMES)
        self.lag = max(LAGS, key=lambda lag: float(self._kernel(mouths, few, lag, rng).hearable[0]))
        self.kernel = self._kernel(mouths, _some(frames, MOST_FRAMES), self.lag, rng)
        self._rows = np.array(
            [_begins(int(i), self.lag) + k for i in frames for k in range(int(ROWS_A_FRAME))]
        )
        self._encoder = encoder.eval().to(device)
        self._ears = self._encoder.audio_encoder[:-1]
        self._head = nn.Linear(FEATURE_SIZE, MEASURES).to(device)
        nn.init.zeros_(self._head.weight)
        nn.init.zeros_(self._head.bias)
        self._optimiser = torch.optim.AdamW(
            [
                {"params": self._ears.parameters(), "scale": 1.0},
                {"params": self._head.parameters(), "scale": HEAD_RATE},
            ],
            RATE,
            weight_decay=1e-2,
        )
        self._mel, self._frames = mel, frames

    def _kernel(
        self, mouths: Mouths, frames: NDArray[np.int64], lag: int, rng: np.random.Generator
    ) -> Kernel:
        """What knows these frames of the film."""
        windows = np.stack([_window(self._padded, _begins(int(i), lag)) for i in frames])
        return Kernel(windows, mouths.measures[frames], self._shut, rng)

    def step(self, number: int) -> float:
        """One step; returns its loss."""
        rng = np.random.default_rng([self._seed, 18, number])
        fall = 0.03 + 0.97 * 0.5 * (1 + np.cos(np.pi * number / self._steps))
        for group in self._optimiser.param_groups:
            group["lr"] = RATE * group["scale"] * min(1, (number + 1) / WARM) * fall
        windows = self._batch(rng)
        wanted = torch.from_numpy(self.kernel(windows)).to(self._device)
        levels = self._levels_db
        rough = [roughened(w, rng, levels) if rng.random() < ROUGH else w for w in windows]
        shown = np.stack(rough).transpose(0, 2, 1)[:, None]
        x = torch.from_numpy(np.ascontiguousarray(shown)).to(self._device)
        made = self._head(self._ears(x.contiguous(memory_format=torch.channels_last)).flatten(1))
        loss = ((made - wanted) ** 2).mean()
        self._optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._ears.parameters(), 1.0)
        self._optimiser.step()
        return float(loss.item())

    def _batch(self, rng: np.random.Generator) -> F32:
        """Windows of the film, mixtures of two, and some of silence: B x 16 x 80."""
        a, b = (
            np.stack([_window(self._padded, int(r)) for r in rng.choice(self._rows, BATCH)])
            for _ in range(2)
        )
        part = np.where(rng.random((BATCH, 1, 1)) < MIXED, rng.beta(0.5, 0.5, (BATCH, 1, 1)), 1)
        noise = 0.1 * rng.standard_normal(a.shape) * (rng.random((BATCH, 1, 1)) < NOISY)
        quiet = np.stack([_silence(rng) for _ in range(BATCH // 10)])
        mixed = (part * a + (1 - part) * b + noise).astype(np.float32)
        return np.concatenate([mixed, quiet])

    def done(self) -> Hearing:
        """What came of it."""
        _tell(self._encoder, self._head)
        heard = told(features_of(self._encoder, self._mel, self._device), self.lag)
        known = heard[self._frames[self._frames < len(heard)]]
        return Hearing(
            self._encoder,
            self.lag,
            self.kernel.hearable,
            self.kernel.gain,
            known.mean(0),
            self._shut,
        )


def _some(frames: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """So many frames at most, evenly."""
    return frames[:: -(-len(frames) // most)]


def _guarded(mouths: Mouths) -> NDArray[np.int64]:
    """Usable frames that are not next to ones that are not."""
    count = len(mouths.opening)
    away = np.ones(count, bool)
    away[mouths.usable] = False
    near = np.convolve(away, np.ones(2 * GUARD + 1), "same") > 0
    kept = mouths.usable[~near[mouths.usable]]
    return kept if len(kept) >= len(mouths.usable) // 2 else mouths.usable


def sounds_to_choose_from(
    hearing: Hearing, mel: F32, parts: Sequence[tuple[int, int]], window: AudioWindow, seed: int
) -> tuple[Sounds, F32]:
    """Parts of the film's sound and variants of them, and what is heard at each of their frames.

    Args:
        hearing: which hears.
        mel: of the film.
        parts: first frame and end of what may be learnt from.
        window: which vectors a frame sees.
        seed: of what is random.
    """
    device = next(hearing.encoder.parameters()).device
    rng = np.random.default_rng([seed, 19])
    tracks = []
    for kind in range(1 + VARIANTS):
        for first, end in parts:
            piece = mel[int(first * ROWS_A_FRAME) : int(end * ROWS_A_FRAME)]
            if len(piece) < 2 * WINDOW_ROWS:
                continue
            piece = piece if kind == 0 else variant(piece, rng)
            tracks.append(features_of(hearing.encoder, piece, device))
    quiet = _silence(rng, 40 * WINDOW_ROWS // 4)
    tracks.append(features_of(hearing.encoder, quiet, device))
    heard = [told(track, hearing.lag) for track in tracks]
    return Sounds(tracks, window), hearing.swung(np.concatenate(heard))
