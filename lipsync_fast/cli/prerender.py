# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast avatar prerender | prerendered | unprerender``: utterances made beforehand."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lipsync_fast.cli.commands import BACKENDS, Command, choice
from lipsync_fast.console import Progress, clock, guarded, one_line, say, table_lines, warn
from lipsync_fast.errors import ConfigError, MediaError, OutputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lipsync_fast.avatars.package import AvatarPackage
    from lipsync_fast.config import ServeConfig
    from lipsync_fast.engine.prerender import Prerendering, Wanted
    from lipsync_fast.ipc.messages import Look
    from lipsync_fast.utterances.store import Store

MOST_S = 120.0
"""The longest sound: what is longer is a programme, not an utterance."""
SAMPLE = 12
"""Frames that are made before an estimate is shown of how long all take."""
WAIT_S = 10.0
"""How long others that write are waited for."""

Avatar = Annotated[str, typer.Argument(help="The avatar's name, or its package's path.")]
Folders = Annotated[
    list[str] | None,
    typer.Option("--avatars", help="A folder to look for avatars in first (may be repeated)."),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="The server's configuration file, if it has one."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@guarded
def prerender(
    avatar: Avatar,
    audio: Annotated[Path, typer.Argument(help="The sound: any file that FFmpeg reads.")],
    name: Annotated[str, typer.Option("--as", help="The name by which clients ask for it.")],
    avatars: Folders = None,
    config: Config = None,
    backend: Annotated[
        str, choice(among=BACKENDS, help="What the server's engines run on.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="Threads to use (default: all processors).", min=1)
    ] = None,
    content: Annotated[
        str, choice(among=("frame", "mouth"), help="What clients will ask for.")
    ] = "frame",
    quality: Annotated[
        int | None,
        typer.Option(
            help="The JPEG quality that clients will ask for (default: the avatar's own).",
            min=1,
            max=100,
        ),
    ] = None,
    max_width: Annotated[
        int | None,
        typer.Option(
            "--max-width", help="The max_width that clients will ask for.", min=16, max=8192
        ),
    ] = None,
    every_phase: Annotated[
        bool,
        typer.Option(
            "--every-phase",
            help="Make it for every place of the loop, not for one of those that look alike.",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Make the frames of an utterance beforehand, so that it begins at once.

    It may be interrupted: called again, it goes on where it was.
    """
    from lipsync_fast.avatars.library import AvatarLibrary
    from lipsync_fast.avatars.package import AvatarPackage

    if not name.isprintable() or not 0 < len(name) <= 200:
        raise ConfigError(f"--as {one_line(name[:40])!r}: expected 1 to 200 printable characters")
    if content not in ("frame", "mouth"):
        raise ConfigError(f"--content {one_line(content)!r}: expected frame or mouth")
    settings = _settings(config)
    folders = [*(avatars or ()), *settings.avatars.folders]
    path = AvatarLibrary(folders).find(avatar)
    pcm, warnings = _sound(audio)
    for warning in () if quiet else warnings:
        warn(warning)
    with ExitStack() as stack:
        from lipsync_fast.engine.backends import create_backend
        from lipsync_fast.engine.prerender import Prerendering

        package = stack.enter_context(AvatarPackage.open(path))
        store = stack.enter_context(closing(_store(settings)))
        made = stack.enter_context(
            closing(
                create_backend(
                    backend,
                    threads,
                    live=True,
                    kernels=settings.engines.kernels,
                    precision=settings.engines.precision,
                )
            )
        )
        look = _look(content, quality, max_width)
        work = Prerendering(made, package, pcm, look, store)
        _prerender(package, work, store, name, pcm, _loop_positions(package, every_phase), quiet)


@guarded
def prerendered(
    avatar: Avatar, avatars: Folders = None, config: Config = None, json: Json = False
) -> None:
    """List what was pre-rendered for an avatar."""
    from lipsync_fast.names import json_bytes
    from lipsync_fast.rounding import rounded

    settings = _settings(config)
    with closing(_store(settings)) as store:
        found = store.names(_name_of(avatar, avatars, settings))
    if json:
        typer.echo(json_bytes(rounded(found)).decode())
        return
    if not found:
        say("nothing was pre-rendered for this avatar")
        return
    rows: list[tuple[str, ...]] = [("NAME", "SECONDS", "FRAMES", "MB", "STATE")]
    for each in found:
        state = "whole" if each.whole else "interrupted: call prerender again"
        size = f"{each.size / 1e6:.1f}"
        rows.append((one_line(each.name), f"{each.seconds:.2f}", str(each.frames), size, state))
    typer.echo("\n".join(table_lines(rows)))


@guarded
def unprerender(
    avatar: Avatar,
    name: Annotated[str, typer.Argument(help="The name by which clients ask for it.")],
    avatars: Folders = None,
    config: Config = None,
) -> None:
    """Remove what was pre-rendered under a name."""
    settings = _settings(config)
    of = _name_of(avatar, avatars, settings)
    with closing(_store(settings)) as store:
        if not store.forget_name(of, name):
            raise OutputError(f"nothing was pre-rendered for {of} as {one_line(name[:64])!r}")
    say(f"{of}: {one_line(name)} was removed")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (prerender, prerendered, unprerender):
        app.command(cls=Command)(command)


# ---------------------------------------------------------------- parts
def _settings(file: Path | None) -> ServeConfig:
    from lipsync_fast.config_load import load

    config = load(file).config
    if not config.utterances.disk_mb:
        raise ConfigError("utterances.disk_mb is 0: nothing is kept")
    return config


def _store(config: ServeConfig) -> Store:
    from lipsync_fast.utterances.opening import open_store

    return open_store(config.utterances, WAIT_S)


def _name_of(avatar: str, avatars: list[str] | None, config: ServeConfig) -> str:
    """The name in an avatar's manifest, by which it is known to the store."""
    from lipsync_fast.avatars.library import AvatarLibrary
    from lipsync_fast.avatars.package import AvatarPackage

    path = AvatarLibrary([*(avatars or ()), *config.avatars.folders]).find(avatar)
    with AvatarPackage.open(path) as package:
        return package.manifest.name


def _look(content: str, quality: int | None, max_width: int | None) -> Look:
    from lipsync_fast.ipc.messages import Content, Look

    if content == "mouth":
        return Look(Content.MOUTH, quality, None)
    return Look(Content.FRAME, quality, max_width)


def _sound(path: Path) -> tuple[NDArray[np.float32], list[str]]:
    """A sound at 16 kHz, as a session would have it.

    Raises:
        MediaError: it cannot be read, is empty, or very long.
    """
    import numpy as np

    from lipsync_fast.media.audio import MediaSource

    pieces, samples = [], 0
    with MediaSource(path) as source:
        for piece in source:
            pieces.append(piece)
            samples += len(piece)
            if samples > MOST_S * 16_000:
                raise MediaError(f"{path}: longer than {MOST_S:g} s; pre-render it in parts")
        warnings = list(source.warnings)
    if not samples:
        raise MediaError(f"{path}: the sound has 0 samples; nothing to pre-render")
    return np.concatenate(pieces), warnings


def _loop_positions(package: AvatarPackage, every: bool) -> list[int]:
    """Positions of the loop at which an utterance is to begin."""
    from lipsync_fast.utterances.likeness import Likeness, period_of, thumbnails

    if every:
        return list(range(period_of(package.manifest)))
    return Likeness(package.manifest, thumbnails(package)).cover()


def _prerender(
    package: AvatarPackage,
    work: Prerendering,
    store: Store,
    name: str,
    pcm: NDArray[np.float32],
    loop_positions: list[int],
    quiet: bool,
) -> None:
    """Say what it will cost, make it, and say what it has cost."""
    from lipsync_fast.engine.prerender import wanted

    avatar = package.manifest.name
    wants = wanted(package, len(pcm), loop_positions)
    missing = work.missing(wants)
    _check_room(store, missing, _trial(work, missing), len(loop_positions), quiet)
    number = store.begin_name(avatar, name, work.content, pcm.tobytes())
    missing = work.missing(wants, number)
    begun, size = time.monotonic(), 0
    if missing:
        with Progress(len(missing), quiet=quiet, verb="pre-rendering") as progress:
            size = work.run(missing, number, progress.advance)
    store.end_name(number)
    if not quiet:
        say(
            f"{avatar}: {one_line(name)}, {len(pcm) / 16_000:.2f} s over"
            f" {len(loop_positions)} places of the loop: {len(wants)} frames, {len(missing)} of"
            f" them made now ({size / 1e6:.1f} MB in {time.monotonic() - begun:.1f} s)"
        )


def _trial(work: Prerendering, missing: list[Wanted]) -> tuple[float, float]:
    """Bytes and seconds of a frame, of a few that are spread over all."""
    step = max(1, len(missing) // SAMPLE)
    few = missing[::step][:SAMPLE]
    if not few:
        return 0.0, 0.0
    list(work.make(few[:2]))  # the first ones also pay for what is prepared
    begun = time.monotonic()
    size = sum(row.size for row in work.make(few))
    return size / len(few), (time.monotonic() - begun) / len(few)


def _check_room(
    store: Store, missing: list[Wanted], each: tuple[float, float], positions: int, quiet: bool
) -> None:
    """Say what it will cost.

    Raises:
        OutputError: it does not fit.
    """
    size = len(missing) * each[0]
    pinned, limit = store.pinned_bytes(), store.limit
    if not quiet and missing:
        say(
            f"{len(missing)} frames over {positions} places of the loop: about {size / 1e6:.0f} MB,"
            f" {clock(len(missing) * each[1])}"
        )
    if pinned + size > limit:
        raise OutputError(
            f"about {size / 1e6:.0f} MB do not fit: {pinned / 1e6:.0f} of {limit / 1e6:.0f} MB"
            " hold other pre-rendered utterances; raise utterances.disk_mb, or remove some"
        )
