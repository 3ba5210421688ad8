"""Speakers, channels and keywords on the page: requested, shown by color and name, renamed, and saved with names."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fixtures.dialogue import dialogue
from test_ui import HEARS_MS, SAMPLES, SPEECH, answer, browser, choose, dry_server, needs_browser, pane, ready, visit

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Locator, Page, Route, expect

__all__ = ["browser", "dry_server", "visit"]  # fixtures
pytestmark = [pytest.mark.slow, needs_browser]

TALK = {
    "text": "good morning hello again bye",
    "language": "en",
    "duration": 5,
    "words": [
        {"word": word, "start": i, "end": i + 1, "speaker": f"Speaker {speaker}"}
        for i, (word, speaker) in enumerate([("good", 1), ("morning", 1), ("hello", 2), ("again", 2), ("bye", 1)])
    ],
    "segments": [
        {"text": "good morning", "start": 0, "end": 2, "speaker": "Speaker 1"},
        {"text": "hello again", "start": 2, "end": 4, "speaker": "Speaker 2"},
        {"text": "bye", "start": 4, "end": 5, "speaker": "Speaker 1"},
    ],
}
# Two channels that talk at the same time: the words of their segments are interleaved.
CALL = {
    "text": "yes please thank you",
    "language": "en",
    "duration": 4,
    "words": [
        {"word": "yes", "start": 0.0, "end": 0.5, "channel": 0},
        {"word": "thank", "start": 0.4, "end": 0.9, "channel": 1},
        {"word": "please", "start": 1.0, "end": 1.5, "channel": 0},
        {"word": "you", "start": 1.2, "end": 1.6, "channel": 1},
    ],
    "segments": [
        {"text": "yes please", "start": 0.0, "end": 1.5, "channel": 0},
        {"text": "thank you", "start": 0.4, "end": 1.6, "channel": 1},
    ],
}


def transcribed(page: Page, reply: dict, *files: Path) -> Page:
    """The page, once it has transcribed the files, each with the reply."""
    page.route("**/v1/audio/transcriptions", lambda route: answer(route, reply))
    ready(page).set_input_files("#files", list(files or (SPEECH,)))
    page.click("#run")
    expect(page.locator("#clips [data-state=done]")).to_have_count(len(files) or 1, timeout=HEARS_MS)
    return page


def saved(page: Page, button: str) -> bytes:
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return Path(download.value.path()).read_bytes()


def sent_by(page: Page) -> str:
    """The form that the page sends when the button is clicked."""
    forms: list[str] = []

    def read(route: Route) -> None:
        forms.append((route.request.post_data_buffer or b"").decode("utf-8", "replace"))
        route.continue_()

    page.route("**/v1/audio/transcriptions", read)
    page.click("#run")
    expect(page.locator("#clips [data-state=done]")).to_have_count(1, timeout=HEARS_MS)
    page.unroute("**/v1/audio/transcriptions", read)
    return forms[0]


def contrast(element: Locator) -> float:
    """The contrast of an element's text with the page behind it, as WCAG 2 defines it."""
    return element.evaluate(
        """element => {
        const luminance = (color) => {
            const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
            context.fillStyle = color;
            context.fillRect(0, 0, 1, 1);
            const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((value) => value / 255)
                .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const root = document.documentElement;
        const [dark, light] = [getComputedStyle(element).color, getComputedStyle(root).backgroundColor].map(luminance)
            .sort((a, b) => a - b);
        return (light + 0.05) / (dark + 0.05);
    }"""
    )


def test_the_options_are_sent(visit, dry_server, tmp_path):
    talk = dialogue(("slt", "rms"), 4)
    soundfile.write(tmp_path / "talk.wav", np.stack([talk.samples, talk.samples[::-1]], axis=1), 16_000)
    page = ready(visit(dry_server))
    page.set_input_files("#files", tmp_path / "talk.wav")
    expect(page.get_by_label("Number of speakers")).to_be_hidden()
    page.get_by_label("Name the speakers").check()
    page.get_by_label("Number of speakers").fill("3")
    page.get_by_label("Transcribe each channel separately").check()
    page.locator("#more summary").click()
    page.get_by_label("Words to expect").fill("Ada Lovelace, Zuse\n\n  Babbage ,")
    form = sent_by(page)
    for name, value in (
        ("diarize", "true"),
        ("num_speakers", "3"),
        ("channels", "split"),
        ("keywords[]", "Ada Lovelace"),
        ("keywords[]", "Zuse"),
        ("keywords[]", "Babbage"),
    ):
        assert f'name="{name}"\r\n\r\n{value}\r\n' in form
    assert form.count('name="keywords[]"') == 3
    expect(page.locator("#clips [data-state=done]")).to_have_count(1, timeout=HEARS_MS)
    names = pane(page).locator(".speaker")
    expect(names.first).to_have_text("Channel 1, Speaker 1")
    expect(names.filter(has_text="Channel 2, Speaker 3").first).to_be_visible()
    expect(page.get_by_role("button", name="In background")).to_be_hidden()  # a job has no such options
    page.get_by_label("Name the speakers").uncheck()
    form = sent_by(page)
    assert 'name="diarize"' not in form
    assert 'name="num_speakers"' not in form


def test_the_options_are_those_of_the_model_and_the_task(visit, dry_server):
    page = ready(visit(dry_server))
    page.select_option("#model", "nvidia/canary-1b")
    expect(page.get_by_label("Name the speakers")).to_be_hidden()  # it has no times of words
    expect(page.get_by_label("Transcribe each channel separately")).to_be_visible()
    page.select_option("#model", "nvidia/parakeet-tdt-0.6b-v3")
    expect(page.get_by_label("Name the speakers")).to_be_visible()
    choose(page, "Caption")
    for label in ("Name the speakers", "Transcribe each channel separately", "Words to expect"):
        expect(page.get_by_label(label)).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_speakers_have_a_color_and_a_name(visit, dry_server, scheme):
    page = transcribed(visit(dry_server, color_scheme=scheme), TALK)
    said = pane(page).locator(".said")
    expect(said).to_have_text(["Speaker 1 good morning", "Speaker 2 hello again", "Speaker 1 bye"])
    colors = [one.evaluate("one => getComputedStyle(one).borderLeftColor") for one in said.all()]
    assert colors[0] == colors[2] != colors[1]
    assert all(contrast(name) >= 4.5 for name in pane(page).locator(".speaker").all())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_color_can_be_read(visit, dry_server, scheme):
    words = [
        {"word": "hm", "start": i, "end": i + 1, "text": "hm", "speaker": f"Speaker {i + 1}", "channel": None}
        for i in range(9)
    ]
    talk = {"text": " ".join(["hm"] * 9), "language": "en", "words": words, "segments": []}
    page = transcribed(visit(dry_server, color_scheme=scheme), talk)
    names = pane(page).locator(".speaker")
    expect(names).to_have_count(9)
    assert len({one.evaluate("one => getComputedStyle(one).color") for one in names.all()}) == 8
    assert all(contrast(name) >= 4.5 for name in names.all())


def test_names_are_in_everything_that_is_saved(visit, dry_server):
    page = transcribed(visit(dry_server), TALK, SPEECH, SAMPLES / "doctor.flac")
    page.locator("#clips .choose").first.click()
    pane(page).get_by_label("Name of Speaker 1").fill(" Ada <1> ")
    expect(pane(page).locator(".speaker")).to_have_text(["Ada <1>", "Speaker 2", "Ada <1>"])
    assert saved(page, "Save as txt") == b"Ada <1>: good morning\nSpeaker 2: hello again\nAda <1>: bye\n"
    assert b"Ada <1>: good morning\n" in saved(page, "Save as srt")
    assert b"<v Ada &lt;1&gt;>good morning\n" in saved(page, "Save as vtt")
    document = json.loads(saved(page, "Save as json"))
    assert [one["speaker"] for one in document["segments"]] == ["Ada <1>", "Speaker 2", "Ada <1>"]
    assert [one["speaker"] for one in document["words"]] == ["Ada <1>"] * 2 + ["Speaker 2"] * 2 + ["Ada <1>"]
    with zipfile.ZipFile(io.BytesIO(saved(page, "Save all as txt"))) as archive:
        texts = {name: archive.read(name) for name in archive.namelist()}
    assert texts["people.txt"].startswith(b"Ada <1>: good")
    assert texts["doctor.txt"].startswith(b"Speaker 1: good")  # another clip has other speakers
    pane(page).get_by_label("Name of Speaker 1").fill("")
    expect(pane(page).locator(".speaker")).to_have_text(["Speaker 1", "Speaker 2", "Speaker 1"])
    assert saved(page, "Save as txt").startswith(b"Speaker 1: good morning\n")


def test_channels_have_paragraphs_of_their_own(visit, dry_server):
    page = transcribed(visit(dry_server), CALL)
    expect(pane(page).locator(".said")).to_have_text(["Channel 1 yes please", "Channel 2 thank you"])
    pane(page).locator(".word", has_text="please").click()
    page.keyboard.press("ArrowRight")
    expect(pane(page).locator(".word", has_text="thank")).to_be_focused()
    pane(page).get_by_label("Name of Channel 2").fill("Grace")
    assert saved(page, "Save as txt") == b"Channel 1: yes please\nChannel 2, Grace: thank you\n"
    assert b"Channel 2, Grace: thank you\n" in saved(page, "Save as srt")
    document = json.loads(saved(page, "Save as json"))
    assert [(one["channel"], one.get("speaker")) for one in document["segments"]] == [(0, None), (1, "Grace")]


def test_axe_finds_no_fault_with_speakers(visit, dry_server):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed").Axe()
    for scheme in ("light", "dark"):
        page = ready(visit(dry_server, color_scheme=scheme))
        page.get_by_label("Name the speakers").check()
        page.locator("#more summary").click()
        transcribed(page, TALK)
        violations = axe.run(page).response["violations"]
        assert [(one["id"], node["html"]) for one in violations for node in one["nodes"]] == []
