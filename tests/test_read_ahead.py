"""Decoded audio is bounded over all models and queues, whatever files say of their length."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import encode, state_flac_samples, tone

from worker.audio import read_ahead
from worker.audio.ingest import Decoded, Ingest, Unit
from worker.audio.read_ahead import Holding, NoRoomError, Queue, ReadAhead
from worker.config import Settings
from worker.errors import Cancelled
from worker.types import SAMPLE_RATE, Source

ONE, OTHER, BACKGROUND = Queue("one", False), Queue("other", False), Queue("one", True)


class Reader:
    """An Ingest, what it delivered, and the most that it held."""

    def __init__(self, settings: Settings) -> None:
        self.ingest = Ingest(settings)
        self.outcomes: queue.SimpleQueue[tuple[Queue, object]] = queue.SimpleQueue()
        self.most_sec = 0.0

    def submit(self, paths: list[Path], to: Queue, cancelled=lambda: False) -> None:
        def deliver(outcome: object) -> None:
            self.outcomes.put((to, outcome))

        self.ingest.submit(iter([Unit(Source("path", str(path)), deliver, cancelled) for path in paths]), to, cancelled)

    def settle(self) -> None:
        """Wait until nothing is read any more, and note the most that is held on the way."""
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < 0.5:
            self.most_sec = max(self.most_sec, self.ingest.held_sec)
            if self.ingest.active(False) or self.ingest.active(True):
                quiet_since = time.monotonic()
            time.sleep(0.002)

    def take(self) -> tuple[Queue, Decoded]:
        to, outcome = self.outcomes.get(timeout=20)
        assert isinstance(outcome, Decoded), outcome
        return to, outcome

    def drain(self, count: int) -> list[float]:
        """Release the next `count` clips as they come, and return their seconds."""
        seconds = []
        for _ in range(count):
            to, decoded = self.take()
            seconds.append(decoded.clip.duration_sec)
            self.ingest.release(decoded.clip, to)
        return seconds


@contextlib.contextmanager
def reader(tmp_path: Path, **settings: object) -> Iterator[Reader]:
    made = Reader(Settings(**{"allowed_paths": (tmp_path,), "decode_workers": 4, "read_ahead_sec": 100.0} | settings))
    try:
        yield made
    finally:
        made.ingest.close()


def silence(path: Path, seconds: float) -> Path:
    """Write a FLAC file whose header states no length."""
    soundfile.write(path, np.zeros(int(seconds * SAMPLE_RATE), np.int16), SAMPLE_RATE)
    return state_flac_samples(path, 0)


@pytest.fixture
def short_steps(monkeypatch):
    monkeypatch.setattr(read_ahead, "SLACK_SEC", 2.0)
    monkeypatch.setattr(read_ahead, "GROWTH_SEC", 20.0)


def test_files_that_state_no_length_count_for_what_they_hold(tmp_path):
    paths = [silence(tmp_path / f"{i}.flac", 60) for i in range(8)]
    with reader(tmp_path) as made:
        made.submit(paths, ONE)
        made.settle()
        assert 100 <= made.ingest.held_sec <= made.most_sec <= 160
        assert made.drain(8) == [60] * 8
        assert made.ingest.held_sec == 0


def test_one_bound_holds_for_all_models_and_each_gets_a_file(tmp_path):
    paths = [silence(tmp_path / f"{i}.flac", 60) for i in range(4)]
    queues = [Queue(f"model-{i}", background) for i in range(5) for background in (False, True)]
    with reader(tmp_path) as made:
        for to in queues:
            made.submit(paths, to)
        made.settle()
        assert made.most_sec <= 100 + 60 * len(queues)
        started = [made.take() for _ in range(made.outcomes.qsize())]
        assert {to for to, _ in started} == set(queues)
        assert len(started) <= len(queues) + 2
        for to, decoded in started:
            made.ingest.release(decoded.clip, to)
        made.drain(4 * len(queues) - len(started))
        assert made.ingest.held_sec == 0


def test_files_that_become_longer_than_expected_stay_within_the_bound(tmp_path, short_steps):
    source = soundfile_of_silence(tmp_path / "source.flac", 200)
    path = encode(source, tmp_path / "a.opus", "-c:a", "libopus", "-b:a", "8k")
    assert path.stat().st_size < 200 * 8_000 / 20
    with reader(tmp_path, max_audio_sec=210) as made:
        made.submit([path] * 8, ONE)
        made.settle()
        # one file may start below the bound, and one may exceed its estimate above it
        assert 0 < made.ingest.held_sec <= made.most_sec <= 100 + 2 * 210
        assert made.drain(8) == pytest.approx([200] * 8, abs=0.1)
        assert made.ingest.held_sec == 0


def test_a_wav_or_flac_header_that_lies_stays_within_the_bound(tmp_path, short_steps):
    path = soundfile_of_silence(tmp_path / "a.flac", 200)
    path.write_bytes(path.read_bytes() + bytes(70_000))  # which hides the last frame
    state_flac_samples(path, 0)
    with reader(tmp_path, max_audio_sec=210) as made:
        made.submit([path] * 8, ONE)
        made.settle()
        assert made.most_sec <= 100 + 2 * 210
        assert made.drain(8) == pytest.approx([200] * 8, abs=0.1)


def test_what_waits_for_room_is_cancelled_with_its_request(tmp_path):
    paths, gone = [silence(tmp_path / f"{i}.flac", 60) for i in range(8)], []
    with reader(tmp_path) as made:
        made.submit(paths, ONE, lambda: bool(gone))
        made.settle()
        read = [made.take() for _ in range(made.outcomes.qsize())]
        gone.append(True)
        made.ingest.drop_cancelled()
        outcomes = [made.outcomes.get(timeout=10)[1] for _ in range(len(paths) - len(read))]
        assert {type(outcome) for outcome in outcomes} == {Cancelled}


def test_what_waits_for_room_is_cancelled_at_the_end(tmp_path):
    paths = [silence(tmp_path / f"{i}.flac", 60) for i in range(8)]
    with reader(tmp_path) as made:
        made.submit(paths, ONE)
        made.settle()
    outcomes = [made.outcomes.get(timeout=10)[1] for _ in range(8)]
    assert sum(isinstance(outcome, Decoded) for outcome in outcomes) == 2
    assert sum(isinstance(outcome, Cancelled) for outcome in outcomes) == 6


def test_a_long_file_that_waits_for_room_gets_its_turn_among_short_ones(tmp_path):
    long, short = silence(tmp_path / "long.flac", 90), tone(tmp_path / "short.wav", 5)
    with reader(tmp_path, decode_workers=2) as made:
        made.submit([short] * 19, ONE)
        made.submit([long], ONE)
        made.submit([short] * 40, ONE)
        assert 90 in made.drain(60)


def test_no_queue_starves_another():
    held = ReadAhead(Settings(read_ahead_sec=800, batch_max_total_sec=50))
    sec = SAMPLE_RATE
    held.add(ONE, 800 * sec)
    assert not held.has_room(ONE, 0)
    assert held.has_room(OTHER, 10_000 * sec), "a queue that holds nothing may decode any file"
    held.add(OTHER, 60 * sec)
    assert held.has_room(OTHER, 40 * sec), "and, up to its share, the next one"
    assert not held.has_room(OTHER, 41 * sec)
    held.add(OTHER, 140 * sec)
    third = Queue("third", False)
    held.add(third, 1 * sec)
    assert not held.has_room(third, 1 * sec), "of a reserve that all share"
    assert held.has_room(BACKGROUND, 0)
    held.add(BACKGROUND, 1 * sec)
    assert not held.has_room(BACKGROUND, 1 * sec)
    held.add(ONE, -800 * sec)
    assert held.has_room(BACKGROUND, 1 * sec)
    held.add(BACKGROUND, 49 * sec)
    assert not held.has_room(BACKGROUND, 1 * sec), "while somebody waits, the background holds a batch"


def test_one_unit_of_each_queue_may_exceed_the_bound_until_the_queue_holds_nothing():
    held = ReadAhead(Settings(read_ahead_sec=100))
    first, second = Holding(ONE, 50 * SAMPLE_RATE), Holding(ONE, 60 * SAMPLE_RATE)
    held.add(ONE, first.samples + second.samples)
    assert held.extend(first, 1000 * SAMPLE_RATE) > 1000 * SAMPLE_RATE
    assert held.samples == first.samples + second.samples
    with pytest.raises(NoRoomError):
        held.extend(second, 1000 * SAMPLE_RATE)
    held.extend(first, 9000 * SAMPLE_RATE)
    held.add(ONE, -first.samples)
    assert held.extend(second, 1000 * SAMPLE_RATE) > 1000 * SAMPLE_RATE, "below the bound, anyone may"
    third = Holding(ONE, 10 * SAMPLE_RATE)
    held.add(ONE, third.samples)
    with pytest.raises(NoRoomError):
        held.extend(third, 1000 * SAMPLE_RATE)
    held.add(ONE, -second.samples - third.samples)
    assert held.samples == 0
    held.add(ONE, third.samples)
    held.add(OTHER, 100 * SAMPLE_RATE)
    assert held.extend(third, 1000 * SAMPLE_RATE) > 1000 * SAMPLE_RATE


def soundfile_of_silence(path: Path, seconds: float) -> Path:
    soundfile.write(path, np.zeros(int(seconds * SAMPLE_RATE), np.int16), SAMPLE_RATE)
    return path
