# SPDX-License-Identifier: Apache-2.0
"""Make docs/images/page.jpg: the page with the demo avatar, in a headless Chromium.

python tools/make_page_picture.py
"""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path

from lipsync_fast.client.local import LocalServer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from cdp import browser  # noqa: E402 (found by the line above)

WIDTH, HEIGHT = 1200, 760
SHOWN = ROOT / "docs" / "images" / "page.jpg"


def main() -> None:
    """Serve, look, write."""
    config = {"engines": {"spares": 0}, "live": {"margin_ms": 400}}
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalServer(config) as server,
        browser(Path(folder)) as chrome,
    ):
        page = chrome.page
        page.look(WIDTH, HEIGHT)
        page.open(server.http_url + "/")
        page.until("window.lipsync?.state === 'idle' && lipsync.metrics.drawn > 400")
        picture = page.command("Page.captureScreenshot", format="jpeg", quality=80)["data"]
    SHOWN.write_bytes(base64.b64decode(picture))
    print(f"{SHOWN.relative_to(ROOT)}: {SHOWN.stat().st_size} bytes")


if __name__ == "__main__":
    main()
