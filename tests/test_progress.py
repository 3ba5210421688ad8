"""How far a request is: inputs and seconds of audio, told in order, and the text of windows as they are done."""

from __future__ import annotations

import itertools
import threading

import pytest
from conftest import tone
from hypothesis import given
from hypothesis import strategies as st

from worker.backends.base import Backend
from worker.config import Settings
from worker.engine.engine import Engine
from worker.engine.progress import ProgressMeter
from worker.entrypoints import progress as bar_module
from worker.entrypoints import python
from worker.errors import ModelError
from worker.protocol.request import parse
from worker.types import Item, Listeners, Options, Progress, Source, Transcript, View


class Steps(Backend):
    """Runs one piece at a time, whenever it is let go, and says how long the piece is."""

    def __init__(self) -> None:
        self.turns = threading.Semaphore(0)

    def load(self) -> None:
        pass

    def infer(self, batch):
        for _ in batch.pieces:
            assert self.turns.acquire(timeout=60)
        if any(piece.options.prompt == "fail" for piece in batch.pieces):
            raise ModelError("it failed")
        return [Transcript(f"{piece.duration_sec:.0f}s") for piece in batch.pieces]


def run(tmp_path, model, inputs, **options):
    """The progress that is told of a request, and its response."""
    settings = Settings(model="whisper", data_dir=tmp_path / "data", allowed_paths=(tmp_path,))
    told: list[Progress] = []
    with Engine(settings, create_backend=lambda _row: model) as engine:
        request = parse({"inputs": inputs, **options}, settings)
        response = engine.submit(request, on_progress=told.append).result(60)
    return told, response


def test_a_long_clip_tells_of_each_window_and_of_its_text(tmp_path):
    model = Steps()
    model.turns.release(99)
    told, response = run(tmp_path, model, [str(tone(tmp_path / "a.wav", 80))])
    seconds = [one.audio_sec_done for one in told]
    assert seconds == sorted(seconds)
    assert len(set(seconds)) >= 4, "the start, and the end of three windows"
    assert told[0] == Progress(0, 1, 1, 0.0, 80.0)
    assert told[-1] == Progress(1, 1, 1, 80.0, 80.0)
    assert all(one.audio_sec_total == 80 for one in told)
    assert "".join(one.text[1] for one in told if one.text) == response.results[0].output.text


def test_a_total_is_told_when_every_input_is_known(tmp_path):
    model = Steps()
    model.turns.release(99)
    paths = [str(tone(tmp_path / f"{sec}.wav", sec)) for sec in (1, 2)]
    told, _ = run(tmp_path, model, [*paths, "missing.wav", 3, {"source": paths[0], "prompt": "fail"}])
    assert [one.inputs_done for one in told][-1] == 5
    assert told[-1].audio_sec_done == told[-1].audio_sec_total == pytest.approx(4)
    for one in told:
        assert one.inputs_total == 5
        assert (one.audio_sec_total is None) == (one.inputs_known < 5)
    assert sorted(one.text for one in told if one.text) == [(0, "1s"), (1, "2s")]


@pytest.mark.parametrize("name", Listeners.__annotations__)
def test_a_listener_that_fails_costs_nothing(name, tmp_path, caplog):
    model = Steps()
    model.turns.release(99)
    settings = Settings(model="whisper", data_dir=tmp_path / "data", allowed_paths=(tmp_path,))
    source = str(tone(tmp_path / "a.wav", 80))
    with Engine(settings, create_backend=lambda _row: model) as engine:
        request = parse({"inputs": [source, source]}, settings)
        expected = engine.submit(request).result(60)
        calls = []
        response = engine.submit(request, **{name: lambda *told: calls.append(told) or 1 / 0}).result(60)
    assert [result.output.text for result in response.results] == [result.output.text for result in expected.results]
    assert all(result.output.text for result in response.results)
    assert caplog.text.count(f"{name} failed") == len(calls) > 1


def item(index: int) -> Item:
    return Item(index, Source("path", "a"), Options("m"), View(()), None)


@given(
    st.lists(st.tuples(st.floats(0.001, 1e5), st.lists(st.floats(0.001, 1e5), max_size=5), st.booleans()), min_size=1)
)
def test_seconds_never_fall_and_end_at_the_total(inputs):
    told: list[Progress] = []
    meter = ProgressMeter(len(inputs), told.append)
    for index, (duration, windows, is_decoded) in enumerate(inputs):
        if is_decoded:
            meter.expect([item(index)], duration)
            for window in windows:
                meter.advance([item(index)], window)
        meter.end(index)
    for before, after in itertools.pairwise(told):
        assert after.audio_sec_done >= before.audio_sec_done - 1e-6
        assert after.inputs_done >= before.inputs_done
    assert told[-1].audio_sec_done == told[-1].audio_sec_total
    assert told[-1].inputs_done == told[-1].inputs_known == len(inputs)


class Line:
    """A bar of tqdm's that keeps what it shows."""

    def __init__(self) -> None:
        self.n, self.postfix, self.description, self.bar_format = 0.0, "", "", ""

    def update(self, more: float) -> None:
        self.n += more

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self.postfix = text

    def set_description_str(self, text: str, refresh: bool = True) -> None:
        self.description = text

    def refresh(self) -> None:
        pass


def test_the_time_left_counts_down_while_a_batch_runs(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(bar_module.time, "monotonic", lambda: now[0])
    line = Line()
    shown = bar_module.ProgressBar(line, ["a"], lambda: None)
    shown.refresh()
    assert "left" not in line.postfix
    now[0] += 10
    shown.show(Progress(0, 1, 1, 30.0, 120.0))
    assert line.postfix.startswith("0:30 left, 0/1 files, 0:30 of audio, 3.0x real time")
    now[0] += 6
    shown.refresh()
    assert line.postfix.startswith("0:24 left, 0/1 files, 0:30 of audio, 3.0x real time")
    now[0] += 60
    shown.refresh()
    assert line.postfix.startswith("0:00 left")


def test_a_bar_counts_audio_and_not_files():
    line = Line()
    shown = bar_module.ProgressBar(line, ["a", "b", "c", "d"], lambda: "loading m")
    shown.refresh()
    assert line.description == "loading m: "
    shown.show(Progress(1, 4, 2, 60.0, 600.0))
    assert line.n == pytest.approx(60 / 1200), "two inputs are estimated from the two that are decoded"
    assert "1/4 files, 1:00 of audio" in line.postfix
    shown.show(Progress(3, 4, 4, 300.0, 600.0))
    assert line.n == pytest.approx(0.5)
    shown.show(Progress(4, 4, 4, 600.0, 600.0))
    assert line.n == pytest.approx(1)
    shown.end()
    assert line.description.startswith("4 files, 10 min of audio in 0:00, ")


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((139, 7, 3300.0, 245.0), "139 files, 55 min of audio in 4:05, 13x real time; 7 failed"),
        ((1, 0, 5.9, 2.0), "1 file, 5.9 s of audio in 0:02, 3.0x real time"),
        ((2, 0, 9000.0, 4000.0), "2 files, 2.5 h of audio in 1:06:40, 2.2x real time"),
        ((0, 3, 0.0, 1.0), "0 files in 0:01; 3 failed"),
    ],
)
def test_a_line_says_what_was_done(counts, said):
    assert bar_module.summary(*counts) == said


def test_a_long_file_moves_the_bar_of_a_bundle(tmp_path, capsys):
    settings = Settings(model="pocketsphinx", skip_model_load=True, data_dir=tmp_path / "data", batch_max_items=1)
    with python.load(settings) as bundle:
        bundle.transcribe([str(tone(tmp_path / "a.wav", 100)), "missing.wav"], progress=True)
    shown = capsys.readouterr().err
    assert "missing.wav: source_not_found" in shown
    assert "1 file, 100 s of audio in 0:0" in shown
    assert "; 1 failed" in shown
