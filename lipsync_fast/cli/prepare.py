# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast avatar prepare``: from videos to prepared folders."""

from __future__ import annotations

import contextlib
import getpass
import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipsync_fast.console import EXIT_ERROR, clock, guarded, one_line, say

if TYPE_CHECKING:
    from lipsync_fast.prepare.request import Failure, Request, Result


class LoopKind(StrEnum):
    """What ``--loop`` may be."""

    auto = "auto"
    pingpong = "pingpong"
    cycle = "cycle"


@guarded
def prepare(
    videos: Annotated[list[Path], typer.Argument(help="Videos, each of one person.")],
    out: Annotated[Path, typer.Option(help="The folder for the results.")] = Path("prepared"),
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, help="Videos prepared at a time (default: one for each processor)."
        ),
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            help="What finds faces: mesh (the default), dlib, a plug-in's name, or MODULE:FUNCTION."
        ),
    ] = None,
    detector_option: Annotated[
        list[str] | None,
        typer.Option("--detector-option", help="KEY=VALUE for the detector (may be repeated)."),
    ] = None,
    landmarks: Annotated[
        Path | None,
        typer.Option(
            help="Landmarks in files: a folder of 0.lms …, .npy or .npz, or a folder of such."
        ),
    ] = None,
    parsing: Annotated[
        Path | None, typer.Option(help="A folder of parsing maps as SyncTalk_2D has them: 0.png …")
    ] = None,
    idle: Annotated[
        Path | None,
        typer.Option(
            help="A clip of the same person, silent with closed lips, that the avatar idles on."
        ),
    ] = None,
    consent: Annotated[str | None, typer.Option(help="How the person shown agreed.")] = None,
    licence: Annotated[
        str | None, typer.Option(help="The terms under which it may be used.")
    ] = None,
    stated_by: Annotated[
        str | None, typer.Option(help="Who states this (default: your login name).")
    ] = None,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="The person shown does not exist.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="The avatar's name (default: the file's name).")
    ] = None,
    start: Annotated[
        float, typer.Option(min=0, max=86400, help="The second of the video to begin at.")
    ] = 0.0,
    seconds: Annotated[
        float, typer.Option(min=0.2, max=7200, help="How many seconds of a video are used at most.")
    ] = 600.0,
    sound_late: Annotated[
        float,
        typer.Option(
            min=-1000,
            max=1000,
            metavar="MS",
            help="How many milliseconds later than the picture the sound is; it is moved back.",
        ),
    ] = 0.0,
    bridge: Annotated[
        int, typer.Option(min=0, max=250, help="How many frames in a row may be without a face.")
    ] = 12,
    loop: Annotated[
        LoopKind, typer.Option(help="How the avatar plays when its frames are over.")
    ] = LoopKind.auto,
    loop_seconds: Annotated[
        float,
        typer.Option(min=0.2, max=3600, help="Seconds of the longest part that the avatar plays."),
    ] = 60.0,
    quality: Annotated[
        int, typer.Option(min=50, max=100, help="The JPEG quality of the frames.")
    ] = 92,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint of the person's network: makes a whole avatar of one video."
        ),
    ] = None,
    audio_encoder: Annotated[
        Path | None, typer.Option(help="The audio encoder's weights, for --weights.")
    ] = None,
    avatars: Annotated[
        Path | None, typer.Option(help="The folder for that avatar (default: your data folder).")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace results that are there already.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Prepare videos of people for training: frames, face crops, landmarks, sound, loop.

    Killed or interrupted, the same command goes on where it was.
    """
    shared: dict[str, Any] = {
        "out": str(out),
        "synthetic": synthetic,
        "start_s": start,
        "longest_s": seconds,
        "sound_late_ms": sound_late,
        "bridge": bridge,
        "loop": loop.value,
        "loop_s": loop_seconds,
        "force": force,
    }
    names = _names(videos, name)
    model = _Model(weights, audio_encoder, avatars, names, force)
    shared |= _detection(detector, detector_option, landmarks, parsing) | _jpeg(quality)
    shared |= _idle(idle, videos, landmarks)
    _check_out(out)
    shared |= _statements(consent, licence, stated_by, synthetic)
    requests = _requests(videos, names, shared, landmarks, parsing)
    _run(requests, workers, model, quiet=quiet, json=json)


def _run(
    requests: list[Request], workers: int | None, model: _Model, *, quiet: bool, json: bool
) -> None:
    """Prepare all, say what came of it, and pack an avatar where there are networks for it."""
    from lipsync_fast.cli.prepare_progress import Bars, Lines
    from lipsync_fast.machine import processors
    from lipsync_fast.prepare.many import prepare_many
    from lipsync_fast.prepare.request import Failure, Result

    begun = time.monotonic()
    with Bars(requests) if sys.stderr.isatty() and not quiet else Lines(requests, quiet) as watcher:
        outcomes = prepare_many(requests, workers or min(len(requests), processors()), watcher)
    wall = time.monotonic() - begun
    made = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    if not quiet:
        _say_outcome(outcomes, made, wall)
    if len(outcomes) == 1 or quiet:
        for failure in failed:
            kept = "; the same command goes on where it was" if failure.kept else ""
            say(f"error: {one_line(failure.reason)}{kept}")
    package = model.pack(made[0]) if made else None
    if json:
        _write_json(made, failed, wall, package)
    if failed:
        raise typer.Exit(EXIT_ERROR)
    if not quiet:
        say(
            f"next: lipsync-fast avatar train {made[0].path}"
            if package is None
            else f"try: lipsync-fast render SPEECH.wav -o out.mp4 --avatar {package}"
        )


def _say_outcome(outcomes: list[Result | Failure], made: list[Result], wall: float) -> None:
    from lipsync_fast.prepare.report import report_lines, summary_lines

    if len(outcomes) > 1:
        for line in summary_lines(outcomes):
            say(line)
    elif made:
        for line in report_lines(made[0]):
            say(line)
    frames = sum(one.frames for one in made if not one.again)
    failures = len(outcomes) - len(made)
    say(f"{len(made)} prepared, {failures} failed; {frames} frames in {clock(wall)}")
    if made:
        say(f"look at: {Path(made[0].path) / 'sheet.jpg'}")


def _names(videos: list[Path], given: str | None) -> list[str]:
    from lipsync_fast.errors import PrepareError
    from lipsync_fast.prepare.request import name_for

    if given is not None and len(videos) > 1:
        raise PrepareError("--name is for one video; several are named after their files")
    names = [name_for(video, given) for video in videos]
    for i, one in enumerate(names):
        if one in names[:i]:
            first = videos[names.index(one)]
            raise PrepareError(
                f"{first} and {videos[i]} would both become {one!r}; rename one of them, or prepare"
                " them one by one with --name"
            )
    return names


def _check_out(out: Path) -> None:
    from lipsync_fast.errors import OutputError
    from lipsync_fast.output.base import output_error

    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; --out names a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(out, error) from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write into {out}: no permission")


def _detection(
    detector: str | None, options: list[str] | None, landmarks: Path | None, parsing: Path | None
) -> dict[str, Any]:
    from lipsync_fast.errors import PrepareError
    from lipsync_fast.prepare.detectors import check_spec

    if detector is not None and landmarks is not None:
        raise PrepareError("faces come from --detector or from --landmarks, not from both")
    for path in (landmarks, parsing):
        if path is not None and not path.exists():
            raise PrepareError(f"{path}: no such file or folder")
    given: dict[str, str] = {}
    for option in options or ():
        key, equals, value = option.partition("=")
        if not equals or not key.replace("-", "_").isidentifier():
            raise PrepareError(f"--detector-option {option!r}: expected key=value")
        given[key.replace("-", "_")] = value
    if landmarks is not None:
        if given:
            raise PrepareError("--detector-option needs --detector")
        return {}
    detector = detector or "mesh"
    check_spec(detector)
    if detector == "dlib" and given.get("research_images") != "accepted":
        from lipsync_fast.prepare.dlib_detector import TERMS

        raise PrepareError(TERMS)
    return {"detector": detector, "detector_options": given}


def _idle(idle: Path | None, videos: list[Path], landmarks: Path | None) -> dict[str, Any]:
    from lipsync_fast.errors import PrepareError

    if idle is None:
        return {}
    if len(videos) > 1:
        raise PrepareError("--idle belongs to one person: give one video with it")
    if landmarks is not None:
        raise PrepareError("--idle needs a detector: landmarks in files are the video's alone")
    if not idle.exists():
        raise PrepareError(f"{idle}: no such file")
    if videos[0].exists() and idle.samefile(videos[0]):
        raise PrepareError(
            f"{idle}: is the video itself; without --idle the loop is taken from it anyway"
        )
    return {"idle": str(idle)}


def _jpeg(quality: int) -> dict[str, Any]:
    from lipsync_fast.avatars.manifest import FrameJpeg

    return {"jpeg": FrameJpeg(quality=quality)}


def _statements(
    consent: str | None, licence: str | None, stated_by: str | None, synthetic: bool
) -> dict[str, str]:
    """Consent, licence and who states them: as given, or asked for on a terminal."""
    from lipsync_fast.errors import PrepareError
    from lipsync_fast.prepare.request import statement

    if synthetic and consent is None:
        consent = "not needed: nobody is shown"
    missing = [o for o, v in (("--consent", consent), ("--licence", licence)) if v is None]
    asked = bool(missing)
    if asked and not sys.stdin.isatty():
        raise PrepareError(
            f"{' and '.join(missing)} must be given: how the person shown agreed, and under which"
            " terms the avatar may be used; both are written into it"
        )
    login = "unknown"
    with contextlib.suppress(OSError, KeyError):
        login = getpass.getuser()
    if consent is None:
        consent = _asked("How did the person shown agree to this avatar")
    if licence is None:
        licence = _asked("Under which terms may it be used")
    if stated_by is None:
        stated_by = _asked("Who states this", login) if asked else login
    return {
        "consent": statement(consent, "consent"),
        "licence": statement(licence, "licence"),
        "stated_by": statement(stated_by, "who states it"),
    }


def _asked(question: str, default: str = "") -> str:
    """An answer from the terminal; the question goes to standard error, as all that is said."""
    hint = f" [{default}]" if default else ""
    sys.stderr.write(f"{question}{hint}: ")
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise KeyboardInterrupt
    return line.strip() or default


def _requests(
    videos: list[Path],
    names: list[str],
    shared: dict[str, Any],
    landmarks: Path | None,
    parsing: Path | None,
) -> list[Request]:
    from lipsync_fast.prepare.landmark_files import find_landmarks
    from lipsync_fast.prepare.request import Request

    alone = len(videos) == 1
    out = []
    for video, name in zip(videos, names, strict=True):
        points = maps = None
        if landmarks is not None:
            points = str(find_landmarks(landmarks, video.stem, alone=alone))
        if parsing is not None:
            own = parsing / video.stem
            maps = str(parsing if alone and not own.is_dir() else own)
        out.append(
            Request(
                video=str(video),
                name=name,
                landmarks=points,
                parsing=maps,
                **shared,
            )
        )
    return out


class _Model:
    """The networks of ``--weights``, checked before any work."""

    def __init__(
        self,
        weights: Path | None,
        encoder: Path | None,
        avatars: Path | None,
        names: list[str],
        force: bool,
    ) -> None:
        from lipsync_fast.avatars.library import folder_for_new
        from lipsync_fast.errors import AvatarImportError, OutputError, PrepareError

        self._weights, self._encoder, self._force = weights, encoder, force
        if weights is None:
            if encoder is not None:
                raise PrepareError("--audio-encoder needs --weights")
            return
        if len(names) > 1:
            raise PrepareError("--weights belong to one person: give one video with them")
        self._dest = (folder_for_new("--avatars") if avatars is None else avatars) / names[0]
        if self._dest.exists() and not force:
            raise OutputError(f"{self._dest}: already exists; --force replaces it")
        from lipsync_fast.avatars.importing.weights import find_audio_encoder

        for path in (weights, encoder):
            if path is not None and not path.is_file():
                raise AvatarImportError(f"{path}: no such file")
        self._encoder = encoder or find_audio_encoder(weights.parent, weights)

    def pack(self, made: Result) -> Path | None:
        """The avatar, where weights were given."""
        if self._weights is None or self._encoder is None:
            return None
        from lipsync_fast.errors import BackendError
        from lipsync_fast.extras import how_to_get
        from lipsync_fast.prepare.folder import PreparedAvatar, pack_prepared

        try:
            from lipsync_fast.models.checkpoints import load_audio_encoder, load_unet
            from lipsync_fast.models.export import export_audio_encoder, export_unet
        except ImportError as error:
            raise BackendError(
                f"checkpoints need the extra 'train' ({error.name} is not installed):"
                f" {how_to_get('train')}"
            ) from None
        unet = load_unet(self._weights)
        image, decoder = export_unet(unet)
        models = {
            "audio_encoder": export_audio_encoder(load_audio_encoder(self._encoder)),
            "image": image,
            "decoder": decoder,
        }
        with PreparedAvatar.open(made.path) as prepared:
            return pack_prepared(
                prepared,
                self._dest,
                models,
                width=unet.width,
                region=unet.region,
                overwrite=self._force,
                provenance=f"networks from {self._weights.name}",
            )


def _write_json(
    made: list[Result], failed: list[Failure], wall: float, package: Path | None
) -> None:
    from lipsync_fast.names import json_bytes
    from lipsync_fast.rounding import rounded

    value = {
        "prepared": made,
        "failed": failed,
        "wall_s": round(wall, 3),
        "avatar": None if package is None else str(package),
    }
    typer.echo(json_bytes(rounded(value), indent=2).decode())
