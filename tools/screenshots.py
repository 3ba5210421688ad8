"""Take the pictures of the page in docs/ui/, from a server on this machine that transcribes with pocketsphinx.

python -m tools.screenshots    write light.png, dark.png and narrow.png; requires playwright and Chromium
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "ui"
SHOTS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 800}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 800}},
    "narrow": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}, "is_mobile": True},
}
WAIT_SEC = 60


@contextmanager
def server() -> Iterator[str]:
    """Yield the base URL of a server that runs until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as data:
        environment = os.environ | {"MODEL": "pocketsphinx", "PORT": str(port), "DATA_DIR": data}
        process = subprocess.Popen([sys.executable, "-m", "worker", "serve"], cwd=ROOT, env=environment)
        try:
            _wait(f"{url}/health/ready")
            yield url
        finally:
            process.terminate()
            process.wait(WAIT_SEC)


def _wait(url: str) -> None:
    """Return once the address responds with success. Raises TimeoutError after WAIT_SEC."""
    deadline = time.monotonic() + WAIT_SEC
    while time.monotonic() < deadline:
        try:
            if requests.get(url, timeout=5).ok:
                return
        except requests.ConnectionError:
            pass  # the server does not listen yet
        time.sleep(0.2)
    raise TimeoutError(url)


def main() -> None:
    """Take every picture: a transcript while it plays, between other clips."""
    samples = [str(ROOT / "samples" / name) for name in ("people.mp3", "train.mp4", "texts.json")]
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with server() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, options in SHOTS.items():
            page = browser.new_context(reduced_motion="reduce", **options).new_page()
            page.goto(f"{url}/ui/")
            page.get_by_role("button", name="Try a sample").click()
            expect(page.locator("#clips [data-state=done]")).to_have_count(1, timeout=WAIT_SEC * 1000)
            page.set_input_files("#files", samples)
            page.click("#run")
            expect(page.locator("#clips [data-state=done]")).to_have_count(3, timeout=WAIT_SEC * 1000)
            expect(page.locator("#clips [data-state=failed]")).to_have_count(1)
            page.locator("#clips .choose").first.click()
            page.locator(".pane:visible audio").evaluate("(audio) => { audio.currentTime = 11.5; }")
            expect(page.locator(".word.now")).to_be_visible()
            if options["viewport"]["width"] < 500:
                page.locator("#clips li").first.evaluate("(line) => line.scrollIntoView()")
            else:
                page.evaluate("scrollTo(0, 0)")
            page.mouse.move(0, 0)
            page.wait_for_timeout(500)
            page.screenshot(path=PICTURES / f"{name}.png")


if __name__ == "__main__":
    main()
