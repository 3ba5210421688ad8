"""The threads that fetch and decode outlive whatever a delivery does. What they do for an engine is in
test_engine.py."""

from __future__ import annotations

import queue

from conftest import tone

from worker.audio.ingest import FETCHERS, Decoded, Ingest, Queue, Unit
from worker.config import Settings
from worker.types import Source


class Panic(BaseException):
    """What a Rust library raises is no Exception."""


def test_a_delivery_that_panics_ends_no_thread(tmp_path):
    settings = Settings(allowed_paths=(tmp_path,), data_dir=tmp_path / "data", decode_workers=1)
    source = Source("path", str(tone(tmp_path / "a.wav", 1)))
    delivered: queue.SimpleQueue[object] = queue.SimpleQueue()

    def panic(outcome):
        delivered.put(None)
        raise Panic

    ingest = Ingest(settings)
    units = [Unit(source, panic, lambda: False) for _ in range(2 * FETCHERS)]
    try:
        ingest.submit(iter([*units, Unit(source, delivered.put, lambda: False)]), Queue("m", False))
        outcomes = [delivered.get(timeout=10) for _ in range(len(units) + 1)]
    finally:
        ingest.close()
    assert isinstance(outcomes[-1], Decoded)
