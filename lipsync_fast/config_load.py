# SPDX-License-Identifier: Apache-2.0
"""Reads the configuration from its sources, and writes it down.

    defaults  <  TOML file  <  environment, LIPSYNC_FAST_SECTION_KEY  <  flags

Every key is checked by itself, so that an error names it, the source that it came from, and what it
may be. A key that is not known is an error in every source.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import os
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import inspect

from lipsync_fast import canonical
from lipsync_fast.avatars.library import VARIABLE as AVATARS_VARIABLE
from lipsync_fast.config import ServeConfig
from lipsync_fast.errors import ConfigError
from lipsync_fast.objects import is_url

PREFIX = "LIPSYNC_FAST_"
OTHERS = frozenset({AVATARS_VARIABLE})
"""Variables of that prefix that are not the configuration's."""
SECRET = frozenset({"listen.token", "listen.admin_token", "speech.key", "webrtc.ice_credential"})
"""Not shown in errors, which end up in logs."""
WORDS = {"true": True, "1": True, "false": False, "0": False}
"""What a variable may say of a key that is on or off."""
COMPARED: Mapping[str, Callable[[str], str]] = {
    "listen.host": canonical.host,
    "listen.origins": canonical.origin,
    "listen.proxies": canonical.addresses,
    "listen.token": canonical.token,
    "listen.admin_token": canonical.token,
    "avatars.only": canonical.avatar_name,
    "webrtc.addresses": canonical.address,
    "webrtc.public_address": canonical.optional_address,
    "webrtc.udp_ports": canonical.port_range,
    "webrtc.ice_servers": canonical.ice_server,
    "livekit.hosts": canonical.host_and_port,
    "tracing.endpoint": canonical.collector,
}
MOST_BYTES = 1 << 20
DEFAULT = "default"


@dataclass(frozen=True)
class Key:
    """A key of the configuration: ``name`` is dotted, such as "listen.host"."""

    name: str
    kind: inspect.Type
    annotation: object
    default: object

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return PREFIX + self.name.replace(".", "_").upper()


@dataclass(frozen=True)
class Loaded:
    """A configuration, and where each key's value came from."""

    config: ServeConfig
    sources: dict[str, str]


@functools.cache
def keys() -> Mapping[str, Key]:
    """All keys by name, in the order of the file."""
    return {key.name: key for key in _keys(ServeConfig, "")}


def _keys(struct: type[msgspec.Struct], prefix: str) -> Iterator[Key]:
    hints = typing.get_type_hints(struct, include_extras=True)
    default = struct()
    sections = []
    for field in msgspec.structs.fields(struct):
        value, annotation = getattr(default, field.name), hints[field.name]
        if isinstance(value, msgspec.Struct):
            sections.append((type(value), f"{field.name}."))
        else:
            kind = inspect.type_info(annotation)
            yield Key(prefix + field.name, kind, annotation, value)
    for section, name in sections:
        yield from _keys(section, name)


def load(
    file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    flags: Mapping[str, tuple[str, object]] | None = None,
) -> Loaded:
    """The configuration from all its sources.

    Args:
        file: TOML file, where there is one.
        environ: the environment; lists are separated by commas.
        flags: key to the flag's name and its value, for those that were given.

    Raises:
        ConfigError: names the key, its source, and what it may be.
    """
    known = keys()
    values: dict[str, object] = {name: key.default for name, key in known.items()}
    sources = dict.fromkeys(known, DEFAULT)
    given = [
        *_from_file(file, known),
        *_from_environment(environ, known),
        *((name, value, flag) for name, (flag, value) in (flags or {}).items()),
    ]
    for name, value, source in given:
        values[name], sources[name] = _checked(known[name], value, source), source
    loaded = Loaded(_assembled(values), sources)
    _check_together(loaded)
    return loaded


# ---------------------------------------------------------------- sources
def _from_file(file: Path | None, known: Mapping[str, Key]) -> Iterator[tuple[str, object, str]]:
    if file is None:
        return
    try:
        with open(file, "rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{file}: longer than 1 MiB; expected a configuration file")
    try:
        tree = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: is not TOML: {error}") from None
    sections = {name.partition(".")[0] for name in known if "." in name}
    for name, value in tree.items():
        if name in sections:
            if not isinstance(value, dict):
                raise ConfigError(f"{file}: {name} is a section: write [{name}] and its keys below")
            for key, inner in value.items():
                yield _known(f"{name}.{key}", str(file), known), inner, str(file)
        else:
            yield _known(name, str(file), known), value, str(file)


def _known(name: str, source: str, known: Mapping[str, Key]) -> str:
    if name in known:
        return name
    section, dot, _ = name.rpartition(".")
    near = difflib.get_close_matches(name, known, 1, 0.75)
    inside = [n.rpartition(".")[2] for n in known if n.rpartition(".")[0] == section]
    sections = (
        [] if dot else [f"[{s}]" for s in dict.fromkeys(n.split(".")[0] for n in known if "." in n)]
    )
    hint = f"did you mean {near[0]}? " if near else ""
    where = f"in [{section}]" if dot else "at the top"
    if dot and not inside:
        raise ConfigError(f"{source}: there is no section [{section}]")
    raise ConfigError(
        f"{source}: unknown key {name}; {hint}there are {where}: {', '.join([*inside, *sections])}"
    )


def _from_environment(
    environ: Mapping[str, str], known: Mapping[str, Key]
) -> Iterator[tuple[str, object, str]]:
    by_variable = {key.variable: key for key in known.values()}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable in OTHERS:
            continue
        key = by_variable.get(variable)
        if key is None:
            near = difflib.get_close_matches(variable, by_variable, 3, 0.6)
            hint = f"did you mean {' or '.join(near)}?" if near else "see --print-config"
            raise ConfigError(f"environment: unknown variable {variable}; {hint}")
        yield key.name, _from_text(key, environ[variable]), variable


def _from_text(key: Key, text: str) -> object:
    """A variable's text as what a file would hold; what cannot be is left to ``_checked``."""
    if isinstance(key.kind, inspect.VarTupleType):
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return [_number(key.kind.item_type, part) for part in parts]
    return _number(key.kind, text)


def _number(kind: inspect.Type, text: str) -> object:
    try:
        if isinstance(kind, inspect.BoolType):
            return WORDS.get(text.lower(), text)
        if isinstance(kind, inspect.IntType):
            return int(text)
        if isinstance(kind, inspect.FloatType):
            return float(text)
    except ValueError:
        return text
    return text


# ---------------------------------------------------------------- checks
def _checked(key: Key, value: object, source: str) -> object:
    try:
        if isinstance(value, float) and not math.isfinite(value):
            raise msgspec.ValidationError("not finite")
        made: object = msgspec.convert(value, key.annotation)
        json.dumps(made, ensure_ascii=False).encode()  # no halves of characters
    except (msgspec.ValidationError, UnicodeEncodeError):
        shown = "…" if key.name in SECRET else repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise ConfigError(
            f"{source}: {key.name} = {shown}: expected {describe(key.kind)}"
        ) from None
    return _canonical(key, made, source)


def _canonical(key: Key, value: object, source: str) -> object:
    """What is compared as text later, in the form in which it is compared."""
    form = COMPARED.get(key.name)
    if form is None:
        return value
    whole = value if isinstance(value, tuple) else (value,)
    made = []
    for item in whole:
        try:
            made.append(form(item))
        except ValueError as error:
            shown = "it" if key.name in SECRET else repr(item[:60])
            raise ConfigError(f"{source}: {key.name}: {shown} {error}") from None
    return tuple(made) if isinstance(value, tuple) else made[0]


def describe(kind: inspect.Type) -> str:
    """What a value may be, in words."""
    if isinstance(kind, inspect.VarTupleType):
        return f"a list, each {describe(kind.item_type)}"
    if isinstance(kind, inspect.LiteralType):
        return "one of " + ", ".join(repr(value) for value in kind.values)
    if isinstance(kind, (inspect.IntType, inspect.FloatType)):
        what = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
        return what + _bounds(kind)
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    if isinstance(kind, inspect.StrType):
        if kind.pattern is not None:
            return "'all', 'none', or numbers with commas between, such as '0,2'"
        return "text"
    return type(kind).__name__  # no other kind is used


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" from {kind.ge} to {kind.le}"
    parts = [
        f"{word} {bound}"
        for word, bound in (
            ("more than", kind.gt),
            ("at least", kind.ge),
            ("less than", kind.lt),
            ("at most", kind.le),
        )
        if bound is not None
    ]
    return " " + " and ".join(parts) if parts else ""


def _check_together(loaded: Loaded) -> None:
    """What single keys cannot say."""
    config, sources = loaded.config, loaded.sources

    def refuse(key: str, why: str) -> typing.NoReturn:
        raise ConfigError(f"{sources[key]}: {key}: {why}")

    if not config.listen.ports:
        refuse("listen.ports", "expected at least one port")
    listen = config.listen
    others = (*listen.grpc_ports, *listen.webrtc_ports, *listen.livekit_ports)
    named = [port for port in (*listen.ports, listen.http_port, *others) if port]
    if twice := [port for port in named if named.count(port) > 1]:
        kinds = "ports", "grpc_ports", "webrtc_ports", "livekit_ports"
        given = [k for k in kinds if sources[f"listen.{k}"] != DEFAULT]
        key = next((k for k in given if twice[0] in getattr(listen, k)), "http_port")
        why = "(ports, http_port and the ports of other protocols must all differ)"
        refuse(f"listen.{key}", f"port {twice[0]} is named twice {why}")
    for key in ("tls_key", "tls_client_ca"):
        if getattr(listen, key) and not listen.tls_cert:
            refuse(f"listen.{key}", "needs listen.tls_cert: the file of the certificate")
    if listen.livekit_ports and not (
        listen.admin_token or config.access.jwt_keys or config.access.api_keys
    ):
        refuse("listen.livekit_ports", "needs listen.admin_token: who shows it may call avatars")
    if not config.avatars.default:
        refuse("avatars.default", "expected the name or path of an avatar")
    if is_url(config.avatars.default):
        why = "expected a name; a store's URL belongs into avatars.folders (--avatars)"
        refuse("avatars.default", why)
    engines = config.engines
    if engines.hung_s < 3 * engines.heartbeat_s:
        key = "engines.hung_s" if sources["engines.hung_s"] != DEFAULT else "engines.heartbeat_s"
        refuse(key, "hung_s must be at least three times heartbeat_s, or the healthy are killed")


# ---------------------------------------------------------------- making and writing
def _assembled(values: Mapping[str, object]) -> ServeConfig:
    """The tree of checked values."""
    top: dict[str, object] = {}
    sections: dict[str, dict[str, object]] = {}
    for name, value in values.items():
        section, dot, key = name.rpartition(".")
        if dot:
            sections.setdefault(section, {})[key] = value
        else:
            top[key] = value
    hints = typing.get_type_hints(ServeConfig)
    made = {name: hints[name](**inner) for name, inner in sections.items()}
    return ServeConfig(**top, **made)  # type: ignore[arg-type]


def without_secrets(config: ServeConfig) -> ServeConfig:
    """The same with each secret covered: as many ``*`` as it has characters."""
    for name in SECRET:
        section, _, key = name.rpartition(".")
        inside = getattr(config, section)
        covered = msgspec.structs.replace(inside, **{key: "*" * len(getattr(inside, key))})
        config = msgspec.structs.replace(config, **{section: covered})
    return config


def as_toml(loaded: Loaded) -> str:
    """The configuration as a file that ``load`` reads, with where each value came from."""
    lines, section = ["# lipsync-fast serve: all keys, and where each value came from"], ""
    for name in keys():
        inside, _, key = name.rpartition(".")
        if inside != section:
            section = inside
            lines += ["", f"[{section}]"]
        value = loaded.config
        for part in name.split("."):
            value = getattr(value, part)
        source = "".join(c if c.isprintable() else "?" for c in loaded.sources[name])
        lines.append(f"{key} = {_toml(value)}  # {source}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return repr(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)
