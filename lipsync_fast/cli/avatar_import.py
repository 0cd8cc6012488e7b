# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast avatar import``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lipsync_fast.cli.commands import choice
from lipsync_fast.console import Progress, guarded, one_line, say

if TYPE_CHECKING:
    from lipsync_fast.avatars.importing.build import Imported
    from lipsync_fast.cli.import_report import Report

SAMPLE_S = 1.0
LONGEST_SAMPLE_S = 60.0


@guarded
def import_avatar(
    path: Annotated[
        Path,
        typer.Argument(
            help="A folder: a SyncTalk_2D dataset, a sanders or default_model package, or a"
            " LiveTalking wav2lip avatar."
        ),
    ],
    form: Annotated[
        str | None,
        choice(
            among=("synctalk", "sanders", "default_model", "livetalking"),
            help="What kind of folder it is (default: recognised by what is in it).",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The avatar's name (default: the folder's name).")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="The network's weights, .pth or .onnx (default: those in the folder, or near it)."
        ),
    ] = None,
    audio_encoder: Annotated[
        Path | None,
        typer.Option(help="The audio encoder's weights (default: looked for near the network's)."),
    ] = None,
    avatars: Annotated[
        Path | None, typer.Option(help="The folder to put it into (default: your data folder).")
    ] = None,
    licence: Annotated[str, typer.Option(help="The terms under which it may be used.")] = "",
    consent: Annotated[str, typer.Option(help="How the person shown agreed.")] = "",
    sample: Annotated[
        float,
        typer.Option(
            min=0.04,
            max=LONGEST_SAMPLE_S,
            help="Seconds of speech to render, to see that it works.",
        ),
    ] = SAMPLE_S,
    no_sample: Annotated[bool, typer.Option("--no-sample", help="Do not render a sample.")] = False,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(
            "--contact-sheet",
            "-o",
            help="The picture of frames with their rectangles, .png or .jpg (default:"
            " NAME-import.jpg beside the avatar).",
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write the report to this file, as JSON.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an avatar of that name if there is one.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Make an avatar package from what other software has made, and report on it."""
    from lipsync_fast.avatars.importing.build import Statements
    from lipsync_fast.avatars.importing.build import import_avatar as run
    from lipsync_fast.avatars.library import folder_for_new
    from lipsync_fast.output.base import check_file_target
    from lipsync_fast.output.sheet import check_sheet_target

    if contact_sheet is not None:
        check_sheet_target(contact_sheet, force)
    if report is not None:
        check_file_target(report, force)
    with contextlib.ExitStack() as stack:
        bar: Progress | None = None

        def advance(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(Progress(total, quiet=quiet, verb="importing"))
            bar.advance()

        imported = run(
            path,
            avatars if avatars is not None else folder_for_new("--avatars"),
            form=form,
            statements=Statements(name, licence, consent),
            checkpoint=checkpoint,
            audio_encoder=audio_encoder,
            overwrite=force,
            progress=advance,
            recognised=None if quiet else lambda line: say(one_line(line)),
        )
    made = _reported(imported, 0.0 if no_sample else sample, contact_sheet, force, quiet)
    if report is not None:
        _write_report(made, report, force)
    if not quiet:
        for line in made.lines():
            say(one_line(line))
        say(one_line(f"imported: {imported.path}"))
        say(one_line(f"try: lipsync-fast render SPEECH.wav -o out.mp4 --avatar {imported.path}"))


def _reported(
    imported: Imported, sample_s: float, sheet: Path | None, force: bool, quiet: bool
) -> Report:
    """The report, with its contact sheet written."""
    from lipsync_fast.cli.import_report import make_report
    from lipsync_fast.output.sheet import save_picture
    from lipsync_fast.provenance import xmp_packet

    with Progress(round(25 * sample_s), quiet=quiet, verb="sample") as bar:
        report, picture = make_report(imported, sample_s, bar.advance)
    target = sheet or imported.path.with_name(f"{imported.path.name}-import.jpg")
    packet = None if report.sample is None else xmp_packet(False)
    # One of ours that an earlier import has left under that name is of no use any more.
    save_picture(picture, target, packet, force=force or sheet is None)
    report.sheet = str(target)
    return report


def _write_report(report: Report, target: Path, force: bool) -> None:
    from lipsync_fast.names import json_bytes
    from lipsync_fast.output.base import publish_bytes
    from lipsync_fast.rounding import rounded

    data = json_bytes(rounded(report), indent=2) + b"\n"
    publish_bytes(data, target, force)
