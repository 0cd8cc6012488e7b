# SPDX-License-Identifier: Apache-2.0
"""The entry point ``lipsync-fast``. Commands import what they need when they run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lipsync_fast.cli import avatar as avatar_command
from lipsync_fast.cli.console import EXIT_INTERRUPT, guarded
from lipsync_fast.version import __version__

app = typer.Typer(
    name="lipsync-fast",
    help="Speech to lip-synced video of an avatar.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(avatar_command.app, name="avatar")

AvatarsOption = Annotated[
    list[Path] | None,
    typer.Option("--avatars", help="Folder to look for avatars in, first (may be repeated)."),
]
BackendOption = Annotated[str, typer.Option("--backend", help="cpu, cuda or auto.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lipsync-fast {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    pass


@app.command()
@guarded
def render(
    audio: Annotated[Path, typer.Argument(help="Recording: any sound or video file.")],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help="FILE.mp4, a folder for lossless PNG files, or - for MJPEG on standard output.",
        ),
    ],
    avatar: Annotated[str, typer.Option(help="Name or path of the avatar.")] = "demo",
    avatars: AvatarsOption = None,
    start_frame: Annotated[
        int, typer.Option(min=0, help="Picture of the avatar to begin with.")
    ] = 0,
    backend: BackendOption = "auto",
    contact_sheet: Annotated[
        Path | None,
        typer.Option(help="Also write a grid of evenly spaced frames (.png or .jpg)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but errors.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Close with a summary as one JSON object.")
    ] = False,
) -> None:
    """Render AUDIO with an avatar to a video, pictures or a stream."""
    from lipsync_fast.cli.render import RenderRequest, render_command

    render_command(
        RenderRequest(
            audio=audio,
            out=out,
            avatar=avatar,
            avatars=tuple(avatars or ()),
            start_frame=start_frame,
            backend=backend,
            contact_sheet=contact_sheet,
            force=force,
            quiet=quiet,
            json=json,
        )
    )


@app.command()
@guarded
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo"),
    backend: BackendOption = "auto",
) -> None:
    """Render the shipped recording with the shipped avatar."""
    from lipsync_fast.cli.demo import demo_command

    demo_command(out, backend)


@app.command()
@guarded
def doctor(
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say what this machine has, what will be used, and test it."""
    from lipsync_fast.cli.doctor_command import doctor_command

    doctor_command(as_json=json)


def run() -> None:
    """Run the command line and exit."""
    try:
        app(prog_name="lipsync-fast")
    except KeyboardInterrupt:  # before a command began
        sys.exit(EXIT_INTERRUPT)
