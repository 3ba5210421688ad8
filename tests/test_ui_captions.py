"""The live captions of the page at /ui, in a headless Chromium whose microphone plays a file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from serving import serving

from worker.backends.common import vad
from worker.config import Settings

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Page, WebSocketRoute, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(not vad.is_available(), reason="needs onnxruntime and silero-vad"),
]

SAMPLES = Path(__file__).parent.parent / "samples"
TEXTS: dict[str, str] = json.loads((SAMPLES / "texts.json").read_text())
RATE = 48_000
WAIT_MS = 30_000
KEY = "a-key.of_letters-0"
Opener = Callable[..., Page]


def speech(name: str) -> np.ndarray:
    samples, rate = soundfile.read(SAMPLES / name, dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(axis=1), rate, RATE)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    with serving(Settings(model="pocketsphinx", data_dir=tmp_path_factory.mktemp("data"))) as url:
        yield url


@pytest.fixture(scope="module")
def visit(tmp_path_factory) -> Iterator[Opener]:
    """Opens the page of a server. The microphone plays two sentences, and then silence."""
    pause = np.zeros(2 * RATE, np.float32)
    path = tmp_path_factory.mktemp("microphone") / "speech.wav"
    spoken = [pause, speech("week.wav"), pause, speech("people.mp3"), np.tile(pause, 30)]
    soundfile.write(path, np.concatenate(spoken), RATE, subtype="PCM_16")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                f"--use-file-for-fake-audio-capture={path}%noloop",
                "--autoplay-policy=no-user-gesture-required",
            ],
        )
        contexts = []

        def open_page(base: str, *, before: Callable[[Page], Any] = lambda _page: None) -> Page:
            context = browser.new_context(base_url=base, permissions=["microphone"], reduced_motion="reduce")
            contexts.append(context)
            page = context.new_page()
            before(page)
            page.goto("/ui")
            page.set_default_timeout(5_000)
            expect(page.locator("#tasks input").first).to_be_attached()
            return page

        yield open_page
        for context in contexts:
            context.close()
        browser.close()


def record(page: Page) -> None:
    """Start by the keyboard."""
    page.locator("#record").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("meter", name="Input level")).to_be_visible()


def stop(page: Page) -> None:
    page.locator("#record").focus()
    page.keyboard.press("Enter")


LINES = "#captions-text p"


def test_captions_appear_while_the_person_speaks_and_become_the_transcript(visit, server):
    page = visit(server)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    record(page)
    log = page.get_by_role("log", name="Captions")
    expect(log).to_have_attribute("aria-live", "polite")
    expect(page.locator(f"{LINES}.open")).to_have_count(1, timeout=WAIT_MS)  # the first turn, before its text
    expect(page.locator(f"{LINES}:not(.open)")).to_have_text([TEXTS["week.wav"]], timeout=WAIT_MS)
    expect(page.locator("#clips .name")).to_have_count(0)  # the recording continues
    expect(page.locator(f"{LINES}:not(.open)")).to_have_text([TEXTS["week.wav"], TEXTS["people.mp3"]], timeout=WAIT_MS)
    stop(page)
    expect(page.locator("#clips .name")).to_have_text("recording-1.wav")
    expect(page.locator("#clips [data-state=done]")).to_have_count(1, timeout=WAIT_MS)
    expect(page.locator("#captions")).to_be_hidden()
    pane = page.locator(".pane:visible")
    expect(pane.locator(".segment .said")).to_have_text([TEXTS["week.wav"], TEXTS["people.mp3"]])
    with page.expect_download() as download:
        pane.get_by_role("button", name="Save as srt").click()
    saved = Path(download.value.path()).read_text()
    assert " ".join(re.findall(r"^[a-z' ]+$", saved, re.M)) == f"{TEXTS['week.wav']} {TEXTS['people.mp3']}"
    expect(page.locator("#run")).to_have_text("Transcribe again")
    assert not errors


def test_the_open_turn_is_transcribed_when_the_recording_stops(visit, server):
    page = visit(server)
    record(page)
    expect(page.locator(f"{LINES}:not(.open)")).to_have_count(1, timeout=WAIT_MS)
    expect(page.locator(f"{LINES}.open")).to_have_count(1, timeout=WAIT_MS)
    page.wait_for_timeout(1_500)
    stop(page)
    expect(page.locator("#clips [data-state=done]")).to_have_count(1, timeout=WAIT_MS)
    expect(page.locator(".pane:visible .segment .said").first).to_have_text(TEXTS["week.wav"])
    expect(page.locator(".pane:visible .segment .said").nth(1)).to_have_text(re.compile("there"))


def test_a_key_is_sent_as_a_subprotocol(visit, tmp_path):
    with serving(Settings(model="pocketsphinx", data_dir=tmp_path, api_key=KEY)) as url:

        def store_key(page: Page) -> None:
            page.add_init_script(f"sessionStorage.setItem('aviary-api-key', '{KEY}')")

        page = visit(url, before=store_key)
        record(page)
        expect(page.locator(f"{LINES}:not(.open)")).to_have_text([TEXTS["week.wav"]], timeout=WAIT_MS)
        stop(page)
        expect(page.locator("#clips [data-state=done]")).to_have_count(1, timeout=WAIT_MS)


def test_without_a_place_for_a_session_the_recording_is_transcribed_as_a_file(visit, tmp_path):
    with serving(Settings(model="pocketsphinx", data_dir=tmp_path, realtime_sessions=1)) as url:
        first, second = visit(url), visit(url)
        record(first)
        expect(first.locator(f"{LINES}:not(.open)")).to_have_count(1, timeout=WAIT_MS)
        record(second)
        expect(second.locator("#captions-note")).to_have_text(
            "The server offers no live captions now. Transcribe the recording instead."
        )
        second.wait_for_timeout(4_000)
        stop(second)
        expect(second.locator("#clips .name")).to_have_text("recording-1.wav")
        expect(second.locator("#clips .state")).to_have_text("Not started")
        second.click("#run")
        expect(second.locator("#clips [data-state=done]")).to_have_count(1, timeout=WAIT_MS)
        expect(second.locator(".pane:visible .words")).to_contain_text(TEXTS["week.wav"])
        stop(first)


def test_a_lost_connection_is_made_again_and_the_captions_do_not_pass_for_the_transcript(visit, server):
    sockets: list[WebSocketRoute] = []

    def connect(route: WebSocketRoute) -> None:
        sockets.append(route)
        route.connect_to_server()

    page = visit(server, before=lambda page: page.route_web_socket(re.compile("/v1/realtime"), connect))
    record(page)
    expect(page.locator(f"{LINES}:not(.open)")).to_have_text([TEXTS["week.wav"]], timeout=WAIT_MS)
    note = page.locator("#captions-note")
    note.evaluate(  # the first of the two notes may be gone before a busy machine looks
        "(note) => {"
        " window.notes = [];"
        " new MutationObserver(() => window.notes.push(note.textContent)).observe(note, { childList: true });"
        " }"
    )
    sockets[0].close(code=1011)
    expect(note).to_contain_text("Connected again", timeout=WAIT_MS)
    assert "Connecting again" in page.evaluate("window.notes[0]")
    assert len(sockets) == 2
    expect(page.locator(f"{LINES}:not(.open)").nth(1)).to_have_text(re.compile("people in the room$"), timeout=WAIT_MS)
    stop(page)
    expect(page.locator("#clips .name")).to_have_text("recording-1.wav")
    page.wait_for_timeout(1_000)
    expect(page.locator("#clips .state")).to_have_text("Not started")
    expect(page.locator(LINES).first).to_have_text(TEXTS["week.wav"])  # the text stays in view


def test_an_error_of_the_session_is_shown_and_the_recording_continues(visit, server):
    def refuse(route: WebSocketRoute) -> None:
        route.on_message(
            lambda _event: route.send(json.dumps({"type": "error", "error": {"code": "unsupported", "message": "No."}}))
        )

    page = visit(server, before=lambda page: page.route_web_socket(re.compile("/v1/realtime"), refuse))
    record(page)
    expect(page.locator("#captions-note")).to_have_text("No live captions: No.")
    page.wait_for_timeout(500)
    stop(page)
    expect(page.locator("#clips .name")).to_have_text("recording-1.wav")


def test_other_tasks_have_no_captions(visit, server):
    page = visit(server)
    opened: list[str] = []
    page.on("websocket", lambda socket: opened.append(socket.url))
    page.get_by_role("radio", name="Caption", exact=True).check()
    record(page)
    page.wait_for_timeout(500)
    stop(page)
    expect(page.locator("#clips .name")).to_have_text("recording-1.wav")
    assert not opened
