# SPDX-License-Identifier: Apache-2.0
"""The page and a token, the choice of an avatar, and the code to copy from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from cdp import Page
from pages import CONFIG, IDLES, QUICK, before_the_page, is_hidden, said
from talking import ALONE

from lipsync_fast.client.local import LocalServer

pytestmark = pytest.mark.clock

TOKEN = "Sesam,open/?+&=#%20"


@pytest.fixture(scope="module")
def guarded() -> Iterator[LocalServer]:
    """A server that asks for a token which no address takes as it is."""
    config = CONFIG | {"listen": {"token": TOKEN}, "engines": ALONE}
    with LocalServer(config, command=QUICK) as server:
        yield server


WATCHED = """
(() => {
  // Every address that the page asks for or links to.
  window.asked = [];
  const Socket = window.WebSocket, get = window.fetch;
  window.WebSocket = class extends Socket {
    constructor(...a) { super(...a); window.asked.push(String(a[0])); }
  };
  window.fetch = (...a) => { window.asked.push(String(a[0])); return get(...a); };
})()
"""
ADDRESSES = """
[location.href, ...asked,
 ...[...document.querySelectorAll("[href], [src]")].map((e) => e.href || e.src),
 ...performance.getEntriesByType("resource").map((e) => e.name)]
"""


def is_shown(page: Page) -> None:
    """The avatar idles, its thumbnail is there, and the token is in no address."""
    page.until(IDLES)
    page.until("document.querySelector('#avatars img')?.naturalWidth > 0")
    addresses = page.value(ADDRESSES)
    assert any(a.endswith("/ws") for a in addresses)
    assert not [a for a in addresses if "token" in a or "Sesam" in a], addresses


def show_token(page: Page, token: str) -> None:
    page.value(f"document.querySelector('#token').value = {token!r}")
    page.value("document.querySelector('#token-form').requestSubmit()")


def test_a_token_is_asked_for_told_when_wrong_and_kept(tab: Page, guarded: LocalServer) -> None:
    page = tab
    with before_the_page(page, WATCHED):
        page.open(guarded.http_url + "/")
        page.value("sessionStorage.clear()")
        page.until("!document.querySelector('#token-form').hidden")
        assert said(page).startswith("This server asks for a token.")
        show_token(page, "Sesam")
        page.until("document.querySelector('#notice').dataset.word === 'wrong-token'")
        assert "not the server's" in said(page)
        assert page.value("document.activeElement.id") == "token", "it can be typed at once"
        assert page.value("document.querySelector('#token').ariaInvalid") == "true"
        show_token(page, TOKEN)
        is_shown(page)
        assert is_hidden(page, "#notice")
        page.open(guarded.http_url + "/")  # kept for this tab
        is_shown(page)


def test_a_token_leaves_the_address(tab: Page, guarded: LocalServer) -> None:
    page = tab
    with before_the_page(page, WATCHED):
        page.open(guarded.http_url + "/")
        page.value("sessionStorage.clear()")
        query = page.value(
            f"new URLSearchParams({{ token: {TOKEN!r}, avatar: 'demo' }}).toString()"
        )
        page.open(f"{guarded.http_url}/?{query}#there")
        page.until("window.lipsync")
        assert page.value("location.href") == f"{guarded.http_url}/?avatar=demo#there"
        page.until(IDLES)
        page.open(f"{guarded.http_url}/?avatar=demo")
        is_shown(page)
    # What a link leads to is fetched with the token, and shown from the page's own memory.
    page.value(
        "window.open = () =>"
        " ({ close() {}, location: { replace: (url) => (window.there = url) } });"
        "const made = URL.createObjectURL;"
        "URL.createObjectURL = (blob) => { window.blob = blob; return made.call(URL, blob); }"
    )
    page.click("footer a[href='stats']")
    page.until("window.there")
    assert page.value("there.startsWith('blob:')")
    assert page.value("blob.text().then((text) => JSON.parse(text).state)") == "serving"
    page.value("sessionStorage.clear()")


# ---------------------------------------------------------------- avatars
def test_a_chosen_avatar_says_that_it_loads(tab: Page, tmp_path: Path, demo: Path) -> None:
    page = tab
    for name in ("twin", "gone"):
        shutil.copy(demo, tmp_path / f"{name}.lsa")
    config = CONFIG | {"avatars": {"folders": [str(tmp_path)]}}
    with LocalServer(config, command=QUICK) as server:
        page.open(server.http_url + "/")
        page.until(IDLES)
        page.until("document.querySelectorAll('#avatars input').length === 4")
        page.value(
            "new MutationObserver(() => (window.busy ||= document.querySelector("
            "'#avatars label[data-loading] input[aria-busy=true]')?.value))"
            ".observe(document.querySelector('#avatars'), {attributes: true, subtree: true})"
        )
        page.click("#avatars input[value=twin]")
        page.until("lipsync.started.avatar === 'twin'")
        page.until("!document.querySelector('#avatars [data-loading]')")
        assert page.value("busy") == "twin"
        assert page.value("document.querySelector('#avatars input:checked').value") == "twin"

        unload = Request(f"{server.http_url}/v1/avatars/gone", method="DELETE")
        urlopen(unload, timeout=60).close()
        page.click("#avatars input[value=gone]")
        assert "“gone” cannot be used here; “twin” is shown." in said(page)
        assert page.value("document.querySelector('#avatars input:checked').value") == "twin"
        assert page.value("lipsync.started.avatar") == "twin"
        assert not page.value("document.querySelector('#avatars [data-loading]')")
        page.open("about:blank")
    assert [p for p in page.problems if "WebSocket" not in p] == []


# ---------------------------------------------------------------- code
@pytest.mark.parametrize("secret", [False, True])
def test_the_code_of_the_page_runs(
    tab: Page, served: LocalServer, guarded: LocalServer, tmp_path: Path, secret: bool
) -> None:
    """As copied, in the shell that it is for."""
    page, server = tab, guarded if secret else served
    page.open(server.http_url + "/")
    page.value(f"sessionStorage.clear(); sessionStorage.setItem('lipsync-fast.token /', {TOKEN!r})")
    if not secret:
        page.value("sessionStorage.clear()")
    page.open(server.http_url + "/")
    page.until(IDLES)
    page.value("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    texts = []
    for name in ("python", "shell"):
        page.click(f"[data-copies={name}]")
        page.until("window.copied")
        texts.append(page.value("window.copied"))
        assert page.value(f"document.querySelector('[data-copies={name}]').textContent") == "Copied"
        page.value("window.copied = ''")
    page.value("sessionStorage.clear()")
    program, commands = texts
    assert "Sesam" not in program + commands
    assert server.http_url in commands
    (tmp_path / "speak.py").write_text(program)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if shutil.which("curl", path=path) is None:
        pytest.skip("there is no curl")
    commands = commands.replace("'…'", f"'{TOKEN}'")
    done = subprocess.run(
        ["bash", "-ec", commands], cwd=tmp_path, env=os.environ | {"PATH": path},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 100
    assert lines[-1].endswith(" bytes")
    assert ": a JPEG of " in lines[-1]
