"""What OpenAI's clients send beyond the audio: fields that change nothing are accepted, and others are refused by name,
or ignored with a warning."""

from __future__ import annotations

import asyncio

import httpx
import openai
import pytest
from serving import serving

from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints.python import load
from worker.entrypoints.runpod import RunpodWorker
from worker.errors import RequestError, Unsupported
from worker.protocol.openai import translate
from worker.protocol.openai_fields import IGNORED, NEUTRAL, NOT_SUPPORTED, VAD_DEFAULTS
from worker.protocol.request import parse

WEEK = "samples/week.wav"
SPEECH = "/v1/audio/transcriptions"
WARN = Settings(model="pocketsphinx", unsupported_options="warn")
VAD = {"type": "server_vad"}

# Bodies of a transcription with the same meaning as a body without the fields.
NO_EFFECT = [
    {"prompt": ""},
    {"language": "", "response_format": "", "temperature": "", "model": ""},
    {"timestamp_granularities": [""]},
    {"include": [""]},
    {"stream": ""},
    {"temperature": 0},
    {"temperature": "0.0"},
    {"top_p": 1},
    {"language": "auto"},
    {"languages": []},
    {"keywords": [""], "known_speaker_names": []},
    {"chunking_strategy": "auto"},
    {"chunking_strategy": ""},
    {"chunking_strategy": None},
    {"chunking_strategy": VAD},
    {"chunking_strategy": VAD | VAD_DEFAULTS},
    {"chunking_strategy": '{"type": "server_vad", "threshold": 0.5}'},
    {"chunking_strategy": VAD | {name: str(value) for name, value in VAD_DEFAULTS.items()}},
    *({name: "x"} for name in IGNORED),
]
# Bodies of a transcription that pocketsphinx cannot honor, and the field that the error names.
MEANINGFUL = [
    ({"prompt": "words"}, "prompt"),
    ({"temperature": 0.2}, "temperature"),
    ({"top_p": 0.5}, "top_p"),
    ({"keywords": ["Aviary"]}, "keywords"),
    ({"chunking_strategy": VAD | {"threshold": 0.9}}, "chunking_strategy.threshold"),
    ({"languages": ["de", "fr"]}, "languages"),
]


def request(body, settings=WARN):
    payload, _shape = translate(SPEECH, {"file": WEEK} | {key: value for key, value in body.items() if key != "stream"})
    return parse(payload, settings)


@pytest.mark.parametrize("body", NO_EFFECT, ids=repr)
@pytest.mark.parametrize("model", ["pocketsphinx", "whisper", "canary", "audio-flamingo"])
def test_what_changes_nothing_is_accepted_by_every_model(body, model):
    settings = Settings(model=model)
    if model in ("whisper", "audio-flamingo") and "top_p" in body:
        return  # an option of these models
    (item,), (plain,) = request(body, settings).items, request({}, settings).items
    assert (item.options, item.view, item.warning) == (plain.options, plain.view, None)


def test_the_payload_accepts_the_same():
    fields = {"temperature": 0, "top_p": 1, "prompt": "", "language": "", "timestamps": ""}
    settings = Settings(model="pocketsphinx")
    (plain,) = parse({"inputs": [WEEK]}, settings).items
    for payload in ({"inputs": [WEEK], "model": "", **fields}, {"inputs": [{"source": WEEK, **fields}]}):
        assert parse(payload, settings).items[0].options == plain.options


def test_a_temperature_that_a_model_has_stays():
    assert parse({"model": "whisper", "temperature": 0, "inputs": [WEEK]}, Settings()).items[0].options.temperature == 0
    assert request({"model": "whisper", "temperature": 0.4}).items[0].options.temperature == 0.4


@pytest.mark.parametrize(
    ("sent", "code"),
    [("en-US", "en"), ("EN", "en"), ("english", "en"), ("pt-BR", "pt"), ("Chinese", "zh"), ("zh-Hans", "zh")],
)
def test_tags_and_names_of_languages_are_codes(sent, code):
    for body in ({"language": sent}, {"languages": [sent]}, {"language": sent, "languages": ["de", "fr"]}):
        assert request({"model": "whisper", **body}).items[0].options.language == code


def test_languages_reach_a_model_that_chooses_among_them():
    (item,) = request({"model": "whisper", "languages": ["en-US", "German", "", "auto", "en"]}).items
    assert (item.options.language, item.options.languages) == (None, ("en", "de"))
    with pytest.raises(Unsupported, match="unsupported language 'xx'") as caught:
        request({"model": "whisper", "languages": ["en", "xx"]})
    assert caught.value.param == "languages"


def test_languages_that_rule_nothing_out_are_accepted():
    assert request({"languages": ["de", "en"]}, Settings(model="pocketsphinx")).items[0].options.language is None


@pytest.mark.parametrize(("body", "field"), MEANINGFUL, ids=repr)
def test_what_would_change_the_answer_is_refused_by_name(body, field):
    with pytest.raises(Unsupported, match="Models that do") as caught:
        request(body, Settings(model="pocketsphinx"))
    assert caught.value.param == field
    (item,) = request(body).items
    (plain,) = request({}).items
    assert item.options == plain.options
    assert f"does not accept {field}." in item.warning


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"chunking_strategy": "loud"}, "chunking_strategy must be auto"),
        ({"chunking_strategy": {"type": "client_vad"}}, "chunking_strategy must be auto"),
        ({"chunking_strategy": VAD | {"volume": 1}}, "chunking_strategy must be auto"),
        ({"temperature": 10**400}, "temperature"),
        ({"chunking_strategy": "[" * 100_000}, "chunking_strategy must be auto"),
        ({"keywords": [1]}, "keywords must be a list of texts"),
        ({"languages": {"a": "b"}}, "languages must be a list of texts"),
        ({"colour": "red"}, "colour is not a field of this route"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_refused_with_warnings_too(body, says):
    with pytest.raises(RequestError, match=says):
        request(body)


@pytest.mark.parametrize(
    "payload",
    [
        {"target_language": "de"},
        {"task": "translate"},
        {"task": "chat", "messages": [{"role": "user", "content": "?"}]},
        {"language": "de"},
        {"format": "srt", "model": "audio-flamingo"},
        {"model": "audio-flamingo", "task": "caption", "prompt": "<sound>"},
    ],
    ids=repr,
)
def test_what_decides_what_the_result_is_is_never_ignored(payload):
    with pytest.raises(Unsupported):
        parse({"inputs": [WEEK], **payload}, WARN)


def test_what_is_left_out_is_left_out_of_the_view():
    (item,) = parse(
        {"model": "audio-flamingo", "inputs": [WEEK], "timestamps": True, "include": "logprobs", "confidence": True},
        WARN,
    ).items
    assert (item.view.timestamps, item.view.include, item.view.confidence) == ((), (), False)
    assert not item.options.timestamps
    assert not item.options.confidence
    for name in ("include", "confidence", "timestamps"):
        assert name in item.warning
    assert request({"include": ["logprobs"], "model": "parakeet"}).items[0].view.include == ("logprobs",)


@pytest.mark.parametrize("name", NOT_SUPPORTED)
def test_the_payload_refuses_them_as_well(name):
    with pytest.raises(Unsupported):
        parse({"inputs": [WEEK], name: ["x"]}, Settings(model="pocketsphinx"))
    for value in (["x"], 5, "x"):
        assert name in parse({"inputs": [WEEK], name: value}, WARN).items[0].warning


AUDIO = [{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "audio", "audio": WEEK}]}]


@pytest.mark.parametrize(("name", "values"), NEUTRAL.items())
def test_a_chat_takes_the_values_that_change_nothing(name, values):
    plain = translate("/v1/chat/completions", {"messages": AUDIO})[0]
    for value in (*values, None):
        assert translate("/v1/chat/completions", {"messages": AUDIO, name: value})[0] == plain
    with pytest.raises(RequestError, match=f"{name} is not a field"):
        translate("/v1/chat/completions", {"messages": AUDIO, name: "other"})


def test_the_python_api_and_the_handler_warn():
    with load(WARN) as bundle:
        assert "does not accept prompt" in bundle.transcribe(WEEK, prompt="words").warning
    with Engine(WARN) as engine:
        worker = RunpodWorker(WARN, engine)
        payload = {"inputs": [WEEK, {"source": WEEK, "prompt": "words"}], "keywords": ["Aviary"]}
        first, second = asyncio.run(worker.handle({"id": "x", "input": payload}))["results"]
    assert "keywords" in first["warning"]
    assert "prompt" not in first["warning"]
    assert "keywords" in second["warning"]
    assert "prompt" in second["warning"]


@pytest.fixture(scope="module")
def warning(tmp_path_factory):
    with serving(WARN.model_copy(update={"data_dir": tmp_path_factory.mktemp("data")})) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def ask(client: openai.OpenAI, **options):
    with open(WEEK, "rb") as file:
        return client.audio.transcriptions.create(file=file, **{"model": "whisper-1"} | options)


@pytest.mark.slow
def test_openai_s_client_sends_them_and_reads_the_warning(warning):
    """The client's own encoding of lists and objects in a form."""
    plain = ask(
        warning,
        chunking_strategy=VAD | VAD_DEFAULTS,
        languages=["en"],
        temperature=0,
        prompt="",
        extra_body={"user": "a", "metadata": {"team": "b"}},
    )
    assert plain.languages[0].code == plain.language == "en"
    assert not hasattr(plain, "warning")
    fields = {"keywords": ["one", "two"], "chunking_strategy": VAD | {"threshold": 0.9}}
    verbose = ask(warning, response_format="verbose_json", **fields)
    *_, done = ask(warning, stream=True, **fields)
    for answer in (ask(warning, **fields), verbose, done):
        assert "does not accept keywords" in answer.warning
        assert "does not accept chunking_strategy.threshold" in answer.warning
    assert ask(warning, response_format="text", **fields) == "see you next week"


@pytest.mark.slow
def test_the_language_of_a_text_of_unknown_language_is_an_empty_list(tmp_path):
    with serving(Settings(skip_model_load=True, data_dir=tmp_path)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert ask(client).languages == []
        *_, done = ask(client, stream=True)
        assert done.languages == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"languages[]": "en", "languages": "de"}, "languages is sent twice"),
        ({"chunking_strategy[type]": "server_vad", "chunking_strategy": "auto"}, "chunking_strategy is sent twice"),
        ({"chunking_strategy[]": "auto"}, "chunking_strategy must be auto"),
        ({"chunking_strategy[type][a]": "server_vad"}, "chunking_strategy[type][a] is not a field"),
        ({"language[a]": "en"}, "language"),
    ],
)
def test_forms_with_brackets_that_make_no_sense(warning, form, says):
    with open(WEEK, "rb") as file:
        answer = httpx.post(f"{warning.base_url}audio/transcriptions", files={"file": file}, data=form)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]
