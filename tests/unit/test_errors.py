# SPDX-License-Identifier: Apache-2.0
"""One tree of errors, in one file; what a client is told of carries the protocol's word for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

import lipsync_fast
import lipsync_fast_client
from lipsync_fast import errors
from lipsync_fast.errors import ErrorCode, LipsyncError, ReportedError

PACKAGE = Path(lipsync_fast.__file__).parent
CLIENT = Path(lipsync_fast_client.__file__).parent
DEFINED = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)
]
CLASSES = re.compile(r"^\s*class ([A-Za-z]\w*(?:Error|Exception))\b", re.MULTILINE)
SIGNALS = {errors.SocketClosedError, errors.ClosingError}
"""How conversations end: what reports mistakes must not catch them."""


def test_no_other_module_has_a_public_exception_or_a_record_named_like_one() -> None:
    found = [
        f"{file.relative_to(folder.parent)}: {name}"
        for folder in (PACKAGE, CLIENT)
        for file in folder.rglob("*.py")
        for name in re.findall(
            r"^\s*class ([A-Za-z]\w*(?:Error|Exception))\b", file.read_text(), re.M
        )
        if file != folder / "errors.py"
    ]
    assert found == []


@pytest.mark.parametrize("kind", DEFINED, ids=lambda kind: kind.__name__)
def test_every_error_is_in_the_tree_and_says_what_it_is_for(kind: type[Exception]) -> None:
    assert issubclass(kind, LipsyncError) != (kind in SIGNALS)
    assert kind.__doc__
    if issubclass(kind, ReportedError) and kind is not ReportedError:
        assert kind.code in get_args(ErrorCode)


def test_users_catch_what_they_are_promised() -> None:
    for name in lipsync_fast.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(lipsync_fast, name), LipsyncError)
    assert lipsync_fast.errors is errors
