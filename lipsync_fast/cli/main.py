# SPDX-License-Identifier: Apache-2.0
"""The entry point ``lipsync-fast``. Commands import what they need when they run."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from lipsync_fast.cli import avatar as avatar_command
from lipsync_fast.cli import token as token_command
from lipsync_fast.cli.commands import (
    BACKENDS,
    SETTINGS,
    Command,
    Group,
    choice,
    complete_avatar,
    leave_only,
)
from lipsync_fast.console import EXIT_INTERRUPT, guarded
from lipsync_fast.errors import ConfigError
from lipsync_fast.version import __version__

app = typer.Typer(
    name="lipsync-fast",
    cls=Group,
    help="Speech to lip-synced video of an avatar.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=SETTINGS,
)
app.add_typer(avatar_command.app, name="avatar")
app.add_typer(token_command.app, name="token")

AvatarsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--avatars",
        help="A folder, or a store's URL, to look for avatars in first (may be repeated).",
    ),
]
BackendOption = Annotated[
    str,
    choice("--backend", among=BACKENDS, help="What computes; auto takes a GPU if there is one."),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lipsync-fast {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command(cls=Command)
@guarded
def render(
    audio: Annotated[Path, typer.Argument(help="The recording: any sound or video file.")],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help="FILE.mp4, FOLDER/ for lossless PNG files, or - for MJPEG on standard output.",
        ),
    ],
    avatar: Annotated[
        str,
        typer.Option(help="The avatar's name, path or URL.", autocompletion=complete_avatar),
    ] = "demo",
    avatars: AvatarsOption = None,
    start_frame: Annotated[
        int, typer.Option(min=0, help="Which of the avatar's frames to begin with.")
    ] = 0,
    backend: BackendOption = "auto",
    contact_sheet: Annotated[
        Path | None,
        typer.Option(help="Also write a grid of evenly spaced frames (.png or .jpg)."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the output if it is there already.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print a summary at the end, as one JSON object.")
    ] = False,
) -> None:
    """Render a recording with an avatar: to a video, pictures or a stream."""
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


@app.command(cls=Command)
@guarded
def batch(
    manifest: Annotated[
        Path,
        typer.Argument(
            help="The recordings: JSON lines, or .csv with headings; audio, avatar, out,"
            " start_frame."
        ),
    ],
    out: Annotated[
        str,
        typer.Option("--out", "-o", help="The folder of the videos, or a URL such as s3://…"),
    ],
    avatar: Annotated[
        str,
        typer.Option(
            help="The avatar of recordings that name none.", autocompletion=complete_avatar
        ),
    ] = "demo",
    avatars: AvatarsOption = None,
    start_frame: Annotated[
        int, typer.Option(min=0, help="Which of the avatar's frames to begin with.")
    ] = 0,
    backend: BackendOption = "auto",
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Recordings at a time (default: as many as there is room for)."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each (default: what jobs leave).")
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, max=100, help="How often what may pass is tried again.")
    ] = 3,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Work on a Ray cluster: HOST:PORT, or auto."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Make all anew, and replace other files.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print a summary at the end, as one JSON object.")
    ] = False,
) -> None:
    """Render many recordings, on all processors or a cluster; called again, it goes on."""
    from lipsync_fast.cli.batch import BatchRequest, batch_command

    batch_command(
        BatchRequest(
            manifest=manifest,
            out=out,
            avatar=avatar,
            avatars=tuple(avatars or ()),
            start_frame=start_frame,
            backend=backend,
            jobs=jobs,
            threads=threads,
            retries=retries,
            ray=ray,
            force=force,
            quiet=quiet,
            json=json,
        )
    )


@app.command(cls=Command)
@guarded
def demo(
    out: Annotated[Path, typer.Option(help="The folder for the results.")] = Path("demo"),
    backend: BackendOption = "auto",
    page: Annotated[bool, typer.Option(help="Serve the page afterwards, until Ctrl-C.")] = True,
) -> None:
    """Render the recording that comes with the package, then serve a page to try it live."""
    from lipsync_fast.cli.demo import demo_command

    demo_command(out, backend, page=page)


@app.command(cls=Command)
@guarded
def doctor(
    url: Annotated[
        str, typer.Argument(help="With --production: where clients reach it, https://…")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    production: Annotated[
        bool,
        typer.Option("--production", help="Hold the server that runs against the checklist."),
    ] = False,
    folder: Annotated[Path | None, typer.Option(help="The server's private folder.")] = None,
    port: Annotated[int | None, typer.Option(help="The server's first stream port.")] = None,
    stop_seconds: Annotated[
        float | None,
        typer.Option(min=0, help="That its manager waits before it kills it (systemd is asked)."),
    ] = None,
) -> None:
    """Show what this machine has and what will be used, and run a self-test.

    With --production: whether the server that runs is fit for others to depend on.
    """
    if production:
        from lipsync_fast.cli.doctor_production import ProductionRequest, production_command

        request = ProductionRequest(url, folder, port, stop_seconds)
        production_command(request, as_json=json)
        return
    if url or folder is not None or port is not None or stop_seconds is not None:
        raise ConfigError("URL, --folder, --port and --stop-seconds go with --production")
    from lipsync_fast.cli.doctor_command import doctor_command

    doctor_command(as_json=json)


@app.command(cls=Command)
@guarded
def serve(
    config: Annotated[
        Path | None,
        typer.Option("--config", help="A TOML file; the environment and options override it."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="The address to listen on (default: 127.0.0.1).")
    ] = None,
    port: Annotated[
        list[int] | None,
        typer.Option("--port", help="A port for streams (may be repeated; default: 8084)."),
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(help="The port of the page and of HTTP (default: 8086).")
    ] = None,
    grpc_port: Annotated[
        list[int] | None,
        typer.Option("--grpc-port", help="A port for gRPC, such as 50051 (default: none)."),
    ] = None,
    webrtc_port: Annotated[
        list[int] | None,
        typer.Option("--webrtc-port", help="A port for WebRTC, such as 8010 (default: none)."),
    ] = None,
    livekit_port: Annotated[
        list[int] | None,
        typer.Option(
            "--livekit-port", help="A port where LiveKit's agents ask for avatars (default: none)."
        ),
    ] = None,
    avatars: AvatarsOption = None,
    avatar: Annotated[
        str | None,
        typer.Option(
            help="The avatar of clients that name none (default: demo).",
            autocompletion=complete_avatar,
        ),
    ] = None,
    require_signed: Annotated[
        Path | None,
        typer.Option(
            help="A file of public keys (PEM): serve only avatars signed with one of them."
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(metavar="[all|none|0,2,…]", help="Which GPUs to use (default: all)."),
    ] = None,
    engines_per_gpu: Annotated[
        int | None,
        typer.Option(help="Engines on each GPU, or in all where there is no GPU (default: 1)."),
    ] = None,
    precision: Annotated[
        str | None,
        choice(
            among=("fp16", "bf16", "fp32"), help="Precision of networks on a GPU (default: fp16)."
        ),
    ] = None,
    mps: Annotated[
        bool | None,
        typer.Option(
            "--mps/--no-mps", help="Let the engines of a GPU share it through NVIDIA's MPS."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of a CPU engine (default: as many as are free).")
    ] = None,
    spares: Annotated[
        int | None, typer.Option(help="Engines kept ready to take over at once (default: 1).")
    ] = None,
    fronts: Annotated[
        int | None, typer.Option(help="Processes that talk to clients (default: 1).")
    ] = None,
    drain_seconds: Annotated[
        float | None,
        typer.Option(help="Seconds that utterances may go on after SIGTERM (default: 10)."),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option("--origin", help="A foreign page's origin to allow, or * (may be repeated)."),
    ] = None,
    token: Annotated[str | None, typer.Option(help="A token that clients must show.")] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(help="The certificate with its chain (PEM): all ports speak TLS then."),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Its private key, where that is in another file.")
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(help="Authorities (PEM): clients must show a certificate of one of them."),
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option("--insecure", help="Let others reach it without a token, or without TLS."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="The private folder for the control socket.")
    ] = None,
    log_level: Annotated[
        str | None,
        choice(among=("debug", "info", "warning", "error"), help="What is logged (default: info)."),
    ] = None,
    log_format: Annotated[
        str | None, choice(among=("text", "json"), help="How it is logged (default: text).")
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="Print each setting and where it comes from, and end."),
    ] = False,
) -> None:
    """Serve avatars live to many clients at once: speech in, frames out."""
    from lipsync_fast.cli.serve import serve_command

    serve_command(
        config,
        {
            "host": host,
            "port": port,
            "http-port": http_port,
            "grpc-port": grpc_port,
            "webrtc-port": webrtc_port,
            "livekit-port": livekit_port,
            "avatars": list(avatars or ()),
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
            "tls-cert": None if tls_cert is None else str(tls_cert),
            "tls-key": None if tls_key is None else str(tls_key),
            "tls-client-ca": None if tls_client_ca is None else str(tls_client_ca),
            "insecure": insecure,
            "folder": None if folder is None else str(folder),
            "log-level": log_level,
            "log-format": log_format,
        },
        print_config=print_config,
    )


@app.command(cls=Command)
@guarded
def livekit_worker(
    livekit_url: Annotated[
        str, typer.Option("--livekit-url", help="The LiveKit server: wss://…", envvar="LIVEKIT_URL")
    ],
    url: Annotated[
        str, typer.Option(help="The lipsync-fast server's stream port.", envvar="LIPSYNC_FAST_URL")
    ] = "ws://127.0.0.1:8084",
    avatar: Annotated[str, typer.Option(help="The avatar (default: the server's).")] = "",
    max_width: Annotated[
        int | None, typer.Option("--max-width", min=16, max=8192, help="Of its pictures.")
    ] = None,
) -> None:
    """Bring an avatar into a room of LiveKit, for an agent there.

    LIVEKIT_TOKEN is its token for the room, LIPSYNC_FAST_TOKEN what the server asks for.
    """
    from lipsync_fast.cli.livekit_worker import livekit_worker_command

    livekit_worker_command(livekit_url, url, avatar, max_width)


@app.command(cls=Command)
@guarded
def status(
    folder: Annotated[Path | None, typer.Option(help="The server's private folder.")] = None,
    port: Annotated[int | None, typer.Option(help="The server's first stream port.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    full: Annotated[
        bool, typer.Option("--full", "-v", help="Show all figures, in tables.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it anew each second, until Ctrl-C.")
    ] = False,
    ready: Annotated[
        bool,
        typer.Option("--ready", help="Say whether clients can be served; status 2 where not."),
    ] = False,
) -> None:
    """Show what a running server is doing."""
    from lipsync_fast.cli.status import status_command

    status_command(folder, port, as_json=json, full=full, watch=watch, ready=ready)


@app.command(cls=Command)
@guarded
def systemd(
    user: Annotated[
        str, typer.Option(help="The user to run as (default: one that systemd makes for it).")
    ] = "",
    gpus: Annotated[
        str,
        typer.Option(
            metavar="[all|none|0,2,…]", help="Which GPUs (default: as configured, else none)."
        ),
    ] = "",
    config: Annotated[Path | None, typer.Option("--config", help="The server's TOML file.")] = None,
    install: Annotated[
        bool, typer.Option("--install", help="Put it into /etc/systemd/system.")
    ] = False,
) -> None:
    """Print a hardened unit of systemd for the server, or install it."""
    from lipsync_fast.cli.systemd import systemd_command

    systemd_command(user, gpus, config, install=install)


@app.command(cls=Command)
@guarded
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Take less than three minutes.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="The folder for run.json, run.md and run.png.")
    ] = None,
    part: Annotated[
        list[str] | None,
        choice(
            among=("peers", "demo", "live", "profile", "engines", "avatars", "clips"),
            help="Measure this part only (may be repeated).",
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Rounds of each comparison.")
    ] = None,
    duration: Annotated[
        float | None, typer.Option(min=1.0, max=3600.0, help="Seconds that a measurement takes.")
    ] = None,
    backend: BackendOption = "auto",
    gpus: Annotated[
        str, typer.Option(metavar="[all|none|0,2,…]", help="Which GPUs to use.")
    ] = "all",
    threads: Annotated[
        int, typer.Option(min=0, max=1024, help="Threads of each engine; 0: the server chooses.")
    ] = 0,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Measure nothing: show what differs between two run.json files."),
    ] = None,
) -> None:
    """Measure how fast this machine is, next to other ways of working."""
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


def _in_utf8() -> None:
    """Begin anew where the locale has another encoding: names of files are written in UTF-8.

    Python does so by itself for most of them; LC_ALL=C with its own ways out switched off, and
    locales of ISO 8859, remain.
    """
    if sys.flags.utf8_mode or sys.getfilesystemencoding() == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"  # for children
    with contextlib.suppress(OSError):
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def run() -> None:
    """Run the command line and exit."""
    _in_utf8()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files are bytes, not all of them UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    leave_only(app, sys.argv[1:])
    try:
        app(prog_name="lipsync-fast")
    except KeyboardInterrupt:  # before a command began
        sys.exit(EXIT_INTERRUPT)
