# SPDX-License-Identifier: Apache-2.0
"""The configuration: where values come from, which wins, and what is said of bad ones."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsync_fast.cli.serve import FLAGS
from lipsync_fast.config import Avatars, ServeConfig
from lipsync_fast.config_load import Loaded, as_toml, keys, load
from lipsync_fast.errors import ConfigError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(text)
    return path


def test_nothing_given_is_the_defaults() -> None:
    loaded = load(None, {})
    assert loaded.config == ServeConfig()
    assert set(loaded.sources.values()) == {"default"}


def test_later_places_win_key_by_key(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "fronts = 2\n[listen]\nhost = '::1'\nports = [1, 2]\nhttp_port = 3\n[live]\nmargin_ms = 50",
    )
    environ = {"LIPSYNC_FAST_LISTEN_PORTS": "4, 5", "LIPSYNC_FAST_LISTEN_HTTP_PORT": "6"}
    loaded = load(file, environ, {"listen.http_port": ("--http-port", 7)})
    listen = loaded.config.listen
    assert (listen.host, listen.ports, listen.http_port) == ("::1", (4, 5), 7)
    assert (loaded.config.fronts, loaded.config.live.margin_ms) == (2, 50.0)
    told = [loaded.sources[f"listen.{key}"] for key in ("host", "ports", "http_port", "token")]
    assert told == [str(file), "LIPSYNC_FAST_LISTEN_PORTS", "--http-port", "default"]


def test_every_key_can_come_from_the_environment() -> None:
    samples: dict[type, str] = {
        str: "none",
        int: "2",
        float: "9.5",
        tuple: "1,2",
        bool: "true",
    }
    special = {
        "log.level": "debug",
        "log.format": "json",
        "live.headroom": "0.5",
        "limits.message_bytes": "2048",
        "listen.http_port": "9",
        "listen.grpc_ports": "3,4",
        "listen.webrtc_ports": "5,6",
        "listen.livekit_ports": "7,8",
        "livekit.hosts": "rooms.example,10.0.0.1:7880",
        "livekit.sample_rate": "48000",
        "webrtc.addresses": "127.0.0.1,::1",
        "webrtc.public_address": "192.0.2.7",
        "webrtc.udp_ports": "50000-50099",
        "webrtc.ice_servers": "stun:a.example,turn:b.example:3478?transport=udp",
        "listen.proxies": "127.0.0.1,::1",
        "engines.heartbeat_s": "0.5",
        "engines.kernels": "portable",
        "engines.precision": "bf16",
        "tracing.endpoint": "http://127.0.0.1:4318",
        "tracing.sample": "0.5",
        "listen.origins": "https://a.example,http://b.example:81",
    }
    environ = {
        key.variable: special.get(name, samples[type(key.default)]) for name, key in keys().items()
    }
    loaded = load(None, environ)
    assert "default" not in loaded.sources.values()
    assert loaded.config.avatars.only == ("1", "2")
    assert loaded.config.drain_seconds == 9.5
    assert loaded.config.engines.mps is True


def test_what_is_printed_is_read_back(tmp_path: Path) -> None:
    environ = {"LIPSYNC_FAST_LISTEN_ORIGINS": "https://a.example,*", "LIPSYNC_FAST_FRONTS": "3"}
    loaded = load(None, environ, {"live.headroom": ("--x", 0.123456789)})
    text = as_toml(loaded)
    assert "fronts = 3  # LIPSYNC_FAST_FRONTS" in text
    assert load(written(tmp_path, text), {}).config == loaded.config


@pytest.mark.slow
@given(text=st.text(), names=st.lists(st.text(min_size=1), max_size=3))
def test_any_text_is_printed_so_that_it_is_read_back(
    text: str, names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = ServeConfig(avatars=Avatars(folders=tuple(names), require_signed=text), folder=text)
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(as_toml(Loaded(made, dict.fromkeys(keys(), "a\nplace"))))
    assert load(path, {}).config == made


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("frontz = 1", "unknown key frontz; did you mean fronts?"),
        ("[listen]\nhots = 1", "unknown key listen.hots; did you mean listen.host?"),
        ("[listen]\nhots = 1", "there are in [listen]: host, ports, http_port, origins, token"),
        ("[lisen]\nhost = ''", "unknown key lisen; "),
        ("listen = 3", "listen is a section: write [listen]"),
        ("[[listen]]\nhost = ''", "listen is a section"),
        ("fronts = 0", "fronts = 0: expected a whole number at least 1"),
        ("fronts = true", "fronts = True: expected a whole number"),
        ("fronts = 1.5", "fronts = 1.5: expected a whole number"),
        ("[listen]\nports = [70000]", "listen.ports = [70000]: expected a list, each a whole num"),
        ("[listen]\nports = 8084", "listen.ports = 8084: expected a list"),
        ("[listen]\nports = []", "listen.ports: expected at least one port"),
        ("[listen]\nports = [8086]", "port 8086 is named twice"),
        ("[log]\nlevel = 'loud'", "expected one of 'debug', 'error', 'info', 'warning'"),
        ("[live]\nheadroom = 0", "live.headroom = 0: expected a number more than 0 and at most 1"),
        ("[live]\nmargin_ms = inf", "live.margin_ms = inf: expected a number more than 0"),
        ("[live]\nmargin_ms = nan", "live.margin_ms = nan: expected"),
        ("[engines]\ngpus = 'some'", "'all', 'none', or numbers"),
        ("[engines]\nmps = 1", "engines.mps = 1: expected true or false"),
        ("[engines]\nprecision = 'int8'", "expected one of 'bf16', 'fp16', 'fp32'"),
        ("[engines]\nhung_s = 0.3", "hung_s must be at least three times heartbeat_s"),
        ("[avatars]\ndefault = ''", "avatars.default: expected the name or path"),
        ("fronts = ", "is not TOML"),
        ("a = " + "[" * 2000, "is not TOML"),
        ("x = '\x00'", "is not TOML"),
    ],
)
def test_a_bad_file_is_one_error_that_names_the_key(tmp_path: Path, text: str, said: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load(file, {})
    assert str(error.value).startswith(f"{file}: ")
    assert said in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.toml", {})
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path, {})
    with pytest.raises(ConfigError, match="longer than 1 MiB"):
        load(Path("/dev/zero"), {})
    (tmp_path / "latin").write_bytes(b"folder = '\xe9'")
    with pytest.raises(ConfigError, match="is not TOML"):
        load(tmp_path / "latin", {})


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("LIPSYNC_FAST_LISTEN_PORT", "1", "did you mean LIPSYNC_FAST_LISTEN_PORTS"),
        ("LIPSYNC_FAST_XYZZY", "1", "unknown variable LIPSYNC_FAST_XYZZY"),
        ("LIPSYNC_FAST_LISTEN_PORTS", "1,x", "listen.ports = [1, 'x']: expected a list"),
        ("LIPSYNC_FAST_FRONTS", "two", "fronts = 'two': expected a whole number"),
        ("LIPSYNC_FAST_ENGINES_MPS", "maybe", "engines.mps = 'maybe': expected true or false"),
        ("LIPSYNC_FAST_DRAIN_SECONDS", "-1", "drain_seconds = -1.0: expected a number at least 0"),
        ("LIPSYNC_FAST_FOLDER", "\udc80", "folder = '\\udc80': expected text"),
    ],
)
def test_a_bad_variable_is_named(variable: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(None, {variable: value})
    assert variable in str(error.value)
    assert said in str(error.value)


def test_other_variables_are_left_alone() -> None:
    environ = {"LIPSYNC_FAST_AVATARS": "/a:/b", "LIPSYNC": "x", "PATH": "/bin"}
    assert load(None, environ).config == ServeConfig()


def test_a_secret_is_not_shown_in_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(written(tmp_path, "[listen]\ntoken = ['hunter2']"), {})
    assert "hunter2" not in str(error.value)
    assert "listen.token" in str(error.value)


def test_a_bad_flag_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--http-port: listen\.http_port = 70000: expected"):
        load(None, {}, {"listen.http_port": ("--http-port", 70000)})


def test_the_manual_lists_every_key_with_its_default_and_flag() -> None:
    manual = Path(__file__).parents[2] / "docs" / "operations.md"
    rows = [line.split("|") for line in manual.read_text().splitlines() if line.startswith("| `")]
    told = {row[1].strip(" `"): (row[2].strip(" `"), row[3]) for row in rows if len(row) == 6}
    assert list(told) == list(keys())
    flag_of = {key: f"--{flag}" for flag, key in FLAGS.items()}
    values = [line for line in as_toml(load(None, {})).splitlines() if " = " in line]
    for (name, (default, flag)), line in zip(told.items(), values, strict=True):
        assert line == f"{name.rpartition('.')[2]} = {default}  # default"
        assert flag.split("`")[1:2] == ([flag_of[name]] if name in flag_of else [])


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("listen.origins", "https://App.Example.org/", ("https://app.example.org",)),
        ("listen.origins", "HTTPS://app.example.org:443", ("https://app.example.org",)),
        ("listen.origins", "http://localhost:3000", ("http://localhost:3000",)),
        ("listen.origins", "http://[0:0::1]:80", ("http://[::1]",)),
        ("listen.origins", "null, *", ("null", "*")),
        ("listen.origins", "capacitor://localhost", ("capacitor://localhost",)),
        ("listen.host", "[::1]", "::1"),
        ("listen.host", "0:0:0:0:0:0:0:0", "::"),
        ("listen.host", "::FFFF:127.0.0.1", "::ffff:127.0.0.1"),
        ("listen.host", "127.1", "127.0.0.1"),
        ("listen.host", "0", "0.0.0.0"),
        ("listen.host", " LocalHost.", "localhost"),
        ("listen.token", "a b+c/=", "a b+c/="),
        ("avatars.only", "anna,bo.b", ("anna", "bo.b")),
        ("webrtc.udp_ports", " 50000-50099 ", "50000-50099"),
        ("webrtc.udp_ports", "", ""),
        ("webrtc.public_address", "0:0::7", "::7"),
        ("webrtc.public_address", "", ""),
        ("webrtc.ice_servers", "stun:a.example", ("stun:a.example",)),
        ("webrtc.ice_servers", "turns:a:5349?transport=tcp", ("turns:a:5349?transport=tcp",)),
    ],
)
def test_what_is_compared_later_has_one_form(key: str, given: str, expected: object) -> None:
    variable = keys()[key].variable
    loaded = load(None, {variable: given})
    section, name = key.split(".")
    value = getattr(getattr(loaded.config, section), name)
    if key == "listen.host":
        expected = str(ipaddress.ip_address(str(expected))) if ":" in str(expected) else expected
    assert value == expected
    if isinstance(value, tuple):  # what is printed is read back
        again = load(None, {variable: ",".join(value)})
        assert getattr(getattr(again.config, section), name) == value


@pytest.mark.parametrize(
    ("key", "given", "reason"),
    [
        ("listen.origins", "app.example.org", "is no origin"),
        ("listen.origins", "https://", "is no origin"),
        ("listen.origins", "https://a.example/page", "without a path"),
        ("listen.origins", "https://a.example?x", "without a path"),
        ("listen.origins", "https://user@a.example", "without a path"),
        ("listen.origins", "https://*.example", "alone allows all"),
        ("listen.origins", "https://b\u00fccher.example", "xn--"),
        ("listen.origins", "https://a.example:99999", "is no origin"),
        ("listen.origins", "https://a b.example", "no host"),
        ("listen.host", "http://127.0.0.1", "neither an address nor a name"),
        ("listen.host", "a b", "neither an address nor a name"),
        ("listen.host", ".", "neither an address nor a name"),
        ("listen.token", "sesame\n", "cannot be sent in a header"),
        ("listen.token", " sesame", "cannot be sent in a header"),
        ("listen.admin_token", "s\u00e9same", "cannot be sent in a header"),
        ("avatars.only", "anna.lsa", "is no avatar's name"),
        ("webrtc.udp_ports", "50099-50000", "is no range of ports"),
        ("webrtc.udp_ports", "80-90", "is no range of ports"),
        ("webrtc.udp_ports", "50000", "is no range of ports"),
        ("webrtc.udp_ports", "60000-70000", "is no range of ports"),
        ("webrtc.public_address", "a.example", "is no IP address"),
        ("webrtc.addresses", "a.example", "is no IP address"),
        ("webrtc.ice_servers", "http://a.example", "is neither stun:HOST:PORT nor turn:"),
        ("webrtc.ice_servers", "turn:u@a.example", "is neither stun:HOST:PORT nor turn:"),
        ("avatars.only", "avatars/anna", "is no avatar's name"),
    ],
)
def test_what_could_never_match_is_refused(key: str, given: str, reason: str) -> None:
    variable = keys()[key].variable
    with pytest.raises(ConfigError, match=f"^{variable}: {key}: .*{re.escape(reason)}") as caught:
        load(None, {variable: given})
    assert "same" not in str(caught.value), "tokens are not shown"
