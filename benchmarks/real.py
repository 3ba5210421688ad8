"""Measurements with published weights: OpenAI's whisper-tiny.en beside faster-whisper, which gets the same weights,
threads and audio in the same run. Both decode greedily in float32. Aviary also decodes again what fails, which
faster-whisper's batched pipeline does not.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks import corpus, recordings
from benchmarks.measures import Row, seconds
from benchmarks.peer import FasterWhisper
from tests.fixtures import real_whisper, spoken
from worker.backends import create
from worker.catalog import find
from worker.config import Settings
from worker.engine.engine import Engine
from worker.evaluation.metrics import normalize, words
from worker.protocol.request import parse
from worker.types import Batch, Clip, Options, Output, Piece

PAUSES = (0.7, 1.6, 0.4, 1.1)  # seconds
ROUNDS = 3
LONG_SEC = 11 * 60
PARAKEET = str(corpus.MODEL)


def _theirs() -> FasterWhisper:
    import torch

    return FasterWhisper(real_whisper.wheel_folder(), torch.get_num_threads())


def _tiny_en() -> str:
    return str(real_whisper.cached())


def _backend(name: str) -> Any:
    backend = create(find(name), Settings(device="cpu"))
    backend.load()
    return backend


def _infer(backend: Any, clips: Sequence[np.ndarray], **options: Any) -> list[Output]:
    return backend.infer(Batch(tuple(Piece(Clip(clip), Options("m", **options)) for clip in clips)))


def word_starts() -> list[Row]:
    """Compare the starts of words with known times, on the words that both transcribe correctly."""
    samples, people = recordings.samples(), recordings.people()
    cases = [spoken.join(some, itertools.cycle(PAUSES)) for some in (samples, people[:5], people[5:])]
    cases += [spoken.spread(recording, 0.15) for recording in (*samples, *people)]
    backend = _backend(_tiny_en())
    ours, theirs = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as folder, _theirs() as other:
        for case, output in zip(cases, _infer(backend, [case.samples for case in cases], timestamps=True), strict=True):
            mine = spoken.pairs(case.words, [spoken.Word(word.text, word.start, word.end) for word in output.words])
            answer = other.transcribe(case.samples, Path(folder), words=True)
            their = spoken.pairs(case.words, answer.words)
            for i in mine.keys() & their.keys():
                ours.append(abs(mine[i].start - case.words[i].start))
                theirs.append(abs(their[i].start - case.words[i].start))
    mine, their = statistics.median(ours), statistics.median(theirs)
    total = sum(len(case.words) for case in cases)
    shown = f"{mine:.3f} s against {their:.3f} s ({len(ours)} of {total} words)"
    promised = "at most 1.2 x faster-whisper's, and at most 0.13 s"
    return [Row("median error of word starts, against known times", shown, promised, mine <= min(1.2 * their, 0.13))]


def recordings_wer() -> list[Row]:
    """Compare the word error rates on the recordings of people, each clip by itself."""
    people = recordings.people()
    backend = _backend(_tiny_en())
    mine = [output.text for output in _infer(backend, [clip.samples for clip in people])]
    with tempfile.TemporaryDirectory() as folder, _theirs() as other:
        their = [other.transcribe(clip.samples, Path(folder)).text for clip in people]
    truth = [clip.text for clip in people]
    ours, theirs = _wer(truth, mine), _wer(truth, their)
    shown = f"{ours:.1%} against {theirs:.1%} ({len(people)} clips, {sum(len(clip.words) for clip in people)} words)"
    promised = "at most faster-whisper's + 0.5 points"
    return [Row("WER on the recordings, greedy", shown, promised, ours <= theirs + 0.005)]


def long_speech() -> list[Row]:
    """Compare the time for the text of 11 minutes of speech with that of faster-whisper's batched pipeline."""
    return [_long_speech("text only", 1.2, timestamps=False)]


def long_speech_words() -> list[Row]:
    """Compare as `long_speech` does, with the times of the words."""
    return [_long_speech("with words", 1.1, timestamps=True)]


def _long_speech(label: str, factor: float, *, timestamps: bool) -> Row:
    clip = recordings.speech(recordings.people(), LONG_SEC)
    mine, their = list[float](), list[float]()
    with (
        tempfile.TemporaryDirectory() as name,
        _engine(_tiny_en(), Path(name), clip.samples) as ask,
        _theirs() as other,
    ):
        ask(timestamps=timestamps)
        other.transcribe(clip.samples[: 60 * spoken.RATE], Path(name), batched=True, words=timestamps)
        for _ in range(ROUNDS):
            started = time.perf_counter()
            text = ask(timestamps=timestamps)
            mine.append(time.perf_counter() - started)
            answer = other.transcribe(clip.samples, Path(name), batched=True, words=timestamps)
            their.append(answer.seconds)
    ours, theirs = statistics.median(mine), statistics.median(their)
    wers = f"WER {_wer([clip.text], [text]):.1%} against {_wer([clip.text], [answer.text]):.1%}"
    shown = f"{theirs / ours:.2f} x ({ours:.1f} s against {theirs:.1f} s; {wers})"
    promised = f"at least {factor} x the rate of faster-whisper's batched pipeline"
    return Row(f"11 minutes of speech, {label}", shown, promised, theirs >= factor * ours)


def busy_whisper() -> list[Row]:
    """Compare 11 minutes of speech beside two busy processes with the same alone."""
    clip = recordings.speech(recordings.people(), LONG_SEC)
    with (
        tempfile.TemporaryDirectory() as name,
        _engine(_tiny_en(), Path(name), clip.samples) as ask,
        _theirs() as other,
    ):
        ask()
        alone = seconds(ask)
        theirs = other.transcribe(clip.samples, Path(name), batched=True).seconds
        with _busy(2):
            beside = seconds(ask)
            slow = other.transcribe(clip.samples, Path(name), batched=True).seconds
    shown = (
        f"{beside / alone:.1f} x ({beside:.1f} s against {alone:.1f} s; "
        f"faster-whisper {slow / theirs:.1f} x, {slow:.1f} s against {theirs:.1f} s)"
    )
    name = "11 minutes of speech beside two busy processes, Whisper"
    return [Row(name, shown, "at most 2.3 x the time alone", beside <= 2.3 * alone)]


def busy_parakeet() -> list[Row]:
    """Compare 11 minutes of digits, in batches of clips, beside two busy processes with the same alone."""
    backend = _backend(PARAKEET)
    clips = [samples for samples, _ in corpus.readings()]
    count = round(LONG_SEC / sum(len(clip) / corpus.RATE for clip in clips))
    clips = sorted(clips * count, key=len)
    batches = [clips[at : at + 32] for at in range(0, len(clips), 32)]

    def ask() -> None:
        for batch in batches:
            _infer(backend, batch)

    ask()
    alone = seconds(ask, ROUNDS)
    with _busy(2):
        beside = seconds(ask, ROUNDS)
    shown = f"{beside / alone:.1f} x ({beside:.2f} s against {alone:.2f} s)"
    name = "11 minutes of digits beside two busy processes, Parakeet"
    return [Row(name, shown, "at most 2.3 x the time alone", beside <= 2.3 * alone)]


def windows() -> list[Row]:
    """Compare 15 minutes of digits through Parakeet in windows with the same at once, and with the clips alone."""
    clips = [spoken.Recording(samples, (spoken.Word(text, 0.0, 0.0),)) for samples, text in corpus.readings()]
    speech = recordings.speech(clips, 15 * 60)
    with tempfile.TemporaryDirectory() as name, _engine(PARAKEET, Path(name), speech.samples) as ask:
        took, wers = dict[str, float](), dict[str, float]()
        ask(long_audio="windows")
        for way in ("windows", "whole"):
            started = time.perf_counter()
            text = ask(long_audio=way)
            took[way] = time.perf_counter() - started
            wers[way] = _wer([speech.text], [text], "basic")
    backend = _backend(PARAKEET)
    texts = [output.text for output in _infer(backend, [clip.samples for clip in clips])]
    alone = _wer([clip.text for clip in clips], texts, "basic")
    factor = took["whole"] / took["windows"]
    shown = (
        f"{factor:.1f} x ({took['windows']:.1f} s against {took['whole']:.1f} s; WER {wers['windows']:.1%} against "
        f"{wers['whole']:.1%}, and {alone:.1%} for the clips alone)"
    )
    promised = "at least 4 x, WER within 0.5 points of the clips alone"
    kept = factor >= 4 and wers["windows"] <= alone + 0.005
    return [Row("Parakeet, 15 minutes, windows against whole", shown, promised, kept)]


def together() -> list[Row]:
    """Compare words, their times and their confidence in a batch with those of each clip alone."""
    spoken_clips = [clip.samples for clip in (*recordings.people(), *recordings.samples())]
    digits = [samples for samples, _ in corpus.readings()]
    rows = []
    for label, name, clips in (
        ("Whisper", _tiny_en(), spoken_clips),
        ("Parakeet", PARAKEET, digits),
    ):
        backend = _backend(name)
        options = {"timestamps": True, "confidence": True}
        batch = _infer(backend, clips, **options)
        alone = [_infer(backend, [clip], **options)[0] for clip in clips]
        pairs = [
            pair
            for one, other in zip(batch, alone, strict=True)
            for pair in itertools.zip_longest(one.words, other.words)
        ]
        same = sum(_same(*pair) for pair in pairs)
        sure = all(word is not None and word.confidence is not None for pair in pairs for word in pair)
        shown = f"{same} of {len(pairs)} words{'' if sure else ', some without confidence'}"
        title = f"words of {len(clips)} clips together = alone, confidence included, {label}"
        rows.append(Row(title, shown, "all", sure and same == len(pairs)))
    return rows


def _same(one: Any, other: Any) -> bool:
    """Return whether text and times are equal and the confidence differs by less than float32 sums do."""
    if one is None or other is None:
        return False
    sure, also = one.confidence, other.confidence
    close = sure is also is None or (None not in (sure, also) and abs(sure - also) < 1e-3)
    return close and (one.text, one.start, one.end) == (other.text, other.start, other.end)


def _wer(truth: Sequence[str], found: Sequence[str], normalizer: str = "whisper") -> float:
    """Return the word error rate of the whole. The normalizer of Whisper's authors joins digits to one number."""
    pairs = [[normalize(text, normalizer, "en") for text in texts] for texts in zip(truth, found, strict=True)]
    counts = [words(reference, hypothesis) for reference, hypothesis in pairs]
    return sum(count.errors for count in counts) / sum(count.reference for count in counts)


@contextlib.contextmanager
def _engine(model: str, folder: Path, samples: np.ndarray) -> Iterator[Any]:
    """Yield a function that transcribes the samples through the engine, from a file, and returns the text."""
    path = folder / "speech.wav"
    soundfile.write(path, samples, spoken.RATE, subtype="PCM_16")
    with Engine(Settings(model=model, device="cpu", allowed_paths=(folder,))) as engine:
        engine.load(model).result()

        def ask(**options: Any) -> str:
            payload = {"inputs": [str(path)], **options}
            (result,) = engine.submit(parse(payload, engine.settings)).result().results
            assert bool(result.output.words) == options.get("timestamps", False)
            return result.output.text

        yield ask


@contextlib.contextmanager
def _busy(count: int) -> Iterator[None]:
    """Keep `count` processes busy, each with one thread that never waits."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


_MEASURES = (
    word_starts,
    recordings_wer,
    long_speech,
    long_speech_words,
    busy_whisper,
    busy_parakeet,
    windows,
    together,
)
ALL = {measure.__name__: measure for measure in _MEASURES}
