# SPDX-License-Identifier: Apache-2.0
"""Names of files that are no UTF-8 stay what they are: in JSON, in logs, in lines for people."""

from __future__ import annotations

import io
import json
import logging
import os
import sys

import msgspec
import pytest

from lipsync_fast.config import Log
from lipsync_fast.console import one_line, say
from lipsync_fast.logs import get_logger, setup_logs
from lipsync_fast.names import json_bytes, json_value, shown
from lipsync_fast.prepare.request import Failure, Message, Request

GBK = os.fsdecode("中文.mp4".encode("gbk"))


def test_a_name_for_people() -> None:
    assert shown(GBK) == r"\xd6\xd0\xce\xc4.mp4"
    assert one_line(f"{GBK}: no such file\nat all") == r"\xd6\xd0\xce\xc4.mp4: no such file at all"
    assert shown("中文.mp4") == "中文.mp4"
    assert shown("a\x1b[2Jb\u202e") == r"a\x1b[2Jb\u202e"


def test_a_name_in_json_gives_the_file_s_bytes_again() -> None:
    for indent in (None, 2):
        data = json_bytes({"path": GBK, "note": "déjà"}, indent)
        assert data.isascii()
        assert os.fsencode(json.loads(data)["path"]) == "中文.mp4".encode("gbk")
    assert json_bytes({"path": "中文"}) == '{"path":"中文"}'.encode()


def test_messages_between_processes_keep_names() -> None:
    request = Request(
        video=GBK, name="x", out="out", consent="c", licence="l", stated_by="s", start_s=1.5
    )
    assert json_value(json_bytes(request), Request) == request
    failure = Failure(name="x", video=GBK, reason=f"{GBK}: 中文")
    assert json_value(json_bytes(failure), Message) == failure
    for data in (b'{"type":"failure"}', b"{", b'{"video":"\\udcd6"}', b'"\\udcd6'):
        with pytest.raises(msgspec.DecodeError):
            json_value(data, Message)


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_name_in_the_log(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    written = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict")
    monkeypatch.setattr(sys, "stderr", written)
    before, level = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        setup_logs(Log(format=form), "test")  # type: ignore[arg-type]
        get_logger("lipsync.test").warning("unusable", path=GBK)
    finally:
        logging.getLogger().handlers[:] = before
        logging.getLogger().setLevel(level)
    written.flush()
    line = written.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert "Traceback" not in line
    assert "unusable" in line
    if form == "json":
        assert os.fsencode(json.loads(line)["path"]) == "中文.mp4".encode("gbk")


def test_a_name_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    say(f"contact sheet: {GBK}\nand more")
    assert capfd.readouterr().err == "contact sheet: \\xd6\\xd0\\xce\\xc4.mp4\nand more\n"
