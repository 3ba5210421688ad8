"""The OpenAPI description is true: whatever schemathesis makes of it, no fault and no answer that is not described."""

from __future__ import annotations

import base64
import time
from pathlib import Path

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import serving

from worker.config import Settings

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
QUIETLY = hypothesis.settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    database=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    derandomize=True,
)


AUDIO = Path("samples/week.wav").read_bytes()


def plausible(case, names: dict[str, str]):
    """The case with real audio and a model that can, and a job that there is, whatever else it asks for."""
    path = case.operation.path
    if "name" in case.path_parameters and case.method != "DELETE":
        name = next((name for part, name in names.items() if part in path), names["jobs"])
        case.path_parameters = dict(case.path_parameters) | {"name": name}
    if path == "/v1/batches" and isinstance(case.body, dict):
        case.body = dict(case.body) | {"input_file_id": names["files"]}
    elif path == "/v1/files" and isinstance(case.body, dict):
        case.body = {"file": AUDIO, "purpose": "user_data"}
    elif isinstance(case.body, dict) and "input" in case.body:
        case.body = {"input": {"audio": "data:;base64," + base64.b64encode(AUDIO).decode()}}
    elif isinstance(case.body, dict):
        body = dict(case.body)
        source = {"data": base64.b64encode(AUDIO).decode()}
        if "file" in body:
            body["file"] = source if case.media_type == "application/json" else AUDIO
        if "audio" in body:
            body["audio"] = source
        if "messages" in body:
            part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(AUDIO).decode()}}
            body["messages"] = [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}]
        if "audio_file" in body:
            case.body = {"audio_file": AUDIO}
            case.query = {name: value for name, value in case.query.items() if name in ("output", "encode")}
            return case
        models = {"trans": "whisper-large", "timestamps": "silero_vad", "diarizations": "senko"}
        path = case.operation.path
        model = next((models[part] for part in models if part in path), "music-flamingo")
        case.body = body | {"model": model}
        for name in ("language", "include_timestamps", "webhook"):
            case.body.pop(name, None)
    return case


@pytest.mark.slow
def test_every_route_answers_as_it_is_described(tmp_path):
    with serving(
        Settings(skip_model_load=True, data_dir=tmp_path / "data", allowed_paths=(tmp_path, Path("samples")))
    ) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations = [result.ok() for result in schema.get_all_operations()]
        job = httpx.post(f"{url}/run", json={"input": {"audio": "samples/week.wav"}}).json()["id"]
        while httpx.get(f"{url}/status/{job}").json()["status"] != "COMPLETED":
            time.sleep(0.05)
        lines = {"file": ("lines.jsonl", b"{}")}
        file = httpx.post(f"{url}/v1/files", files=lines, data={"purpose": "batch"}).json()["id"]
        new = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = httpx.post(f"{url}/v1/batches", json=new).json()["id"]
        names = {"models": "canary", "files": file, "batches": batch, "jobs": job}
        asked: dict[str, set[int]] = {}
        for operation in operations:

            @hypothesis.given(
                case=operation.as_strategy() | operation.as_strategy().map(lambda case: plausible(case, names))
            )
            @QUIETLY
            def ask(case, *, statuses):
                response = case.call(base_url=url)
                statuses.add(response.status_code)
                case.validate_response(response, checks=CHECKS)

            ask(statuses=asked.setdefault(operation.label, set()))
    unfinished = {"POST /cancel/{name}", "POST /v2/{endpoint}/cancel/{name}", "POST /jobs/{name}/cancel"}
    assert len(asked) >= 39
    assert {label for label, statuses in asked.items() if 200 not in statuses} <= {
        "POST /evaluate",
        "POST /score",
        *unfinished,
        "POST /jobs/{name}/retry",  # the job is completed
        "POST /v1/batches/{name}/cancel",  # the batch has failed
        "DELETE /v1/files/{name}",  # the file is needed
        "POST /v1/models/{name}",  # a dry run has no models on disk
        "DELETE /v1/models/{name}",
    }
