"""The embedded engine hears the samples word for word, alone, together and in any order."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from worker.audio.decode import Decoder
from worker.backends.pocketsphinx import Pocketsphinx
from worker.catalog import find
from worker.config import Settings
from worker.engine import chunking
from worker.engine.engine import Engine
from worker.errors import ModelError
from worker.protocol.request import parse
from worker.types import Batch, Clip, Options, Piece

pytestmark = pytest.mark.slow

SAMPLES = Path(__file__).parent.parent / "samples"
NOISE = np.random.default_rng(0).normal(0, 0.001, 6 * 16_000).astype(np.float32)
TEXTS: dict[str, str] = json.loads((SAMPLES / "texts.json").read_text())


@pytest.mark.parametrize("names", [list(TEXTS), list(TEXTS)[::-1]], ids=["in order", "backwards"])
def test_the_samples(names):
    with Engine(Settings(model="pocketsphinx", allowed_paths=(SAMPLES,))) as engine:
        request = parse({"timestamps": True, "inputs": [str(SAMPLES / name) for name in names]}, engine.settings)
        results = engine.submit(request).result(120).results
    assert [one.output.text for one in results] == [TEXTS[name] for name in names]
    for one in results:
        edges = [edge for word in one.output.words for edge in (word.start, word.end)]
        assert edges == sorted(edges)
        assert edges[-1] <= one.duration_sec


def test_a_clip_is_heard_alike_whatever_was_heard_before():
    """Words and times: the engine tracks noise from one clip to the next unless it is told not to."""
    heard = []
    with Engine(Settings(model="pocketsphinx", allowed_paths=(SAMPLES,))) as engine:
        for order in (sorted(TEXTS), sorted(TEXTS, reverse=True)):
            outputs = {}
            for name in order:
                request = parse({"timestamps": True, "inputs": [str(SAMPLES / name)]}, engine.settings)
                outputs[name] = engine.submit(request).result(60).results[0].output
            heard.append(outputs)
    assert heard[0] == heard[1]


def backend() -> Pocketsphinx:
    made = Pocketsphinx(find("pocketsphinx"), Settings())
    made.load()
    return made


def batch(seconds: float) -> Batch:
    return Batch((Piece(Clip(NOISE[: round(seconds * 16_000)]), Options("pocketsphinx")),))


def test_silence_has_no_words():
    """The engine itself makes up one, another each time."""
    engine = backend()
    pieces = [Piece(Clip(np.zeros(seconds * 16_000, np.float32)), Options("pocketsphinx")) for seconds in (1, 2, 5)]
    heard = engine.infer(Batch(tuple(pieces)))
    engine.close()
    assert [one.text for one in heard] == ["", "", ""]


def test_others_go_on_while_it_hears():
    gaps, done = [], threading.Event()

    def watch():
        while not done.is_set():
            before = time.perf_counter()
            time.sleep(0.001)
            gaps.append(time.perf_counter() - before)

    engine = backend()
    watching = threading.Thread(target=watch)
    watching.start()
    started = time.perf_counter()
    engine.infer(batch(6))
    took = time.perf_counter() - started
    done.set()
    watching.join()
    engine.close()
    assert max(gaps) < took / 2


def test_a_process_that_died_is_told_and_begun_anew():
    engine = backend()
    engine._process.kill()
    engine._process.wait()
    with pytest.raises(ModelError, match="crashed"):
        engine.infer(batch(1))
    assert len(engine.infer(batch(1))) == 1
    engine.close()
    engine.close()


def test_a_long_file_in_windows_reads_as_well_as_in_one_piece():
    """The windows end in pauses, so no word is lost or split."""
    import jiwer

    names, decoder = [*TEXTS] * 3, Decoder(Settings())
    clips = {}
    for name in TEXTS:
        with (SAMPLES / name).open("rb") as file:
            clips[name] = decoder.decode(file).samples
    decoder.close()
    samples = np.concatenate([part for name in names for part in (clips[name], NOISE[:8_000])])
    text = " ".join(TEXTS[name] for name in names)
    engine = backend()
    windows = chunking.split(samples, find("pocketsphinx").window_sec)
    assert len(windows) > 1
    pieces = [Piece(Clip(samples[start:end]), Options("pocketsphinx")) for start, end in windows]
    outputs = engine.infer(Batch(tuple(pieces)))
    whole = engine.infer(Batch((Piece(Clip(samples), Options("pocketsphinx")),)))[0].text
    engine.close()
    starts = [start / 16_000 for start, _ in windows]
    merged = chunking.merge(list(zip(starts, outputs, strict=True)))
    assert jiwer.wer(text, merged.text) <= jiwer.wer(text, whole)
    edges = [edge for word in merged.words for edge in (word.start, word.end)]
    assert edges == sorted(edges)
