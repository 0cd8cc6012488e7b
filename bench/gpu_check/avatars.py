# SPDX-License-Identifier: Apache-2.0
"""The avatars that others measure with: the reference's network twice, and the golden one.

``golden`` has the golden weights and frames, for parity; ``reference`` random weights and frames of
1280 x 720. The demo avatar is in the package. A dry run has the tests' tiny one.
"""

from __future__ import annotations

from gpu_check.context import Context

FRAMES = 40


def main(context: Context) -> None:
    """Write them."""
    from golden import synctalk_dataset
    from tiny import write_tiny_avatar

    from lipsync_fast.avatars.importing.build import import_synctalk
    from lipsync_fast.benchmark.reference import reference_networks, write_reference_avatar

    context.avatars.mkdir()
    if context.dry:
        write_tiny_avatar(context.avatars / "tiny")
    networks = reference_networks()
    for name in ("reference", "reference-2"):
        path = write_reference_avatar(context.avatars / name, networks, frames=FRAMES)
        context.found.check(f"avatar {name}", path.is_dir(), f"{FRAMES} frames")
    dataset = synctalk_dataset(context.work / "golden")
    import_synctalk(dataset, context.work / "imported").rename(context.avatars / "golden")
    context.found.check("avatar golden", (context.avatars / "golden").is_dir())
