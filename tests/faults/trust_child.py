# SPDX-License-Identifier: Apache-2.0
"""What is asked to take in hostile files, in a process of its own: ``trust_child.py JOBS``.

JOBS is a JSON file: a list of [way, path]. The first path is a good one, and is taken in first, so
that what is loaded and cached once is not counted. Then memory is limited, and for each job a line
says what became of it: its error, its processor time, and by how much the process has grown.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

from lipsync_fast.errors import LipsyncError

HEADROOM = 384 << 20
"""Memory of its own beyond what the good one took: who takes a file's word for it needs more."""


def listed(path: str) -> None:
    """As ``avatar list`` and a server's pages: the folder that holds the package."""
    from lipsync_fast.avatars.library import AvatarLibrary

    errors = [i.error for i in AvatarLibrary([Path(path).parent]).list() if i.path == Path(path)]
    if errors != [None]:
        raise LipsyncError(str(errors))


def served(path: str) -> None:
    """As an engine: opened, its networks loaded, a frame made."""
    import numpy as np

    from lipsync_fast.engine.avatar import RegisteredAvatar
    from lipsync_fast.engine.backends import create_backend
    from lipsync_fast.engine.backends.base import RegionJob

    backend = create_backend("cpu", 1)
    try:
        avatar = RegisteredAvatar.open(backend, path)
        package = avatar.package
        backend.compose(avatar.loaded, 0, np.zeros((224, 224, 3), np.uint8))
        for index in range(package.manifest.frame_count):
            package.picture(index), package.frame_segments(index), package.mask(index)
        sound = np.zeros((16, 512), np.float32)
        backend.regions([RegionJob(avatar.loaded, 0, sound)])
        package.close()
    finally:
        backend.close()


def imported(path: str) -> None:
    """As ``avatar import``."""
    from lipsync_fast.avatars.importing.build import import_synctalk

    import_synctalk(Path(path), Path(path).parents[1] / "avatars", overwrite=True)


def weights(path: str) -> None:
    """As ``avatar import --checkpoint``."""
    from lipsync_fast.models.checkpoints import load_unet

    load_unet(path)


def prepared(path: str) -> None:
    """As ``avatar prepare``: the first pictures of a video."""
    from lipsync_fast.media.video import Video

    with Video(Path(path)) as video:
        for _ in video.pictures(limit=3):
            pass


def marked(path: str) -> None:
    """As ``avatar prepare --landmarks``."""
    import numpy as np

    from lipsync_fast.prepare.landmark_files import LandmarkFiles

    files = LandmarkFiles(Path(path))
    files.fingerprint()
    files.detect([np.zeros((80, 96, 3), np.uint8)] * 3, 0)


def heard(path: str) -> None:
    """As ``render``: the sound of a file."""
    from lipsync_fast.media.audio import MediaSource

    with MediaSource(path) as source:
        for _ in source:
            pass


WAYS = {way.__name__: way for way in (listed, served, imported, weights, prepared, marked, heard)}


def main() -> None:
    """Do the jobs."""
    (first, good), *jobs = json.loads(Path(sys.argv[1]).read_text())
    for way in {first: 0, **{way: 0 for way, _ in jobs}}:
        if way == first or way in ("listed", "served"):
            WAYS[way](good)
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    limit = pages * resource.getpagesize() + HEADROOM
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for way, path in jobs:
        begun, error = time.process_time(), ["", ""]
        try:
            WAYS[way](path)
        except LipsyncError as reason:
            error = [type(reason).__name__, str(reason)]
        spent = time.process_time() - begun
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(json.dumps([way, path, *error, spent, grown]), flush=True)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
