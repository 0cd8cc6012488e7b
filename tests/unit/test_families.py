# SPDX-License-Identifier: Apache-2.0
"""Families of networks: what each promises, and a small wav2lip avatar on every backend."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import backends
import cv2
import livetalking
import msgspec
import numpy as np
import pytest
from backends import APART, difference
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync_fast import _native
from lipsync_fast.arrays import F32
from lipsync_fast.audio.windows import (
    AudioWindow,
    BlockCache,
    BlockStream,
    block_starts,
    feature_count,
    first_row,
    frame_count,
    frame_sees,
    is_decided,
    samples_seen,
)
from lipsync_fast.avatars.manifest import Manifest, Window
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends import Backend, LoadedAvatar, RegionJob
from lipsync_fast.engine.backends.base import SQUARE, Sound
from lipsync_fast.engine.changes import changing, reached, silent
from lipsync_fast.engine.pipeline import SoundStream, pictures
from lipsync_fast.engine.splice import FrameEncoder, Variant
from lipsync_fast.errors import AvatarFormatError
from lipsync_fast.families import FAMILIES, FamilyName
from lipsync_fast.families.wav2lip import DECODERS, ENCODERS, WAV2LIP
from lipsync_fast.frontend.playout.live import LivePlayout
from lipsync_fast.frontend.playout.plan import LiveSettings
from lipsync_fast.frontend.playout.playout import Appearance
from lipsync_fast.frontend.playout.utterance import Utterance
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import Job, Look
from lipsync_fast.timing import SAMPLE_RATE

WINDOW = WAV2LIP.audio


def manifest(**fields: Any) -> Manifest:
    size = {"frame_width": 160, "frame_height": 176, "frame_count": 3}
    return msgspec.convert({"name": "a", "family": "wav2lip", **size, **fields}, Manifest)


GOOD: dict[str, Any] = {
    "width": 16,
    "region": 96,
    "audio": {"before": -1, "after": 2, "edge": "nearest"},
}


# ---------------------------------------------------------------- manifests
def test_the_registry_has_what_manifests_may_name() -> None:
    assert set(get_args(FamilyName)) == set(FAMILIES)
    for name, family in FAMILIES.items():
        assert family.name == name
        assert family.audio_shape[0] * np.prod(family.audio_shape[1:]) == 512 * family.audio.vectors


def test_a_manifest_of_each_size() -> None:
    for region in (96, 256):
        m = manifest(**GOOD | {"region": region})
        assert (m.crop, m.corner, m.made) == (region, (0, 0), (3, region, region))
        assert m.audio.lookahead_samples == 3_400
        assert m.levels["x1"] == (16, region, region)
        assert list(m.levels.values())[-1] == (512, 1, 1)
        sides = [stage.side for stage in ENCODERS[region]]
        assert sides == [stage.side for stage in reversed(DECODERS[region])]


def test_what_a_manifest_says_of_the_sound_is_written_and_read() -> None:
    m = manifest(**GOOD)
    data = msgspec.json.encode(m)
    assert b'"audio":{"before":-1,"after":2,"edge":"nearest"}' in data
    assert msgspec.json.decode(data, type=Manifest) == m
    old = msgspec.json.encode(AudioWindow(8, 8))
    assert old == b'{"before":8,"after":8}', "older versions read what they know"


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"region": 128}, "96 or 256 pixels"),
        ({"region": 320}, "96 or 256 pixels"),
        ({"window": {"x": 0, "y": 0, "width": 9, "height": 9}}, "the whole face"),
        ({"audio": {"before": 8, "after": 8}}, "expected -1, 2"),
        ({"audio": {"before": -1, "after": 2}}, "expected -1, 2"),
        ({"audio": {"before": -2, "after": 3, "edge": "nearest"}}, ">= -1"),
        ({"audio": {"before": -1, "after": 2, "edge": "zeros"}}, "edge"),
        ({"family": "synctalk2d"}, "multiple of 32, 224"),
        ({"family": "synctalk2d", "region": 320}, "expected 16 vectors"),
        ({"family": "ultralight"}, "family"),
    ],
)
def test_what_cannot_be(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=word):
        manifest(**GOOD | fields)


def test_no_edge_for_the_other_family() -> None:
    with pytest.raises(msgspec.ValidationError, match="16 vectors"):
        manifest(
            family="synctalk2d",
            width=2,
            region=224,
            audio={"before": 8, "after": 8, "edge": "nearest"},
        )


# ---------------------------------------------------------------- the sound
@given(samples=st.integers(1, 60_000))
def test_a_frame_reads_one_window_and_never_zeros(samples: int) -> None:
    rows = 1 + max(samples, 3_000) // 200
    for frame in range(frame_count(samples)):
        assert block_starts(frame, WINDOW, samples) == [min(int(3.2 * frame), rows - 16)]
    assert feature_count(rows) >= 2


@given(frame=st.integers(0, 2_000), samples=st.integers(0, 1_500_000))
def test_what_a_frame_waits_for(frame: int, samples: int) -> None:
    assert block_starts(frame, WINDOW) == [first_row(frame)]
    assert frame_sees(frame, WINDOW) == samples_seen(block_starts(frame, WINDOW))
    _, end = frame_sees(frame, WINDOW)
    assert 640 * frame + 3_400 - 200 < end <= 640 * frame + 3_400
    assert is_decided(frame, WINDOW, samples) == (end <= samples and 640 * frame < samples)
    if samples >= max(end, 640 * frame + 1):  # whatever follows
        assert block_starts(frame, WINDOW, samples) == block_starts(frame, WINDOW)


def features(windows: F32) -> F32:
    """A vector that tells windows apart."""
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((16 * 80, 512)).astype(np.float32)
    return np.stack([w.ravel() @ weights for w in windows]).astype(np.float32)


def noise(samples: int, seed: int = 2) -> F32:
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32) * 0.1


@settings(max_examples=15, deadline=None)
@given(samples=st.integers(1, 14_000), sizes=st.lists(st.integers(1, 5_000), max_size=6))
def test_a_stream_a_session_and_single_frames_give_the_same_blocks(
    samples: int, sizes: list[int]
) -> None:
    pcm = noise(samples)
    stream, spoken = BlockStream(WINDOW, features), Utterance(1, WINDOW)
    streamed, seen, at = [], [], 0
    for size in (*sizes, samples):
        piece = pcm[at : at + size]
        at += len(piece)
        streamed += list(stream.push(piece))
        spoken.push(piece)
        while len(seen) < spoken.decided:
            seen.append(spoken.speech(len(seen)))
            spoken.forget(len(seen))
    streamed += list(stream.finish())
    spoken.end()
    while len(seen) < frame_count(samples):
        seen.append(spoken.speech(len(seen)))
    cache = BlockCache(features)
    assert len(streamed) == len(seen) == frame_count(samples)
    for block, (speech, samples_of) in zip(streamed, seen, strict=True):
        starts = block_starts(speech.frame, WINDOW, speech.samples)
        assert block.shape == (1, 512)
        assert np.array_equal(block, cache.block(1, starts, samples_of, speech.first))


def test_the_way_in_shows_silence_where_there_are_no_zeros() -> None:
    """Before any of an utterance is heard; then its frames, 212.5 ms and the margin behind."""
    now, ms = 5_000_000_000, 1_000_000
    settings = LiveSettings(
        number=1, new_stream=itertools.count(1).__next__, own_ready=lambda: True
    )
    session = LivePlayout(settings, Appearance(manifest(**GOOD), "x", Look()), now)
    assert session.latency_ms == 212.5 + session.margin_ns / ms
    asked: list[tuple[Job, F32]] = []
    for _ in range(50):
        session.push_audio(noise(320), now)
        for _ in range(20):
            now += ms
            session.tick(now)
            asked += session.jobs
            session.jobs.clear()
    way_in = [(job.speech, pcm) for job, pcm in asked if job.speech and job.speech.share < 1]
    spoken = [job.speech.frame for job, _ in asked if job.speech and job.speech.share == 1]
    assert way_in
    assert spoken == list(range(len(spoken)))
    assert len(spoken) >= 15
    for speech, pcm in way_in:
        assert (speech.stream, speech.frame, speech.samples, speech.first) == (0, 0, 3_000, 0)
        assert len(pcm) == 3_000
        assert not pcm.any()
        starts = block_starts(speech.frame, WINDOW, speech.samples)
        assert BlockCache(features).block(0, starts, pcm, 0).shape == (1, 512)


# ---------------------------------------------------------------- the picture
@settings(max_examples=120, deadline=None)
@given(
    h=st.integers(1, 300),
    w=st.integers(1, 300),
    oh=st.integers(1, 300),
    ow=st.integers(1, 300),
    seed=st.integers(0, 9),
)
def test_bilinear_has_the_bytes_of_opencv(h: int, w: int, oh: int, ow: int, seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (h, w, 3)).astype(np.uint8)
    wanted = cv2.resize(picture, (ow, oh), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(_native.resize_linear(picture, oh, ow), wanted.reshape(oh, ow, 3))
    torch = pytest.importorskip("torch", reason="the CUDA backend needs torch")
    from lipsync_fast.engine.backends.cuda.loader import resize_linear

    assert np.array_equal(resize_linear(torch.from_numpy(picture), oh, ow).numpy(), wanted)


def test_bilinear_halves_as_opencv_does() -> None:
    """There it takes another way."""
    for h, w in ((192, 192), (96, 512), (192, 100), (2, 2)):
        picture = np.random.default_rng(h).integers(0, 256, (h, w, 3)).astype(np.uint8)
        wanted = cv2.resize(picture, (w // 2, h // 2), interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(_native.resize_linear(picture, h // 2, w // 2), wanted)


def test_six_channels_the_masked_face_first() -> None:
    crop = np.random.default_rng(3).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    image = WAV2LIP.crop.image_input(crop)
    whole = crop[..., ::-1].transpose(2, 0, 1).astype(np.float32) / 255
    masked = whole.copy()
    masked[:, 48:] = 0
    assert np.array_equal(image, np.concatenate([masked, whole]))
    assert np.array_equal(WAV2LIP.crop.masked(crop)[:48], crop[:48])
    assert not WAV2LIP.crop.masked(crop)[48:].any()


@settings(max_examples=60, deadline=None)
@given(
    source=st.integers(1, 120),
    target=st.integers(1, 200),
    ends=st.tuples(st.integers(0, 120), st.integers(0, 120)),
)
def test_what_sees_a_changed_part_is_reached(
    source: int, target: int, ends: tuple[int, int]
) -> None:
    first, end = (min(e, source) for e in sorted(ends))
    a = np.full((source, source, 3), 90, np.uint8)
    b = a.copy()
    b[:, first:end] = 200
    for resize, reach in ((_native.resize_linear, 1), (_native.resize_cubic, 2)):
        differ = np.any(resize(a, target, target) != resize(b, target, target), axis=(0, 2))
        low, high = reached(first, end, source, target, reach)
        assert not differ[:low].any()
        assert not differ[high:].any()


# ---------------------------------------------------------------- backends
@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AvatarPackage]:
    pytest.importorskip("torch", reason="the extra train is not installed")
    path = livetalking.avatar(tmp_path_factory.mktemp("wav2lip"))
    with AvatarPackage.open(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def cpu(package: AvatarPackage) -> Iterator[tuple[Backend, LoadedAvatar]]:
    made = backends.make("cpu")
    yield made, made.load(package)
    made.close()


@pytest.fixture(scope="module")
def emulated(package: AvatarPackage) -> Iterator[tuple[Backend, LoadedAvatar]]:
    made = backends.make("emulated")
    yield made, made.load(package)
    made.close()


def blocks(count: int = 4) -> F32:
    return np.random.default_rng(6).random((count, 1, 512)).astype(np.float32) * 2


def keep(place: int, image: Any) -> Any:
    return image


def test_a_frame_is_region_and_opencv_s_paste(
    package: AvatarPackage, cpu: tuple[Backend, LoadedAvatar]
) -> None:
    backend, avatar = cpu
    jobs = [RegionJob(avatar, k % 3, block) for k, block in enumerate(blocks())]
    regions = backend.regions(jobs)
    whole = [future.result(60) for future in backend.submit(jobs, keep)]
    for job, region, frame in zip(jobs, regions, whole, strict=True):
        assert region.shape == (96, 96, 3)
        x1, y1, x2, y2 = package.rect(job.avatar_frame).corners
        wanted = package.picture(job.avatar_frame).copy()
        wanted[y1:y2, x1:x2] = cv2.resize(region, (x2 - x1, y2 - y1))
        assert np.array_equal(frame, wanted)
        assert np.array_equal(backend.compose(avatar, job.avatar_frame, region), wanted)
    assert np.any(regions[0] != regions[3]), "the sound changes the face"
    (square,) = backend.submit([RegionJob(avatar, 0, blocks()[0], part=SQUARE)], keep)
    assert np.array_equal(square.result(60), regions[0])


def test_a_block_of_the_other_family_is_refused(
    cpu: tuple[Backend, LoadedAvatar], emulated: tuple[Backend, LoadedAvatar]
) -> None:
    for backend, avatar in (cpu, emulated):
        with pytest.raises(ValueError, match=r"expected \(1, 512\)"):
            backend.regions([RegionJob(avatar, 0, np.zeros((16, 512), np.float32))])
    backend, avatar = emulated
    sound = Sound(1, (0,) * 16, np.zeros(4_000, np.float32), 0)
    (future,) = backend.submit([RegionJob(avatar, 0, None, sound=sound)], keep)
    with pytest.raises(ValueError, match="16 vectors, expected 1"):
        future.result(60)


def test_the_emulated_device_makes_the_cpu_s_frames(
    package: AvatarPackage,
    cpu: tuple[Backend, LoadedAvatar],
    emulated: tuple[Backend, LoadedAvatar],
) -> None:
    """Whole frames, a part, the square, and shares between idle and speech."""
    for share in (1.0, 0.4):
        for part in (None, Rect(20, 10, 132, 150), SQUARE):
            made = []
            for backend, avatar in (cpu, emulated):
                jobs = [
                    RegionJob(avatar, k % 3, block, share, part) for k, block in enumerate(blocks())
                ]
                made.append([future.result(60) for future in backend.submit(jobs, keep)])
            for one, other in zip(*made, strict=True):
                assert difference(one, other) <= 1


def test_the_emulated_device_resizes_to_the_very_bytes(
    package: AvatarPackage, emulated: tuple[Backend, LoadedAvatar]
) -> None:
    """The device resizes what it itself has made: so its kernel is held to OpenCV."""
    backend, avatar = emulated
    for k in range(3):
        job = RegionJob(avatar, k, blocks()[k])
        (square,), (frame,) = backend.regions([job]), backend.submit([job], keep)
        x1, y1, x2, y2 = package.rect(k).corners
        wanted = cv2.resize(square, (x2 - x1, y2 - y1))
        assert difference(frame.result(60)[y1:y2, x1:x2], wanted) <= APART["emulated"]


@pytest.mark.parametrize("samples", [1, 2_999, 640 * 9, 640 * 9 + 77])
def test_a_sound_gives_the_same_frames_on_both(
    samples: int, cpu: tuple[Backend, LoadedAvatar], emulated: tuple[Backend, LoadedAvatar]
) -> None:
    """In pieces; the device hears by itself, the CPU is given blocks."""
    pcm = noise(samples)
    made = [[p.image for p in pictures(b, a, np.array_split(pcm, 3))] for b, a in (cpu, emulated)]
    assert len(made[0]) == len(made[1]) == frame_count(samples)
    for one, other in zip(*made, strict=True):
        assert difference(one, other) <= 2


def test_streamed_sounds_hold_what_frames_see() -> None:
    pcm, stream = noise(SAMPLE_RATE * 8), SoundStream(WINDOW)
    heard = [s for piece in np.array_split(pcm, 50) for s in stream.push(piece)]
    heard += list(stream.finish())
    assert len(heard) == 200
    for k, sound in enumerate(heard):
        assert list(sound.starts) == block_starts(k, WINDOW, len(pcm))
        first, end = samples_seen(sound.starts)
        assert sound.first == first
        assert np.array_equal(sound.pcm, pcm[first:end])


# ---------------------------------------------------------------- what is sent
def test_spliced_frames_are_those_that_are_encoded_whole(
    package: AvatarPackage, cpu: tuple[Backend, LoadedAvatar]
) -> None:
    backend, avatar = cpu
    encoder, variant = FrameEncoder(), Variant(package.manifest.jpeg.quality)
    for k in range(3):
        assert changing(package, k) == package.rect(k), "the whole box is made"
        (future,) = backend.submit([RegionJob(avatar, k, blocks()[k])], keep)
        whole = future.result(60)
        x1, y1, x2, y2 = encoder.part(package, k, variant).corners
        jpeg = encoder.frame(package, k, variant, whole[y1:y2, x1:x2])
        assert jpeg == FrameEncoder._whole(package.manifest, variant, whole)


def test_an_own_mouth_is_the_face_through_the_network_s_size(package: AvatarPackage) -> None:
    x1, y1, x2, y2 = package.rect(0).corners
    wanted = package.picture(0).copy()
    face = cv2.resize(wanted[y1:y2, x1:x2], (96, 96))
    wanted[y1:y2, x1:x2] = cv2.resize(face, (x2 - x1, y2 - y1))
    assert np.array_equal(silent(package, 0), wanted)


def test_a_window_is_refused_where_there_can_be_none() -> None:
    with pytest.raises(ValueError, match="the whole face"):
        msgspec.structs.replace(manifest(**GOOD), window=Window(0, 0, 8, 8))


def test_a_package_of_another_size_than_its_networks(
    package: AvatarPackage, tmp_path: Path
) -> None:
    """Both backends say so."""
    copy = Path(shutil.copytree(package.path, tmp_path / "copy"))
    data = msgspec.json.decode((copy / "manifest.json").read_bytes())
    data |= {"width": 4}
    (copy / "manifest.json").write_bytes(msgspec.json.encode(data))
    with AvatarPackage.open(copy) as opened:
        for name in backends.NAMES:
            backend = backends.make(name)
            with pytest.raises(AvatarFormatError, match=r"image\.onnx does not fit"):
                backend.load(opened)
            backend.close()
