"""What a client learns of work that takes long: how far a job is, its text so far, and the job that a late request
becomes."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest
import runpod
import runpod.endpoint.runner
from conftest import tone
from serving import serving

from worker.backends.base import Backend
from worker.client import Client
from worker.config import Settings
from worker.engine.engine import Engine
from worker.errors import DeadlineExceeded
from worker.jobs.store import JobStore
from worker.types import Transcript

pytestmark = pytest.mark.slow

WEEK = Path("samples/week.wav").resolve()


class Steps(Backend):
    """Runs a piece for each turn that it is given, and counts the pieces."""

    def __init__(self) -> None:
        self.turns, self.seen = threading.Semaphore(0), 0

    def load(self) -> None:
        pass

    def infer(self, batch):
        for piece in batch.pieces:
            while not self.turns.acquire(timeout=0.02):
                if piece.cancelled():
                    return [Transcript("") for _ in batch.pieces]
            self.seen += 1
        return [Transcript(f"{piece.duration_sec:.0f}s", language="en") for piece in batch.pieces]


@contextlib.contextmanager
def stepped(tmp_path, **options):
    """A server whose model runs a piece whenever the test lets it."""
    settings = Settings(model="whisper", data_dir=tmp_path / "data", allowed_paths=(tmp_path, WEEK.parent), **options)
    backend = Steps()
    with (
        Engine(settings, create_backend=lambda _row: backend) as engine,
        serving(settings, engine) as url,
        httpx.Client(base_url=url, timeout=30) as http,
    ):
        yield http, backend, settings


def until(http: httpx.Client, path: str, is_so) -> dict:
    deadline = time.monotonic() + 30
    while not is_so(answer := http.get(path).json()):
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)
    return answer


def test_a_running_job_tells_of_its_seconds_and_its_text(tmp_path):
    with stepped(tmp_path, batch_max_items=1) as (http, backend, settings):
        with tone(tmp_path / "a.wav", 80).open("rb") as file:
            name = http.post("/transcribe/async", files={"file": file}).json()["job_id"]
        path = f"/jobs/{name}/status?partial=true"
        begun = until(http, path, lambda one: one["progress"]["audio_sec_total"])
        assert begun["progress"] == {"done": 0, "total": 1, "audio_sec_done": 0.0, "audio_sec_total": 80.0}
        assert begun["partial"] == []
        assert begun["status"] == "processing"
        backend.turns.release(1)
        half = until(http, path, lambda one: one["progress"]["audio_sec_done"])
        done_sec = half["progress"]["audio_sec_done"]
        assert 10 < done_sec <= 30
        assert half["partial"] == [{"index": 0, "text": f"{done_sec:.0f}s"}]
        assert "partial" not in http.get(f"/jobs/{name}/status").json()
        (listed,) = http.get("/jobs").json()["jobs"]
        assert listed["progress"] == half["progress"]
        assert http.get(f"/status/{name}").json()["progress"] == half["progress"]
        assert http.get(f"/status/{name}?partial=true").json()["partial"] == half["partial"]
        with contextlib.closing(JobStore.of(settings)) as elsewhere:  # as another server on the same database
            assert elsewhere.see(name).job.audio_sec_done == pytest.approx(done_sec, abs=1e-3)
            assert elsewhere.text(name) == {0: half["partial"][0]["text"]}
        backend.turns.release(1000)
        over = until(http, path, lambda one: one["status"] == "completed")
        assert over["progress"] == {"done": 1, "total": 1, "audio_sec_done": 80.0, "audio_sec_total": 80.0}
        assert over["partial"] == []


def test_a_job_knows_its_inputs_before_it_begins(tmp_path):
    with stepped(tmp_path, jobs_in_flight=1) as (http, _, _):
        bodies = [{"input": {"inputs": [str(WEEK)] * count}} for count in (1, 3)]
        names = [http.post("/run", json=body).json()["id"] for body in bodies]
        assert [http.get(f"/jobs/{name}/status").json()["progress"]["total"] for name in names] == [1, 3]


LATE = {"request_timeout_sec": 1.0}


def posts(http: httpx.Client) -> int:
    return http.get("/stats").json()["requests"]


def test_openais_client_gets_a_late_transcription_as_a_job_and_sends_it_once(tmp_path):
    with stepped(tmp_path, **LATE) as (http, backend, _):
        client = openai.OpenAI(base_url=f"{str(http.base_url).rstrip('/')}/v1", api_key="none")  # its own retries
        with pytest.raises(openai.InternalServerError) as caught, WEEK.open("rb") as file:
            client.audio.transcriptions.create(file=file, model="whisper", response_format="verbose_json")
        assert caught.value.status_code == 503
        assert caught.value.response.headers["x-should-retry"] == "false"
        error = caught.value.body
        assert error["code"] == "deadline_exceeded"
        assert error["job_id"] in error["message"]
        assert error["status_url"] == f"/jobs/{error['job_id']}/status"
        assert [one["job_id"] for one in http.get("/jobs").json()["jobs"]] == [error["job_id"]], "it was sent once"
        running = http.get(error["status_url"]).json()
        assert (running["status"], running["filename"]) == ("processing", "week.wav")
        backend.turns.release(1)
        until(http, error["status_url"], lambda one: one["status"] == "completed")
        result = http.get(f"/jobs/{error['job_id']}/result").json()
        assert (result["text"], result["task"], result["language"]) == ("1s", "transcribe", "en")
        assert backend.seen == 1, "the work went on, and was not begun again"
        assert http.get("/stats").json()["inputs"]["in_flight"] == 0


def test_a_late_clip_goes_on_from_where_it_is(tmp_path):
    with stepped(tmp_path, batch_max_items=1, **LATE) as (http, backend, _):
        backend.turns.release(1)
        with tone(tmp_path / "a.wav", 80).open("rb") as file:
            late = http.post("/v1/audio/transcriptions", files={"file": file}, data={"response_format": "text"})
        url = late.json()["error"]["status_url"]
        half = until(http, f"{url}?partial=true", lambda one: one["progress"]["audio_sec_done"])
        assert half["partial"][0]["text"] == f"{half['progress']['audio_sec_done']:.0f}s"
        backend.turns.release(1000)
        windows = until(http, url, lambda one: one["status"] == "completed")["result"].split()
        assert windows[0] == half["partial"][0]["text"]
        assert backend.seen == len(windows), "no window was transcribed twice"


def test_each_route_gives_a_late_result_in_its_own_shape(tmp_path):
    with stepped(tmp_path, **LATE) as (http, backend, _):
        with WEEK.open("rb") as file:
            upload = http.post("/transcribe", files={"file": ("a.wav", file)}).json()["error"]
        late = http.post("/v1/audio/transcriptions", json={"audio": str(WEEK)}).json()["error"]
        backend.turns.release(1000)
        done = until(http, upload["status_url"], lambda one: one["status"] == "completed")
        assert (done["result"]["text"], done["result"]["filename"]) == ("1s", "a.wav")
        until(http, late["status_url"], lambda one: one["status"] == "completed")
        sync = http.post("/v1/audio/transcriptions", json={"audio": str(WEEK)}).json()
        assert http.get(f"/jobs/{late['job_id']}/result").json() == sync


def test_runpods_client_waits_for_a_late_runsync(tmp_path, monkeypatch):
    with stepped(tmp_path, **LATE) as (http, backend, _):
        monkeypatch.setattr(runpod, "endpoint_url_base", f"{str(http.base_url).rstrip('/')}/v2")
        threading.Timer(2.0, backend.turns.release).start()
        endpoint = runpod.endpoint.runner.Endpoint("any", api_key="none")
        output = endpoint.run_sync({"input": {"inputs": [str(WEEK)]}}, timeout=30)
        assert [one["text"] for one in output["results"]] == ["1s"]
        assert len(http.get("/jobs").json()["jobs"]) == 1


def test_our_client_is_told_of_the_job(tmp_path):
    with stepped(tmp_path, **LATE) as (http, _, _), Client(str(http.base_url).rstrip("/")) as client:
        with pytest.raises(DeadlineExceeded) as caught:
            client.transcribe(WEEK)
        (job,) = http.get("/jobs").json()["jobs"]
        assert caught.value.job_id == job["job_id"]


def test_a_late_upload_that_nobody_has_read_is_kept(tmp_path):
    """One decoder is busy with a file that never ends, so that the upload waits."""
    with stepped(tmp_path, decode_ahead_sec=1, **LATE) as (http, backend, _):
        first = threading.Thread(target=lambda: http.post("/run", json={"input": {"inputs": [str(WEEK)] * 9}}))
        first.start()
        with tone(tmp_path / "a.wav", 3).open("rb") as file:
            late = [http.post("/v1/audio/transcriptions", files={"file": file}) for _ in range(3)]
        first.join()
        backend.turns.release(1000)
        for one in late:
            url = one.json()["error"]["status_url"]
            assert until(http, url, lambda one: one["status"] in ("completed", "failed"))["result"]["text"] == "3s"


def test_a_full_queue_of_jobs_keeps_no_more(tmp_path):
    with stepped(tmp_path, jobs_in_flight=1, **LATE) as (http, _, settings):
        answers = []
        for _ in range(2):
            with WEEK.open("rb") as file:
                answers.append(http.post("/v1/audio/transcriptions", files={"file": file}))
        kept, refused = (one.json()["error"] for one in answers)
        assert "job_id" in kept
        assert [one.status_code for one in answers] == [503, 503]
        assert "job_id" not in refused
        assert "JOBS_IN_FLIGHT" in refused["message"]
        assert answers[1].headers["x-should-retry"] == "false"
        assert len(list((settings.data_dir / "uploads").iterdir())) == 1
        assert http.get("/stats").json()["inputs"]["in_flight"] == 1


def test_a_kept_request_can_be_cancelled_and_belongs_to_its_key(tmp_path):
    with stepped(tmp_path, api_key="a,b", **LATE) as (http, backend, settings):
        http.headers["authorization"] = "Bearer a"
        with WEEK.open("rb") as file:
            error = http.post("/v1/audio/transcriptions", files={"file": file}).json()["error"]
        other = {"authorization": "Bearer b"}
        assert http.get(error["status_url"], headers=other).status_code == 404
        assert http.post(f"/jobs/{error['job_id']}/cancel").json()["status"] == "cancelled"
        assert not list((settings.data_dir / "uploads").iterdir())
        until(http, "/stats", lambda one: not one["inputs"]["in_flight"])
        time.sleep(0.1)  # the model looks every 0.02 s
        backend.turns.release(1)
        with WEEK.open("rb") as file:
            assert http.post("/v1/audio/transcriptions", files={"file": file}).json()["text"] == "1s"


def test_a_kept_request_survives_its_server(tmp_path):
    with stepped(tmp_path, **LATE) as (http, _, settings), WEEK.open("rb") as file:
        error = http.post("/v1/audio/transcriptions", files={"file": file}).json()["error"]
    with contextlib.closing(JobStore.of(settings)) as store:
        assert store.see(error["job_id"]).job.state == "pending"
    with stepped(tmp_path) as (http, backend, _):
        backend.turns.release(1)
        until(http, error["status_url"], lambda one: one["status"] == "completed")
        assert http.get(f"/jobs/{error['job_id']}/result").json()["text"] == "1s"


def test_a_late_stream_is_dropped(tmp_path):
    with stepped(tmp_path, **LATE) as (http, _, _):
        with WEEK.open("rb") as file:
            late = http.post("/v1/audio/transcriptions", files={"file": file}, data={"stream": "true"})
        assert late.json()["error"]["code"] == "deadline_exceeded"
        assert http.get("/jobs").json()["jobs"] == []


def test_a_stream_tells_of_windows_in_comments(tmp_path):
    with stepped(tmp_path, batch_max_items=1) as (http, backend, _):
        backend.turns.release(99)
        with tone(tmp_path / "a.wav", 80).open("rb") as file:
            streamed = http.post("/v1/audio/transcriptions", files={"file": file}, data={"stream": "true"})
        told = re.findall(r"^: transcribed ([\d.]+) of 80\.000 s$", streamed.text, re.MULTILINE)
        assert len(told) >= 3
        assert [float(one) for one in told] == sorted(float(one) for one in told)
        with tone(tmp_path / "b.wav", 80).open("rb") as file:
            events = openai.OpenAI(base_url=f"{str(http.base_url).rstrip('/')}/v1", api_key="none").audio
            kinds = {one.type for one in events.transcriptions.create(file=file, model="whisper", stream=True)}
        assert kinds == {"transcript.text.delta", "transcript.text.done"}
