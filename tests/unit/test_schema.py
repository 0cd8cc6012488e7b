# SPDX-License-Identifier: Apache-2.0
"""docs/protocol.md and docs/lipsync.v1.schema.json say what the types say."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from lipsync_fast.errors import ErrorCode
from lipsync_fast_client import protocol
from lipsync_fast_client.protocol import ClientMessage, MediaFlag, MediaType, ServerMessage

ROOT = Path(__file__).parent.parent.parent
CLIENT = {t.__struct_config__.tag: t for t in get_args(ClientMessage)}
SERVER = {t.__struct_config__.tag: t for t in get_args(ServerMessage)}


@pytest.fixture(scope="module")
def document() -> str:
    path = ROOT / "docs" / "protocol.md"
    if not path.exists():
        pytest.skip("docs/ is not here: installed without its sources")
    return path.read_text()


def examples(document: str) -> list[Any]:
    """The JSON blocks' objects; a block may hold several."""
    decoder, found = json.JSONDecoder(), []
    for block in re.findall(r"```json\n(.*?)```", document, re.DOTALL):
        rest = block.strip()
        while rest:
            message, end = decoder.raw_decode(rest)
            found.append(message)
            rest = rest[end:].strip()
    return found


def test_the_schema_is_current(document: str) -> None:
    made = runpy.run_path(str(ROOT / "tools" / "make_schema.py"))
    assert (ROOT / "docs" / "lipsync.v1.schema.json").read_text() == made["text"](), (
        "run tools/make_schema.py"
    )


def test_the_schema_names_every_message_and_refers_to_what_is_there() -> None:
    schema = runpy.run_path(str(ROOT / "tools" / "make_schema.py"))["schema"]()
    names = schema["$defs"]
    for union, types in (("ClientMessage", CLIENT), ("ServerMessage", SERVER)):
        assert names[union]["discriminator"]["mapping"] == {
            tag: f"#/$defs/{kind.__name__}" for tag, kind in types.items()
        }
    references = re.findall(r'"#/\$defs/(\w+)"', json.dumps(schema))
    assert set(references) <= set(names)


def test_every_message_has_an_example_that_decodes(document: str) -> None:
    seen = set()
    for example in examples(document):
        kind = example["type"]
        types = CLIENT if kind in CLIENT else SERVER
        message = msgspec.json.decode(json.dumps(example), type=types[kind], strict=True)
        assert set(example) - {"type"} <= set(types[kind].__struct_fields__), kind
        assert msgspec.to_builtins(message)["type"] == kind
        seen.add(kind)
    assert seen == set(CLIENT) | set(SERVER)


def test_the_defaults_that_the_document_gives(document: str) -> None:
    given = next(e for e in examples(document) if e["type"] == "session.start")
    default = msgspec.to_builtins(protocol.SessionStart())
    assert given | {"avatar": ""} == default


def test_every_error_code_and_close_code_is_told(document: str) -> None:
    for code in get_args(ErrorCode):
        assert f"`{code}`" in document


def test_the_header_that_the_document_describes(document: str) -> None:
    layout = re.search(r'struct\.unpack_from\("([^"]+)"', document)
    assert layout is not None
    assert layout.group(1) == protocol._LAYOUT.format
    table = document.split("| offset | size | field |")[1].split("\n\n")[0]
    rows = re.findall(r"\| (\d+) \| (\d+) \|", table)
    assert sum(int(size) for _, size in rows) == protocol.HEADER_SIZE
    ends = [int(offset) + int(size) for offset, size in rows]
    assert ends == [int(offset) for offset, _ in rows[1:]] + [protocol.HEADER_SIZE]
    for flag in (f for f in MediaFlag if f):
        assert f"({int(flag)})" in document or f"{int(flag)} {flag.name.lower()}" in document
    assert [int(t) for t in MediaType] == [1, 2, 3, 4]


def test_the_limits_that_the_document_gives(document: str) -> None:
    from lipsync_fast import turns
    from lipsync_fast.config import Limits

    limits, table = Limits(), document.split("## Limits")[1].split("## How it ends")[0]
    for value in (
        f"{limits.message_bytes // 1_000_000} MB",
        f"{limits.queued_s:.0f} s",
        f"{limits.sessions}, {limits.sessions_per_address}",
        f"{limits.handshake_s:.0f} s",
        f"{limits.idle_s:.0f} s",
        f"{turns.EMPTY_A_SECOND} a second, and {turns.EMPTY_AT_ONCE} beyond",
    ):
        assert f"| {value} |" in table
    assert f"more than {limits.late_frames} pictures" in document
