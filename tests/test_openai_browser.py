"""OpenAI's JavaScript client in a real browser, in a page of another origin, as CORS_ORIGINS allows it.

The page and the client's modules come from a server of files on another port of loopback.
"""

from __future__ import annotations

import base64
import functools
import http.server
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import serving

from worker.config import Settings

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MODULES = Path(sys.prefix) / "npm" / "node_modules"  # `make test` puts it there
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(not (MODULES / "openai").is_dir(), reason="OpenAI's JavaScript client is not installed"),
]

SAMPLES = Path(__file__).parent.parent / "samples"
PAGE = """<!doctype html>
<title>A page of another origin</title>
<link rel="icon" href="data:,">
<script type="module">
import OpenAI, { toFile } from "/openai/index.mjs";

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const client = (url, apiKey) =>
  new OpenAI({ baseURL: `${url}/v1`, apiKey, dangerouslyAllowBrowser: true, maxRetries: 0 });

window.transcribe = async (url, key, audio, options) => {
  const file = await toFile(bytes(audio), "week.wav");
  return client(url, key).audio.transcriptions.create({ file, model: "pocketsphinx", ...options });
};
window.streamed = async (url, key, audio) => {
  const events = [];
  for await (const event of await window.transcribe(url, key, audio, { stream: true })) events.push(event);
  return events;
};
window.chat = async (url, key, audio) => {
  const chunks = await client(url, key).chat.completions.create({
    model: "audio-flamingo",
    stream: true,
    messages: [{ role: "user", content: [
      { type: "input_audio", input_audio: { data: audio, format: "wav" } },
      { type: "text", text: "What is said?" },
    ] }],
  });
  const parts = [];
  for await (const chunk of chunks) parts.push(chunk.choices[0]?.delta?.content ?? "");
  return parts;
};
window.failure = async (name, ...given) => {
  try {
    await window[name](...given);
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, message: error.message };
  }
};
window.ready = true;
</script>
"""
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def audio() -> str:
    return base64.b64encode((SAMPLES / "week.wav").read_bytes()).decode()


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    """The origin of the page."""

    class Files(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/":
                return super().do_GET()
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(PAGE.encode())
            return None

        def log_message(self, *_: Any) -> None:
            pass

    files = functools.partial(Files, directory=MODULES)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), files) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def page(origin) -> Iterator[Page]:
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
    ):
        page = browser.new_page()
        page.goto(origin)
        page.wait_for_function("window.ready")
        yield page


@pytest.fixture(scope="module")
def call(page) -> Call:
    """Calls a function of the page."""
    return lambda name, *given: page.evaluate("([name, ...given]) => window[name](...given)", [name, *given])


@pytest.fixture(scope="module")
def server(origin, tmp_path_factory) -> Iterator[str]:
    settings = Settings(
        model="pocketsphinx", api_key="k", cors_origins=(origin,), data_dir=tmp_path_factory.mktemp("data")
    )
    with serving(settings) as url:
        yield url


def test_a_transcription(call, server, audio, page):
    with page.expect_request(lambda request: request.url.endswith("/transcriptions")) as sent:
        answer = call("transcribe", server, "k", audio, {"response_format": "verbose_json"})
    assert answer["text"] == "see you next week"
    assert [name for name in sent.value.headers if name.startswith("x-stainless-")], "no preflight was necessary"


def test_a_streamed_transcription(call, server, audio):
    events = call("streamed", server, "k", audio)
    assert events[-1]["type"] == "transcript.text.done"
    assert "".join(event["delta"] for event in events[:-1]) == events[-1]["text"] == "see you next week"


def test_errors_are_of_the_clients_own_kinds(call, server, audio):
    unknown = call("failure", "transcribe", server, "k", audio, {"model": "nonesuch"})
    assert (unknown["kind"], unknown["status"]) == ("NotFoundError", 404)
    assert "nonesuch" in unknown["message"]
    keyless = call("failure", "transcribe", server, "wrong", audio)
    assert (keyless["kind"], keyless["status"]) == ("AuthenticationError", 401)


def test_a_streamed_chat_without_a_key(call, origin, audio, tmp_path):
    settings = Settings(model="audio-flamingo", skip_model_load=True, cors_origins=(origin,), data_dir=tmp_path)
    with serving(settings) as url:
        parts = call("chat", url, "none", audio)
    assert "".join(parts) == "[dry-run] chat of 1.27 s"


def test_a_page_of_an_origin_that_is_not_listed_gets_nothing(call, audio, tmp_path):
    settings = Settings(skip_model_load=True, cors_origins=("https://app.example",), data_dir=tmp_path)
    with serving(settings) as url:
        assert call("failure", "transcribe", url, "none", audio)["kind"] == "APIConnectionError"
