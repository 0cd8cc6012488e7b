# SPDX-License-Identifier: Apache-2.0
"""Write docs/lipsync.v1.schema.json: the text messages of lipsync.v1 as JSON Schema.

    python tools/make_schema.py            # writes it
    python tools/make_schema.py --check    # exit status 1 where it is not current

The schema is made from the types of ``lipsync_fast_client.protocol``, with which both ends decode.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from lipsync_fast_client.protocol import ClientMessage, ServerMessage

PATH = Path(__file__).parent.parent / "docs" / "lipsync.v1.schema.json"


def schema() -> dict[str, Any]:
    """The schema: any message is a ClientMessage or a ServerMessage."""
    (client, server), components = msgspec.json.schema_components(
        [ClientMessage, ServerMessage], ref_template="#/$defs/{name}"
    )
    made = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lipsync.v1, text messages",
        "description": "Made by tools/make_schema.py. docs/protocol.md tells the conversation.",
        "anyOf": [{"$ref": "#/$defs/ClientMessage"}, {"$ref": "#/$defs/ServerMessage"}],
        "$defs": {
            "ClientMessage": {"description": "What clients send.", **client},
            "ServerMessage": {"description": "What the server sends.", **server},
            **dict(sorted(components.items())),
        },
    }
    _dedent(made)
    return made


def _dedent(part: Any) -> None:
    """Descriptions as they are read: not every version of msgspec takes the indentation away."""
    if isinstance(part, dict):
        if isinstance(part.get("description"), str):
            part["description"] = inspect.cleandoc(part["description"])
        for each in part.values():
            _dedent(each)
    elif isinstance(part, list):
        for each in part:
            _dedent(each)


def text() -> str:
    """The file's content."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write or check; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    if not parser.parse_args().check:
        PATH.write_text(text())
        return 0
    if not PATH.exists() or PATH.read_text() != text():
        print(f"{PATH.name} is not current; run tools/make_schema.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
