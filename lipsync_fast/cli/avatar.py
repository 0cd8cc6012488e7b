# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast avatar``: list and inspect here; the other commands have modules of their own."""

from __future__ import annotations

import json as plain_json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipsync_fast.cli.avatar_import import import_avatar
from lipsync_fast.cli.avatar_live import register as register_live
from lipsync_fast.cli.commands import SETTINGS, Command, Group, complete_avatar
from lipsync_fast.cli.distill import distill, student_words
from lipsync_fast.cli.prepare import prepare
from lipsync_fast.cli.prerender import register as register_prerender
from lipsync_fast.cli.publish import register as register_publish
from lipsync_fast.cli.sign import register
from lipsync_fast.cli.train import train
from lipsync_fast.console import guarded, one_line, say, table_lines

if TYPE_CHECKING:
    from lipsync_fast.avatars.library import AvatarInfo
    from lipsync_fast.avatars.manifest import Manifest
    from lipsync_fast.avatars.package import AvatarPackage

app = typer.Typer(
    cls=Group,
    help="Look at avatars, make them, sign them, and change those of a running server.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=SETTINGS,
)

Folders = Annotated[
    list[str] | None,
    typer.Option("--avatars", help="A folder to look for avatars in first (may be repeated)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command("list", cls=Command)
@guarded
def list_avatars(avatars: Folders = None, json: Json = False) -> None:
    """List the avatars that are found, broken ones too."""
    from lipsync_fast.avatars.library import AvatarLibrary

    library = AvatarLibrary(avatars or ())
    found = library.list()
    if json:
        _write_json([_listed(info) for info in found])
        return
    if not found:
        say(f"no avatars in {', '.join(str(folder) for folder in library.folders)}")
        return
    rows: list[tuple[str, ...]] = [("NAME", "SIZE", "FRAMES", "FAMILY", "WIDTH", "PERSON", "PATH")]
    rows += [_table_row(info) for info in found]
    typer.echo("\n".join(table_lines(rows)))
    for info in found:
        if info.error:
            say(f"unusable: {one_line(info.error)}")


@app.command(cls=Command)
@guarded
def inspect(
    avatar: Annotated[
        str, typer.Argument(help="The avatar's name or path.", autocompletion=complete_avatar)
    ],
    avatars: Folders = None,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(
            "--contact-sheet",
            "-o",
            help="Also write evenly spaced frames to this picture (.png or .jpg).",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every file against its checksum.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the picture if it is there already.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what an avatar is, and what its frames look like."""
    from lipsync_fast.avatars.library import AvatarLibrary
    from lipsync_fast.avatars.package import AvatarPackage

    if contact_sheet is not None:
        from lipsync_fast.output.sheet import check_sheet_target

        check_sheet_target(contact_sheet, force)
    with AvatarPackage.open(AvatarLibrary(avatars or ()).find(avatar)) as package:
        if verify:
            package.verify()
        if contact_sheet is not None:
            _write_sheet(package, contact_sheet, force)
        if json:
            _write_json(_described(package.manifest, package.path))
        else:
            typer.echo("\n".join(_manifest_lines(package.manifest, package.path)))
    if contact_sheet is not None:
        say(f"contact sheet: {contact_sheet}")
    if verify:
        say("every file agrees with its checksum")


register(app)
register_publish(app)
app.command("import", cls=Command)(import_avatar)
register_live(app)
register_prerender(app)
app.command(cls=Command)(prepare)
app.command(cls=Command)(train)
app.command(cls=Command)(distill)


def _write_json(value: object) -> None:
    from lipsync_fast.names import json_bytes

    text = json_bytes(value, indent=2).decode()
    # Names that a terminal would obey stand only in strings, where an escape means the same.
    seen = (c if c.isprintable() or c == "\n" else plain_json.dumps(c)[1:-1] for c in text)
    typer.echo("".join(seen))


def _listed(info: AvatarInfo) -> dict[str, Any]:
    if info.manifest is None:
        return {"name": info.name, "path": str(info.path), "error": info.error}
    return _described(info.manifest, info.path) | {"name": info.name, "error": None}


def _described(manifest: Manifest, path: Path) -> dict[str, Any]:
    import msgspec

    fields: dict[str, Any] = msgspec.to_builtins(manifest)
    return fields | {
        "path": str(path),
        "lookahead_ms": _lookahead_ms(manifest),
        "bytes": sum(entry.size for entry in manifest.files.values()),
    }


def _lookahead_ms(manifest: Manifest) -> float:
    return manifest.audio.lookahead_samples / 16


def _table_row(info: AvatarInfo) -> tuple[str, ...]:
    m = info.manifest
    if m is None:
        return (info.name, "-", "-", "unusable", "-", "-", one_line(str(info.path)))
    return (
        info.name,
        f"{m.frame_width}x{m.frame_height}",
        str(m.frame_count),
        m.family,
        f"{m.width} at {m.region}",
        "synthetic" if m.synthetic else "real",
        one_line(str(info.path)),
    )


def _manifest_lines(m: Manifest, path: Path) -> list[str]:
    from lipsync_fast.provenance import source_type

    size = sum(entry.size for entry in m.files.values()) / 1e6
    rows = [
        ("avatar", m.name),
        ("path", f"{one_line(str(path))} ({size:.1f} MB, format {m.format_version})"),
        ("person", "synthetic" if m.synthetic else "real"),
        ("marked as", source_type(m.synthetic)),
        ("licence", m.licence or "not stated"),
        ("provenance", m.provenance or "not stated"),
        ("consent", m.consent or "not stated"),
        ("frames", f"{m.frame_count} of {m.frame_width} x {m.frame_height}, {m.loop}, {m.fps}/s"),
        ("networks", f"{m.family}, width {m.width}, region {m.region} x {m.region}"),
        ("window", f"{w.width} x {w.height} at {w.x}, {w.y}" if (w := m.window) else "all of it"),
        ("look-ahead", f"{_lookahead_ms(m):.1f} ms"),
        ("gain", "automatic" if m.audio.levelled else "none"),
        *_student_rows(m),
    ]
    return [f"{name:<12}{value}" for name, value in rows]


def _student_rows(m: Manifest) -> list[tuple[str, str]]:
    """Of a student: whose, and what that costs and gains."""
    if not m.student:
        return []
    s = m.student
    teacher = f"{s.teacher} (width {s.teacher_width}, region {s.teacher_region})"
    return [
        ("student of", teacher),
        ("against it", student_words(s)),
        ("measured on", one_line(s.machine)),
    ]


def _write_sheet(package: AvatarPackage, target: Path, force: bool) -> None:
    """Evenly spaced frames of the avatar as it is; a synthetic person's are marked as such."""
    from lipsync_fast.avatars.contact_sheet import avatar_sheet
    from lipsync_fast.output.sheet import save_picture
    from lipsync_fast.provenance import xmp_packet

    packet = xmp_packet(True) if package.manifest.synthetic else None
    save_picture(avatar_sheet(package), target, packet, force=force)
