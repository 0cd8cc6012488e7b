# SPDX-License-Identifier: Apache-2.0
"""What is said where an extra is missing can be typed as it stands, and finds something."""

from __future__ import annotations

import importlib.metadata
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement

from lipsync_fast import extras
from lipsync_fast.console import EXIT_ERROR, guarded
from lipsync_fast.extras import how_to_get, torch_with_cuda

CHECKOUT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
OWN = "lipsync-fast"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As pyproject.toml is now, whatever was installed when."""
    stated = list(PROJECT["dependencies"])
    for extra, wanted in PROJECT["optional-dependencies"].items():
        for line in wanted:
            what, _, condition = (part.strip() for part in line.partition(";"))
            both = f'({condition}) and extra == "{extra}"' if condition else f'extra == "{extra}"'
            stated.append(f"{what} ; {both}")
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: stated)


def named(line: str) -> set[str]:
    """Packages that a command installs."""
    command, *words = shlex.split(line)
    assert [command, words[0]] == ["pip", "install"]
    return {Requirement(word).name for word in words[1:]}


def test_an_extra_is_named_by_what_it_brings() -> None:
    assert named(how_to_get("train")) == {"torch", "onnx", "safetensors"}
    assert named(how_to_get("sign")) == {"cryptography"}
    assert named(how_to_get("bench")) == {"torch", "onnx", "safetensors", "matplotlib"}
    assert "'torch>=" in how_to_get("train"), "a shell would take > for its own"


def test_no_message_asks_for_the_package_itself() -> None:
    for extra in PROJECT["optional-dependencies"]:
        assert OWN not in named(how_to_get(extra))
    for half in torch_with_cuda().split("; where the driver is older, "):
        assert "torch" in named(half.removesuffix(", from PyTorch's package index"))
    for file in (CHECKOUT / "lipsync_fast").rglob("*.py"):
        assert f"{OWN}[" not in file.read_text(), f"{file} names an extra that no index has"
    for file in (CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")):
        assert f"install '{OWN}[" not in file.read_text(), f"{file} names what no index has"


def test_from_a_folder_that_was_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    assert how_to_get("train") == "pip install '.[train]' in the folder of its sources"
    assert extras.torch_with_cuda().startswith("pip install '.[cuda13]'")


def test_a_version_that_was_not_asked_for_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = {"av": "16.1.0", "numpy": "2.0"}
    stated = ["numpy>=1.26", "av<19,>=18", "torch>=2.6; extra == 'train'"]
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: stated)

    @guarded
    def command(module: str) -> None:
        raise ImportError("cannot import name 'ColorPrimaries'", name=module)

    with pytest.raises(typer.Exit) as left:
        command("av.video.reformatter")
    assert left.value.exit_code == EXIT_ERROR
    assert capsys.readouterr().err == (
        "error: av 16.1.0 is installed, and lacks what is needed here; pip install 'av<19,>=18'\n"
    )


def test_what_else_cannot_be_imported_is_a_defect() -> None:
    @guarded
    def command() -> None:
        raise ImportError("no such part", name="lipsync_fast.nowhere")

    with pytest.raises(ImportError, match="no such part"):
        command()
