"""The embedded engine hears the samples word for word, alone, together and in any order."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from worker.config import Settings
from worker.engine import Engine
from worker.request import parse

SAMPLES = Path(__file__).parent.parent / "samples"
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
