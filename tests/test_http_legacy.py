"""The routes of the servers that Aviary replaces, each asked as its own document shows."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import time
from pathlib import Path

import httpx
import pytest
from serving import serving
from starlette.responses import JSONResponse

from worker.config import Settings

pytestmark = pytest.mark.slow

WEEK = Path("samples/week.wav").resolve()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    settings = Settings(
        model="pocketsphinx", data_dir=tmp_path_factory.mktemp("data"), allowed_paths=(folder, WEEK.parent)
    )
    with serving(settings) as url, httpx.Client(base_url=url, timeout=60) as http:
        http.folder = folder
        yield http


def test_an_upload_as_the_asr_server_took_it(server):
    with WEEK.open("rb") as file:
        answer = server.post(
            "/transcribe", files={"file": ("audio.mp3", file)}, headers={"accept": "application/json"}
        ).json()
    assert answer.pop("timestamp")[:2] == "20"
    assert answer == {
        "text": "see you next week",
        "segments": [{"start": 0.13, "end": 1.13, "text": "see you next week"}],
        "filename": "audio.mp3",
    }


def test_an_upload_without_timestamps(server):
    with WEEK.open("rb") as file:
        answer = server.post(
            "/transcribe", files={"file": file}, data={"include_timestamps": "false", "language": "en"}
        ).json()
    assert answer["segments"] == []
    assert answer["text"] == "see you next week"


@pytest.mark.parametrize(
    ("file", "filename"),
    [
        (str(WEEK), "week.wav"),
        ({"url": WEEK.as_uri() + "?signature=a/b"}, "week.wav"),
        ({"data": base64.b64encode(WEEK.read_bytes()).decode()}, "audio"),
    ],
)
def test_a_source_in_place_of_an_upload(server, file, filename):
    answer = server.post("/transcribe", json={"file": file, "include_timestamps": True}).json()
    assert (answer["text"], answer["filename"]) == ("see you next week", filename)
    assert answer["segments"] == [{"start": 0.13, "end": 1.13, "text": "see you next week"}]
    assert server.post("/transcribe", json={"file": file, "include_timestamps": False}).json()["segments"] == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"file": 7}, "file"),
        ({"file": {}}, "file"),
        ({"file": str(WEEK), "paths": [str(WEEK)]}, "paths"),
        ({"file": str(WEEK), "include_timestamps": 2}, "include_timestamps"),
        ({"language": "en"}, "language"),
    ],
)
def test_a_mistake_in_place_of_an_upload_names_its_field(server, body, param):
    answer = server.post("/transcribe", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_paths_as_the_offline_runner_took_them(server):
    answer = server.post(
        "/transcribe", json={"paths": [str(WEEK), str(WEEK)], "prompt": None, "max_new_tokens": 128}
    ).json()
    assert [one["file"] for one in answer["results"]] == [str(WEEK)] * 2
    assert {one["text"] for one in answer["results"]} == {"see you next week"}
    assert all(one["elapsed_sec"] > 0 for one in answer["results"])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"paths": []}, "paths must be a list"),
        ({}, "paths must be a list"),
        ({"paths": ["samples/none.wav"]}, "no such file"),
        ({"paths": ["/etc/passwd"]}, "ALLOWED_PATHS"),
        ({"paths": ["http://127.0.0.1/x"]}, "is not a path"),
        ({"paths": ["samples/week.wav"], "speed": 2}, "speed is not a field"),
        ({"paths": ["samples/week.wav"], "max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_paths_that_cannot_be_read_are_told_before_any_work(server, body, says):
    answer = server.post("/transcribe", json=body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_one_damaged_file_among_good_ones_fails_alone(server):
    (server.folder / "noise.mp3").write_bytes(b"no audio" * 1000)
    answer = server.post("/transcribe", json={"paths": [str(server.folder / "noise.mp3"), str(WEEK)]}).json()
    assert answer["results"][0]["error"]["code"] == "decode_failed"
    assert answer["results"][1]["text"] == "see you next week"


def test_healthz(server):
    assert server.get("/healthz").json() == {"status": "ok", "device": "auto", "model": "pocketsphinx"}


def test_evaluate_a_folder(server):
    audio, labels = server.folder / "audio", server.folder / "labels"
    audio.mkdir()
    labels.mkdir()
    for name, text in (("a", "See you next  week\n"), ("b", "see you last week")):
        shutil.copy(WEEK, audio / f"{name}.wav")
        (labels / f"{name}.txt").write_text(text)
    answer = server.post(
        "/evaluate", json={"audio_dir": str(audio), "gt_dir": str(labels), "match_mode": "exact", "max_new_tokens": 128}
    ).json()
    expected = {"count": 2, "tp": 1, "fp": 1, "fn": 1, "precision": 0.5, "recall": 0.5, "f1": 0.5, "wer": 1 / 8}
    assert {name: answer["summary"][name] for name in expected} == expected
    assert {name: answer["details"][0][name] for name in ("file", "pred", "match")} == {
        "file": "a.wav",
        "pred": "see you next week",
        "match": 1,
    }


@pytest.mark.parametrize("folder", ["/etc", "/nowhere", "../.."])
def test_evaluate_only_inside_the_allowed_folders(server, folder):
    answer = server.post("/evaluate", json={"audio_dir": folder, "gt_dir": folder})
    assert answer.status_code == 400
    assert "ALLOWED_PATHS" in answer.json()["error"]["message"]


def test_score_is_refused_where_there_are_no_references(server):
    with WEEK.open("rb") as file:
        answer = server.post("/score", files={"audio": file}, data={"uid": "a", "cid": "b"})
    assert answer.status_code == 400
    assert "AUDIO_SCORE_CONFIG" in answer.json()["error"]["message"]


def test_a_server_that_cannot_score_says_that_it_is_not_well(tmp_path):
    (tmp_path / "clips").mkdir()
    config = {
        "models": [{"key": "gone", "type": "whisper", "model_id": str(tmp_path / "whisper")}],
        "video_clip_dir": "clips",
        "cache_dir": "cache",
        "target_sampling_rate": 16000,
    }
    (tmp_path / "whisper").mkdir()
    (tmp_path / "whisper" / "config.json").write_text('{"architectures": ["WhisperForConditionalGeneration"]}')
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = Settings(model="pocketsphinx", audio_score_config=tmp_path / "config.json", data_dir=tmp_path / "data")
    with serving(settings) as url, httpx.Client(base_url=url, timeout=60) as http:
        deadline = time.monotonic() + 120
        while http.get("/health").json()["status"] != "unhealthy":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert http.get("/health/ready").status_code == 503


def test_score_against_references(tmp_path):
    clips = tmp_path / "video_clip"
    clips.mkdir()
    shutil.copy(WEEK, clips / "PeppaPig-s06e02_part01.wav")
    config = {
        "models": [{"key": "whisper-small", "type": "whisper", "model_id": "openai/whisper-small"}],
        "video_clip_dir": "video_clip",
        "cache_dir": "cache",
        "target_sampling_rate": 16000,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = Settings(skip_model_load=True, audio_score_config=tmp_path / "config.json", data_dir=tmp_path / "data")
    fields = {"uid": "PeppaPig-s06e02", "cid": "part01", "model": "whisper-small"}
    with serving(settings) as url, httpx.Client(base_url=url, timeout=60) as http:
        with WEEK.open("rb") as file:
            answer = http.post("/score", files={"audio": file}, data=fields).json()
        assert answer == {"model": "whisper-small", "sim_score": 0.5, "audio_sim_score": 0.0, "text_sim_score": 1.0}, (
            "the dry run's features are zeros, which are like nothing"
        )
        for wrong, status in (({"cid": "part99"}, 404), ({"model": "nope"}, 400)):
            with WEEK.open("rb") as file:
                answer = http.post("/score", files={"audio": file}, data=fields | wrong)
            assert answer.status_code == status, answer.text
        unheard = http.post("/score", files={"audio": b"no audio" * 99}, data=fields)
        assert unheard.status_code == 415
        assert http.post("/score", data={"uid": "a"}).status_code == 415, "a form without a file is no multipart form"
        for source in (
            str(WEEK),
            {"url": WEEK.resolve().as_uri()},
            {"data": base64.b64encode(WEEK.read_bytes()).decode()},
        ):
            assert http.post("/score", json={**fields, "audio": source}).json()["text_sim_score"] == 1
        for wrong in ({}, {"audio": 5}, {"audio": str(WEEK), "inputs": [str(WEEK)] * 2}):
            assert http.post("/score", json={**fields, **wrong}).status_code == 400


def test_no_response_is_encoded_on_the_event_loop(server, monkeypatch):
    on_loop = []

    def render(self, content, encode=JSONResponse.render):
        on_loop.append(asyncio._get_running_loop() is not None)
        return encode(self, content)

    monkeypatch.setattr(JSONResponse, "render", render)
    folder = server.folder / "encoded"
    folder.mkdir()
    shutil.copy(WEEK, folder / "a.wav")
    (folder / "a.txt").write_text("see you next week")
    with WEEK.open("rb") as file:
        answers = [
            server.post("/transcribe", files={"file": file}),
            server.post("/transcribe", json={"paths": [str(WEEK)]}),
            server.post("/evaluate", json={"audio_dir": str(folder), "gt_dir": str(folder)}),
        ]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert on_loop == [False] * 3
