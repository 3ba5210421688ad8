"""Every request option is known at every door, or listed here as absent with the reason.

The list of options is `worker.protocol.options.OptionFields`. An option that is added there and forgotten elsewhere
fails here, and so does an entry of ABSENT that is no longer true.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path
from typing import get_args, get_type_hints

import httpx
import pytest
from serving import serving

from worker.client import calls
from worker.config import Settings
from worker.entrypoints import python
from worker.entrypoints.cli.arguments import parser
from worker.errors import RequestError
from worker.protocol import openai
from worker.protocol.options import OPTIONS, option_schema, options_of
from worker.protocol.request import parse
from worker.types import Options, View

UI = Path(__file__).parent.parent / "worker" / "entrypoints" / "http" / "ui"
TASKS = ("transcribe", "translate", "caption", "embed", "chat", "analyze", "diarize")
ROUTES = {task: route for route, task in openai.TASKS.items()}
NAMES = {ours: theirs for theirs, ours in openai.RENAMED.items()}

# What an option is called where its name differs, and (surface, option): why it is not there.
ABSENT = {
    ("python", "format"): "answers are records; worker.entrypoints.http and the command line format them",
    ("python", "encoding"): "an embedding is an array",
    ("client", "format"): "answers are records",
    ("client", "encoding"): "an embedding is an array, sent as base64",
    ("client", "translate"): "the client has no translate: transcribe with target_language",
    ("python", "include"): "with confidence, a transcript has its tokens",
    ("client", "include"): "for OpenAI's clients",
    ("cli", "include"): "not offered: an option for programs",
    ("manifest", "include"): "manifests write NeMo's word_confidence",
    ("page", "include"): "not offered: an option for programs",
    ("cli", "languages"): "not offered: an option for programs",
    ("manifest", "languages"): "a line has its own language",
    ("page", "languages"): "not offered: an option for programs",
    ("python", "messages"): "an argument of chat",
    ("client", "messages"): "an argument of chat",
    ("cli", "messages"): "typed as --prompt and --system",
    ("manifest", "format"): "a line is JSON",
    ("manifest", "encoding"): "embeddings are .npy files",
    ("manifest", "messages"): "manifests do not chat",
    ("page", "format"): "the page renders results itself, and exports srt and vtt",
    ("page", "encoding"): "the page asks for base64 itself",
    ("page", "messages"): "the conversation is typed",
    ("page", "punctuation"): "not offered: an option for programs",
    ("page", "condition_on_previous_text"): "not offered: an option for programs",
    ("page", "max_speakers"): "not offered: the page has the number of speakers",
    ("page", "keyword_weight"): "not offered: an option for programs",
    **{
        (surface, name): "the references are audio in the request, for programs"
        for surface in ("cli", "manifest", "page")
        for name in ("known_speaker_names", "known_speaker_references")
    },
    ("page", "long_audio"): "not offered: an option for programs",
    ("page", "top_p"): "not offered: an option for programs",
    **{
        (surface, name): "for srt and vtt, which this surface does not write"
        for surface in ("python", "client", "manifest")
        for name in ("max_line_width", "max_line_count", "max_words_per_line", "max_chars_per_sec")
    },
    **{
        ("page", name): "not offered: an option for programs"
        for name in ("max_line_width", "max_line_count", "max_words_per_line", "max_chars_per_sec")
    },
    ("chat completions", "format"): "OpenAI's response_format asks a chat for JSON, which no model here can do",
}
VALUES = {
    "timestamps": ["word"],
    "language": "en",
    "languages": ["en", "de"],
    "target_language": "en",
    "punctuation": False,
    "confidence": True,
    "include": ["logprobs"],
    "diarize": True,
    "num_speakers": 2,
    "max_speakers": 3,
    "known_speaker_names": ["Ada"],
    "known_speaker_references": ["data:audio/wav;base64,AAAA"],
    "condition_on_previous_text": True,
    "long_audio": "windows",
    "channels": "split",
    "prompt": "words",
    "keywords": ["Aviary"],
    "keyword_weight": 2.0,
    "style": "brief",
    "messages": [{"role": "user", "content": "what?"}],
    "max_new_tokens": 8,
    "temperature": 0.5,
    "top_p": 0.5,
    "format": "verbose_json",
    "max_line_width": 30,
    "max_line_count": 1,
    "max_words_per_line": 4,
    "max_chars_per_sec": 17,
    "pooling": "mean",
    "encoding": "base64",
}
# What an option requires beside it, and what it requires of a transcript.
BESIDE = {
    "known_speaker_names": {"known_speaker_references": ["data:audio/wav;base64,AAAA"]},
    "known_speaker_references": {"known_speaker_names": ["Ada"]},
}
SPEAKERS = ("num_speakers", "max_speakers", *BESIDE)
EACH = [(task, name) for task in TASKS for name in options_of(task)]


def there(surface: str, name: str, known) -> None:
    """`name` is known on the surface, or ABSENT says why not, and only one of both."""
    reason = ABSENT.get((surface, name))
    assert (name in known) != (reason is not None), f"{name} on {surface}: {reason or 'neither known nor listed'}"


def test_every_option_belongs_to_a_task_and_is_described():
    for name in OPTIONS:
        assert option_schema(name)["tasks"], name
        assert option_schema(name)["description"], name
    assert set(VALUES) == set(OPTIONS)


def test_every_option_reaches_the_work_or_the_view():
    known = {field.name for kind in (Options, View) for field in dataclasses.fields(kind)}
    assert set(OPTIONS) <= known
    assert {field.name for field in dataclasses.fields(Options)} <= {*OPTIONS, "model", "task"}


@pytest.mark.parametrize(("task", "name"), EACH)
def test_the_handler_takes_it_on_the_request_and_on_an_input(task, name):
    settings = Settings(skip_model_load=True)
    own = {name: VALUES[name]} | BESIDE.get(name, {})
    for payload in (own | {"inputs": ["a"]}, {"inputs": [{"source": "a"} | own]}):
        diarize = {"diarize": True} if name in SPEAKERS and task in ("transcribe", "translate") else {}
        (item,) = parse({"task": task, **payload, **diarize}, settings).items
        plain = parse({"task": task, "inputs": ["a"], **diarize}, settings).items[0]
        assert (item.options, item.view) != (plain.options, plain.view)


@pytest.mark.parametrize(("task", "name"), [(task, name) for task, name in EACH if task in ROUTES])
def test_openai_s_routes_take_it(task, name):
    body = {"file": "a.wav", NAMES.get(name, name): VALUES[name]}
    payload, _shape = openai.translate(f"/v1/audio/{ROUTES[task]}", body)
    assert payload[name] == VALUES[name]


@pytest.mark.parametrize("name", options_of("chat"))
def test_chat_completions_take_it(name):
    body = {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}]}
    if name == "messages":
        assert openai.translate("/v1/chat/completions", body)[0]["messages"]
        return
    try:
        payload, _shape = openai.translate("/v1/chat/completions", body | {NAMES.get(name, name): VALUES[name]})
    except RequestError:
        payload = {}
    there("chat completions", name, payload)


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    with serving(Settings(skip_model_load=True, data_dir=tmp_path_factory.mktemp("data"))) as url:
        return httpx.get(f"{url}/openapi.json").json()


@pytest.mark.parametrize(("task", "name"), [(task, name) for task, name in EACH if task in ROUTES])
def test_the_openapi_document_has_it(document, task, name):
    content = document["paths"][f"/v1/audio/{ROUTES[task]}"]["post"]["requestBody"]["content"]
    listed = NAMES.get(name, name)
    assert listed in content["application/json"]["schema"]["properties"]
    form = content["multipart/form-data"]["schema"]["properties"]
    assert listed in form or f"{listed}[]" in form


@pytest.mark.parametrize("name", options_of("chat"))
def test_the_openapi_document_has_it_for_chats(document, name):
    content = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]
    there("chat completions", name, content["application/json"]["schema"]["properties"])


@pytest.mark.parametrize(("task", "name"), EACH)
def test_the_python_api_types_it(task, name):
    typed = {
        "transcribe": python.SpeechCall,
        "translate": python.SpeechCall,
        "caption": python.CaptionCall,
        "embed": python.EmbedCall,
        "chat": python.ChatCall,
        "analyze": python.AnalyzeCall,
        "diarize": python.DiarizeCall,
    }[task]
    there("python", name, get_type_hints(typed))


@pytest.mark.parametrize(("task", "name"), EACH)
def test_the_python_api_allows_the_same_values(task, name):
    """The choices of the TypedDict are those of OptionFields, and every option is described."""
    hint = get_type_hints(python._CALLS[task], include_extras=True).get(name)
    if hint is None:
        return
    kind, meaning = get_args(hint)
    assert meaning[0].isupper()
    assert meaning.endswith(".")
    choices = option_schema(name).get("enum")
    assert choices is None or list(get_args(kind)) == choices


@pytest.mark.parametrize(("task", "name"), [(task, name) for task, name in EACH if task != "translate"])
def test_the_client_types_it(task, name):
    typed = {
        "transcribe": calls.TranscribeFields,
        "caption": calls.CaptionFields,
        "embed": calls.EmbedFields,
        "chat": calls.ChatFields,
        "analyze": calls.AnalyzeFields,
        "diarize": calls.DiarizeFields,
    }[task]
    there("client", name, get_type_hints(typed))


def flags(command: str) -> set[str]:
    """The names under which a command's flags are kept."""
    top = parser()
    (commands,) = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    return {action.dest for action in commands.choices[command]._actions}


@pytest.mark.parametrize(("task", "name"), EACH)
def test_the_command_line_has_a_flag_for_it(task, name):
    if name == "prompt" and task == "chat":
        return
    there("cli", name, flags(task))


@pytest.mark.parametrize(
    "name", sorted({name for task in ("transcribe", "caption", "embed") for name in options_of(task)})
)
def test_manifests_have_a_flag_for_it(name):
    there("manifest", name, flags("manifest"))


@pytest.mark.parametrize("name", OPTIONS)
def test_the_page_offers_it(name):
    offered = set(re.findall(r'data-option="(\w+)"', (UI / "index.html").read_text()))
    there("page", name, offered)
    if name in offered:
        assert re.search(rf'"{name}"', (UI / "models.js").read_text())
