"""What other programs' clients send, and whether they can read the answers.

fixtures/client_bodies.json has a row for each request: `client` and `version`, `how` the row is known, the request, the
shape of the `answer`, and the field for which the default model refuses it, if it does (`refused`). `how` is `live`
(the client runs in these tests), `recorded` (it ran once against this server) or `source` (as its source shows).
`reads` is `whisper` if the client reads the answer of such models only: it rejects the numbers of a segment that other
models do not report, and that are null.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from client_bodies import DATA, FILE, ROWS, Recorder
from openai.types.audio import Transcription, TranscriptionSegment, Translation
from serving import serving
from websockets.asyncio.client import connect

from worker.config import Settings
from worker.protocol.render import _segment
from worker.types import Segment

WEEK = Path("samples/week.wav")
TESTS = Path(__file__).parent
MODULES = Path(sys.prefix) / "npm" / "node_modules"  # `make test` puts it there
SEGMENT = {"id": int, "seek": int, "start": (int, float), "end": (int, float), "text": str}
HTTP = [row for row in ROWS if row["answer"] != "session"]
SESSIONS = [row for row in ROWS if row["answer"] == "session"]
Row = dict[str, Any]


def name(row: Row) -> str:
    return f"{row['client']}: {row['case']}"


@pytest.fixture(scope="module")
def dry(tmp_path_factory) -> Iterator[str]:
    with serving(Settings(skip_model_load=True, data_dir=tmp_path_factory.mktemp("data"))) as url:
        yield url


@pytest.fixture(scope="module")
def warning(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("data")
    with serving(Settings(skip_model_load=True, unsupported_options="warn", data_dir=folder)) as url:
        yield url


@pytest.fixture
def recorded(tmp_path) -> Iterator[tuple[str, Recorder]]:
    recorders: list[Recorder] = []

    def wrap(app: Any) -> Recorder:
        recorders.append(Recorder(app))
        return recorders[0]

    with serving(Settings(skip_model_load=True, data_dir=tmp_path), wrap=wrap) as url:
        yield url, recorders[0]


def form(row: Row) -> tuple[bytes, str]:
    """The body of a form with the fields of a row in their order, and its content type."""
    body = b""
    for field, value, *file in row["fields"]:
        head = f'--row\r\nContent-Disposition: form-data; name="{field}"'
        if file:
            filename, kind = file
            head += f'; filename="{filename}"' + (f"\r\nContent-Type: {kind}" if kind else "")
        body += head.encode() + b"\r\n\r\n" + (WEEK.read_bytes() if value == FILE else value.encode()) + b"\r\n"
    return body + b"--row--\r\n", "multipart/form-data; boundary=row"


def send(url: str, row: Row) -> httpx.Response:
    if "fields" in row:
        body, kind = form(row)
    else:
        data = base64.b64encode(WEEK.read_bytes()).decode()
        body, kind = json.dumps(row["json"]).replace(DATA, data).encode(), "application/json"
    headers = {"Content-Type": kind, "Authorization": "Bearer none"}
    return httpx.post(url + row["path"], content=body, headers=headers, timeout=60)


def check(answer: httpx.Response, row: Row) -> None:
    """Fail unless the answer has the types that the row's client requires."""
    assert answer.status_code == 200, answer.text
    CHECKS[row["answer"]](answer, row)


def check_json(answer: httpx.Response, row: Row) -> None:
    kind = Translation if row["path"].endswith("translations") else Transcription
    read = kind.model_validate(answer.json(), strict=True)
    assert read.text.startswith("[dry-run]")


def check_verbose(answer: httpx.Response, row: Row) -> None:
    told = answer.json()
    assert isinstance(told["language"], str)
    assert isinstance(told["duration"], float)
    assert told["usage"] == {"type": "duration", "seconds": told["duration"]}
    assert told["segments"]
    for segment in told["segments"]:
        for field, kind in SEGMENT.items():
            assert isinstance(segment[field], kind), field
    for word in told["words"]:
        assert isinstance(word["word"], str)
        assert word["start"] <= word["end"]


def check_text(answer: httpx.Response, row: Row) -> None:
    assert answer.headers["content-type"].startswith("text/plain")
    assert " --> " in answer.text


def check_events(answer: httpx.Response, row: Row) -> None:
    assert answer.headers["content-type"].startswith("text/event-stream")
    *data, end = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    *deltas, done = map(json.loads, data)
    assert end == "[DONE]"
    assert {event["type"] for event in deltas} == {"transcript.text.delta"}
    assert done["type"] == "transcript.text.done"
    assert "".join(event["delta"] for event in deltas) == done["text"]


CHECKS: dict[str, Callable[[httpx.Response, Row], None]] = {
    "json": check_json,
    "verbose_json": check_verbose,
    "text": check_text,
    "events": check_events,
}


def test_every_client_has_rows():
    assert {row["client"] for row in ROWS} == {
        "ai-sdk",
        "langchain",
        "litellm",
        "livekit",
        "n8n",
        "open-webui",
        "openai-go",
        "openai-node",
        "openai-python",
        "OpenAI for .NET",
        "pipecat",
        "wyoming_openai",
    }
    assert len({name(row) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", HTTP, ids=name)
def test_what_clients_send_is_accepted_and_answered_in_their_types(dry, warning, row):
    if "refused" not in row:
        return check(send(dry, row), row)
    refusal = send(dry, row)
    assert (refusal.status_code, refusal.json()["error"]["param"]) == (400, row["refused"])
    assert "Models that do" in refusal.json()["error"]["message"]
    lenient = send(warning, row)
    check(lenient, row)
    return None if row["answer"] != "json" else check_warning(lenient.json()["warning"], row)


def check_warning(text: str, row: Row) -> None:
    assert f"does not accept {row['refused']}." in text


@pytest.mark.parametrize("row", SESSIONS, ids=name)
def test_the_sessions_of_clients_are_accepted(dry, row):
    async def run() -> dict[str, Any]:
        address = dry.replace("http", "ws") + row["path"] + "?intent=transcription"
        async with connect(address) as socket:
            await socket.recv()
            await socket.send(json.dumps(row["json"]))
            return json.loads(await socket.recv())

    event = asyncio.run(run())
    if "refused" in row:
        assert event["type"] == "error"
        assert event["error"]["param"].endswith(row["refused"])
        assert event["error"]["code"] == "unsupported"
    else:
        assert event["type"] == "session.updated", event
        asked = row["json"]["session"]["audio"]["input"]
        assert event["session"]["audio"]["input"]["format"] == asked["format"]


def test_whisper_fills_every_field_of_openai_s_segment():
    # Some clients reject a segment in which any of them is null: the rows whose `reads` is whisper.
    reported = Segment("a text", 1.234, 2.0, None, (1, 2), -0.2, 1.1, 0.0, 0.01)
    TranscriptionSegment.model_validate(_segment(0, reported, confidence=False), strict=True)
    assert _segment(0, reported, confidence=False)["seek"] == 123


# Clients that run here


def rows(client: str) -> dict[str, Row]:
    return {row["case"]: row for row in ROWS if (row["client"], row["how"]) == (client, "live")}


def sent(recorder: Recorder) -> list[Row]:
    return [{"path": request.path, "fields": request.fields} for request in recorder.requests]


def python_calls(client: openai.OpenAI) -> dict[str, Callable[[], Any]]:
    create = client.audio.transcriptions.create
    return {
        "plain": lambda: create(file=WEEK, model="whisper-1"),
        "options": lambda: create(
            file=WEEK,
            model="whisper-1",
            language="en",
            prompt="",
            temperature=0,
            response_format="verbose_json",
            timestamp_granularities=["word", "segment"],
        ),
        "stream": lambda: list(create(file=WEEK, model="gpt-transcribe", languages=["en"], stream=True)),
        "chunking": lambda: create(
            file=WEEK, model="gpt-4o-transcribe", chunking_strategy={"type": "server_vad"}, include=["logprobs"]
        ),
        "subtitles": lambda: create(file=WEEK, model="whisper-1", response_format="srt"),
        "translation": lambda: client.audio.translations.create(file=WEEK, model="canary"),
    }


def test_openai_for_python_sends_the_rows(recorded):
    url, recorder = recorded
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        answers = {case: call() for case, call in python_calls(client).items()}
    expected = rows("openai-python")
    assert list(answers) == list(expected)
    assert sent(recorder) == [{"path": row["path"], "fields": row["fields"]} for row in expected.values()]
    assert [event.type for event in answers["stream"]][-1] == "transcript.text.done"
    assert answers["chunking"].logprobs
    assert answers["options"].segments[0].seek == 0


@pytest.mark.slow
@pytest.mark.skipif(not (MODULES / "ai").is_dir() or shutil.which("node") is None, reason="the AI SDK is not installed")
def test_the_clients_of_npm_send_the_rows_and_read_the_answers(recorded):
    url, recorder = recorded
    command = ["node", str(TESTS / "npm" / "clients.mjs"), str(MODULES), url, str(WEEK)]
    outcomes = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)
    expected = {client: rows(client) for client in ("openai-node", "ai-sdk")}
    assert {client: list(cases) for client, cases in outcomes.items()} == {
        client: list(cases) for client, cases in expected.items()
    }
    assert sent(recorder) == [
        {"path": row["path"], "fields": row["fields"]} for cases in expected.values() for row in cases.values()
    ]
    for client, cases in outcomes.items():
        for case, outcome in cases.items():
            is_readable = expected[client][case].get("reads") != "whisper"
            assert ("answer" in outcome) == is_readable, (client, case, outcome)
    assert outcomes["openai-node"]["stream"]["answer"][-1] == "transcript.text.done"
    assert outcomes["ai-sdk"]["plain"]["answer"]["durationInSeconds"] == pytest.approx(1.268)


def test_rows_of_npm_name_the_versions_that_run():
    versions = json.loads((TESTS / "npm" / "package.json").read_text())["dependencies"]
    for client, packages in (("openai-node", ["openai"]), ("ai-sdk", ["@ai-sdk/openai", "ai"])):
        named = ", ".join(f"{package} {versions[package]}" for package in packages)
        assert {row["version"] for row in rows(client).values()} == {named}
