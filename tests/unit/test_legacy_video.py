# SPDX-License-Identifier: Apache-2.0
"""The MP4 of an avatar's frames: all of them, once, made once."""

from __future__ import annotations

import io
import json
import shutil
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import trio
from legacy_world import world

from lipsync_fast.avatars.library import shipped_folder
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.errors import AvatarNotFoundError, LipsyncError
from lipsync_fast.frontend.legacy import video as video_module
from lipsync_fast.frontend.legacy.video import AvatarVideos, content_of
from lipsync_fast.provenance import SYNTHETIC
from lipsync_fast.tokens.subject import ANYONE


def test_all_frames_in_order(tiny_avatar: Path) -> None:
    async def main() -> memoryview:
        async with world(tiny_avatar.parent) as w:
            made = await w.legacy.video("tiny", ANYONE)
            assert await w.legacy.video("default_model", ANYONE) is made
            assert await w.legacy.video("", ANYONE) is made
            with pytest.raises(AvatarNotFoundError):
                await w.legacy.video("nobody", ANYONE)
            return made

    made = trio.run(main)  # readable behind its server's end
    data = bytes(made)
    assert data[4:8] == b"ftyp"
    assert data.index(b"moov") < data.index(b"mdat"), "it can be played while it is loaded"
    assert SYNTHETIC.encode() in data
    with av.open(io.BytesIO(data)) as container, AvatarPackage.open(tiny_avatar) as package:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (1, 1)
        assert (context.color_primaries, context.color_trc) == (1, 1)
        frames = list(container.decode(video=0))
        assert [round(float(f.time) * 25) for f in frames] == [0, 1, 2, 3, 4]
        for index, frame in enumerate(frames):
            image = frame.to_ndarray(format="rgb24").astype(int)
            assert image.shape == (192, 160, 3)
            assert np.abs(image - package.picture(index)).mean() < 12


def test_who_waits_together_gets_the_same(tiny_avatar: Path) -> None:
    async def main() -> None:
        videos, got = AvatarVideos(), list[memoryview]()

        async def get() -> None:
            got.append(await videos.get(package))

        with AvatarPackage.open(tiny_avatar) as package:
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(get)
        assert len(got) == 5
        assert all(made is got[0] for made in got)

    trio.run(main)


def test_who_waits_no_more_stops_it() -> None:
    def at_work() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name == "lipsync-video"]

    async def main() -> None:
        videos = AvatarVideos()
        with AvatarPackage.open(shipped_folder() / "demo.lsa") as package:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(videos.get, package)
                while not at_work():
                    await trio.sleep(0.001)
                assert content_of(package) not in videos.kept
                nursery.cancel_scope.cancel()
            assert not at_work()
            assert content_of(package) not in videos.kept, "it was made to its end"

    trio.run(main)


def test_a_video_without_bound_is_an_error(
    tiny_avatar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_module, "MOST_BYTES", 20)

    async def main() -> None:
        videos = AvatarVideos()
        with AvatarPackage.open(tiny_avatar) as package, pytest.raises(LipsyncError, match="20 by"):
            await videos.get(package)

    trio.run(main)


def test_the_one_used_longest_ago_goes_first(
    tiny_avatar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_module, "KEPT_BYTES", 1)
    other = tmp_path / "other"
    shutil.copytree(tiny_avatar, other)
    manifest = json.loads((other / "manifest.json").read_text()) | {"licence": "another one"}
    (other / "manifest.json").write_text(json.dumps(manifest))

    async def main() -> None:
        videos = AvatarVideos()
        with AvatarPackage.open(tiny_avatar) as one, AvatarPackage.open(other) as two:
            first = await videos.get(one)
            assert await videos.get(one) is first
            await videos.get(two)
            assert await videos.get(one) is not first

    trio.run(main)
