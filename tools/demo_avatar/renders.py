# SPDX-License-Identifier: Apache-2.0
"""Keep a person's rendered pictures in one file, and take them out of it again.

    python renders.py keep WORK renders/ada.zip
    python renders.py restore WORK renders/ada.zip

To render them takes hours; the networks can be trained again from this file without. Pictures are
AVIF without reduced colours (mean error 0.8 grey levels); ``controls.npy`` and ``poses.npy`` go
with them. What is in WORK already stays as it is.
"""

from __future__ import annotations

import argparse
import io
import os
import pathlib
import zipfile

from PIL import Image

QUALITY = 88


def keep(work: pathlib.Path, kept: pathlib.Path) -> None:
    """Write everything under WORK/render, and poses.npy."""
    render, partial = work / "render", kept.with_suffix(".part")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(partial, "w") as archive:
        for path in (work / "poses.npy", render / "controls.npy"):
            archive.write(path, path.relative_to(work))
        for path in sorted(render.rglob("*.png")):
            if path.name.endswith(".part.png"):
                continue
            data = io.BytesIO()
            with Image.open(path) as picture:
                picture.save(data, "AVIF", quality=QUALITY, subsampling="4:4:4", speed=4)
            name = path.relative_to(work).with_suffix(".avif")
            archive.writestr(str(name), data.getvalue())
    os.replace(partial, kept)
    print(f"{kept}: {kept.stat().st_size / 1e6:.1f} MB")


def restore(work: pathlib.Path, kept: pathlib.Path) -> None:
    """Write the pictures as PNG files again."""
    with zipfile.ZipFile(kept) as archive:
        for name in archive.namelist():
            path = work / name
            path = path.with_suffix(".png") if path.suffix == ".avif" else path
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            data, partial = archive.read(name), path.with_suffix(".part" + path.suffix)
            if path.suffix == ".png":
                with Image.open(io.BytesIO(data)) as picture:
                    picture.convert("RGBA").save(partial)
            else:
                partial.write_bytes(data)
            os.replace(partial, path)


def main() -> None:
    """Keep or restore."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("keep", "restore"))
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("file", type=pathlib.Path)
    args = parser.parse_args()
    (keep if args.what == "keep" else restore)(args.work, args.file)


if __name__ == "__main__":
    main()
