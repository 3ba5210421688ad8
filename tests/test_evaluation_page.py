"""The page of an evaluation in a real browser, opened as a file: its filter, and its players."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.config import Settings
from worker.engine.engine import Engine
from worker.evaluation import audio_links, evaluate, read_folder, to_html

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

SAMPLES = Path(__file__).parent.parent / "samples"
LABELS = {
    "week.wav": "See you, next week!",
    "people.mp3": "There were more than two hundred people in the room.",
    "doctor.flac": "Nothing like it.",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The page of pocketsphinx on three samples, one of which has a wrong label."""
    root = tmp_path_factory.mktemp("report")
    audio, pages = root / "audio files", root / "pages"
    audio.mkdir()
    pages.mkdir()
    for name, label in LABELS.items():
        shutil.copy(SAMPLES / name, audio)
        (audio / name).with_suffix(".txt").write_text(label)
    corpus = read_folder(audio)
    with Engine(Settings(model="pocketsphinx", data_dir=root / "data", decode_workers=2)) as engine:
        evaluated = evaluate(engine, corpus, trusted=True)
    path = pages / "report.html"
    path.write_text(to_html(evaluated, audio=audio_links(corpus, pages)))
    return path


@pytest.fixture
def page(report) -> Iterator[Page]:
    seen: list[str] = []
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
    ):
        page = browser.new_page()
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("console", lambda message: seen.append(message.text))
        page.goto(report.as_uri())
        yield page
    assert not seen


def shown(page: Page) -> list[str]:
    return [row.get_by_role("link").inner_text() for row in page.locator("tbody tr:visible").all()]


def test_the_filter_selects_by_text_and_by_error_rate(page):
    text, rate = page.get_by_label("Find in names and texts"), page.get_by_label("Lowest WER in %")
    status = page.get_by_role("status")
    assert shown(page) == ["doctor.flac", "people.mp3", "week.wav"]
    expect(status).to_have_text("3 of 3 files")
    for sought, files in (
        ("you, NEXT", ["week.wav"]),  # a label as written
        ("the doctor", ["doctor.flac"]),  # a transcript
        ("people.mp", ["people.mp3"]),
        ("deletion", []),  # a word for screen readers
    ):
        text.fill(sought)
        assert shown(page) == files
    expect(status).to_have_text("0 of 3 files")
    text.fill("")
    rate.fill("50")
    assert shown(page) == ["doctor.flac"]
    rate.press("Enter")
    assert shown(page) == ["doctor.flac"], "nothing is submitted"
    rate.fill("")
    expect(status).to_have_text("3 of 3 files")


def test_each_file_has_a_player(page):
    started: list[str] = []
    page.on("request", lambda request: started.append(request.url.rpartition("/")[2]))
    for name, seconds in (("doctor.flac", 2.4), ("people.mp3", 3.1)):
        page.get_by_role("button", name=f"Play {name}").click()
        player = page.get_by_role("row").filter(has_text=name).locator("audio")
        expect(player).to_be_focused()
        assert player.evaluate(
            "audio => new Promise(resolve => audio.ontimeupdate = () => audio.currentTime && resolve(audio.duration))"
        ) == pytest.approx(seconds, abs=0.3)
    assert [audio.evaluate("audio => audio.paused") for audio in page.locator("audio").all()] == [True, False]
    assert list(dict.fromkeys(started)) == ["doctor.flac", "people.mp3"], "nothing is read before somebody plays it"


def test_a_file_that_the_browser_cannot_play_is_still_linked(page, report):
    page.get_by_role("button", name="Play week.wav").click()  # in a format that browsers do not know
    row = page.get_by_role("row").filter(has_text="week.wav")
    expect(row.get_by_text("This browser cannot play the file.")).to_be_visible()
    link = row.get_by_role("link", name="week.wav").evaluate("link => link.href")
    assert link == (report.parent.parent / "audio files" / "week.wav").as_uri()
