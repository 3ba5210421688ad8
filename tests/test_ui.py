"""The page at /ui, driven in a headless Chromium against a live server.

Answers that a server cannot be brought to give on demand (a wrong key, a full queue, a stream that breaks off) are put
in the
browser's way instead; everything else is the server's own. After every test: no error in the console, no violation of
the content security policy, no request to another origin.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import json
import re
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from conftest import tone
from hub_host import hub_on_loopback
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from serving import serving

from worker import config
from worker.backends.base import Backend
from worker.config import Settings
from worker.engine.engine import Engine
from worker.protocol import subtitles, voices
from worker.types import Batch, Span, Transcript

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
UI = ROOT / "worker" / "entrypoints" / "http" / "ui"
SAMPLES = ROOT / "samples"
TEXTS: dict[str, str] = json.loads((SAMPLES / "texts.json").read_text())
SPEECH = SAMPLES / "people.mp3"
WRITER = "nvidia/audio-flamingo-3-hf"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
HEARS_MS = 30_000


# What drives the page


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The base URL of one that really hears."""
    with serving(Settings(model="pocketsphinx", data_dir=tmp_path_factory.mktemp("data"))) as url:
        yield url


@pytest.fixture(scope="module")
def dry_server(tmp_path_factory) -> Iterator[str]:
    """The base URL of one whose every model is the dry run's."""
    with serving(Settings(skip_model_load=True, data_dir=tmp_path_factory.mktemp("data"))) as url:
        yield url


@pytest.fixture(scope="module")
def scoring_server(tmp_path_factory) -> Iterator[str]:
    """The base URL of a dry run in which two models score."""
    folder = tmp_path_factory.mktemp("scoring")
    (folder / "clips").mkdir()
    models = [{"key": key, "type": "whisper", "model_id": f"openai/whisper-{key}"} for key in ("small", "tiny")]
    config = {"models": models, "video_clip_dir": "clips", "cache_dir": "cache", "target_sampling_rate": 16000}
    (folder / "config.json").write_text(json.dumps(config))
    settings = Settings(skip_model_load=True, audio_score_config=folder / "config.json", data_dir=folder / "data")
    with serving(settings) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                "--autoplay-policy=no-user-gesture-required",
            ],
        )


class Watch:
    """What must not happen on a page. `allowed`: answers that a test asks for, by status."""

    def __init__(self, page: Page, origin: str) -> None:
        self.allowed: set[int] = set()
        self.seen: list[str] = []
        page.on("pageerror", lambda error: self.seen.append(f"error: {error}"))
        page.on("console", lambda message: self._console(message.type, message.text))
        page.on(
            "request",
            lambda request: (
                self.seen.append(f"request to {request.url}")
                if not request.url.startswith((origin, "blob:", "data:"))
                else None
            ),
        )

    def _console(self, kind: str, text: str) -> None:
        status = re.search(r"the server responded with a status of (\d+)", text)
        if kind in ("error", "warning") and not (status and int(status[1]) in self.allowed):
            self.seen.append(f"{kind}: {text}")


Opener = Callable[..., Page]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Opener]:
    """Opens the page of a server; looks, when the test is done, whether anything happened that must not."""
    opened: list[tuple[Any, Watch]] = []

    def open_page(base: str, *, allow: set[int] = frozenset(), at: str = "", **options: Any) -> Page:
        context = browser.new_context(base_url=base, reduced_motion="reduce", accept_downloads=True, **options)
        page = context.new_page()
        watch = Watch(page, base)
        watch.allowed = set(allow)
        opened.append((context, watch))
        page.goto(f"/ui{at}")
        page.set_default_timeout(5_000)
        return page

    yield open_page
    seen = [one for _, watch in opened for one in watch.seen]
    for context, _ in opened:
        context.close()
    assert not seen


def ready(page: Page) -> Page:
    """The page, once the models are in its form."""
    expect(page.locator("#tasks input").first).to_be_attached()
    return page


def pane(page: Page) -> Locator:
    """The clip that is seen."""
    return page.locator(".pane:visible")


def choose(page: Page, task: str) -> None:
    page.get_by_role("radio", name=task, exact=True).check()


def drop(page: Page, *files: Path) -> None:
    """As a file manager does: a drop event with the files, anywhere on the page."""
    data = page.evaluate_handle(
        """(files) => {
        const data = new DataTransfer();
        for (const [name, text] of files) {
            data.items.add(new File([Uint8Array.from(atob(text), (char) => char.charCodeAt(0))], name));
        }
        return data;
    }""",
        [[file.name, base64.b64encode(file.read_bytes()).decode()] for file in files],
    )
    page.dispatch_event("body", "drop", {"dataTransfer": data})


def heard(page: Page, *files: Path) -> Page:
    """The page, once it has transcribed the files."""
    ready(page).set_input_files("#files", list(files))
    page.click("#run")
    expect(page.locator("#clips [data-state=done]")).to_have_count(len(files), timeout=HEARS_MS)
    return page


def answer(route: Route, body: Any, status: int = 200, **headers: str) -> None:
    """An answer in the server's place."""
    text = body if isinstance(body, str) else json.dumps(body)
    kind = "text/event-stream" if isinstance(body, str) else "application/json"
    route.fulfill(status=status, body=text, headers={"content-type": kind, **headers})


def error(message: str, code: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def events(*data: Any) -> str:
    return "".join(f"data: {json.dumps(one)}\n\n" for one in data)


def position(page: Page) -> float:
    """Where the clip that is seen stands, in seconds."""
    return float(pane(page).locator("audio").evaluate("(audio) => audio.currentTime"))


def colours(canvas: Locator) -> int:
    """How many colours a canvas has."""
    expect(canvas).to_be_visible()
    return int(
        canvas.evaluate("""(canvas) => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.buffer)).size;
    }""")
    )


# Transcripts


@needs_browser
def test_a_dropped_file_is_read_as_text(visit, server):
    page = ready(visit(server))
    drop(page, SPEECH)
    page.get_by_role("button", name="Transcribe", exact=True).click()
    expect(pane(page).locator(".words .said")).to_have_text(re.compile(rf"^{TEXTS[SPEECH.name]}\s*$"), timeout=HEARS_MS)
    expect(page.get_by_role("status")).to_contain_text("people.mp3: Transcript done")


@needs_browser
def test_each_of_several_has_its_own_result_and_a_bad_one_spoils_none(visit, server, tmp_path):
    bad = tmp_path / "bad.mp3"
    bad.write_bytes(b"not audio at all" * 99)
    page = ready(visit(server, allow={400, 415, 422}))
    page.set_input_files("#files", [SAMPLES / "doctor.flac", bad, SAMPLES / "window.ogg"])
    page.get_by_role("button", name="Transcribe 3 clips").click()
    lines = page.locator("#clips li")
    for line, name in ((0, "doctor.flac"), (2, "window.ogg")):
        expect(lines.nth(line).locator(".gist")).to_have_text(TEXTS[name], timeout=HEARS_MS)
    expect(lines.nth(1)).to_have_attribute("data-state", "failed", timeout=HEARS_MS)
    lines.nth(1).locator(".choose").click()
    expect(pane(page).get_by_role("alert")).not_to_be_empty()
    lines.nth(2).locator(".choose").click()
    expect(pane(page).get_by_role("alert")).to_have_count(0)
    page.get_by_role("button", name="Remove bad.mp3").click()
    expect(lines).to_have_count(2)
    expect(lines.nth(1).locator(".choose")).to_be_focused()


@needs_browser
def test_a_click_on_a_word_plays_from_it_and_lights_it(visit, dry_server):
    page = heard(visit(dry_server), SPEECH)
    words = pane(page).locator(".word")
    word = words.nth(1)
    word.click()
    expect(word).to_have_class(re.compile(r"\bnow\b"))
    assert position(page) > 0.5
    expect(words.last).to_have_class(re.compile(r"\bnow\b"))  # it plays on to the end
    expect(word).not_to_have_class(re.compile(r"\bnow\b"))


@needs_browser
def test_doubtful_words_are_marked_for_every_reader(visit, dry_server):
    """By an underline, and by a name that says the number: not by the color alone."""
    page = visit(dry_server)
    sent = []

    def reply(route) -> None:
        sent.append(route.request.post_data_buffer or b"")
        sure = [("clear", 0.97), ("unsure", 0.42), ("guess", 0.1), ("unknown", None)]
        words = [{"word": word, "start": i, "end": i + 1, "confidence": value} for i, (word, value) in enumerate(sure)]
        answer(route, {"text": "clear unsure guess unknown", "language": "en", "words": words, "segments": []})

    page.route("**/v1/audio/transcriptions", reply)
    ready(page).set_input_files("#files", SPEECH)
    page.get_by_label("Mark doubtful words").check()
    page.click("#run")
    marked = pane(page).locator(".word.doubtful")
    expect(marked).to_have_text(["unsure", "guess"])
    assert b'name="confidence"\r\n\r\ntrue' in sent[0]
    for word, share in ((marked.first, "42% sure"), (marked.last, "10% sure")):
        expect(word).to_have_attribute("title", share)
        expect(word).to_have_accessible_name(re.compile(share))
        assert "underline" in word.evaluate("one => getComputedStyle(one).textDecorationLine")
    page.get_by_label("Mark doubtful words").uncheck()


@needs_browser
def test_what_is_saved_is_what_the_server_would_have_written(visit, server):
    page = heard(visit(server), SPEECH)
    for kind, form in (("srt", "srt"), ("vtt", "vtt"), ("json", "verbose_json"), ("txt", None)):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Save as {kind}").click()
        assert download.value.suggested_filename == f"people.{kind}"
        saved = Path(download.value.path()).read_text()
        if form is None:
            assert saved == f"{TEXTS[SPEECH.name]}\n"
            continue
        reply = requests.post(
            f"{server}/v1/audio/transcriptions",
            files={"file": SPEECH.open("rb")},
            timeout=30,
            data={"model": "pocketsphinx", "response_format": form, "timestamp_granularities[]": ["word", "segment"]},
        )
        if kind == "json":
            theirs, ours = reply.json(), json.loads(saved)
            assert {
                name: ours[name] for name in ("text", "words", "segments", "language", "duration")
            }.items() <= theirs.items()
        else:
            assert saved == reply.text


@needs_browser
def test_a_sample_shows_what_the_page_does(visit, server):
    page = ready(visit(server))
    for task in ("Transcribe", "Caption"):
        expect(page.locator("#abilities dt", has_text=task)).to_be_visible()
    expect(page.locator("#snippet")).to_contain_text(f"curl {server}/v1/audio/transcriptions")
    page.get_by_role("button", name="Try a sample").click()
    words = " ".join(TEXTS[name] for name in ("people.mp3", "doctor.flac", "monday.m4a"))
    expect(page.locator("#clips .gist")).to_have_text(words, timeout=HEARS_MS)
    expect(page.locator("#empty")).to_be_hidden()


@needs_browser
def test_all_finished_clips_are_saved_together(visit, server, tmp_path):
    page = ready(visit(server, allow={400, 415}))
    page.set_input_files("#files", SPEECH)
    page.click("#run")
    expect(page.locator("#clips [data-state=done]")).to_have_count(1, timeout=HEARS_MS)
    expect(page.get_by_role("group", name="Save all clips")).to_be_hidden()
    (tmp_path / "bad.mp3").write_bytes(b"not audio at all" * 99)
    page.set_input_files("#files", [SAMPLES / "doctor.flac", tmp_path / "bad.mp3", SPEECH])
    page.click("#run")
    expect(page.locator("#clips [data-state=done]")).to_have_count(3, timeout=HEARS_MS)
    expect(page.get_by_role("group", name="Save all clips")).to_contain_text("3 of 4 clips done")
    for kind in ("txt", "srt", "vtt", "json"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Save all as {kind}").click()
        assert download.value.suggested_filename == f"aviary-{kind}.zip"
        with zipfile.ZipFile(download.value.path()) as archive:
            assert archive.testzip() is None
            assert archive.namelist() == [f"people.{kind}", f"doctor.{kind}", f"people (2).{kind}"]
            saved = {name: archive.read(name).decode() for name in archive.namelist()}
        with page.expect_download() as download:
            page.locator("#clips .choose").first.click()
            pane(page).get_by_role("button", name=f"Save as {kind}").click()
        assert saved[f"people.{kind}"] == Path(download.value.path()).read_text()
    assert json.loads(saved["doctor.json"])["text"] == TEXTS["doctor.flac"]


@needs_browser
def test_an_archive_holds_any_text_under_a_harmless_name(visit, server):
    texts = {"a.txt": "x" * 70_000, "ü 🐦.txt": "🐦\n", "../../etc/passwd": "", "A.TXT": "other"}
    made = ready(visit(server)).evaluate(
        """async (files) => {
        const { zip } = await import("/ui/zip.js");
        const blob = zip(files, new Date(2026, 1, 4, 19, 30, 58));
        return btoa(String.fromCharCode(...new Uint8Array(await blob.arrayBuffer())));
    }""",
        [{"name": name, "text": text} for name, text in texts.items()],
    )
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(made))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["a.txt", "ü 🐦.txt", ".._.._etc_passwd", "A (2).TXT"]
        assert [archive.read(name).decode() for name in archive.namelist()] == list(texts.values())
        assert archive.infolist()[0].date_time == (2026, 2, 4, 19, 30, 58)


@needs_browser
def test_what_is_done_or_cannot_succeed_is_not_sent_again(visit, server, tmp_path):
    bad = tmp_path / "bad.mp3"
    bad.write_bytes(b"not audio at all" * 99)
    page = ready(visit(server, allow={400, 415}))
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if "transcriptions" in request.url else None)
    page.set_input_files("#files", [bad, SPEECH])
    page.click("#run")
    expect(page.locator("#clips [data-state=done]")).to_have_count(1, timeout=HEARS_MS)
    expect(page.locator("#clips [data-state=failed]")).to_have_count(1)
    expect(pane(page).get_by_role("alert")).to_contain_text("not sent again")
    expect(pane(page).get_by_role("button", name="Try again")).to_have_count(0)
    expect(page.locator("#run")).to_be_disabled()
    page.set_input_files("#files", SAMPLES / "doctor.flac")
    page.get_by_role("button", name="Transcribe", exact=True).click()
    expect(page.locator("#clips [data-state=done]")).to_have_count(2, timeout=HEARS_MS)
    assert len(sent) == 3
    expect(page.locator("#run")).to_be_disabled()
    expect(page.locator("#go-note")).to_be_visible()
    page.get_by_label("Each segment").uncheck()
    page.get_by_role("button", name="Transcribe again").click()
    expect(page.locator("#run")).to_be_disabled(timeout=HEARS_MS)
    assert len(sent) == 4, "only the clip that is open"


@needs_browser
def test_a_refused_option_is_sent_again_once_it_has_changed(visit, dry_server):
    page = ready(visit(dry_server, allow={400}))
    wrong = error("temperature: too hot", "invalid_request", "temperature")
    page.route("**/v1/audio/captions", lambda route: answer(route, wrong, 400))
    choose(page, "Caption")
    page.set_input_files("#files", SPEECH)
    page.click("#run")
    expect(pane(page).get_by_role("alert")).to_contain_text("change the model or an option")
    expect(page.locator("#run")).to_be_disabled()
    page.unroute("**/v1/audio/captions")
    page.get_by_label("Temperature").fill("0.5")
    page.click("#run")
    expect(page.locator("#clips [data-state=done]")).to_have_count(1, timeout=HEARS_MS)


@needs_browser
def test_a_language_without_spaces_is_shown_without_spaces(visit, dry_server):
    page = ready(visit(dry_server))
    text = "今天天气很好。我们去公园吧。"
    words = [{"word": char, "start": i / 10, "end": (i + 1) / 10} for i, char in enumerate(text)]
    segments = [{"text": text[:7], "start": 0.0, "end": 0.7}, {"text": text[7:], "start": 0.7, "end": 1.4}]
    page.route(
        "**/v1/audio/transcriptions",
        lambda route: answer(
            route, {"text": text, "duration": 1.4, "language": "zh", "words": words, "segments": segments}
        ),
    )
    page.set_input_files("#files", SPEECH)
    page.click("#run")
    expect(pane(page).locator(".said")).to_have_text([text[:7], text[7:]])


def spans(texts: list[str], starts: list[int]) -> tuple[Span, ...]:
    edges = sorted(starts)
    return tuple(Span(text, edges[i] / 1000, edges[i + 1] / 1000) for i, text in enumerate(texts[: len(edges) - 1]))


words_of = st.lists(
    st.text("ab&<>-é🐦.¿", min_size=1, max_size=30) | st.text("x", min_size=3, max_size=9), max_size=30
) | st.lists(st.text("x", min_size=1, max_size=9), min_size=30, max_size=30)
times_of = st.sampled_from([5_000, 15_000, 90_000]).flatmap(
    lambda last: st.lists(st.integers(0, last), min_size=31, max_size=31, unique=True)
)
transcripts = st.builds(
    lambda words, starts, cuts: (words, spans(words, starts), cuts),
    words_of,
    times_of,
    st.sets(st.integers(0, 29), max_size=4),
)
gaps = st.sampled_from([" ", ""])


def times(span: Span) -> dict[str, Any]:
    return {"start": span.start, "end": span.end, "speaker": span.speaker, "channel": span.channel}


@needs_browser
@settings(
    max_examples=30,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.data_too_large, HealthCheck.too_slow],
)
@given(
    made=st.lists(transcripts, min_size=1, max_size=12),
    worded=st.booleans(),
    gap=gaps,
    speakers=st.lists(st.sampled_from([None, "Speaker 1", "A <b> & --> c"]), min_size=1, max_size=7),
    channels=st.lists(st.sampled_from([None, 0, 1]), min_size=1, max_size=3),
)
def test_subtitles_are_cut_by_the_servers_rule(subtitles_page, made, worded, gap, speakers, channels):
    ours, theirs = [], []
    for words, unnamed, cuts in made:
        timed = tuple(
            dataclasses.replace(word, speaker=name, channel=channel)
            for word, name, channel in zip(unnamed, itertools.cycle(speakers), itertools.cycle(channels), strict=False)
        )
        ends = sorted({cut for cut in cuts if cut < len(timed)} | ({len(timed) - 1} if timed else set()))
        begins = [0, *(end + 1 for end in ends[:-1])]
        segments = tuple(
            dataclasses.replace(timed[a], text=gap.join(words[a : b + 1]), end=timed[b].end)
            for a, b in zip(begins, ends, strict=False)
        )
        transcript = Transcript(gap.join(words), timed if worded else (), segments)
        theirs.append([subtitles.srt(transcript, 61.5), subtitles.vtt(transcript, 61.5), voices.text(transcript)])
        ours.append(
            {
                "text": transcript.text,
                "duration": 61.5,
                "words": [{"word": one.text, **times(one)} for one in transcript.words],
                "segments": [{"text": one.text, **times(one)} for one in segments],
            }
        )
    assert (
        subtitles_page.evaluate(
            """async (all) => {
        const { srt, vtt } = await import("/ui/subtitles.js");
        const { textOf } = await import("/ui/voices.js");
        return all.map((one) => [srt(one), vtt(one), textOf(one)]);
    }""",
            ours,
        )
        == theirs
    )


@pytest.fixture
def subtitles_page(visit, server) -> Page:
    return ready(visit(server))


@needs_browser
def test_events_may_come_in_any_pieces(visit, server):
    text = ": still working\n\n" + events({"n": 1}) + "data: a\r\ndata: b\r\n\r\nid: 7\ndata:c\r\r" + "data: unfinished"
    assert (
        ready(visit(server)).evaluate(
            """async (text) => {
        const { parser } = await import("/ui/sse.js");
        return [1, 2, 3, 7, text.length].map((size) => {
            const got = [];
            const push = parser((data) => got.push(data));
            for (let at = 0; at < text.length; at += size) push(text.slice(at, at + size));
            return got;
        });
    }""",
            text,
        )
        == [['{"n": 1}', "a\nb", "c"]] * 5
    )


@needs_browser
def test_text_is_shown_as_it_comes_and_an_error_amid_the_stream_is_told(visit, dry_server):
    page = visit(dry_server)
    page.route(
        "**/v1/audio/transcriptions",
        lambda route: answer(
            route,
            events(
                {"type": "transcript.text.delta", "delta": "half of"},
                error("the device is gone", "device_lost"),
            ),
        ),
    )
    ready(page).set_input_files("#files", SPEECH)
    page.click("#run")
    expect(pane(page).get_by_role("alert")).to_contain_text("the device is gone")
    expect(pane(page)).to_contain_text("device_lost")
    page.unroute("**/v1/audio/transcriptions")
    pane(page).get_by_role("button", name="Try again").click()
    expect(pane(page).locator(".words")).to_contain_text("[dry-run] transcribe", timeout=HEARS_MS)


@needs_browser
def test_what_a_page_shows_is_never_taken_for_markup(visit, dry_server):
    evil = "<img src=x onerror=alert(1)>"
    page = visit(dry_server)
    page.route(
        "**/v1/audio/transcriptions",
        lambda route: answer(
            route,
            {
                "text": evil,
                "language": evil,
                "words": [{"word": evil, "start": 0, "end": 1}],
                "segments": [{"text": evil, "start": 0, "end": 1}],
            },
        ),
    )
    ready(page).set_input_files(
        "#files", {"name": f"{evil}.mp3", "mimeType": "audio/mpeg", "buffer": SPEECH.read_bytes()}
    )
    page.click("#run")
    expect(pane(page).locator(".word")).to_have_text(evil)
    expect(page.locator("main img")).to_have_count(0)


# Sources


@needs_browser
def test_a_url_goes_to_the_server_as_json(visit, server):
    page = ready(visit(server, allow={400, 403, 422}))
    page.fill("#url", "not a url")
    page.get_by_role("button", name="Add").click()
    expect(page.locator("#source-error [role=alert]")).to_contain_text("not a URL")
    page.fill("#url", "http://127.0.0.1:9/clips/birds.ogg")  # nothing private is fetched: the server says so
    page.keyboard.press("Enter")
    expect(page.locator("#clips .name")).to_have_text("birds.ogg")
    with page.expect_request("**/v1/audio/transcriptions") as request:
        page.click("#run")
    sent = request.value.post_data_json
    assert sent["audio"] == {"url": "http://127.0.0.1:9/clips/birds.ogg"}
    assert sent["timestamp_granularities"] == ["word", "segment"]
    expect(pane(page).get_by_role("alert")).not_to_be_empty()
    expect(pane(page).locator(".player")).to_contain_text("No waveform: this page reads no files of other sites")
    page.fill("#url", "s3://bucket/birds.ogg")
    page.keyboard.press("Enter")
    expect(pane(page).locator(".player")).to_contain_text("Only the server can read this URL")
    expect(pane(page).get_by_role("button", name="Play")).to_be_hidden()


@needs_browser
def test_the_microphone_is_recorded_and_heard(visit, server):
    page = ready(visit(server, permissions=["microphone"]))
    page.get_by_role("button", name="Record").click()
    level = page.get_by_role("meter", name="Input level")
    expect(level).to_be_visible()
    expect(page.locator("#record-time")).to_have_text("0:01")  # the fake device beeps once a second
    assert (
        level.evaluate(
            "(meter) => new Promise((done) => { let top = 0; const end = Date.now() + 1200; (function look() {"
            "top = Math.max(top, meter.value); Date.now() < end ? setTimeout(look, 20) : done(top); })(); })"
        )
        > 0.3
    )
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#clips .name")).to_have_text("recording-1.wav")
    page.get_by_role("button", name="Listen again").click()
    expect(pane(page).get_by_role("button", name="Pause")).to_be_visible()
    assert 1.5 < pane(page).locator("audio").evaluate("(audio) => audio.duration") < 20
    page.click("#run")
    expect(page.locator("#clips [data-state=done]")).to_have_count(1, timeout=HEARS_MS)


SLOW_DECODER = """() => {
    const decode = OfflineAudioContext.prototype.decodeAudioData;
    OfflineAudioContext.prototype.decodeAudioData = async function (data) {
        await new Promise((done) => setTimeout(done, 600));
        return decode.call(this, data);
    };
}"""
MICROPHONE = """() => {
    const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    navigator.mediaDevices.getUserMedia = async (wanted) => (window.microphone = await ask(wanted));
}"""


@needs_browser
def test_a_recording_that_begins_while_the_last_is_made_ready_is_seen(visit, dry_server):
    page = ready(visit(dry_server, permissions=["microphone"]))
    page.evaluate(SLOW_DECODER)
    for _ in range(2):
        page.get_by_role("button", name="Record", exact=True).click()
        expect(page.get_by_role("meter", name="Input level")).to_be_visible()
        page.wait_for_timeout(300)
        page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Record", exact=True).click()
    expect(page.locator("#clips .name")).to_have_text(["recording-1.wav", "recording-2.wav"])
    expect(page.get_by_role("meter", name="Input level")).to_be_visible()
    page.get_by_role("button", name="Stop").click()


@needs_browser
def test_a_microphone_that_goes_away_ends_the_recording(visit, dry_server):
    page = ready(visit(dry_server, permissions=["microphone"]))
    page.evaluate(MICROPHONE)
    record = page.get_by_role("button", name="Record", exact=True)
    record.click()
    expect(page.locator("#record-time")).to_have_text("0:01")
    page.evaluate("microphone.getTracks().forEach((track) => track.stop())")
    expect(page.locator("#clips .name")).to_have_text("recording-1.wav")
    record.click()
    expect(page.get_by_role("meter", name="Input level")).to_be_visible()
    expect(page.locator("#record-time")).to_have_text("0:01")  # a recording without a sample is not added
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#clips .name")).to_have_count(2)


# The other tasks


@needs_browser
def test_options_are_those_of_the_task_and_the_model(visit, server):
    page = ready(visit(server))
    page.select_option("#model", "nvidia/canary-1b-v2")
    expect(page.get_by_label("Spoken language")).to_be_visible()
    expect(page.get_by_label("Style")).to_be_hidden()
    choose(page, "Translate")
    assert page.input_value("#model") == "nvidia/canary-1b-v2"
    expect(page.get_by_label("Write in")).to_be_visible()
    choose(page, "Caption")
    assert page.input_value("#model") == WRITER
    expect(page.get_by_label("Style")).to_be_visible()
    expect(page.get_by_label("Spoken language")).to_be_hidden()
    choose(page, "Embed")
    expect(page.get_by_label("Pooling")).to_be_visible()
    expect(page.locator("#more")).to_be_hidden()
    expect(page.get_by_role("radio", name="Score")).to_have_count(0)


@needs_browser
def test_scoring_is_offered_by_a_server_that_has_it_set_up(visit, scoring_server):
    page = ready(visit(scoring_server))
    choose(page, "Score")
    expect(page.locator("#model")).to_be_hidden()
    expect(page.get_by_label("Scoring model").locator("option")).to_have_text(["small", "tiny"])
    page.set_input_files("#files", SPEECH)
    page.click("#run")
    expect(page.get_by_label("Video id")).to_be_focused()
    expect(page.get_by_label("Video id")).to_have_attribute("aria-invalid", "true")


@needs_browser
def test_models_are_listed_by_where_their_weights_are(visit, dry_server):
    page = visit(dry_server)
    listed = requests.get(f"{dry_server}/v1/models", timeout=30).json()
    for row in listed["data"]:
        name = (row["aliases"] or [row["id"]])[0]
        row |= {"on_disk": name in ("whisper", "pocketsphinx"), "loaded": name == "pocketsphinx"}
        row |= {"size_bytes": 1_617_824_864 if name == "whisper" else None, "installed": name != "canary"}
    page.route("**/v1/models", lambda route: answer(route, listed))
    page.reload()
    groups = ready(page).locator("#model optgroup")
    assert groups.evaluate_all("(all) => all.map((one) => one.label)") == [
        "Loaded",
        "On the server, not loaded",
        "Not downloaded",
    ]
    expect(groups.nth(0).locator("option")).to_have_text(["pocketsphinx"])
    expect(groups.nth(1).locator("option")).to_have_text(["whisper"])
    expect(groups.locator("option", has_text=re.compile("^canary$"))).to_have_count(0)
    about = page.locator("#model-about")
    page.select_option("#model", label="whisper")
    expect(about).to_contain_text("loads at its first use · 1.6 GB")
    page.select_option("#model", label="whisper-tiny")
    expect(about).to_contain_text("its first use downloads it")
    page.select_option("#model", label="pocketsphinx")
    expect(about).to_have_text("English · loaded · BSD-2-Clause")


@needs_browser
def test_a_model_is_downloaded_with_its_progress_and_removed(visit, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "VOLUME", tmp_path / "volume")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    own = Settings(model="pocketsphinx", hf_home=tmp_path / "hf", data_dir=tmp_path / "data")
    with hub_on_loopback(monkeypatch) as hub, serving(own) as url:
        hub.add(
            "openai/whisper-tiny",
            config__json=b'{"architectures": ["WhisperForConditionalGeneration"]}',
            model__safetensors=bytes(2_000_000),
        )
        page = ready(visit(url, allow={503}))
        about, weights = page.locator("#model-about"), page.locator("#weights")
        expect(weights).to_be_empty()
        page.select_option("#model", label="whisper-tiny")
        hub.status = 500
        weights.get_by_role("button", name="Download now").click()
        expect(page.locator("#weights-error").get_by_role("alert")).to_contain_text("is unreachable")
        hub.status = None
        hub.gate.clear()
        weights.get_by_role("button", name="Download now").click()
        expect(weights).to_have_text(re.compile(r"Downloading: \d+ kB of 2\.0 MB"))
        page.reload()
        page.select_option("#model", label="whisper-tiny")
        expect(about).to_contain_text("being downloaded")
        weights.get_by_role("button", name="Follow the download").click()
        expect(weights).to_have_text(re.compile("Downloading"))
        hub.gate.set()
        expect(about).to_contain_text("loads at its first use · 2.0 MB · Apache-2.0", timeout=HEARS_MS)
        assert len([begin for _, begin in hub.sent]) == 1
        weights.get_by_role("button", name="Remove from the server").click()
        weights.get_by_role("button", name="Remove 2.0 MB from the server?").click()
        expect(about).to_contain_text("its first use downloads it")
        expect(weights.get_by_role("button", name="Download now")).to_be_visible()


@needs_browser
def test_a_model_is_said_to_be_loaded_after_its_first_use(visit, dry_server):
    page = ready(visit(dry_server))
    page.select_option("#model", label="canary-180m")
    about = page.locator("#model-about")
    expect(about).to_contain_text("loads at its first use")
    page.set_input_files("#files", SPEECH)
    page.click("#run")
    expect(about).to_contain_text("· loaded", timeout=HEARS_MS)
    assert page.locator("#model").evaluate("(one) => one.selectedOptions[0].text") == "canary-180m"


@needs_browser
def test_a_caption(visit, dry_server):
    page = ready(visit(dry_server))
    choose(page, "Caption")
    page.set_input_files("#files", SPEECH)
    page.select_option("#style", "brief")
    page.get_by_text("More options").click()
    page.fill("#max_new_tokens", "20")
    sent: list[bytes] = []
    page.route(
        "**/v1/audio/captions", lambda route: (sent.append(route.request.post_data_buffer or b""), route.continue_())
    )
    page.click("#run")
    expect(pane(page).locator(".caption")).to_contain_text("[dry-run] caption", timeout=HEARS_MS)
    fields = dict(re.findall(rb'name="(\w+)"\r\n\r\n(.*)\r\n', sent[0]))
    assert fields == {b"model": WRITER.encode(), b"style": b"brief", b"max_new_tokens": b"20"}


@needs_browser
def test_an_embedding_and_an_analysis_are_drawn(visit, dry_server):
    page = ready(visit(dry_server))
    choose(page, "Embed")
    page.set_input_files("#files", SPEECH)
    page.click("#run")
    section = pane(page).locator("[data-task=embed]")
    expect(section.get_by_role("img")).to_have_count(2, timeout=HEARS_MS)
    expect(section).to_contain_text("1280 numbers")
    for picture in section.get_by_role("img").all():
        assert colours(picture) > 1
    with page.expect_download() as download:
        section.get_by_role("button", name="Save as json").click()
    saved = json.loads(Path(download.value.path()).read_text())
    assert len(base64.b64decode(saved["embedding"])) == 4 * saved["shape"][0] * saved["shape"][1]
    choose(page, "Analyze")
    page.select_option("#pooling", "mean")
    page.click("#run")
    section = pane(page).locator("[data-task=analyze]")
    expect(section.locator(".caption")).not_to_be_empty(timeout=HEARS_MS)
    expect(section.get_by_role("img")).to_have_count(1)


@needs_browser
def test_what_is_alike_is_light_and_what_is_not_is_dark(visit, dry_server):
    """Two halves of a clip that have nothing in common: two light squares on the diagonal, two dark ones off it."""
    halves = np.repeat(np.eye(2, 16, dtype="<f4"), 25, axis=0)
    page = ready(visit(dry_server))
    page.route(
        "**/v1/audio/embeddings",
        lambda route: answer(
            route,
            {
                "model": "m",
                "embedding": base64.b64encode(halves.tobytes()).decode(),
                "shape": [50, 16],
                "frame_rate": 25.0,
                "pooling": "none",
            },
        ),
    )
    choose(page, "Embed")
    page.set_input_files("#files", SPEECH)
    page.click("#run")
    expect(pane(page).locator("canvas.square")).to_be_visible()
    light = (
        pane(page)
        .locator("canvas.square")
        .evaluate("""(canvas) => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return [[0.3, 0.7], [0.8, 0.2], [0.3, 0.2], [0.8, 0.7]].map(([x, y]) =>
            data[4 * (Math.floor(canvas.height * y) * canvas.width + Math.floor(canvas.width * x))]);
    }""")
    )
    assert min(light[:2]) > 200 > 40 > max(light[2:])


@needs_browser
def test_a_chat_keeps_its_history_and_can_be_stopped(visit, dry_server):
    page = ready(visit(dry_server))
    choose(page, "Chat")
    page.set_input_files("#files", SAMPLES / "doctor.flac")
    question = page.get_by_label("Your question")
    choose(page, "Transcribe")
    expect(question).to_have_count(0)
    choose(page, "Chat")
    expect(page.locator("#run")).to_be_hidden()
    question.focus()
    page.keyboard.type("What is this?")
    page.keyboard.press("Enter")
    answers = pane(page).locator(".assistant .said")
    expect(answers).to_contain_text("[dry-run] chat", timeout=HEARS_MS)
    question.fill("And who speaks?")
    with page.expect_request("**/v1/chat/completions") as request:
        page.get_by_role("button", name="Ask").click()
    first, *later = request.value.post_data_json["messages"]
    assert [part["type"] for part in first["content"]] == ["input_audio", "text"]
    assert base64.b64decode(first["content"][0]["input_audio"]["data"]).startswith(b"RIFF")  # flac is not for OpenAI
    assert [one["role"] for one in later] == ["assistant", "user"]
    expect(answers).to_have_count(2)

    half = events({"choices": [{"delta": {"content": "Half an"}}]}, error("the device is lost", "device_lost"))
    page.route("**/v1/chat/completions", lambda route: answer(route, half))
    question.fill("What else?")
    page.keyboard.press("Enter")
    expect(pane(page).get_by_role("alert")).to_contain_text("the device is lost")
    page.unroute("**/v1/chat/completions")
    pane(page).get_by_role("button", name="Try again").click()
    expect(answers).to_have_count(3)
    expect(answers.last).to_contain_text("[dry-run] chat", timeout=HEARS_MS)

    page.route("**/v1/chat/completions", lambda route: None)  # an answer that never comes
    question.fill("Still there?")
    with page.expect_event("requestfailed"):
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Ask")).to_be_enabled()
    expect(pane(page).locator(".assistant")).to_have_count(3)
    expect(pane(page).get_by_role("alert")).to_have_count(0)


@needs_browser
def test_a_score_is_three_meters_and_an_unknown_clip_is_explained(visit, scoring_server):
    page = ready(visit(scoring_server, allow={404}))
    scores = {"model": "whisper-small", "sim_score": 0.83, "audio_sim_score": 0.78, "text_sim_score": 0.88}
    page.route(
        "**/score",
        lambda route: (
            answer(route, scores)
            if b"part01" in route.request.post_data_buffer
            else answer(route, error("unknown clip", "not_found"), 404)
        ),
    )
    page.set_input_files("#files", SPEECH)
    choose(page, "Score")
    page.get_by_label("Video id").fill("birds")
    page.get_by_label("Clip id").fill("part01")
    page.click("#run")
    meters = pane(page).get_by_role("meter")
    expect(meters).to_have_count(3)
    assert [float(one.get_attribute("value") or 0) for one in meters.all()] == [0.83, 0.78, 0.88]
    page.get_by_label("Clip id").fill("part02")
    page.click("#run")
    expect(pane(page).get_by_role("alert")).to_contain_text("has no reference clips")


# Errors and keys


@needs_browser
def test_a_server_that_wants_a_key_gets_it(visit, dry_server):
    page = visit(dry_server, allow={401})
    page.route(
        "**/v1/models",
        lambda route: (
            route.continue_()
            if route.request.headers.get("authorization") == "Bearer s3cret"
            else answer(route, error("send the API key", "invalid_api_key"), 401)
        ),
    )
    page.reload()
    dialog = page.get_by_role("dialog", name="API key")
    page.get_by_label("Key", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("rejected")
    page.get_by_label("Key", exact=True).fill("s3cret")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    ready(page)
    assert page.evaluate("[sessionStorage.length, localStorage.length]") == [1, 0]


@needs_browser
def test_a_busy_server_says_when_to_try_again(visit, dry_server):
    page = ready(visit(dry_server, allow={429}))
    page.route(
        "**/v1/audio/transcriptions",
        lambda route: answer(route, error("512 inputs wait", "queue_full"), 429, **{"retry-after": "1"}),
    )
    page.set_input_files("#files", SPEECH)
    page.click("#run")
    expect(pane(page).get_by_role("alert")).to_contain_text("try again in 1 second")
    again = pane(page).get_by_role("button", name="Try again")
    expect(again).to_be_disabled()
    page.unroute("**/v1/audio/transcriptions")
    expect(again).to_be_enabled()
    again.click()
    expect(page.locator("#clips [data-state=done]")).to_have_count(1, timeout=HEARS_MS)


@needs_browser
def test_an_error_about_a_field_stands_at_the_field(visit, dry_server):
    page = ready(visit(dry_server, allow={400}))
    wrong = error("temperature: too hot", "invalid_request", "temperature")
    page.route("**/v1/audio/captions", lambda route: answer(route, wrong, 400))
    choose(page, "Caption")
    page.set_input_files("#files", SPEECH)
    page.click("#run")
    field = page.get_by_label("Temperature")
    expect(field).to_be_visible()  # it lay in what was closed
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_have_accessible_description("temperature: too hot")
    field.fill("0.5")
    expect(field).not_to_have_attribute("aria-invalid", "true")


@needs_browser
def test_a_run_can_be_stopped_and_run_again(visit, dry_server):
    page = ready(visit(dry_server))
    page.route("**/v1/audio/transcriptions", lambda route: None)
    page.set_input_files("#files", SPEECH)
    page.click("#run")
    pane(page).get_by_role("button", name="Stop").click()
    expect(page.locator("#clips [data-state=stopped]")).to_have_count(1)
    page.unroute("**/v1/audio/transcriptions")
    pane(page).get_by_role("button", name="Run it again").focus()
    page.keyboard.press("Enter")
    expect(pane(page).locator("[data-task=transcribe]")).to_be_focused()  # its button is gone
    expect(page.locator("#clips [data-state=done]")).to_have_count(1, timeout=HEARS_MS)


# Jobs


@needs_browser
def test_a_job_runs_in_the_background_and_its_result_is_opened(visit, server):
    page = ready(visit(server, timezone_id="Asia/Tokyo", locale="en-GB"))
    page.set_input_files("#files", SPEECH)
    page.get_by_role("button", name="In background").click()
    expect(page.get_by_role("heading", name="Background jobs")).to_be_focused()
    page.get_by_role("button", name="Open: people.mp3").click(timeout=HEARS_MS)
    expect(page.locator("#job-result")).to_contain_text(TEXTS[SPEECH.name])
    expect(page.locator("#job-result h2")).to_be_focused()
    created = datetime.fromisoformat(page.locator("#jobs time").first.get_attribute("datetime").replace("Z", "+00:00"))
    assert abs(time.time() - created.timestamp()) < 60
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as srt").click()
    assert TEXTS[SPEECH.name] in Path(download.value.path()).read_text().replace("\n", " ")


@needs_browser
def test_a_job_that_fails_says_why(visit, dry_server, tmp_path):
    bad = tmp_path / "bad.mp3"
    bad.write_bytes(b"not audio at all" * 99)
    page = ready(visit(dry_server))
    page.set_input_files("#files", bad)
    page.get_by_role("button", name="In background").click()
    expect(page.locator("#jobs li")).to_contain_text("Failed", timeout=HEARS_MS)
    expect(page.locator("#jobs li")).to_contain_text("not readable as audio")


@needs_browser
def test_jobs_say_what_they_are_and_can_be_searched(visit, server):
    page = ready(visit(server, locale="de-DE"))
    page.set_input_files("#files", [SPEECH, SAMPLES / "doctor.flac"])
    page.get_by_role("button", name="In background").click()
    line = page.locator("#jobs li", has_text="doctor.flac").first
    expect(line).to_contain_text("Transcribe · pocketsphinx · 53 kB", timeout=HEARS_MS)
    expect(line.locator("time")).to_have_text(re.compile(r"^\d{2}\.\d{2}\.\d{4}, \d{2}:\d{2}$"))
    page.get_by_label("Search").fill("DOCTOR")
    expect(page.locator("#jobs li", has_text="people.mp3")).to_have_count(0)
    expect(line).to_be_visible()
    page.get_by_label("Search").fill("nothing like that")
    expect(page.get_by_text("No job matches.")).to_be_visible()
    page.get_by_label("Search").fill("")
    expect(page.locator("#jobs li", has_text="people.mp3").first).to_be_visible()


@needs_browser
def test_older_jobs_are_shown_on_request(visit, tmp_path):
    with serving(Settings(skip_model_load=True, data_dir=tmp_path)) as url:
        for _ in range(52):
            requests.post(f"{url}/run", json={"input": {"audio": "/nowhere.wav"}}, timeout=30)
        page = ready(visit(url, at="#/jobs"))
        expect(page.locator("#jobs li")).to_have_count(50)
        page.get_by_role("button", name="Show older jobs").click()
        expect(page.locator("#jobs li")).to_have_count(52)
        expect(page.get_by_role("button", name="Show older jobs")).to_be_hidden()


@needs_browser
def test_a_failed_job_is_tried_again_where_the_audio_still_is(visit, tmp_path):
    settings = Settings(model="pocketsphinx", data_dir=tmp_path / "data", allowed_paths=(tmp_path,))
    with serving(settings) as url:
        later = tmp_path / "later.wav"
        requests.post(f"{url}/run", json={"input": {"audio": str(later)}}, timeout=30)
        page = ready(visit(url, at="#/jobs"))
        failed = page.locator("#jobs li[data-state=failed]")
        expect(failed).to_have_count(1, timeout=HEARS_MS)
        shutil.copyfile(SAMPLES / "week.wav", later)
        failed.get_by_role("button", name="Try again").click()
        page.get_by_role("button", name="Open").click(timeout=HEARS_MS)
        expect(page.locator("#job-result")).to_contain_text(TEXTS["week.wav"])


@needs_browser
def test_a_canceled_upload_is_sent_again_by_the_tab_that_has_it(visit, dry_server):
    page = ready(visit(dry_server))

    def list_as_canceled(route: Route) -> None:
        """The server's list, in which the oldest upload of this test is still canceled, as no test can time it."""
        listed = route.fetch().json()
        for one in listed["jobs"]:
            if one["job_id"] == first:
                one |= {"status": "cancelled"}
        answer(route, listed)

    page.set_input_files("#files", SAMPLES / "window.ogg")
    with page.expect_response("**/transcribe/async") as response:
        page.get_by_role("button", name="In background").click()
    first = response.value.json()["job_id"]
    page.route("**/jobs?*", list_as_canceled)
    canceled = page.locator("#jobs li[data-state=cancelled]")
    page.get_by_label("Search").fill("window")
    with page.expect_request("**/transcribe/async"):
        canceled.get_by_role("button", name="Try again").click()
    expect(page.locator("#jobs li")).to_have_count(2)
    page.reload()  # the tab no longer has the file
    expect(canceled).to_contain_text("To try again, add the file again")
    expect(canceled.get_by_role("button", name="Try again")).to_have_count(0)


@needs_browser
def test_a_second_click_leaves_no_second_job(visit, dry_server):
    page = ready(visit(dry_server))
    sent: list[Route] = []

    def hold(route: Route) -> None:
        sent.append(route)

    page.route("**/transcribe/async", hold)
    page.set_input_files("#files", SPEECH)
    page.evaluate("() => { background.click(); background.click(); }")
    page.wait_for_timeout(300)
    assert len(sent) == 1
    sent[0].continue_()
    expect(page.get_by_role("heading", name="Background jobs")).to_be_focused()


def job(status: str, done: int = 0) -> dict[str, Any]:
    """As GET /jobs tells of one, for as long as a test needs it to be so."""
    return {
        "job_id": "a",
        "status": status,
        "kind": "run",
        "task": "transcribe",
        "model": "pocketsphinx",
        "filename": "a.mp3",
        "upload_bytes": None,
        "created_at": "2026-02-04T19:30:00Z",
        "started_at": None,
        "completed_at": None,
        "error": None,
        "error_code": None,
        "progress": {"done": done, "total": 10},
        "position": None,
    }


def page_of(one: dict[str, Any]) -> dict[str, Any]:
    """As GET /jobs answers if there is one job."""
    counts = dict.fromkeys(("pending", "processing", "completed", "failed", "cancelled"), 0)
    return {"jobs": [one], "counts": counts | {one["status"]: 1}, "before": None}


@needs_browser
def test_a_job_that_runs_shows_how_far_it_is_and_can_be_cancelled(visit, dry_server):
    page = ready(visit(dry_server))
    state = ["processing"]
    page.route("**/jobs?*", lambda route: answer(route, page_of(job(state[-1], 3))))
    page.route("**/jobs/a/cancel", lambda route: (state.append("cancelled"), answer(route, {"status": "cancelled"})))
    page.get_by_role("link", name="Jobs").click()
    expect(page.get_by_role("progressbar", name="Progress of a.mp3")).to_have_attribute("value", "0.3")
    expect(page.locator("#jobs-open")).to_have_text("1")
    page.get_by_role("button", name="Cancel: a.mp3").click()
    expect(page.locator("#jobs li")).to_contain_text("Canceled")
    expect(page.locator("#jobs-open")).to_be_hidden()


@needs_browser
def test_a_long_job_shows_its_seconds_of_audio(visit, dry_server):
    page = ready(visit(dry_server))
    progress = {"done": 0, "total": 1, "audio_sec_done": 600.0, "audio_sec_total": 2400.0}
    page.route("**/jobs?*", lambda route: answer(route, page_of(job("processing") | {"progress": progress})))
    page.get_by_role("link", name="Jobs").click()
    expect(page.get_by_role("progressbar", name="Progress of a.mp3")).to_have_attribute("value", "0.25")
    expect(page.locator("#jobs li")).to_contain_text("Running, 10:00 of 40:00")


@needs_browser
def test_a_long_clip_shows_its_seconds_of_audio_while_it_runs(visit, tmp_path):
    """Whisper's row has windows of 30 s; the model runs one whenever the test lets it."""
    turns = threading.Semaphore(0)

    class Steps(Backend):
        def load(self) -> None:
            pass

        def infer(self, batch: Batch) -> list[Transcript]:
            for _ in batch.pieces:
                assert turns.acquire(timeout=60)
            return [Transcript("said") for _ in batch.pieces]

    ours = Settings(model="whisper", data_dir=tmp_path / "data", batch_max_items=1)
    with Engine(ours, create_backend=lambda _row: Steps()) as engine, serving(ours, engine) as url:
        page = ready(visit(url))
        page.set_input_files("#files", tone(tmp_path / "a.wav", 80))
        page.click("#run")
        turns.release()
        expect(pane(page)).to_contain_text(re.compile(r"Transcribed 0:[12]\d of 1:20"), timeout=HEARS_MS)
        value = float(page.get_by_role("progressbar", name="Progress").get_attribute("value") or 0)
        assert 0.1 < value < 0.4
        turns.release(99)
        expect(pane(page)).to_contain_text("said said said", timeout=HEARS_MS)


@needs_browser
def test_jobs_are_asked_for_only_while_something_is_unfinished(visit, dry_server):
    page = ready(visit(dry_server))
    asked: list[str] = []
    state = ["processing"]

    def jobs(route: Route) -> None:
        asked.append(route.request.url)
        answer(route, page_of(job(state[-1])))

    page.route("**/jobs?*", jobs)
    page.clock.install()
    page.get_by_role("link", name="Jobs").click()
    line = page.locator("#jobs li")
    expect(line).to_contain_text("Running")
    page.clock.run_for(1000)
    assert len(asked) == 1
    state.append("completed")
    page.clock.run_for(10_000)
    expect(line).to_contain_text("Done")
    assert len(asked) == 2
    page.clock.run_for(60_000)
    page.wait_for_timeout(200)  # of the machine's own clock: a request would need it
    assert len(asked) == 2


@needs_browser
def test_a_server_without_jobs_says_so(visit, dry_server):
    page = visit(dry_server, allow={404})
    page.route("**/jobs?*", lambda route: answer(route, error("Not Found", "not_found"), 404))
    ready(page).get_by_role("link", name="Jobs").click()
    expect(page.locator("#jobs-error [role=alert]")).to_contain_text("does not support background jobs")


# For everyone


@needs_browser
def test_the_keyboard_is_enough(visit, dry_server):
    page = ready(visit(dry_server))
    page.set_input_files("#files", SPEECH)  # the system's own dialog is not the page's
    page.locator("body").press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.locator("#tasks input:checked").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tasks input[value=translate]")).to_be_checked()
    page.keyboard.press("ArrowLeft")
    for _ in range(12):
        if page.locator("#run").evaluate("(run) => run === document.activeElement"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#clips [data-state=done]")).to_have_count(1, timeout=HEARS_MS)

    wave = pane(page).get_by_role("slider", name="Position in the clip")
    wave.focus()
    page.keyboard.press("End")
    length = float(wave.get_attribute("aria-valuemax") or 0)
    assert abs(position(page) - length) < 0.2
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert 0 < position(page) < 1
    page.keyboard.press(" ")
    expect(pane(page).get_by_role("button", name="Pause")).to_be_visible()
    page.keyboard.press(" ")
    expect(pane(page).get_by_role("button", name="Play", exact=True)).to_be_visible()

    words = pane(page).locator(".word")
    for _ in range(6):  # past the buttons that save the transcript
        page.keyboard.press("Tab")
        if words.first.evaluate("(word) => word === document.activeElement"):
            break
    expect(words.first).to_be_focused()
    page.keyboard.press("End")
    expect(words.last).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    expect(words.nth(words.count() - 2)).to_have_class(re.compile(r"\bnow\b"))


AUDIT = """() => {
    const wrong = [];
    const shown = (one) => one.checkVisibility() && !one.closest("[hidden]");
    const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
    ids.filter((id, i) => ids.indexOf(id) !== i).forEach((id) => wrong.push(`two of #${id}`));
    for (const field of document.querySelectorAll("input, select, textarea")) {
        if (!field.labels.length && !field.ariaLabel) wrong.push(`no label: ${field.id}`);
    }
    for (const one of document.querySelectorAll("button, a, [role=button]")) {
        if (shown(one) && !(one.ariaLabel ?? one.textContent).trim()) wrong.push(`no name: ${one.outerHTML}`);
    }
    const described = "meter, progress, canvas, [role=group], [role=slider], section, article, nav";
    for (const one of document.querySelectorAll(described)) {
        const label = one.ariaLabel ?? document.getElementById(one.getAttribute("aria-labelledby"))?.textContent;
        const read = shown(one) && !one.closest("[aria-hidden=true]");
        if (read && !label) wrong.push(`no label: ${one.outerHTML.slice(0, 80)}`);
    }
    for (const one of document.querySelectorAll("[tabindex]")) {
        if (one.tabIndex > 0) wrong.push(`tabindex of ${one.outerHTML}`);
    }
    for (const one of document.querySelectorAll("img")) if (one.getAttribute("alt") === null) wrong.push("no alt");
    for (const name of ["aria-labelledby", "aria-describedby", "for"]) {
        for (const one of document.querySelectorAll(`[${name}]`)) {
            const id = one.getAttribute(name);
            if (!document.getElementById(id)) wrong.push(`${name} to nothing: ${id}`);
        }
    }
    const levels = [...document.querySelectorAll("h1, h2, h3, h4")].filter(shown).map((one) => Number(one.tagName[1]));
    if (levels.filter((level) => level === 1).length !== 1) wrong.push("not one h1");
    if (!document.documentElement.lang || !document.title) wrong.push("no lang or title");
    if (document.querySelectorAll("main, body > header").length !== 2) wrong.push("landmarks");
    return wrong;
}"""

CONTRAST = """() => {
    const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const light = (name) => {
        context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);
        context.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((c) => c / 255)
            .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = ([a, b]) => {
        const both = [light(a), light(b)];
        return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    };
    const text = [["ink", "paper"], ["muted", "paper"], ["muted", "card"], ["bad", "paper"], ["ink", "bad-soft"],
        ["accent", "paper"], ["on-accent", "accent"], ["muted", "bad-soft"], ["muted", "shade"]];
    const edges = [["edge", "paper"], ["edge", "card"], ["accent", "card"]];
    return [Math.min(...text.map(ratio)), Math.min(...edges.map(ratio))];
}"""


@needs_browser
def test_everything_has_a_name_and_its_place(visit, dry_server):
    page = visit(dry_server)
    assert ready(page).evaluate(AUDIT) == []
    assert heard(page, SPEECH, SAMPLES / "doctor.flac").evaluate(AUDIT) == []
    choose(page, "Analyze")
    page.click("#run")
    expect(pane(page).locator("canvas.square")).to_be_visible(timeout=HEARS_MS)
    choose(page, "Chat")
    expect(page.get_by_label("Your question")).to_be_visible()
    assert page.evaluate(AUDIT) == []
    page.get_by_role("link", name="Jobs").click()
    assert page.evaluate(AUDIT) == []


@needs_browser
@pytest.mark.parametrize(
    "options",
    [
        {"color_scheme": "light", "viewport": {"width": 1280, "height": 800}},
        {"color_scheme": "dark", "viewport": {"width": 1280, "height": 800}},
        {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
    ],
    ids=["light", "dark", "phone"],
)
def test_axe_finds_no_fault(visit, dry_server, tmp_path, options):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed").Axe()
    page = ready(visit(dry_server, allow={400, 415}, **options))

    def faults(state: str) -> list[tuple[str, str, str]]:
        violations = axe.run(page).response["violations"]
        return [(state, one["id"], node["html"]) for one in violations for node in one["nodes"]]

    found = faults("empty")
    bad = tmp_path / "bad.mp3"
    bad.write_bytes(b"not audio at all" * 99)
    page.set_input_files("#files", [SPEECH, bad, SAMPLES / "doctor.flac"])
    page.click("#run")
    expect(page.locator("#clips [data-state=done]")).to_have_count(2, timeout=HEARS_MS)
    found += faults("done")
    page.locator("#clips .choose").nth(1).click()
    expect(pane(page).get_by_role("alert")).not_to_be_empty()
    found += faults("failed")
    page.locator("#clips .choose").first.click()
    choose(page, "Analyze")
    page.click("#run")
    expect(pane(page).locator("canvas.square")).to_be_visible(timeout=HEARS_MS)
    found += faults("analyzed")
    choose(page, "Chat")
    expect(page.get_by_label("Your question")).to_be_visible()
    found += faults("chat")
    page.get_by_role("link", name="Jobs").click()
    expect(page.get_by_label("Search")).to_be_visible()
    found += faults("jobs")
    assert found == []


@needs_browser
def test_light_and_dark_are_the_systems_until_the_reader_chooses(visit, dry_server):
    background = "getComputedStyle(document.documentElement).backgroundColor"
    light, dark = (ready(visit(dry_server, color_scheme=scheme)) for scheme in ("light", "dark"))
    shades = light.evaluate(background), dark.evaluate(background)
    assert shades[0] != shades[1]
    for page in (light, dark):
        text, edges = page.evaluate(CONTRAST)
        assert text >= 4.5
        assert edges >= 3
    light.get_by_role("button", name="Dark").click()
    assert light.evaluate(background) == shades[1]
    light.reload()
    assert light.evaluate(background) == shades[1]
    expect(light.get_by_role("button", name="Dark")).to_have_attribute("aria-pressed", "true")


SCROLLED = """() => [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility()
    && /auto|scroll/.test(getComputedStyle(one).overflowY) && one.scrollHeight > one.clientHeight + 1)
    .map((one) => one.className || one.id)"""


@needs_browser
def test_only_the_page_scrolls_and_the_buttons_stay_in_view(visit, dry_server):
    page = ready(visit(dry_server, viewport={"width": 1280, "height": 800}))
    page.set_input_files("#files", [SPEECH] * 20)
    page.click("#run")
    expect(page.locator("#clips [data-state=done]")).to_have_count(20, timeout=HEARS_MS)
    assert page.evaluate(SCROLLED) == []
    for button in (page.locator("#run"), page.locator("#timestamps-segment"), pane(page).get_by_label("Save as srt")):
        expect(button).to_be_in_viewport(ratio=1)
    line = page.locator("#clips li").nth(12)
    line.scroll_into_view_if_needed()
    before = line.bounding_box()
    line.locator(".choose").click()
    after = line.bounding_box()
    assert before
    assert after
    assert abs(before["y"] - after["y"]) < 2, "the line stays under the pointer while the pane above it closes"


@needs_browser
def test_a_phone_shows_the_result(visit, dry_server):
    page = ready(visit(dry_server, viewport={"width": 390, "height": 844}))
    page.set_input_files("#files", SPEECH)
    page.click("#run")
    expect(pane(page).locator(".words")).to_be_in_viewport(timeout=HEARS_MS)
    page.get_by_role("button", name="Remove people.mp3").click()
    page.get_by_role("button", name="Try a sample").click()
    expect(pane(page).locator(".words")).to_be_in_viewport(timeout=HEARS_MS)


@needs_browser
def test_nothing_is_cut_off_on_a_narrow_screen(visit, dry_server):
    page = heard(visit(dry_server, viewport={"width": 360, "height": 740}), SPEECH)
    choose(page, "Caption")
    page.get_by_text("More options").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360


# The source


def test_the_page_is_static_and_its_modules_are_small():
    html = (UI / "index.html").read_text()
    assert not re.search(r"\sstyle=|<style|\son\w+=|<script(?![^>]*\ssrc=)|=\"(https?:)?//\w", html)
    ids = set(re.findall(r'\bid="([\w-]+)"', html))
    scripts = sorted(UI.glob("*.js"))
    assert scripts
    for path in scripts:
        text = path.read_text()
        assert text.startswith("/**"), f"{path.name} does not say what it is for"
        assert len(text.splitlines()) <= 250, path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path.name
        )
        assert not re.search(r"https?://\w", text), path.name
        for name in re.findall(r'byId\("([\w-]+)"\)', text):
            assert name in ids, f"{path.name}: #{name}"
        for line in re.finditer(r"^export (?!class)", text, re.MULTILINE):
            assert text[: line.start()].rstrip().endswith("*/"), (
                f"{path.name}: {text[line.start() : line.start() + 60]}"
            )
        for target in re.findall(r'from "\./([\w.]+)"', text):
            assert (UI / target).exists(), f"{path.name}: {target}"
