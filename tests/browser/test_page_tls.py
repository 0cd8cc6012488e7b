# SPDX-License-Identifier: Apache-2.0
"""The page by https, under a name of the operator's: all that browsers give to secure pages."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cdp import Page
from certificates import Authority
from pages import CONFIG, IDLES, QUICK, begin_sample, let_microphone, stopped

from lipsync_fast.client.local import LocalServer

pytestmark = pytest.mark.clock

NAME = "app.example.org"
"""Which leads to this machine: see ``cdp.FLAGS``."""


def test_pictures_sound_and_microphone(tab: Page, tmp_path: Path) -> None:
    own = Authority(tmp_path).issue("server")
    listen = {
        "tls_cert": str(own),
        "tls_key": str(own.with_suffix(".key")),
        "origins": [f"https://{NAME}"],
    }
    with LocalServer(CONFIG | {"listen": listen}, command=QUICK) as server:
        origin = f"https://{NAME}:{urlsplit(server.http_url).port}"
        tab.command("Security.setIgnoreCertificateErrors", ignore=True)
        try:
            tab.open(origin + "/")
            tab.until(IDLES)
            assert tab.value("[isSecureContext, 'VideoDecoder' in window]") == [True, True]
            assert tab.value("lipsync.codec") == "h264"
            let_microphone(tab, origin, "granted")
            devices = "navigator.mediaDevices.getUserMedia({ audio: true })"
            assert tab.value(f"{devices}.then((stream) => stream.active)")
            begin_sample(tab, 10)
            stopped(tab)
            assert not tab.problems
        finally:
            tab.open("about:blank")
            tab.command("Security.setIgnoreCertificateErrors", ignore=False)
