"""Payload → Request: every form the contract names, and errors that name the field and what is allowed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.config import Settings
from worker.errors import AviaryError, InputError, ModelNotFound, RequestError, TooManyInputs, Unsupported
from worker.protocol import request as protocol
from worker.protocol.request import source_of, unwrap
from worker.types import Request

SETTINGS = Settings(model="parakeet")
DRY = Settings(skip_model_load=True)


def parse(payload, settings: Settings) -> Request:
    """The request of a payload as a door has it."""
    return protocol.parse(unwrap(payload), settings)


def test_under_input_and_bare_are_the_same():
    bare = {"inputs": ["a.wav"]}
    assert parse(bare, SETTINGS) == parse({"input": bare}, SETTINGS)


def test_the_earlier_payload_works_unchanged():
    request = parse({"input": {"timestamps": True, "inputs": [{"source": "https://host/a.mp3"}]}}, SETTINGS)
    assert request.model == "nvidia/parakeet-tdt-0.6b-v3"
    (item,) = request.items
    assert (item.source.kind, item.source.location) == ("url", "https://host/a.mp3")
    assert item.options.timestamps
    assert item.view.timestamps == ("word", "segment")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("https://host/a.mp3", "url"),
        ("HTTP://host/a", "url"),
        ("/data/b.flac", "path"),
        ("b.flac", "path"),
        ("a:b.wav", "path"),
        ("file:///data/b.flac", "path"),
        ("s3://bucket/c.m4a", "s3"),
        ("data:audio/wav;base64,UklGRg==", "data"),
    ],
)
def test_kinds_of_source(text, kind):
    assert source_of(text).kind == kind


def test_shorthands():
    assert parse({"audio": "a.wav", "id": "x"}, SETTINGS).items[0].id == "x"
    assert parse({"audio": {"source": "a.wav", "id": 7}}, SETTINGS).items[0].id == 7
    assert parse({"audio_base64": "UklGRg=="}, SETTINGS).items[0].source.location == "data:;base64,UklGRg=="


def test_an_item_s_options_win_over_the_request_s():
    request = parse(
        {
            "timestamps": True,
            "language": "de",
            "inputs": [
                "a.wav",
                {"source": "b.wav", "timestamps": False, "language": "fr"},
                {"source": "c.wav", "timestamps": ["char"]},
            ],
        },
        SETTINGS,
    )
    first, second, third = request.items
    assert (first.options.language, first.view.timestamps) == ("de", ("word", "segment"))
    assert (second.options.language, second.options.timestamps, second.view.timestamps) == ("fr", False, ())
    assert third.view.timestamps == ("char",)


@pytest.mark.parametrize(
    ("of_the_request", "of_the_input", "code"),
    [
        ("German", None, "de"),
        ("DE", "en-US", "en"),
        ("auto", None, None),
        ("", None, None),
        ("de", "auto", None),
        ("de", "", "de"),
    ],
)
def test_a_language_may_be_a_name_a_region_or_auto(of_the_request, of_the_input, code):
    for field in ("language", "target_language"):
        (item,) = parse(
            {field: of_the_request, "inputs": [{"source": "a.wav", field: of_the_input}]},
            Settings(skip_model_load=True),
        ).items
        assert getattr(item.options, field) == code


@pytest.mark.parametrize(
    ("payload", "names"),
    [
        ({}, ["inputs", "audio", "audio_base64"]),
        ({"inputs": []}, ["inputs", "empty"]),
        ({"inputs": ["a"], "audio": "b"}, ["exactly one"]),
        ({"inputs": "a.wav"}, ["inputs", "list"]),
        ({"inputs": ["a"], "task": "sing"}, ["task", "transcribe", "caption"]),
        ({"inputs": ["a"], "timestamps": ["line"]}, ["timestamps", "word", "segment", "char"]),
        ({"inputs": ["a"], "format": "doc"}, ["format", "srt", "vtt"]),
        ({"inputs": ["a"], "modle": "parakeet"}, ["modle", "model", "inputs"]),
        ({"inputs": ["a"], "temperature": 9}, ["temperature", "2"]),
        ({"inputs": ["a"], "language": "xx"}, ["xx", "de"]),
        (
            {"inputs": ["a"], "language": "Klingon"},
            ["language: unknown language 'Klingon'", "codes af, am, ar", "name"],
        ),
        ({"inputs": ["a"], "language": "x" * 33}, ["language", "32 characters"]),
        ({"inputs": ["a"], "prompt": "hello"}, ["prompt"]),
        (
            {"inputs": ["a"], "messages": [{"role": "user", "content": "?", "text": 1}]},
            ["messages.0.text is not a field"],
        ),
        ({"inputs": ["a"], "messages": [{"role": "user"}]}, ["messages.0.content: field required"]),
        ({"input": 3}, ["input"]),
        ([], ["object"]),
    ],
)
def test_a_bad_request_names_the_field_and_what_is_allowed(payload, names):
    with pytest.raises(RequestError) as caught:
        parse(payload, SETTINGS)
    for name in names:
        assert name in caught.value.message


def test_an_unknown_model_lists_the_known():
    with pytest.raises(ModelNotFound, match="parakeet-v2"):
        parse({"model": "whisperer", "inputs": ["a"]}, SETTINGS)


def test_a_task_the_model_cannot_do_is_refused_before_any_work():
    with pytest.raises(Unsupported, match="cannot caption"):
        parse({"task": "caption", "inputs": ["a"]}, SETTINGS)


def test_the_dry_run_answers_every_task_unless_a_model_is_named():
    for task in ("transcribe", "translate", "caption", "embed", "chat", "analyze"):
        assert parse({"task": task, "inputs": ["a"]}, DRY).items[0].options.task == task
    with pytest.raises(Unsupported):
        parse({"task": "caption", "model": "parakeet", "inputs": ["a"]}, DRY)


def test_too_many_inputs():
    with pytest.raises(TooManyInputs, match="MAX_INPUTS"):
        parse({"inputs": ["a", "b", "c"]}, Settings(max_inputs=2))


def test_bad_items_fail_in_place_and_the_others_go_on():
    request = parse(
        {
            "inputs": [
                "a.wav",
                5,
                {"id": "x"},
                {"source": "b.wav", "lang": "en", "id": "y"},
                "ftp://host/a",
                "c.wav",
                {"source": "d.wav", "language": "xx"},
            ]
        },
        SETTINGS,
    )
    assert [item.index for item in request.items] == [0, 5]
    assert [(failure.index, failure.id) for failure in request.rejected] == [
        (1, None),
        (2, "x"),
        (3, "y"),
        (4, None),
        (6, None),
    ]
    assert all(isinstance(failure.error, AviaryError) for failure in request.rejected)
    assert "lang" in request.rejected[2].error.message
    assert "ftp" in request.rejected[3].error.message
    assert request.size == 7


FIELDS = ["input", "inputs", "task", "model", "timestamps", "audio", "source", "id", "x"]
json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@given(json)
def test_whatever_comes_it_is_a_request_or_an_error_of_ours(payload):
    try:
        request = parse(payload, SETTINGS)
    except RequestError:
        return
    indices = sorted([item.index for item in request.items] + [failure.index for failure in request.rejected])
    assert indices == list(range(request.size))


def test_the_text_of_inline_audio_never_shows_in_a_repr():
    request = parse({"audio_base64": "U0VDUkVU"}, SETTINGS)
    assert "U0VDUkVU" not in repr(request)


def test_unknown_scheme():
    with pytest.raises(InputError, match="https"):
        source_of("gopher://host/a")
