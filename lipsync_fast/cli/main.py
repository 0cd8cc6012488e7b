# SPDX-License-Identifier: Apache-2.0
"""The entry point ``lipsync-fast``. Commands import what they need when they run."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from lipsync_fast.cli import avatar as avatar_command
from lipsync_fast.console import EXIT_INTERRUPT, guarded
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
    page: Annotated[bool, typer.Option(help="End with the page served, until Ctrl-C.")] = True,
) -> None:
    """Render the shipped recording with the shipped avatar, then serve the page."""
    from lipsync_fast.cli.demo import demo_command

    demo_command(out, backend, page=page)


@app.command()
@guarded
def doctor(
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say what this machine has, what will be used, and test it."""
    from lipsync_fast.cli.doctor_command import doctor_command

    doctor_command(as_json=json)


@app.command()
@guarded
def serve(
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file; flags and environment win.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 127.0.0.1 unless told otherwise.")
    ] = None,
    port: Annotated[
        list[int] | None, typer.Option("--port", help="Of streams (may be repeated); 8084.")
    ] = None,
    http_port: Annotated[int | None, typer.Option(help="Of the page and HTTP; 8086.")] = None,
    avatars: AvatarsOption = None,
    avatar: Annotated[str | None, typer.Option(help="Avatar of who names none; demo.")] = None,
    require_signed: Annotated[
        Path | None,
        typer.Option(help="Public keys (PEM): serve only avatars that one of them has signed."),
    ] = None,
    gpus: Annotated[str | None, typer.Option(help="all, none, or numbers: 0,2.")] = None,
    engines_per_gpu: Annotated[
        int | None, typer.Option(help="Engines on each GPU; without one, in all.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the networks on a GPU: fp16, bf16 or fp32.")
    ] = None,
    mps: Annotated[
        bool | None,
        typer.Option("--mps/--no-mps", help="Engines of a GPU share it through NVIDIA's MPS."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of a CPU engine.")] = None,
    spares: Annotated[int | None, typer.Option(help="Engines kept to take over at once.")] = None,
    fronts: Annotated[int | None, typer.Option(help="Processes that talk to clients.")] = None,
    drain_seconds: Annotated[
        float | None, typer.Option(help="How long utterances may go on after SIGTERM.")
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option("--origin", help="Foreign Origin to allow, or * (may be repeated)."),
    ] = None,
    token: Annotated[str | None, typer.Option(help="What clients must show.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Private folder of the control socket.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print what would be used, and from where.")
    ] = False,
) -> None:
    """Serve avatars live: speech in, frames out, many clients at once."""
    from lipsync_fast.cli.serve import serve_command

    serve_command(
        config,
        {
            "host": host,
            "port": port,
            "http-port": http_port,
            "avatars": [str(path) for path in avatars or ()],
            "avatar": avatar,
            "require-signed": None if require_signed is None else str(require_signed),
            "gpus": gpus,
            "engines-per-gpu": engines_per_gpu,
            "precision": precision,
            "mps": mps,
            "threads": threads,
            "spares": spares,
            "fronts": fronts,
            "drain-seconds": drain_seconds,
            "origin": origin,
            "token": token,
            "folder": None if folder is None else str(folder),
            "log-level": log_level,
            "log-format": log_format,
        },
        print_config=print_config,
    )


@app.command()
@guarded
def status(
    folder: Annotated[Path | None, typer.Option(help="The server's private folder.")] = None,
    port: Annotated[int | None, typer.Option(help="The server's first stream port.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again each second.")] = False,
) -> None:
    """Say what a running server does."""
    from lipsync_fast.cli.status import status_command

    status_command(folder, port, as_json=json, watch=watch)


@app.command()
@guarded
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Under three minutes.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for run.json, run.md and run.png.")
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(help="peers, demo, live, engines or avatars (may be repeated)."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, max=1000, help="Of each comparison.")] = None,
    duration: Annotated[
        float | None, typer.Option(min=1.0, max=3600.0, help="Seconds of each measurement.")
    ] = None,
    backend: BackendOption = "auto",
    gpus: Annotated[str, typer.Option(help="As of serve: all, none, or numbers.")] = "all",
    threads: Annotated[
        int, typer.Option(min=0, max=1024, help="Of each engine; 0: the server's choice.")
    ] = 0,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two run.json: what has changed.")
    ] = None,
) -> None:
    """Measure what this machine reaches, next to other ways of working."""
    from lipsync_fast.cli.bench import bench_command

    bench_command(
        quick=quick,
        out=out,
        parts=part or [],
        rounds=rounds,
        duration=duration,
        gpus="none" if backend == "cpu" else gpus,
        backend=backend,
        threads=threads,
        compare=compare,
    )


def run() -> None:
    """Run the command line and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files are bytes, not all of them UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="lipsync-fast")
    except KeyboardInterrupt:  # before a command began
        sys.exit(EXIT_INTERRUPT)
