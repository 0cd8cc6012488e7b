# SPDX-License-Identifier: Apache-2.0
"""From what was found in a folder to an avatar package."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lipsync_fast.avatars.importing.parts import Source
from lipsync_fast.avatars.importing.recognise import FORMS, recognise
from lipsync_fast.avatars.importing.weights import load_models, need_extra
from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.avatars.writer import AvatarWriter, check_new
from lipsync_fast.errors import AvatarFormatError, AvatarImportError
from lipsync_fast.families import Models

Progress = Callable[[int, int], None]
_REGION_BYTES = 256 << 20
"""Most bytes of resized crops that are kept in the package for a quicker start; they lie in memory
till then."""


@dataclass(frozen=True, slots=True)
class Statements:
    """What the manifest says of the avatar.

    Attributes:
        name: the folder's by default.
        licence: under which terms it may be used.
        consent: how the person shown agreed.
    """

    name: str | None = None
    licence: str = ""
    consent: str = ""


@dataclass(frozen=True, slots=True)
class Imported:
    """A finished import.

    Attributes:
        path: the package.
        source: what it was made of, with all warnings.
    """

    path: Path
    source: Source


def import_avatar(
    path: Path,
    avatars: Path,
    *,
    form: str | None = None,
    statements: Statements | None = None,
    checkpoint: Path | None = None,
    audio_encoder: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    recognised: Callable[[str], None] | None = None,
) -> Imported:
    """Import what lies at ``path``, whatever form it has.

    Args:
        path: the avatar's folder, as other software made it.
        avatars: where the package is written, as ``avatars/name``.
        form: ``synctalk``, ``sanders``, ``default_model`` or ``livetalking``; by default what it is
            recognised as.
        statements: what the manifest says.
        checkpoint: the networks' weights, .pth or .onnx; by default what lies in the folder.
        audio_encoder: the audio encoder's weights; by default looked for near the checkpoint.
        progress: called with (frames done, frames in all).
        recognised: called with a line that says as what the folder is read, and why.

    Raises:
        AvatarImportError: parts are missing or wrong; names all of them.
        CheckpointError: weights that are hostile, damaged or of another family.
        OutputError: the package is there already, or cannot be written.
        BackendError: torch or onnx is not installed.
    """
    need_extra()
    found = recognise(path, form)
    if recognised is not None:
        recognised(found.line)
    source = found.form.read(path.resolve(), checkpoint, audio_encoder)
    with closing(source.pictures):
        made = _write(source, avatars, statements or Statements(), overwrite, progress)
    source.warnings[:0] = source.track.warnings(source.width, source.height)
    return Imported(made, source)


def import_synctalk(
    path: Path,
    avatars: Path,
    *,
    name: str | None = None,
    checkpoint: Path | None = None,
    audio_encoder: Path | None = None,
    licence: str = "",
    consent: str = "",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Import a SyncTalk_2D data set with its weights; returns the new package's folder.

    As ``import_avatar`` with the form ``synctalk``.
    """
    return import_avatar(
        path,
        avatars,
        form=FORMS[0].option,
        statements=Statements(name, licence, consent),
        checkpoint=checkpoint,
        audio_encoder=audio_encoder,
        overwrite=overwrite,
        progress=progress,
    ).path


def _manifest(source: Source, statements: Statements, models: Models) -> Manifest:
    draft = {
        "name": _name(source, statements),
        "family": source.family.name,
        "width": models.width,
        "region": models.region,
        "frame_width": source.width,
        "frame_height": source.height,
        "frame_count": len(source.track.rects),
        "loop": "pingpong",
        "licence": statements.licence,
        "consent": statements.consent,
        "provenance": f"imported from {_article(source.form)} ({source.path.name},"
        f" {source.networks.checkpoint.name})",
        "audio": source.family.audio,
    }
    try:
        return msgspec.convert(draft, Manifest)
    except msgspec.ValidationError as error:
        raise AvatarImportError(f"{source.path}: cannot become an avatar: {error}") from None


def _name(source: Source, statements: Statements) -> str:
    return statements.name or source.path.name


def _article(form: str) -> str:
    return f"a {form} data set" if form == FORMS[0].title else f"a {form} package"


def _write(
    source: Source,
    avatars: Path,
    statements: Statements,
    overwrite: bool,
    progress: Progress | None,
) -> Path:
    check_new(avatars / _name(source, statements), overwrite)
    models = load_models(source.networks, source.family)
    manifest = _manifest(source, statements, models)
    rects, crop = source.track.rects, manifest.crop
    keep_regions = len(rects) * 3 * crop * crop <= _REGION_BYTES
    with AvatarWriter(
        avatars / manifest.name, manifest, keep_regions=keep_regions, overwrite=overwrite
    ) as writer:
        for i, picture in enumerate(source.pictures):
            try:
                writer.add_frame(picture.rgb, rects[i], picture.mask, picture.source)
            except AvatarFormatError as error:
                raise AvatarImportError(f"{picture.where}: {error}") from None
            if progress is not None:
                progress(i + 1, len(rects))
        writer.add_model("audio_encoder", models.audio_encoder)
        writer.add_model("image", models.image)
        writer.add_model("decoder", models.decoder)
        return writer.finish()
