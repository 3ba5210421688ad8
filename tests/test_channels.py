"""Each channel of a file is decoded and transcribed as if it were a file of its own, and all of them count."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from serving import serving

from worker.audio import ffmpeg
from worker.audio.arrays import memory_source
from worker.audio.decode import Decoder, expected_sec, stated_sec
from worker.backends.base import Backend
from worker.client import Client
from worker.config import Settings
from worker.engine import channels
from worker.engine.engine import Engine
from worker.entrypoints.python import load_model
from worker.errors import DecodeFailed, EmptyAudio, TooLong, Unsupported
from worker.protocol import render
from worker.protocol.request import parse
from worker.types import Clip, Progress, Span, Transcript

SAMPLES = Path(__file__).parent.parent / "samples"
PROMISED_SEC = 1.5


@pytest.fixture(scope="module")
def decoder():
    decoder = Decoder(Settings())
    yield decoder
    decoder.close()


def split(decoder: Decoder, path: Path, **options) -> list[Clip]:
    with open(path, "rb") as file:
        return list(decoder.decode_channels(file, **options))


def voices(count: int, rate: int = 16_000, sec: float = PROMISED_SEC) -> np.ndarray:
    """Noise of shape (samples, count), other in each channel."""
    noise = np.random.default_rng(7).standard_normal((int(rate * sec), count))
    return (noise * 0.1).clip(-1, 1).astype(np.float32)


@pytest.mark.parametrize("rate", [16_000, 44_100, 8_000])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize(("suffix", "subtype"), [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", "PCM_16")])
def test_a_channel_is_exactly_what_its_mono_file_is(decoder, tmp_path, rate, count, suffix, subtype):
    audio = voices(count, rate, 21.0 if count == 2 else PROMISED_SEC)
    soundfile.write(tmp_path / f"all.{suffix}", audio, rate, subtype)
    found = split(decoder, tmp_path / f"all.{suffix}")
    assert len(found) == count
    for number, clip in enumerate(found):
        soundfile.write(tmp_path / f"one.{suffix}", audio[:, number], rate, subtype)
        (alone,) = split(decoder, tmp_path / f"one.{suffix}", split=False)
        assert clip.samples.dtype == np.float32
        assert np.array_equal(clip.samples, alone.samples)


@pytest.mark.parametrize("name", ["a.mka", "a.mov", "a.au"])
def test_libav_splits_as_libsndfile_does(decoder, tmp_path, name):
    soundfile.write(tmp_path / "a.wav", voices(2), 16_000, "PCM_16")
    run = [ffmpeg.executable(), "-v", "error", "-i", tmp_path / "a.wav", "-c:a", "pcm_s16be", tmp_path / name]
    subprocess.run(run, check=True)
    for one, other in zip(split(decoder, tmp_path / "a.wav"), split(decoder, tmp_path / name), strict=True):
        assert np.array_equal(one.samples, other.samples)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_ffmpeg_splits_as_the_libraries_do(decoder, tmp_path, monkeypatch, count):
    soundfile.write(tmp_path / "a.wav", voices(count), 16_000, "FLOAT")
    expected = split(decoder, tmp_path / "a.wav")

    class Refusing:
        alive = True

        def decode(self, *_args):
            from worker.audio.decode import _LibraryRefused

            raise _LibraryRefused("for the test")

        def close(self):
            pass

    monkeypatch.setattr("worker.audio.decode._Process", Refusing)
    alone = Decoder(Settings())
    try:
        found = split(alone, tmp_path / "a.wav")
    finally:
        alone.close()
    assert len(found) == count
    for one, other in zip(expected, found, strict=True):
        assert np.array_equal(one.samples, other.samples)


def test_a_damaged_file_gives_what_there_is_of_each_channel(decoder, tmp_path):
    soundfile.write(tmp_path / "a.flac", voices(2, sec=5.0), 16_000, "PCM_16")
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) // 2])
    left, right = split(decoder, tmp_path / "a.flac")
    assert left.warning
    assert left.warning == right.warning
    assert 1.0 < left.duration_sec == right.duration_sec < 4.0
    (tmp_path / "a.flac").write_bytes(b"fLaC" + bytes(100))
    with pytest.raises(DecodeFailed):
        split(decoder, tmp_path / "a.flac")
    soundfile.write(tmp_path / "a.wav", np.empty((0, 2)), 16_000)
    with pytest.raises(EmptyAudio):
        split(decoder, tmp_path / "a.wav")


def test_more_channels_than_can_be_split_are_refused(decoder, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((800, 65), np.int16), 16_000)
    with pytest.raises(DecodeFailed, match="more than 64 channels"):
        split(decoder, tmp_path / "a.wav")


def test_the_limit_on_length_counts_all_channels(tmp_path):
    soundfile.write(tmp_path / "a.wav", voices(2, sec=4.0), 16_000, "PCM_16")
    soundfile.write(tmp_path / "a.ogg", voices(2, sec=4.0), 16_000, format="OGG")
    decoder = Decoder(Settings(max_audio_sec=6))
    try:
        for name in ("a.wav", "a.ogg"):
            assert len(split(decoder, tmp_path / name, split=False)) == 1
            with pytest.raises(TooLong):
                split(decoder, tmp_path / name)
    finally:
        decoder.close()


def test_the_expected_length_counts_all_channels(tmp_path):
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, voices(3), 16_000, "PCM_16")
        with open(tmp_path / name, "rb") as file:
            assert stated_sec(file, True) == pytest.approx(3 * PROMISED_SEC)
            assert expected_sec(file, split=True) == pytest.approx(3 * PROMISED_SEC)
            assert expected_sec(file) == pytest.approx(PROMISED_SEC)


def test_channels_with_the_same_samples_are_one():
    one, other = Clip(np.ones(9, np.float32)), Clip(np.zeros(9, np.float32))
    same = Clip(np.ones(9, np.float32))
    assert channels.distinct([one, other, same]) == {0: one, 1: other}


TEXTS = st.lists(st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=4), max_size=5)


@st.composite
def transcripts(draw) -> Transcript:
    """Words in order of time, in segments."""
    words, segments, now = [], [], 0.0
    for texts in draw(TEXTS):
        own = []
        for text in texts:
            now += draw(st.integers(0, 20)) / 10
            own.append(Span(text, now, now + 0.1))
        words += own
        segments.append(Span(" ".join(texts), own[0].start, own[-1].end))
    return Transcript(" ".join(span.text for span in segments), tuple(words), tuple(segments))


@given(st.lists(transcripts(), min_size=1, max_size=4))
def test_no_word_is_lost_or_doubled_and_each_channel_keeps_its_order(found):
    merged = channels.merge(dict(enumerate(found)), 99.0)
    for level in ("words", "segments"):
        spans = getattr(merged, level)
        assert [span.start for span in spans] == sorted(span.start for span in spans)
        for number, one in enumerate(found):
            own = [(span.text, span.start, span.end) for span in spans if span.channel == number]
            assert own == [(span.text, span.start, span.end) for span in getattr(one, level)]
    assert merged.text.split() == [word for span in merged.segments for word in span.text.split()]
    assert len(merged.text.split()) == len(merged.words)


def test_a_transcript_without_times_is_one_segment_of_its_channel():
    merged = channels.merge({0: Transcript("One two."), 2: Transcript("Three."), 3: Transcript("")}, 2.0)
    assert merged.text == "One two. Three."
    assert merged.segments == (Span("One two.", 0.0, 2.0, channel=0), Span("Three.", 0.0, 2.0, channel=2))


def test_a_warning_names_its_channel():
    merged = channels.merge({0: Transcript("One."), 1: Transcript("Two.", warning="cut")}, 2.0)
    assert merged.warning == "channel 1: cut"


# Through the engine, with a model that transcribes


WEEK, DOCTOR = "week.wav", "doctor.flac"


@pytest.fixture(scope="module")
def bundle():
    with load_model(model="pocketsphinx") as bundle:
        yield bundle


@pytest.fixture(scope="module")
def speech(decoder) -> dict[str, np.ndarray]:
    """The samples of two clips, as int16 of 16 kHz."""
    decoded = {}
    for name in (WEEK, DOCTOR):
        (mixed,) = split(decoder, SAMPLES / name, split=False)
        decoded[name] = (mixed.samples * 32767).round().astype(np.int16)
    return decoded


def together(*clips: np.ndarray) -> np.ndarray:
    """The clips as channels, the shorter ones with silence after them: (samples, channels)."""
    audio = np.zeros((max(map(len, clips)), len(clips)), np.int16)
    for number, one in enumerate(clips):
        audio[: len(one), number] = one
    return audio


def run(bundle, path: Path, **options) -> dict:
    (result,) = run_all(bundle, [path], **options)["results"]
    return result


def run_all(bundle, paths, **options) -> dict:
    request = parse({"inputs": [str(path) for path in paths], **options}, bundle.engine.settings, trusted=True)
    return render.to_json(bundle.engine.submit(request).result(), lambda *_: "")


def without(spans: list[dict], name: str) -> list[dict]:
    return [{key: value for key, value in span.items() if key != name} for span in spans]


def test_two_channels_are_transcribed_exactly_as_two_files(bundle, speech, tmp_path):
    audio = together(speech[WEEK], speech[DOCTOR])
    soundfile.write(tmp_path / "both.wav", audio, 16_000, "PCM_16")
    for number in (0, 1):
        soundfile.write(tmp_path / f"{number}.wav", audio[:, number], 16_000, "PCM_16")
    both = run(bundle, tmp_path / "both.wav", channels="split", timestamps=True)
    assert both["channels"] == 2
    for number in (0, 1):
        alone = run(bundle, tmp_path / f"{number}.wav", timestamps=True)
        for level in ("word", "segment"):
            own = [span for span in both["timestamps"][level] if span["channel"] == number]
            assert own
            assert without(own, "channel") == alone["timestamps"][level]
    starts = [word["start"] for word in both["timestamps"]["word"]]
    assert starts == sorted(starts)
    assert both["text"] == " ".join(segment["segment"] for segment in both["timestamps"]["segment"])


def test_usage_counts_all_channels(bundle, speech, tmp_path):
    soundfile.write(tmp_path / "a.wav", together(speech[WEEK], speech[DOCTOR], speech[WEEK]), 16_000, "PCM_16")
    answer = run_all(bundle, [tmp_path / "a.wav"], channels="split", format="verbose_json")
    (result,) = answer["results"]
    assert result["channels"] == 3
    assert answer["usage"]["audio_sec"] == pytest.approx(3 * result["duration_sec"], abs=0.002)
    assert result["formatted"]["usage"]["seconds"] == answer["usage"]["audio_sec"]
    assert {word["channel"] for word in result["formatted"]["words"]} == {0, 1}, "the third channel is the first"


def test_a_mono_file_is_transcribed_as_it_is_mixed_with_channel_0(bundle):
    mixed = run(bundle, SAMPLES / DOCTOR, timestamps=True)
    apart = run(bundle, SAMPLES / DOCTOR, timestamps=True, channels="split")
    assert apart["text"] == mixed["text"]
    assert apart["channels"] == 1
    assert {word["channel"] for word in apart["timestamps"]["word"]} == {0}
    for level in ("word", "segment"):
        assert without(apart["timestamps"][level], "channel") == mixed["timestamps"][level]
    assert "channels" not in mixed


def test_the_text_format_has_a_line_for_each_channel(bundle, speech, tmp_path):
    soundfile.write(tmp_path / "a.wav", together(speech[WEEK], speech[DOCTOR]), 16_000, "PCM_16")
    said = run(bundle, tmp_path / "a.wav", channels="split", format="text")["formatted"].splitlines()
    assert sorted(line.split(": ")[0] for line in said) == ["Channel 1", "Channel 2"]
    voices = run(bundle, tmp_path / "a.wav", channels="split", format="vtt")["formatted"]
    assert "<v Channel 1>" in voices
    assert "<v Channel 2>" in voices


def test_an_input_may_be_mixed_and_split_at_once(bundle, speech, tmp_path):
    soundfile.write(tmp_path / "a.wav", together(speech[WEEK], speech[DOCTOR]), 16_000, "PCM_16")
    path = str(tmp_path / "a.wav")
    payload = {"inputs": [path, {"source": path, "channels": "split"}, path]}
    request = parse(payload, bundle.engine.settings, trusted=True)
    mixed, apart, again = bundle.engine.submit(request).result().results
    assert mixed.output.text == again.output.text
    assert (mixed.channels, apart.channels) == (1, 2)


@pytest.mark.parametrize("turned", [False, True])
def test_an_array_keeps_its_channels(bundle, speech, tmp_path, turned):
    audio = together(speech[WEEK], speech[DOCTOR])
    soundfile.write(tmp_path / "a.wav", audio, 16_000, "PCM_16")
    expected = bundle.transcribe(tmp_path / "a.wav", timestamps=True, channels="split")
    found = bundle.transcribe(audio.T if turned else audio, sample_rate=16_000, timestamps=True, channels="split")
    assert found.words == expected.words
    assert {word.channel for word in found.words} == {0, 1}


def test_a_part_of_each_channel(bundle, speech, tmp_path):
    audio = together(speech[WEEK], speech[DOCTOR])
    soundfile.write(tmp_path / "a.wav", audio, 16_000, "PCM_16")
    soundfile.write(tmp_path / "part.wav", audio[1600:17600], 16_000, "PCM_16")
    request = parse({"inputs": [str(tmp_path / "a.wav")], "channels": "split"}, bundle.engine.settings, trusted=True)
    (item,) = request.items
    request = dataclasses.replace(request, items=(dataclasses.replace(item, segment=(0.1, 1.0)),))
    (part,) = bundle.engine.submit(request).result().results
    assert part.duration_sec == 1.0
    assert part.output.text == run(bundle, tmp_path / "part.wav", channels="split")["text"]
    beyond = dataclasses.replace(request, items=(dataclasses.replace(item, segment=(99.0, 1.0)),))
    (failed,) = bundle.engine.submit(beyond).result().results
    assert failed.error.code == "empty_audio"


def test_nothing_of_the_audio_is_held_afterward(bundle, speech, tmp_path):
    soundfile.write(tmp_path / "a.wav", together(speech[WEEK], speech[DOCTOR]), 16_000, "PCM_16")
    run(bundle, tmp_path / "a.wav", channels="split")
    run(bundle, tmp_path / "missing.wav", channels="split")
    assert bundle.engine.held_sec == 0


def test_one_channel_that_fails_fails_its_input():
    class Failing(Backend):
        def __init__(self):
            pass

        def weight_bytes(self):
            return 0

        def load(self):
            pass

        def infer(self, batch):
            if any(piece.clip.samples[0] > 0.5 for piece in batch.pieces):
                raise ValueError("the backend failed")
            return [Transcript("One.") for _ in batch.pieces]

    audio = np.stack([np.zeros(16_000), np.ones(16_000)], axis=1)
    with Engine(Settings(model="parakeet"), create_backend=lambda row: Failing()) as engine:
        source = memory_source(audio, 16_000, "a", split=True)
        request = parse({"inputs": ["a"], "channels": "split"}, engine.settings, trusted=True)
        (item,) = request.items
        request = dataclasses.replace(request, items=(dataclasses.replace(item, source=source),))
        (failed,) = engine.submit(request).result().results
        assert failed.error.code == "model_error"
        assert engine.held_sec == 0


@pytest.mark.parametrize("names", [[WEEK], [WEEK, DOCTOR]])
def test_text_is_reported_once_and_in_order(bundle, speech, tmp_path, names):
    soundfile.write(tmp_path / "a.wav", together(*(speech[name] for name in names)), 16_000, "PCM_16")
    request = parse({"inputs": [str(tmp_path / "a.wav")], "channels": "split"}, bundle.engine.settings, trusted=True)
    parts: list[str] = []
    seen: list[Progress] = []
    running = bundle.engine.submit(request, on_text=lambda _index, text: parts.append(text), on_progress=seen.append)
    (result,) = running.result().results
    assert "".join(parts) in ("", result.output.text)
    assert seen[-1].audio_sec_done == pytest.approx(len(names) * result.duration_sec, abs=0.01)
    assert [event.text[1] for event in seen if event.text] == [result.output.text]


@pytest.mark.slow
def test_the_client_gets_the_channels(speech, tmp_path):
    soundfile.write(tmp_path / "a.wav", together(speech[WEEK], speech[DOCTOR]), 16_000, "PCM_16")
    with serving(Settings(model="pocketsphinx", data_dir=tmp_path / "data")) as url, Client(url) as client:
        found = client.transcribe(tmp_path / "a.wav", channels="split")
        array = client.transcribe(together(speech[WEEK], speech[DOCTOR]), sample_rate=16_000, channels="split")
    assert {word.channel for word in found.words} == {segment.channel for segment in found.segments} == {0, 1}
    assert array.words == found.words
    assert " ".join(segment.text for segment in found.segments) == found.text


@pytest.mark.parametrize("model", ["audio-flamingo", "parakeet"])
def test_the_client_splits_channels_for_models_with_and_without_times(tmp_path, model):
    soundfile.write(tmp_path / "a.wav", voices(2), 16_000, "PCM_16")
    with serving(Settings(skip_model_load=True, data_dir=tmp_path / "data")) as url, Client(url) as client:
        found = client.transcribe(tmp_path / "a.wav", model=model, channels="split")
    assert {segment.channel for segment in found.segments} == {0, 1}


def test_other_tasks_do_not_split():
    settings = Settings(skip_model_load=True)
    with pytest.raises(Unsupported, match="channels can be split for transcribe and translate, not caption"):
        parse({"inputs": ["a"], "task": "caption", "channels": "split"}, settings)
    parse({"inputs": ["a"], "task": "caption", "channels": "mix"}, settings)


@pytest.mark.parametrize("form", ["diarized_json", "rttm"])
def test_a_format_of_speakers_requires_them(form):
    settings = Settings(skip_model_load=True)
    with pytest.raises(Unsupported, match=f'format {form} requires speakers.* channels to "split"'):
        parse({"inputs": ["a"], "format": form}, settings)
    parse({"inputs": ["a"], "format": form, "channels": "split"}, settings)
