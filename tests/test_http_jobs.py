"""Jobs over HTTP: as the upload's server had them, as Runpod has them, and through kill -9."""

from __future__ import annotations

import asyncio
import datetime
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import requests
import runpod
from conftest import tone
from serving import serving

from worker.backends.base import Backend
from worker.config import Settings
from worker.engine.engine import Engine
from worker.jobs.schema import jobs
from worker.jobs.store import JobStore
from worker.types import Transcript

pytestmark = pytest.mark.slow

WEEK = Path("samples/week.wav").resolve()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    settings = Settings(
        model="pocketsphinx",
        data_dir=tmp_path_factory.mktemp("data"),
        allowed_paths=(WEEK.parent,),
        allow_private_urls=True,
        webhook_secret="s",
    )
    with serving(settings) as url, httpx.Client(base_url=url, timeout=60) as http:
        http.data_dir = settings.data_dir
        yield http


def until(http: httpx.Client, path: str, *ends: str) -> dict:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        answer = http.get(path).json()
        if answer["status"] in ends:
            return answer
        time.sleep(0.02)
    raise AssertionError(answer)


def upload(http: httpx.Client, **fields: str) -> httpx.Response:
    with WEEK.open("rb") as file:
        return http.post("/transcribe/async", files={"file": ("audio.mp3", file)}, data=fields)


def test_what_jobs_answer_is_counted_like_all_else(server):
    def told() -> tuple[float, float, float]:
        stats = server.get("/stats").json()
        return stats["inputs"]["answered"], stats["inputs"]["failed"].get("source_not_found", 0), stats["audio_sec"]

    before = told()
    payload = {"input": {"inputs": [str(WEEK), str(WEEK.parent / "missing.wav")]}}
    assert server.post("/runsync", json=payload).json()["status"] == "COMPLETED"
    until(server, f"/status/{server.post('/run', json=payload).json()['id']}", "COMPLETED")
    gained = [after - one for after, one in zip(told(), before, strict=True)]
    assert gained[:2] == [2, 2]
    assert gained[2] > 2


def test_an_upload_as_a_job(server):
    started = upload(server).json()
    name = started["job_id"]
    assert started == {"job_id": name, "status": "pending", "message": "Transcription job started for audio.mp3"}
    status = until(server, f"/jobs/{name}/status", "completed")
    assert status["filename"] == "audio.mp3"
    assert status["error"] is None
    assert status["progress"] == {"done": 1, "total": 1, "audio_sec_done": 1.268, "audio_sec_total": 1.268}
    result = server.get(f"/jobs/{name}/result").json()
    assert result["text"] == "see you next week"
    assert result["segments"] == [{"start": 0.13, "end": 1.13, "text": "see you next week"}]
    assert status["result"] == result
    assert not list((server.data_dir / "uploads").iterdir())


def test_a_list_says_what_each_job_is_and_can_be_searched(server):
    name = upload(server, model="pocketsphinx").json()["job_id"]
    payload = {"input": {"inputs": [str(WEEK)], "task": "transcribe"}}
    other = server.post("/run", json=payload).json()["id"]
    until(server, f"/jobs/{name}/status", "completed")
    listed = {job["job_id"]: job for job in server.get("/jobs").json()["jobs"]}
    facts = {key: listed[name][key] for key in ("kind", "task", "model", "upload_bytes", "error_code")}
    assert facts == {
        "kind": "transcribe",
        "task": "transcribe",
        "model": "pocketsphinx",
        "upload_bytes": WEEK.stat().st_size,
        "error_code": None,
    }
    assert listed[name]["created_at"] <= listed[name]["started_at"] <= listed[name]["completed_at"]
    assert (listed[other]["kind"], listed[other]["model"]) == ("run", "pocketsphinx")
    assert listed[other]["upload_bytes"] is None
    search = lambda text: [job["job_id"] for job in server.get("/jobs", params={"search": text}).json()["jobs"]]  # noqa: E731
    assert search(other) == [other]
    assert name in search("AUDIO.MP3")
    assert other not in search("AUDIO.MP3")


def test_a_failed_job_is_retried_if_the_server_still_has_its_audio(server, tmp_path):
    missing = WEEK.parent / f"later-{tmp_path.name}.wav"
    payload = {"input": {"inputs": [str(missing)]}}
    failed = server.post("/run", json=payload).json()["id"]
    assert until(server, f"/jobs/{failed}/status", "failed")["error_code"] == "source_not_found"
    missing.write_bytes(WEEK.read_bytes())
    try:
        again = server.post(f"/jobs/{failed}/retry").json()["job_id"]
        result = until(server, f"/jobs/{again}/status", "completed")["result"]
    finally:
        missing.unlink()
    assert result["results"][0]["text"] == "see you next week"
    assert server.get(f"/jobs/{failed}/status").json()["status"] == "failed"
    refused = server.post(f"/jobs/{again}/retry")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "job_state")
    sent = server.post("/transcribe/async", files={"file": b"no audio" * 999}).json()["job_id"]
    until(server, f"/jobs/{sent}/status", "failed")
    refused = server.post(f"/jobs/{sent}/retry")
    assert refused.status_code == 400
    assert "send the file again" in refused.json()["error"]["message"]
    assert server.post("/jobs/nobody/retry").status_code == 404


def test_what_cannot_be_done_with_a_job(server):
    name = upload(server).json()["job_id"]
    until(server, f"/jobs/{name}/status", "completed")
    assert server.post(f"/jobs/{name}/cancel").status_code == 400
    for path in ("/jobs/nobody/status", "/jobs/nobody/result", "/status/nobody"):
        assert server.get(path).status_code == 404
    assert server.post("/jobs/nobody/cancel").status_code == 404


def test_a_job_that_fails_says_why(server):
    name = server.post("/transcribe/async", files={"file": b"no audio" * 999}).json()["job_id"]
    status = until(server, f"/jobs/{name}/status", "failed")
    assert "not readable as audio" in status["error"]
    result = server.get(f"/jobs/{name}/result")
    assert result.status_code == 500
    assert result.json()["error"]["code"] == "decode_failed"


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"model": "nobody/nothing"}, 404, "is not available here"),
        ({"speed": "2"}, 400, "speed is not a field"),
        ({"language": "xx"}, 400, "unsupported language"),
        ({"webhook": "ftp://x"}, 400, "webhook must be"),
    ],
)
def test_what_is_wrong_is_told_at_once_and_keeps_no_upload(server, fields, status, says):
    answer = upload(server, **fields)
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]
    assert not list((server.data_dir / "uploads").iterdir())


def test_as_runpod(server):
    body = {"input": {"inputs": [str(WEEK), str(WEEK)], "timestamps": ["word"]}}
    queued = server.post("/run", json=body).json()
    assert queued["status"] == "IN_QUEUE"
    done = until(server, f"/status/{queued['id']}", "COMPLETED")
    assert [one["text"] for one in done["output"]["results"]] == ["see you next week"] * 2
    assert done["executionTime"] > 0
    assert done["delayTime"] >= 0
    assert server.post(f"/status/{queued['id']}").json() == done
    sync = server.post("/runsync", json=body).json()
    assert sync["status"] == "COMPLETED"
    assert sync["output"]["results"] == done["output"]["results"]


def test_runsync_of_something_wrong_fails_as_on_runpod(server):
    wrong = server.post("/runsync", json={"input": {"inputs": []}}).json()
    assert wrong["status"] == "FAILED"
    assert "inputs is empty" in wrong["error"]
    for body in (
        {},
        {"input": []},
        {"input": {}, "s3Config": {}},
        {"input": {"audio": "x"}, "speed": 1},
        {"input": {"audio": "x"}, "policy": {"ttl": 1}},
    ):
        assert server.post("/run", json=body).status_code == 400


def test_a_payload_cannot_name_an_upload(server):
    name = server.post("/run", json={"input": {"audio": "upload:"}}).json()["id"]
    assert until(server, f"/status/{name}", "FAILED", "COMPLETED")["status"] == "FAILED"


def test_the_list(server):
    names = [upload(server).json()["job_id"] for _ in range(3)]
    for name in names:
        until(server, f"/jobs/{name}/status", "completed")
    listed = server.get("/jobs", params={"limit": 2, "state": "completed", "kind": "transcribe"}).json()
    assert [one["job_id"] for one in listed["jobs"]] == names[:0:-1]
    more = server.get("/jobs", params={"limit": 1, "before": listed["before"]}).json()
    assert more["jobs"][0]["job_id"] == names[0]
    assert listed["counts"]["completed"] >= 3
    assert server.get("/jobs", params={"state": "lost"}).status_code == 400
    assert server.get("/jobs", params={"limit": 0}).status_code == 400


def test_a_webhook_is_told(server):
    told = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            told.append((self.headers["X-Aviary-Signature"], self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    name = upload(server, webhook=f"http://127.0.0.1:{receiver.server_address[1]}/done").json()["job_id"]
    deadline = time.monotonic() + 20
    while not told and time.monotonic() < deadline:
        time.sleep(0.02)
    receiver.shutdown()
    receiver.server_close()
    signature, body = told[0]
    assert signature.startswith("t=")
    assert name.encode() in body
    assert b'"status": "completed"' in body


def test_a_stored_job_cannot_name_a_file_elsewhere(tmp_path):
    victim = tmp_path / "victim.wav"
    victim.write_bytes(WEEK.read_bytes())
    settings = Settings(skip_model_load=True, data_dir=tmp_path / "data")
    with closing(JobStore.of(settings)) as store:
        job = store.submit("transcribe", {"input": {"audio": "upload:"}, "upload": "../../victim.wav"})
        with store._database.write() as connection:
            connection.execute(jobs.update().values(upload="../../victim.wav"))
    with serving(settings) as url, httpx.Client(base_url=url) as http:
        failed = until(http, f"/jobs/{job.id}/status", "failed", "completed")
        assert failed["status"] == "failed"
        assert "not the name of an upload" in failed["error"]
        assert http.get(f"/jobs/{job.id}/result").json()["error"]["code"] == "source_forbidden"
    assert victim.exists()


class Held(Backend):
    def __init__(self) -> None:
        self.gate, self.seen = threading.Event(), 0

    def load(self) -> None:
        pass

    def infer(self, batch):
        self.seen += len(batch.pieces)
        self.gate.wait(20)
        return [Transcript("heard") for _ in batch.pieces]


def test_cancelling_and_waiting_and_asking_while_the_device_is_busy(tmp_path):
    settings = Settings(
        model="pocketsphinx", data_dir=tmp_path / "data", allowed_paths=(WEEK.parent,), jobs_in_flight=1
    )
    held = Held()
    with (
        Engine(settings, create_backend=lambda _row: held) as engine,
        serving(settings, engine) as url,
        httpx.Client(base_url=url, timeout=30) as http,
    ):
        first, second, third = (upload(http).json()["job_id"] for _ in range(3))
        until(http, f"/jobs/{first}/status", "processing")
        assert http.get(f"/jobs/{third}/status").json()["position"] == 1
        assert http.get(f"/jobs/{third}/result").status_code == 400
        started = time.monotonic()
        for _ in range(20):
            http.get(f"/jobs/{first}/status")
        assert (time.monotonic() - started) / 20 < 0.1
        for name in (first, second):
            assert http.post(f"/jobs/{name}/cancel").json() == {
                "message": f"Job {name} cancelled",
                "status": "cancelled",
            }
        held.gate.set()
        until(http, f"/jobs/{third}/status", "completed")
        for name in (first, second):
            assert http.get(f"/jobs/{name}/status").json()["status"] == "cancelled", "it never becomes anything else"
            assert http.get(f"/jobs/{name}/result").status_code == 400
        assert held.seen <= 2


@contextmanager
def process(folder: Path, port: int):
    """A server of its own process on the folder's jobs."""
    environment = os.environ | {
        "SKIP_MODEL_LOAD": "1",
        "DATA_DIR": str(folder),
        "PORT": str(port),
        "ALLOWED_PATHS": str(folder),
        "JOB_LEASE_SEC": "2",
        "JOBS_IN_FLIGHT": "4",
        "LOG_LEVEL": "ERROR",
    }
    running = subprocess.Popen([sys.executable, "-m", "worker", "serve"], env=environment, stderr=subprocess.DEVNULL)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if http.get("/ping").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        try:
            yield running, http
        finally:
            running.send_signal(signal.SIGTERM)
            assert running.wait(30) in (0, -signal.SIGKILL, -signal.SIGTERM)


def test_a_hundred_jobs_survive_two_kills(tmp_path):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    clips = [tone(tmp_path / f"{i}.wav", 1 + i / 100).read_bytes() for i in range(100)]
    with process(tmp_path / "data", port) as (running, http):

        def send(number: int) -> str:
            return http.post("/transcribe/async", files={"file": (f"{number}.wav", clips[number])}).json()["job_id"]

        with ThreadPoolExecutor(8) as pool:
            names = list(pool.map(send, range(100)))
        running.kill()
    with process(tmp_path / "data", port) as (running, http):
        while http.get("/jobs", params={"limit": 1}).json()["counts"]["completed"] < 30:
            time.sleep(0.01)
        running.kill()
    with process(tmp_path / "data", port) as (_, http):
        texts = [until(http, f"/jobs/{name}/status", "completed")["result"]["text"] for name in names]
        counts = http.get("/jobs", params={"limit": 1}).json()["counts"]
    assert [f"{1 + i / 100:.2f} s" in text for i, text in enumerate(texts)] == [True] * 100
    assert counts == {"pending": 0, "processing": 0, "completed": 100, "failed": 0, "cancelled": 0}
    assert not list((tmp_path / "data" / "uploads").iterdir())


def test_times_have_a_zone(server):
    name = upload(server).json()["job_id"]
    status = until(server, f"/jobs/{name}/status", "completed")
    for text in (status["created_at"], status["completed_at"], status["result"]["timestamp"]):
        moment = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
        assert moment.utcoffset() == datetime.timedelta(0), text
        assert abs(moment.timestamp() - time.time()) < 120


def test_runpods_sdk_works_against_the_server(server, monkeypatch):
    monkeypatch.setattr(runpod, "endpoint_url_base", str(server.base_url).rstrip("/") + "/v2")
    endpoint = runpod.Endpoint("any-name", api_key="none")
    payload = {"input": {"inputs": [str(WEEK)]}}
    assert endpoint.run_sync(payload)["results"][0]["text"] == "see you next week"
    job = endpoint.run(payload)
    assert job.output(timeout=60)["results"][0]["text"] == "see you next week"
    assert job.status() == "COMPLETED"
    with pytest.raises(requests.HTTPError, match="400"):  # the job has ended
        job.cancel()
    health = endpoint.health()
    assert health["workers"] == {"initializing": 0, "ready": 1, "unhealthy": 0}
    assert health["jobs"]["completed"] >= 1
    assert health["jobs"].keys() == {"inQueue", "inProgress", "completed", "failed"}


def test_runpods_sdk_streams_and_purges(tmp_path, monkeypatch):
    settings = Settings(
        model="pocketsphinx", data_dir=tmp_path / "data", allowed_paths=(WEEK.parent,), jobs_in_flight=1
    )
    held = Held()
    with Engine(settings, create_backend=lambda _row: held) as engine, serving(settings, engine) as url:
        monkeypatch.setattr(runpod, "endpoint_url_base", f"{url}/v2")
        endpoint = runpod.Endpoint("any-name", api_key="none")
        payload = {"input": {"inputs": [str(WEEK)]}}
        running = endpoint.run(payload)
        deadline = time.monotonic() + 20
        while running.status() != "IN_PROGRESS":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        queued = [endpoint.run(payload) for _ in range(3)]
        assert endpoint.purge_queue() == {"removed": 3, "status": "completed"}
        assert [job.status() for job in queued] == ["CANCELLED"] * 3
        assert endpoint.purge_queue()["removed"] == 0
        assert running.status() == "IN_PROGRESS"
        held.gate.set()
        assert list(running.stream()) == [], "it waits for the end, and there are no partial outputs"
        assert running.output()["results"][0]["text"] == "heard"
    assert held.seen == 1


def test_runpods_asynchronous_sdk_works_against_the_server(server, monkeypatch):
    monkeypatch.setattr(runpod, "endpoint_url_base", str(server.base_url).rstrip("/") + "/v2")

    async def run() -> tuple[Any, list[Any], dict, dict]:
        async with aiohttp.ClientSession() as session:
            endpoint = runpod.AsyncioEndpoint("any-name", session, api_key="none")
            job = await endpoint.run({"inputs": [str(WEEK)]})
            output = await job.output(timeout=60)
            return output, [part async for part in job.stream()], await endpoint.health(), await endpoint.purge_queue()

    output, parts, health, purged = asyncio.run(run())
    assert output["results"][0]["text"] == "see you next week"
    assert (parts, purged) == ([], {"removed": 0, "status": "completed"})
    assert health["workers"]["ready"] == 1


def test_health_of_an_endpoint_requires_the_key(tmp_path):
    with serving(Settings(skip_model_load=True, data_dir=tmp_path, api_key="k")) as url:
        assert httpx.get(f"{url}/v2/x/health").status_code == 401
        assert httpx.get(f"{url}/v2/x/health", headers={"authorization": "Bearer k"}).status_code == 200
