"""A text that the limit on new tokens cuts off has a finish_reason and a warning, at every door."""

from __future__ import annotations

import json

import httpx
import pytest
from conftest import DIGITS

from worker.backends.common.generation import length_warning
from worker.client import Client
from worker.config import Settings
from worker.engine import chunking
from worker.engine.engine import Engine
from worker.entrypoints import functions, python
from worker.evaluation import Corpus, Pair, evaluate
from worker.protocol import render
from worker.protocol.request import parse
from worker.types import Options, Transcript

CLIP = DIGITS / "00.flac"
BOUND = 4
WARNING = f"The text is cut off at max_new_tokens ({BOUND}). Raise max_new_tokens, or leave it out."


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from fixtures import tiny_whisper

    folder = str(tiny_whisper.save(tmp_path_factory.mktemp("cut") / "whisper"))
    settings = Settings(model=folder, device="cpu", allowed_paths=(DIGITS,), warmup=False)
    with python.load(settings, folder) as bundle:
        yield bundle


def put(*_args) -> str:
    raise AssertionError("nothing is stored")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["json", "verbose_json"])
def test_the_payload_of_a_job(bundle, form):
    fields = {"inputs": [str(CLIP)], "max_new_tokens": BOUND, "temperature": 0, "format": form}
    engine: Engine = bundle.engine
    (result,) = render.to_json(engine.submit(parse(fields, engine.settings)).result(120), put)["results"]
    for shape in (result, result.get("formatted", result)):
        assert (shape["finish_reason"], shape["warning"]) == ("length", WARNING)


@pytest.mark.slow
def test_the_python_functions_and_an_evaluation(bundle):
    answer = functions.transcribe_file(CLIP, bundle, max_new_tokens=BOUND)
    assert (answer["finish_reason"], answer["warning"]) == ("length", WARNING)
    corpus = Corpus((Pair("00.flac", str(CLIP), "one"),))
    report = evaluate(bundle.engine, corpus, {"max_new_tokens": BOUND, "temperature": 0}, trusted=True)
    assert report["details"][0]["warning"] == WARNING


@pytest.mark.slow
def test_the_routes_of_the_server_and_the_client(bundle):
    from serving import serving

    fields = {"max_new_tokens": str(BOUND), "temperature": "0"}
    with serving(bundle.engine.settings, bundle.engine) as url, Client(url) as client:
        route = f"{url}/v1/audio/transcriptions"
        for form in ("json", "verbose_json"):
            with CLIP.open("rb") as file:
                shape = httpx.post(
                    route, data=fields | {"response_format": form}, files={"file": file}, timeout=120
                ).json()
            assert (shape["finish_reason"], shape["warning"]) == ("length", WARNING)
        with CLIP.open("rb") as file:
            stream = httpx.post(route, data=fields | {"stream": "true"}, files={"file": file}, timeout=120).text
        events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
        assert (events[-1]["finish_reason"], events[-1]["warning"]) == ("length", WARNING)
        paths = {"paths": [str(CLIP)], "max_new_tokens": BOUND}
        (shape,) = httpx.post(f"{url}/transcribe", json=paths, timeout=120).json()["results"]
        assert (shape["finish_reason"], shape["warning"]) == ("length", WARNING)
        result = client.transcribe(CLIP, max_new_tokens=BOUND, temperature=0)
        assert (result.finish_reason, result.warning) == ("length", WARNING)


def test_one_window_that_is_cut_off_cuts_the_whole_text():
    whole = Transcript("a", finish_reason="stop")
    cut = Transcript("b", finish_reason="length", warning=WARNING)
    assert chunking.merge([(0.0, whole), (30.0, cut), (60.0, cut)]).finish_reason == "length"
    assert chunking.merge([(0.0, whole), (30.0, cut), (60.0, cut)]).warning == WARNING
    assert chunking.merge([(0.0, whole), (30.0, whole)]).finish_reason == "stop"
    assert chunking.merge([(0.0, Transcript("a"))]).finish_reason is None


def test_a_limit_of_the_model_is_not_called_the_request_s():
    assert length_warning("stop", Options("m", max_new_tokens=7), 7) is None
    for options in (Options("m"), Options("m", max_new_tokens=5000)):
        warning = length_warning("length", options, 440)
        assert warning is not None
        assert "440 new tokens, the limit of the model" in warning
