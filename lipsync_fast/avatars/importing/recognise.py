# SPDX-License-Identifier: Apache-2.0
"""What lies at a path: by the names in it; each form's reader then holds its parts against it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lipsync_fast.avatars.importing import default_model, livetalking, sanders, synctalk
from lipsync_fast.avatars.importing.box_order import refuse_other_kinds
from lipsync_fast.avatars.importing.parts import Source
from lipsync_fast.errors import AvatarImportError

Read = Callable[[Path, Path | None, Path | None], Source]


@dataclass(frozen=True, slots=True)
class Form:
    """A form that can be imported.

    Attributes:
        option: its name for ``--form``.
        title: its name for people.
        marks: names that such a folder has, and others do not.
        needed: those without which it is not whole.
        read: looks at such a folder.
    """

    option: str
    title: str
    marks: tuple[str, ...]
    needed: tuple[str, ...]
    read: Read


FORMS = (
    Form("synctalk", synctalk.FORM, synctalk.MARKS, synctalk.NEEDED, synctalk.read),
    Form("sanders", sanders.FORM, sanders.MARKS, sanders.NEEDED, sanders.read),
    Form(
        "default_model",
        default_model.FORM,
        default_model.MARKS,
        default_model.NEEDED,
        default_model.read,
    ),
    Form(
        "livetalking",
        livetalking.FORM,
        livetalking.MARKS,
        livetalking.NEEDED,
        livetalking.read,
    ),
)
_VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".flv", ".mpg", ".mpeg", ".vob", ".m4v", ".ts")
_WEIGHTS = (".pth", ".pt", ".onnx", ".ckpt")


@dataclass(frozen=True, slots=True)
class Recognised:
    """The form that a folder is read as, and a line that says why."""

    form: Form
    line: str


def recognise(path: Path, option: str | None = None) -> Recognised:
    """Which form lies at a path.

    Args:
        option: the form that the user named.

    Raises:
        AvatarImportError: nothing, none that can be imported, or two that are equally whole.
    """
    forms = {form.option: form for form in FORMS}
    if option is not None and option not in forms:
        raise AvatarImportError(f"--form {option}: expected {', '.join(forms)}")
    if not path.is_dir():
        raise AvatarImportError(_no_folder(path))
    if option is not None:
        form = forms[option]
        return Recognised(form, f"{path}: read as {form.title}, as --form says")
    found = [(form, there) for form in FORMS if (there := _there(path, form.marks))]
    if all(form.title == livetalking.FORM for form, _ in found):
        refuse_other_kinds(path)
    if not found:
        _refuse_others(path)
        raise AvatarImportError(_unknown(path))
    whole = [(f, there) for f, there in found if len(_there(path, f.needed)) == len(f.needed)]
    if len(found) == 1:
        (form, there), why = found[0], ""
    elif len(whole) == 1:
        form, there = whole[0]
        others = [f"{f.title} ({', '.join(t)})" for f, t in found if f is not form]
        why = f"; of {' and '.join(others)} only parts are there"
    else:
        what = " and ".join(f"{f.title} ({', '.join(t)})" for f, t in found)
        options = " or ".join(f"--form {f.option}" for f, _ in found)
        how = "whole" if whole else "in parts"
        raise AvatarImportError(f"{path}: holds {what}, each {how}; choose with {options}")
    return Recognised(form, f"{path}: {form.title} (by {', '.join(there)}){why}")


def _there(path: Path, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if os.path.lexists(path / name)]


def _no_folder(path: Path) -> str:
    if not os.path.lexists(path):
        return f"{path}: no such folder"
    if path.suffix == ".lsa":
        return f"{path}: is an avatar package already; give its path to --avatar, or copy it"
    if path.suffix.lower() in _VIDEOS:
        return f"{path}: is a video; make an avatar of it with lipsync-fast avatar prepare"
    if path.suffix.lower() in _WEIGHTS:
        return f"{path}: weights alone; give the folder, and these with --checkpoint"
    return f"{path}: is not a folder; expected one with an avatar's parts"


def _refuse_others(path: Path) -> None:
    """Folders that are something that we know, and cannot import.

    Raises:
        AvatarImportError: says what it is, and why not.
    """
    if (path / "manifest.json").is_file():
        raise AvatarImportError(
            f"{path}: is an avatar package already (by manifest.json); give its path to --avatar,"
            " or copy it"
        )
    if (path / "prepared.json").is_file():
        raise AvatarImportError(
            f"{path}: a video prepared for training (by prepared.json); go on with lipsync-fast"
            " avatar train"
        )


def _unknown(path: Path) -> str:
    inner = _inner(path)
    hint = f"; did you mean {inner}?" if inner is not None else ""
    forms = "; ".join(f"{form.title}: {', '.join(form.needed)}" for form in FORMS)
    return f"{path}: holds no avatar of a known form{hint} (expected {forms})"


def _inner(path: Path) -> Path | None:
    """A folder within that would be recognised, where there is just one; two levels deep."""
    found = []
    seen = 0
    for pattern in ("*", "*/*"):
        for folder in path.glob(pattern):
            seen += 1
            if seen > 1_000:
                return None
            if folder.is_dir() and any(_there(folder, form.marks) for form in FORMS):
                found.append(folder)
    return found[0] if len(found) == 1 else None
