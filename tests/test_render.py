"""Response → JSON: shapes and strictness, in every format."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.config import Settings
from worker.errors import FetchFailed
from worker.net.s3 import Bucket
from worker.protocol import render
from worker.types import (
    Analysis,
    Caption,
    Embedding,
    Failure,
    Item,
    Options,
    Reply,
    Response,
    Result,
    Source,
    Span,
    Timing,
    Transcript,
    View,
)

JSON = View()


def no_bucket(name, data, content_type):
    return Bucket(Settings()).put(name, data, content_type)


def response(*outputs, view=JSON, task="transcribe"):
    results = tuple(
        Result(Item(i, Source("path", "a"), Options("m", task=task), view, f"id{i}"), 2.0, output)
        for i, output in enumerate(outputs)
    )
    return Response("m", results, Timing(total_sec=1.23456))


def spoken(text: str) -> Transcript:
    words = tuple(Span(w, i * 0.4, i * 0.4 + 0.3) for i, w in enumerate(text.split()))
    segments = (Span(text, words[0].start, words[-1].end),) if words else ()
    return Transcript(text, words, segments, language="en")


def test_the_contract_s_shape():
    answer = render.to_json(response(spoken("hello world."), view=View(("word", "segment"))), no_bucket)
    assert answer["results"][0] == {
        "index": 0,
        "id": "id0",
        "text": "hello world.",
        "duration_sec": 2.0,
        "language": "en",
        "timestamps": {
            "word": [{"word": "hello", "start": 0.0, "end": 0.3}, {"word": "world.", "start": 0.4, "end": 0.7}],
            "segment": [{"segment": "hello world.", "start": 0.0, "end": 0.7}],
        },
    }
    assert answer["usage"] == {"inputs": 1, "failed": 0, "audio_sec": 2.0}
    assert set(answer["timing"]) == {"fetch_sec", "decode_sec", "queue_sec", "model_sec", "total_sec"}
    assert "error" not in answer


def test_an_unknown_language_is_null_in_json_and_undetermined_in_verbose_json():
    (plain,) = render.to_json(response(Transcript("")), no_bucket)["results"]
    (verbose,) = render.to_json(response(Transcript(""), view=View(format="verbose_json")), no_bucket)["results"]
    assert plain["language"] is None
    assert verbose["formatted"]["language"] == "und"


def test_error_at_the_top_only_when_every_input_failed():
    bad = Failure(1, FetchFailed("gone"), "b")
    good = response(spoken("a")).results[0]
    some = render.to_json(Response("m", (good, bad), Timing()), no_bucket)
    assert "error" not in some
    assert some["results"][1] == {
        "index": 1,
        "id": "b",
        "error": {"code": "fetch_failed", "message": "gone", "retryable": True},
    }
    assert render.to_json(Response("m", (bad,), Timing()), no_bucket)["error"] == "gone"


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings_come_back_as_they_were(encoding):
    values = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    answer = render.to_json(response(Embedding(values, 25.0, "none"), view=View(encoding=encoding)), no_bucket)
    one = answer["results"][0]
    data = one["embedding"]
    back = np.frombuffer(base64.b64decode(data), "<f4") if encoding == "base64" else np.array(data, np.float32)
    back = back.reshape(one["shape"])
    assert np.array_equal(back, values)
    assert (one["frame_rate"], one["pooling"]) == (25.0, "none")


def test_other_tasks():
    caption, reply = Caption("a song"), Reply("hi", "stop", 3, 1)
    embedding = Embedding(np.zeros(4, np.float32), 25.0, "mean")
    a, b, c = render.to_json(response(caption, reply, Analysis(caption, embedding)), no_bucket)["results"]
    assert a["caption"] == "a song"
    assert (b["text"], b["finish_reason"], b["usage"]["total_tokens"]) == ("hi", "stop", 4)
    assert (c["caption"], c["shape"]) == ("a song", [4])


def test_s3_without_a_bucket_fails_that_item_and_says_which_variables():
    answer = render.to_json(
        response(Embedding(np.zeros(4, np.float32), 25.0, "mean"), view=View(encoding="s3")), no_bucket
    )
    assert "BUCKET_NAME" in answer["results"][0]["error"]["message"]


@pytest.mark.parametrize("form", ["json", "text", "srt", "vtt", "verbose_json"])
@given(text=st.text(st.characters(codec=None)))
def test_any_text_is_strict_json(form, text):
    answer = render.to_json(response(Transcript(text), view=View(format=form)), no_bucket)
    json.loads(json.dumps(answer, allow_nan=False, ensure_ascii=False).encode("utf-8"))


@pytest.mark.parametrize("form", ["text", "srt", "vtt", "verbose_json"])
def test_formats_stand_beside_the_fields(form):
    one = render.to_json(response(spoken("hello world."), view=View(format=form)), no_bucket)["results"][0]
    assert one["text"] == "hello world."
    formatted = one["formatted"]
    assert "hello world." in (formatted["text"] if form == "verbose_json" else formatted)
