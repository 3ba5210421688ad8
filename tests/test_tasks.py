"""Which payloads are checked where nothing may be held up. What tasks answer is in the tests of the doors."""

from __future__ import annotations

import pytest

from worker.errors import RequestError
from worker.protocol.request import is_light, unwrap


@pytest.mark.parametrize(
    ("payload", "light"),
    [
        ({"inputs": ["a.wav"]}, True),
        ({"audio": "a.wav", "task": "caption"}, True),
        ({"input": {"input": {"audio": "a.wav"}}}, True),
        ({"inputs": 5}, True),
        ({}, True),
        ({"inputs": ["a.wav"] * 10_000}, False),
        ({"input": {"inputs": ["a"] * 10_000}}, False),
        ({"task": "evaluate", "audio_dir": "/clips"}, False),
        ({"task": "score", "uid": "a", "cid": "b", "audio": "c"}, False),
        ({"openai_route": "/v1/models"}, False),
        ({"audio": "a.wav", "task": "chat", "messages": []}, False),
        ({"inputs": ["a.wav", {"source": "a.wav", "messages": []}]}, False),
    ],
)
def test_only_what_takes_no_time_is_light(payload, light):
    assert is_light(unwrap(payload)) is light


def test_what_is_no_payload_is_told_as_ever():
    with pytest.raises(RequestError):
        unwrap([])
