# SPDX-License-Identifier: Apache-2.0
"""The unit of systemd: what it allows, what it names, and where it is put."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lipsync_fast.cli.systemd import UnitRequest, doubts, put, quoted, unit_of
from lipsync_fast.config_load import load
from lipsync_fast.errors import ConfigError

ANALYZE = shutil.which("systemd-analyze")
HARDENED = {
    "CapabilityBoundingSet": "",
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "DynamicUser": "yes",
    "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes",
    "MemoryDenyWriteExecute": "yes",
    "SystemCallArchitectures": "native",
    "UMask": "0077",
}


def service(unit: str) -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit)
    return dict(parser["Service"])


def unit(config: str = "", *, tmp_path: Path | None = None, **named: str) -> dict[str, str]:
    file = None
    if tmp_path is not None:
        file = tmp_path / "server.toml"
        file.write_text(config)
    return service(unit_of(UnitRequest(config=file, **named), load(file, environ={})))


def test_it_allows_nothing_that_is_not_needed() -> None:
    assert HARDENED.items() <= unit().items()
    assert HARDENED.items() <= unit(gpus="none").items()


def test_gpus_can_be_reached_where_they_are_asked_for(tmp_path: Path) -> None:
    asked = unit(gpus="0,2")
    assert "LIPSYNC_FAST_ENGINES_GPUS=0,2" in asked["Environment"]
    for found in (asked, unit('[engines]\ngpus = "0,2"\n', tmp_path=tmp_path)):
        assert "PrivateDevices" not in found
        assert found["DevicePolicy"] == "closed"
        assert "char-nvidia" in found["DeviceAllow"]
        assert found["MemoryDenyWriteExecute"] == "no"
    found = unit('[engines]\ngpus = "0,2"\n', tmp_path=tmp_path, gpus="none")
    assert HARDENED.items() <= found.items()


def test_it_is_given_the_time_that_utterances_are(tmp_path: Path) -> None:
    assert unit()["TimeoutStopSec"] == "20"
    assert unit("drain_seconds = 29.5\n", tmp_path=tmp_path)["TimeoutStopSec"] == "40"


def test_ports_below_1024_are_allowed_where_they_are_configured(tmp_path: Path) -> None:
    found = unit("[listen]\nhttp_port = 443\n", tmp_path=tmp_path)
    assert found["AmbientCapabilities"] == "CAP_NET_BIND_SERVICE"
    assert found["CapabilityBoundingSet"] == "CAP_NET_BIND_SERVICE"


def test_a_user_of_its_own() -> None:
    found = unit(user="lipsync")
    assert found["User"] == "lipsync"
    assert "DynamicUser" not in found


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"user": "two words"}, "--user 'two words'"),
        ({"user": "x\nExecStartPre=/bin/sh"}, "--user"),
        ({"user": "%i"}, "--user"),
        ({"gpus": "some"}, "--gpus 'some'"),
        ({"gpus": "0 X=1"}, "--gpus"),
    ],
)
def test_what_would_not_be_a_unit_is_refused(named: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        unit_of(UnitRequest(**named), load(environ={}))  # type: ignore[arg-type]


def test_paths_are_quoted_as_systemd_reads_them() -> None:
    assert quoted("/opt/a-b_c.1/x") == "/opt/a-b_c.1/x"
    assert quoted("/srv/my file") == '"/srv/my file"'
    assert quoted('/srv/50% "$HOME"\\') == '"/srv/50%% \\"$$HOME\\"\\\\"'
    with pytest.raises(ConfigError):
        quoted("/srv/a\nUser=root")


def test_what_would_keep_it_from_starting_is_said(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('folder = "/elsewhere"\n[avatars]\nfolders = ["/home/anna/avatars"]\n')
    file.chmod(0o600)
    request = UnitRequest("nobody-of-that-name", "", file, Path("/root/venv/bin/lipsync-fast"))
    said = "\n".join(doubts(request, load(file, environ={}).config))
    for part in ("/root/venv", "/home/anna", "/elsewhere", "no user nobody-of-that-name"):
        assert part in said
    assert "chmod" not in said  # that user may be able to
    said = "\n".join(doubts(UnitRequest(config=file), load(environ={}).config))
    assert "chmod o+r" in said
    assert len(said.splitlines()) == 1
    assert not list(doubts(UnitRequest(), load(environ={}).config))


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    assert put("one", tmp_path).read_text() == "one"
    file = put("two", tmp_path)
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("two", 0o644)
    assert [path.name for path in tmp_path.iterdir()] == ["lipsync-fast.service"]
    with pytest.raises(ConfigError, match="for root"):
        put("three", tmp_path / "missing")


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("gpus", ["none", "all"])
def test_systemd_takes_it_and_finds_little_exposed(tmp_path: Path, gpus: str) -> None:
    program = tmp_path / "lipsync fast"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    file = tmp_path / "lipsync-fast.service"
    file.write_text(unit_of(UnitRequest(gpus=gpus, program=program), load(environ={})))
    for asked in (["verify"], ["security", "--offline=true", "--threshold=20", "--no-pager"]):
        done = subprocess.run(
            [str(ANALYZE), *asked, str(file)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if asked == ["verify"]:
            assert done.stderr == ""


def test_the_command_prints_it() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "lipsync_fast", "systemd", "--gpus", "1"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode:  # not installed: from a folder on the path
        assert "is not installed here" in done.stderr
    else:
        assert service(done.stdout)["ExecStart"].endswith("bin/lipsync-fast serve")
