"""A request under way: bits of a text are told once, whatever is run again."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

from conftest import tone
from hypothesis import given
from hypothesis import strategies as st

from worker.backends.base import Backend
from worker.config import Settings
from worker.engine.engine import Engine
from worker.engine.piece_queue import PieceResult
from worker.engine.request_state import RequestState, TextStream, WindowCollector
from worker.errors import ModelError
from worker.protocol.request import parse
from worker.types import Failure, Item, Options, Request, Source, Span, Transcript, View


@given(st.text(), st.lists(st.lists(st.integers(0, 12))))
def test_a_text_that_is_generated_again_is_told_once(text, runs):
    """Each run is cut into bits at will, and ends where it fails; the last one goes to the end."""
    told = []
    stream = TextStream(
        lambda index, bit: told.append((index, bit)),
        [Item(index, Source("path", "a"), Options("m"), View(()), None) for index in (3, 5)],
    )
    for cuts in [*runs, [len(text)]]:
        stream.restart()
        rest = text
        for cut in cuts:
            stream.write(rest[:cut])
            rest = rest[cut:]
    for index in (3, 5):
        assert "".join(bit for of, bit in told if of == index) == text
    assert all(bit for _, bit in told)


def test_a_listener_that_fails_for_one_input_gets_the_text_of_the_others(caplog):
    told = []

    def on_text(index, bit):
        told.append((index, bit))
        if index == 3:
            raise ValueError(bit)

    items = [Item(index, Source("path", "a"), Options("m"), View(()), None) for index in (3, 5)]
    stream = TextStream(on_text, items)
    stream.write("one")
    stream.write(" two")
    assert told == [(3, "one"), (5, "one"), (3, " two"), (5, " two")]
    assert caplog.text.count("on_text failed") == 2


class Half(Backend):
    """Writes two words; a batch of several fails after the first."""

    overhead_sec = 1000.0

    def __init__(self):
        self.gate, self.sizes = threading.Event(), []

    def load(self):
        assert self.gate.wait(60)  # so that all pieces lie ready for one batch

    def infer(self, batch):
        self.sizes.append(len(batch.pieces))
        for word in ("one ", "two"):
            for piece in batch.pieces:
                piece.on_text(word)
            if len(batch.pieces) > 1:
                raise RuntimeError("too many")
        return [Transcript("one two") for _ in batch.pieces]


def test_a_batch_that_is_split_tells_no_word_twice(tmp_path):
    model, told = Half(), dict.fromkeys(range(4), "")

    def tell(index, text):
        told[index] += text

    paths = [str(tone(tmp_path / f"{index}.wav", 1)) for index in range(4)]
    settings = Settings(model="pocketsphinx", data_dir=tmp_path / "data", allowed_paths=(tmp_path,), batch_wait_sec=1)
    with Engine(settings, create_backend=lambda _row: model) as engine:
        future = engine.submit(parse({"inputs": paths}, settings), on_text=tell)
        while engine.held_sec < 3.99:  # a sum of floats
            time.sleep(0.01)
        model.gate.set()
        results = future.result(10).results
    assert max(model.sizes) > 1, "a batch was split"
    assert not any(isinstance(one, Failure) for one in results)
    assert set(told.values()) == {"one two"}


@given(st.permutations(range(5)), st.sets(st.integers(0, 4), max_size=2))
def test_windows_in_any_order_give_one_output_or_the_first_error(order, failing):
    bits, output = [], Future()
    state = RequestState(Request("m", ()), None, None)
    collector = WindowCollector(state, [10.0 * number for number in range(5)], output, bits.append)
    for number in order:
        assert not output.done()
        outcome = PieceResult(Transcript(f"w{number}", words=(Span(f"w{number}", 1.0, 2.0),)), 0.5, 0.25)
        collector.add(number, ModelError(f"window {number}") if number in failing else outcome)
    if failing:
        assert output.exception(0).message == f"window {min(failing)}"
        assert "".join(bits) == " ".join(f"w{number}" for number in range(min(failing)))
    else:
        assert output.result(0).text == "".join(bits) == "w0 w1 w2 w3 w4"
        assert [span.start for span in output.result(0).words] == [1.0, 11.0, 21.0, 31.0, 41.0]


def test_a_clip_is_released_before_its_last_result_is_told(tmp_path):
    """So that a caller who has all results finds no audio in memory."""
    path, held = str(tone(tmp_path / "a.wav", 1)), []
    settings = Settings(skip_model_load=True, data_dir=tmp_path / "data", allowed_paths=(tmp_path,))
    with Engine(settings) as engine:
        inputs = [path, {"source": path, "timestamps": True}, {"source": path, "language": "en"}]
        future = engine.submit(parse({"inputs": inputs}, settings), on_result=lambda _one: held.append(engine.held_sec))
        assert len(future.result(10).results) == 3
    assert held[-1] == 0


def test_times_are_whole_milliseconds_at_every_door():
    """The engine rounds them, so that the Python API, manifests and JSON show the same numbers."""

    class Unrounded(Backend):
        def load(self):
            pass

        def infer(self, batch):
            times = (0.1 + 0.2, 1.1300000000000001)
            spans = (Span("so", *times, 0.123456789),)
            return [Transcript("so", spans, spans, spans) for _ in batch.pieces]

    settings = Settings(model="whisper-tiny", models_memory_gb=1)
    fields = {"inputs": ["samples/week.wav"], "timestamps": ["word", "segment", "char"]}
    with Engine(settings, create_backend=lambda model: Unrounded()) as engine:
        (result,) = engine.submit(parse(fields, settings, trusted=True)).result(30).results
    assert result.duration_sec == 1.268
    for spans in (result.output.words, result.output.segments, result.output.chars):
        assert spans == (Span("so", 0.3, 1.13, 0.123456789),)
