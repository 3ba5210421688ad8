"""Long audio through the engine: whole or in windows, speech without words a second time, and a warning at every door.

Each second of the audio has a level of its own, from which the scripted model reads its number: a word a second.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from worker.backends.base import Backend
from worker.config import Settings
from worker.engine import clip_run
from worker.engine.engine import Engine
from worker.errors import ModelError, OutOfMemory, Unsupported
from worker.protocol.render import to_json
from worker.protocol.request import parse
from worker.types import SAMPLE_RATE, Clip, Failure, Span, Transcript

STEP = 1 / 1024


class Reader(Backend):
    """Reads a word a second. It drops the seconds of `drops` in audio longer than `weak_sec`, and always if `deaf`.

    It fails on the pieces after the first `works` ones.
    """

    overhead_sec = 1000.0

    def __init__(self, drops=(), weak_sec=25.0, deaf=False, works=999):
        self.drops, self.weak_sec, self.deaf, self.works = set(drops), weak_sec, deaf, works
        self.batches, self.gate = [], threading.Event()
        self.gate.set()

    def load(self):
        pass

    def infer(self, batch):
        self.gate.wait(30)
        self.batches.append([piece.duration_sec for piece in batch.pieces])
        if sum(map(len, self.batches)) > self.works:
            raise ModelError("too many pieces")
        return [self.read(piece.clip.samples) for piece in batch.pieces]

    def read(self, samples):
        is_weak = self.deaf or len(samples) > self.weak_sec * SAMPLE_RATE
        numbers = np.round(samples / STEP).astype(int)
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        words = tuple(
            Span(f"w{numbers[at]}", at / SAMPLE_RATE + 0.1, at / SAMPLE_RATE + 0.6)
            for at, end in zip(starts, [*starts[1:], len(samples)], strict=True)
            if end - at > 0.65 * SAMPLE_RATE and numbers[at] and not (is_weak and numbers[at] in self.drops)
        )
        text = " ".join(word.text for word in words)
        return Transcript(text, words, (Span(text, words[0].start, words[-1].end),) if words else ())


@pytest.fixture
def spoken(monkeypatch):
    """Every sample is speech."""
    monkeypatch.setattr(clip_run.vad, "is_available", lambda: True)
    monkeypatch.setattr(clip_run.vad, "speech", lambda samples, cancelled=None: [(0.0, len(samples) / SAMPLE_RATE)])


def audio(path, seconds: int) -> str:
    samples = np.repeat(np.arange(1, seconds + 1), SAMPLE_RATE) * STEP
    soundfile.write(path, samples, SAMPLE_RATE, subtype="FLOAT")
    return str(path)


def run(tmp_path, model, payload, **settings):
    made = Settings(model="parakeet", data_dir=tmp_path / "data", allowed_paths=(tmp_path,), max_inputs=50, **settings)
    with Engine(made, create_backend=lambda _row: model) as engine:
        response = engine.submit(parse(payload, made)).result(60)
        assert engine.held_sec == pytest.approx(0, abs=1e-6)
    return response


def words(result) -> list[str]:
    return [span.text for span in result.output.words]


def numbers(first: int, last: int) -> list[str]:
    return [f"w{number}" for number in range(first, last)]


@pytest.mark.parametrize("how", ["whole", "windows"])
def test_a_span_that_is_dropped_at_first_is_transcribed_again(tmp_path, spoken, how):
    model = Reader(drops=range(50, 60))
    response = run(tmp_path, model, {"inputs": [audio(tmp_path / "a.wav", 100)], "long_audio": how, "timestamps": True})
    (result,) = response.results
    assert words(result) == numbers(1, 101)
    assert result.output.text == " ".join(numbers(1, 101))
    assert [span.start for span in result.output.words] == pytest.approx([n + 0.1 for n in range(100)], abs=0.4)
    assert result.warning is None
    assert model.batches[0] == ([100.0] if how == "whole" else model.batches[0])
    assert max(map(max, model.batches[1:] or [[0]])) <= 30


@pytest.mark.parametrize("how", ["whole", "windows"])
def test_what_stays_without_words_is_a_warning_with_its_times(tmp_path, spoken, how):
    model = Reader(drops=range(51, 61), deaf=True)
    payload = {"inputs": [audio(tmp_path / "a.wav", 100)], "long_audio": how, "format": "verbose_json"}
    (result,) = (response := run(tmp_path, model, payload)).results
    assert words(result) == numbers(1, 51) + numbers(61, 101)
    assert "49.6 to 60.1 s" in result.warning
    rendered = to_json(response, lambda *_: "")["results"][0]
    assert rendered["warning"] == result.warning
    assert json.loads(json.dumps(rendered["formatted"]))["warning"] == result.warning
    assert sum(map(sum, model.batches)) == pytest.approx(100 + 10.5, abs=0.1), "once again, and alone"


def test_the_decoder_s_warning_and_the_transcript_s_are_both_told(tmp_path, spoken, monkeypatch):
    from worker.audio import decode

    monkeypatch.setattr(
        decode.Decoder,
        "decode_channels",
        lambda *args, **kwargs: (Clip(np.full(60 * SAMPLE_RATE, STEP, np.float32), "the file is damaged"),),
    )
    (result,) = run(tmp_path, Reader(), {"inputs": [audio(tmp_path / "a.wav", 60)]}).results
    assert result.warning.startswith("the file is damaged; The audio contains speech without words")


def test_windows_of_several_clips_share_batches_and_short_clips_are_not_checked(tmp_path, spoken):
    model = Reader(drops=range(1, 20), weak_sec=0)
    payload = {"inputs": [audio(tmp_path / f"{n}.wav", 30) for n in range(3)], "long_audio": "windows"}
    response = run(tmp_path, model, payload, batch_wait_sec=1)
    assert all(result.warning is None for result in response.results), "30 s is not long"
    model = Reader()
    model.gate.clear()
    threading.Timer(1.0, model.gate.set).start()
    run(
        tmp_path,
        model,
        {"inputs": [audio(tmp_path / f"{n}.wav", 100) for n in range(3)]},
        long_audio="windows",
        batch_wait_sec=1,
    )
    assert sum(map(sum, model.batches)) == pytest.approx(300)
    assert max(map(max, model.batches)) <= 30
    assert max(map(len, model.batches)) > 4, "windows of several clips run together"


def test_the_time_of_both_rounds_is_the_model_s(tmp_path, spoken):
    response = run(tmp_path, Reader(drops=range(40, 50)), {"inputs": [audio(tmp_path / "a.wav", 60)]})
    assert response.timing.model_sec > 0
    plain = Reader(drops=range(40, 50))
    run(tmp_path, plain, {"inputs": [str(tmp_path / "a.wav")]}, detect_speech=False)
    assert plain.batches == [[60.0]], "DETECT_SPEECH=0: once"


def test_a_second_round_that_fails_leaves_the_first_with_a_warning(tmp_path, spoken):
    model = Reader(drops=range(41, 51), works=1)
    (result,) = run(tmp_path, model, {"inputs": [audio(tmp_path / "a.wav", 60)], "timestamps": True}).results
    assert words(result) == numbers(1, 41) + numbers(51, 61)
    assert "39.6 to 50.1 s" in result.warning


def test_a_first_round_that_fails_is_the_error(tmp_path, spoken):
    (result,) = run(tmp_path, Reader(works=0), {"inputs": [audio(tmp_path / "a.wav", 60)]}).results
    assert isinstance(result, Failure)
    assert result.error.message == "too many pieces"


def test_a_detector_that_fails_costs_the_check_only(tmp_path, spoken, monkeypatch, caplog):
    def fail(samples, cancelled=None):
        raise OSError("no such file")

    monkeypatch.setattr(clip_run.vad, "speech", fail)
    (result,) = run(tmp_path, Reader(), {"inputs": [audio(tmp_path / "a.wav", 60)], "timestamps": True}).results
    assert words(result) == numbers(1, 61)
    assert "was not searched: an internal error during the search for speech (the worker's log" in result.warning
    assert "no such file" not in result.warning
    assert "no such file" in caplog.text


def test_canceling_between_the_rounds_releases_the_audio(tmp_path, spoken):
    settings = Settings(model="parakeet", data_dir=tmp_path / "data", allowed_paths=(tmp_path,))
    model, second = Reader(drops=range(40, 50)), threading.Event()
    infer = model.infer

    def wait(batch):
        if model.batches and not second.is_set():
            model.gate.clear()
            second.set()
        return infer(batch)

    model.infer = wait
    with Engine(settings, create_backend=lambda _row: model) as engine:
        future = engine.submit(parse({"inputs": [audio(tmp_path / "a.wav", 60)]}, settings))
        assert second.wait(10)
        assert future.cancel()
        model.gate.set()
        with pytest.raises(CancelledError):
            future.result(5)
        other = engine.submit(parse({"inputs": [audio(tmp_path / "b.wav", 5)]}, settings)).result(10)
        assert other.results[0].output.text == " ".join(numbers(1, 6))
        assert engine.held_sec == pytest.approx(0, abs=1e-6)


def test_a_text_that_was_streamed_is_not_changed_but_its_gaps_are_named(tmp_path, spoken):
    settings = Settings(model="parakeet", data_dir=tmp_path / "data", allowed_paths=(tmp_path,))
    deltas = []
    with Engine(settings, create_backend=lambda _row: Reader(drops=range(40, 50), deaf=True)) as engine:
        request = parse({"inputs": [audio(tmp_path / "a.wav", 90)], "long_audio": "windows"}, settings)
        (result,) = engine.submit(request, on_text=lambda _index, text: deltas.append(text)).result(10).results
    assert "".join(deltas) == result.output.text
    assert "without words" in result.warning


def test_models_with_a_window_refuse_whole_and_name_those_that_can(tmp_path):
    settings = Settings(skip_model_load=True)
    with pytest.raises(Unsupported, match=r"whisper.*30 s at once.*parakeet") as refusal:
        parse({"inputs": ["a.wav"], "model": "whisper", "long_audio": "whole"}, settings)
    assert refusal.value.param == "long_audio"
    for model in ("whisper", "canary", "audio-flamingo", "parakeet", "pocketsphinx"):
        parse({"inputs": ["a.wav"], "model": model, "long_audio": "windows"}, settings)
    parse({"inputs": ["a.wav"], "model": "parakeet", "long_audio": "whole"}, settings)


class Writer(Reader):
    """Notes the prompt of each piece. It fails on the pieces after the first `works` ones."""

    def infer(self, batch):
        self.prompts = [*getattr(self, "prompts", []), *(piece.options.prompt for piece in batch.pieces)]
        return super().infer(batch)


def test_each_window_continues_the_text_of_the_window_before(tmp_path, spoken):
    payload = {"inputs": [audio(tmp_path / "a.wav", 100)], "prompt": "Names.", "model": "whisper"}
    apart, joined = Writer(), Writer()
    (whole,) = run(tmp_path, apart, payload).results
    (result,) = run(tmp_path, joined, payload | {"condition_on_previous_text": True}).results
    assert set(apart.prompts) == {"Names."}
    assert result.output.text == whole.output.text == " ".join(numbers(1, 101))
    assert [len(batch) for batch in joined.batches] == [1] * len(joined.prompts)
    assert joined.prompts[0] == "Names."
    assert (
        "".join(f" {prompt.removeprefix('Names.').strip()}" for prompt in joined.prompts[1:]) in f" {whole.output.text}"
    )
    assert len(joined.prompts) >= 4


def test_a_guessed_text_is_not_continued(tmp_path, spoken):
    class Guesser(Writer):
        def read(self, samples):
            return dataclasses.replace(super().read(samples), temperature=0.8)

    model = Guesser()
    payload = {"inputs": [audio(tmp_path / "a.wav", 100)], "model": "whisper", "condition_on_previous_text": True}
    run(tmp_path, model, payload)
    assert set(model.prompts) == {None}


def test_a_window_that_fails_ends_the_clip_and_no_other(tmp_path, spoken):
    inputs = [audio(tmp_path / f"{name}.wav", seconds) for name, seconds in (("a", 100), ("b", 20))]
    payload = {"inputs": inputs[:1], "model": "whisper", "condition_on_previous_text": True}
    model = Writer(works=2)
    (result,) = run(tmp_path, model, payload).results
    assert isinstance(result, Failure)
    assert len(model.prompts) == 3


@given(
    seconds=st.lists(st.integers(20, 130), min_size=1, max_size=3),
    lost=st.lists(st.tuples(st.integers(1, 120), st.integers(1, 30)), max_size=3),
    how=st.sampled_from(["whole", "windows"]),
)
@examples(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_together_is_alone_and_no_word_is_doubled_or_out_of_order(tmp_path, spoken, seconds, lost, how):
    drops = {n for first, length in lost for n in range(first, first + length)}
    inputs = [audio(tmp_path / f"{length}.wav", length) for length in seconds]
    payload = {"long_audio": how, "timestamps": True}
    together = run(tmp_path, Reader(drops), {"inputs": inputs, **payload}, batch_wait_sec=0.01).results
    for source, length, result in zip(inputs, seconds, together, strict=True):
        (alone,) = run(tmp_path, Reader(drops), {"inputs": [source], **payload}, batch_wait_sec=0.01).results
        assert (alone.output, alone.warning) == (result.output, result.warning)
        found = [int(word[1:]) for word in words(result)]
        assert found == sorted(set(found)), "in order, and each once"
        assert set(numbers(1, length + 1)) - set(words(result)) <= {f"w{n}" for n in drops}
        assert result.output.text == " ".join(words(result))


class Small(Reader):
    """Runs out of memory on audio longer than `fits_sec`, after it has generated the first words of the text."""

    def __init__(self, fits_sec=30.0, **values):
        super().__init__(**values)
        self.fits_sec = fits_sec

    def infer(self, batch):
        if any(piece.duration_sec > self.fits_sec for piece in batch.pieces):
            self.batches.append([piece.duration_sec for piece in batch.pieces])
            for piece in batch.pieces:
                if piece.on_text is not None:
                    piece.on_text("w1 w2 ")
            raise RuntimeError("CUDA out of memory. Tried to allocate 38 GiB")
        return super().infer(batch)


@pytest.mark.parametrize("detects", [True, False])
def test_a_long_clip_that_does_not_fit_is_transcribed_in_windows(tmp_path, spoken, caplog, detects):
    model = Small()
    payload = {"inputs": [audio(tmp_path / "a.wav", 100)], "timestamps": True}
    (result,) = run(tmp_path, model, payload, detect_speech=detects).results
    assert result.output.text == " ".join(numbers(1, 101))
    assert words(result) == numbers(1, 101)
    assert [span.start for span in result.output.words] == pytest.approx([n + 0.1 for n in range(100)], abs=0.4)
    assert result.warning is None
    assert model.batches[0] == [100.0]
    assert sum(map(sum, model.batches)) == pytest.approx(200), "once whole, once in windows"
    assert "LONG_AUDIO=windows" in caplog.text


def test_the_text_and_the_progress_of_a_clip_that_does_not_fit_are_told_once(tmp_path, spoken):
    made = Settings(model="parakeet", data_dir=tmp_path / "data", allowed_paths=(tmp_path,))
    deltas, steps = [], []
    with Engine(made, create_backend=lambda _row: Small()) as engine:
        request = parse({"inputs": [audio(tmp_path / "a.wav", 100)]}, made)
        future = engine.submit(request, on_text=lambda _index, text: deltas.append(text), on_progress=steps.append)
        (result,) = future.result(60).results
    assert deltas[0] == "w1 w2 ", "from the attempt that failed"
    assert "".join(deltas) == result.output.text == " ".join(numbers(1, 101))
    assert "".join(step.text[1] for step in steps if step.text) == result.output.text
    seconds = [step.audio_sec_done for step in steps]
    assert seconds == sorted(seconds)
    assert len(set(seconds)) >= 4, "each window is a step"
    assert (steps[-1].inputs_done, steps[-1].audio_sec_done, steps[-1].audio_sec_total) == (1, 100, 100)


def test_what_does_not_fit_in_windows_either_is_an_error_and_other_errors_are_not_tried_again(tmp_path, spoken):
    model = Small(fits_sec=10)
    payload = {"inputs": [audio(tmp_path / "a.wav", 100), audio(tmp_path / "b.wav", 8), audio(tmp_path / "c.wav", 20)]}
    long, short, middle = run(tmp_path, model, payload).results
    assert isinstance(long.error, OutOfMemory)
    assert short.output.text == " ".join(numbers(1, 9))
    assert isinstance(middle.error, OutOfMemory)
    assert [20.0] in model.batches
    failing = Reader(works=0)
    (result,) = run(tmp_path, failing, {"inputs": [str(tmp_path / "a.wav")]}).results
    assert isinstance(result.error, ModelError)
    assert failing.batches == [[100.0]]
