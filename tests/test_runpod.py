"""The Runpod door under the SDK's true worker loop: a stand-in for the job host, the worker in a process of its own.

Most run as a dry run (SKIP_MODEL_LOAD=1), in which everything is real but the model; one worker hears with
pocketsphinx.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import MODEL
from runpod_host import REPO, Process, RunpodHost, clean_env

from worker.backends.base import Backend
from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints import runpod
from worker.entrypoints.runpod import RunpodWorker
from worker.errors import ModelUnavailable
from worker.types import Transcript

pytestmark = pytest.mark.slow

WEEK = (REPO / "samples/week.wav").read_bytes()
MANY = {"timestamps": True, "inputs": ["samples/week.wav"] * 20 + ["samples/none.wav"]}
LOST = {"id": "lost", "input": {"inputs": [str(REPO / "samples/week.wav"), str(REPO / "samples/doctor.flac")]}}
TIMINGS = {"fetch_sec", "decode_sec", "queue_sec", "model_sec", "total_sec"}


class Site(ThreadingHTTPServer):
    """A site with audio: /gate/NAME answers once opened, /after/SECONDS/NAME late, /trickle/NAME never to its end."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.hits: list[str] = []
        self.dropped: list[str] = []
        self._gates: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def gate(self, path: str) -> threading.Event:
        with self._lock:
            return self._gates.setdefault(path, threading.Event())


class Page(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.strip("/")
        self.server.hits.append(path)
        kind, _, rest = path.partition("/")
        if kind == "gate":
            self.server.gate(path).wait(20)
        elif kind == "after":
            time.sleep(float(rest.partition("/")[0]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(WEEK)))
        self.end_headers()
        try:
            if kind == "trickle":
                for at in range(400):
                    self.wfile.write(WEEK[at : at + 1])
                    time.sleep(0.05)
            self.wfile.write(WEEK)
        except OSError:
            self.server.dropped.append(path)


def eventually(found, seconds=15.0):
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def sample(name, **more):
    return {"source": f"samples/{name}", **more}


def texts_of(post):
    return [one.get("text") for one in post["output"]["results"]]


@pytest.fixture(scope="module")
def site():
    server = Site()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture(scope="module")
def host():
    with RunpodHost() as one:
        yield one


@pytest.fixture(scope="module")
def worker(host):
    """The dry-run worker that most tests share."""
    with host.worker(SKIP_MODEL_LOAD=1, ALLOW_PRIVATE_URLS=1, DECODE_WORKERS=4) as process:
        yield process


@pytest.fixture(scope="module")
def bucket():
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _name, port = server.get_host_and_port()
    access = {"endpoint": f"http://127.0.0.1:{port}", "key": "key", "secret": "secret", "bucket": "results"}
    boto3.client(
        "s3",
        endpoint_url=access["endpoint"],
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    ).create_bucket(Bucket="results")
    yield access
    server.stop()


class TestResults:
    def test_come_in_input_order_and_in_the_contracts_shape(self, host, worker, site):
        sources = [site.url("after/0.6/first"), "samples/doctor.flac", "samples/people.mp3", "samples/train.mp4"]
        payload = {
            "timestamps": True,
            "language": "en",
            "inputs": [{"source": source, "id": f"input {i}"} for i, source in enumerate(sources)],
        }
        post = host.result(host.submit(payload))
        assert set(post) == {"output"}
        output = post["output"]
        assert set(output) == {"model", "results", "usage", "timing"}
        assert output["model"] == "nvidia/parakeet-tdt-0.6b-v3"
        results = output["results"]
        assert [(one["index"], one["id"]) for one in results] == [(i, f"input {i}") for i in range(4)]
        for one in results:
            assert set(one) == {"index", "id", "text", "duration_sec", "language", "timestamps"}
            assert one["text"] == f"[dry-run] transcribe of {one['duration_sec']:.2f} s"
            assert one["language"] == "en"
            words = one["timestamps"]["word"]
            assert [set(word) for word in words] == [{"word", "start", "end"}] * len(words)
            assert 0 <= words[0]["start"] < words[-1]["end"] <= one["duration_sec"] + 0.001
            assert [set(segment) for segment in one["timestamps"]["segment"]] == [{"segment", "start", "end"}]
        assert len({one["duration_sec"] for one in results}) == 4, (
            "the samples have different lengths, so order is seen"
        )
        alone = host.result(host.submit({"audio": "samples/people.mp3"}))["output"]["results"][0]
        assert alone["duration_sec"] == results[2]["duration_sec"]
        assert output["usage"]["inputs"] == 4
        assert output["usage"]["failed"] == 0
        assert output["usage"]["audio_sec"] == pytest.approx(sum(one["duration_sec"] for one in results), abs=0.002)
        assert set(output["timing"]) == TIMINGS
        assert output["timing"]["total_sec"] >= 0.6

    def test_are_posted_once_for_each_job(self, host, worker):
        job = host.submit({"inputs": ["samples/week.wav"]})
        host.result(job)
        host.result(host.submit({"inputs": ["samples/week.wav"]}))
        assert len(host.posts_of(job)) == 1

    def test_a_bad_input_stays_in_its_place(self, host, worker):
        payload = {
            "inputs": [
                "samples/week.wav",
                {"source": "samples/no-such.wav", "id": "b"},
                "/etc/hostname",
                7,
                "samples/doctor.flac",
            ]
        }
        post = host.result(host.submit(payload))
        assert "error" not in post
        results = post["output"]["results"]
        codes = [one["error"]["code"] if "error" in one else None for one in results]
        assert codes == [None, "source_not_found", "source_forbidden", "invalid_input", None]
        assert [one["index"] for one in results] == [0, 1, 2, 3, 4]
        assert results[1]["id"] == "b"
        assert all(set(one["error"]) >= {"code", "message", "retryable"} for one in results[1:4])
        assert post["output"]["usage"]["failed"] == 3

    def test_a_job_of_bad_inputs_only_has_failed(self, host, worker):
        post = host.result(host.submit({"inputs": ["samples/no-1.wav", "samples/no-2.wav"]}))
        assert isinstance(post["error"], str)
        assert "all 2 inputs failed" in post["error"]
        assert [one["error"]["code"] for one in post["output"]["results"]] == ["source_not_found"] * 2

    @pytest.mark.parametrize(
        ("payload", "param"),
        [
            ({"inputs": ["samples/week.wav"], "timestamp": True}, "timestamp"),
            ({"inputs": ["samples/week.wav"], "timestamps": "often"}, "timestamps"),
            ({"inputs": []}, "inputs"),
            ({"inputs": ["samples/week.wav"], "model": "no-such"}, "model"),
            ({}, "inputs"),
        ],
    )
    def test_a_bad_request_has_failed_and_its_field_is_named(self, host, worker, payload, param):
        post = host.result(host.submit(payload))
        assert param in post["error"]
        assert post["output"]["param"] == param
        assert "results" not in post["output"]

    @pytest.mark.parametrize("payload", [None, "text", [1], 5])
    def test_an_input_that_is_no_object_has_failed(self, host, worker, payload):
        assert "must be a JSON object" in host.result(host.submit(payload))["error"]

    def test_a_request_of_characters_that_no_json_carries_is_answered(self, host, worker):
        payload = {"openai_route": "/v1/audio/transcriptions", "openai_input": {"a\ud800": 1}}
        assert "a? is not a field" in host.result(host.submit(payload), 8)["error"]

    def test_an_id_of_such_characters_spoils_no_other_input(self, host, worker):
        post = host.result(host.submit({"inputs": ["samples/week.wav", {"source": 1, "id": "b\ud800"}]}), 8)
        assert "error" not in post
        good, bad = post["output"]["results"]
        assert good["text"].startswith("[dry-run]")
        assert (bad["id"], bad["error"]["code"]) == ("b?", "invalid_input")

    def test_odd_characters_pass(self, host, worker):
        names = ["ß\u2028\0", "\U0001f426", 'a"b\\c']
        post = host.result(host.submit({"inputs": [sample("week.wav", id=name) for name in names]}))
        assert [one["id"] for one in post["output"]["results"]] == names


class TestConcurrency:
    def test_a_batch_of_jobs_is_taken_at_once_and_none_waits_for_another(self, host, worker, site):
        gates = [f"gate/batch-{i}" for i in range(3)]
        payloads = [{"inputs": [site.url(gate)]} for gate in gates] + [{"inputs": ["samples/week.wav"]}] * 5
        host.submit({"inputs": ["samples/week.wav"]})
        jobs = host.submit_all(payloads)
        try:
            for job in jobs[3:]:
                assert host.result(job)["output"]["usage"]["failed"] == 0
            eventually(lambda: set(gates) <= set(site.hits))
            assert not any(host.has_result(job) for job in jobs[:3])
        finally:
            for gate in gates:
                site.gate(gate).set()
        for job in jobs[:3]:
            assert host.result(job)["output"]["usage"]["failed"] == 0
        assert any(len(set(batch) & set(jobs)) > 1 for batch in host.batches)


class TestCancelling:
    def test_stops_that_job_alone(self, host, worker, site):
        gone, sibling = host.submit_all(
            [{"inputs": [site.url("trickle/gone")]}, {"inputs": [site.url("gate/sibling")]}]
        )
        eventually(lambda: {"trickle/gone", "gate/sibling"} <= set(site.hits))
        host.stop(gone)
        eventually(lambda: "trickle/gone" in site.dropped, 8)
        assert not host.has_result(sibling)
        site.gate("gate/sibling").set()
        assert host.result(sibling)["output"]["usage"]["failed"] == 0
        assert host.result(host.submit({"inputs": ["samples/week.wav"]}))["output"]["usage"]["failed"] == 0
        assert host.posts_of(gone) == []
        assert worker.running


class TestProgress:
    def test_tells_how_many_inputs_are_done_and_never_follows_the_result(self, host, worker, site):
        gates = ["gate/progress-1", "gate/progress-2"]
        host.progress_delay = 0.7
        try:
            job = host.submit({"inputs": ["samples/week.wav", *map(site.url, gates), "samples/doctor.flac"]})
            host.until(lambda: host.progress_begun.count(job) == 1, 15, "progress")
            for gate in gates:  # the result is ready while the progress post is still under way
                site.gate(gate).set()
            host.result(job)
            time.sleep(host.progress_delay + 0.3)
        finally:
            host.progress_delay = 0.0
            for gate in gates:
                site.gate(gate).set()
        first, *others, last = host.posts_of(job)
        known_sec = first["output"].pop("audio_sec_done")
        assert 2 < known_sec < last["output"]["usage"]["audio_sec"]
        assert first == {"status": "IN_PROGRESS", "output": {"done": 2, "inputs": 4, "audio_sec_total": None}}
        assert others == []
        assert last["output"]["usage"] == {"inputs": 4, "failed": 0, "audio_sec": last["output"]["usage"]["audio_sec"]}

    def test_is_not_told_of_a_short_job(self, host, worker):
        job = host.submit({"inputs": ["samples/week.wav"] * 3})
        host.result(job)
        assert job not in host.progress_begun


class TestLogs:
    def test_hold_the_jobs_id_and_no_transcript(self, host, worker):
        job = host.submit(
            {"inputs": [sample("week.wav"), {"source": "data:audio/wav;base64,UklGRgAAAABXQVZFdGhlIGF1ZGlv"}]}
        )
        assert texts_of(host.result(job))[0].startswith("[dry-run]")
        eventually(lambda: worker.output.count(job) >= 2)
        assert f"job {job}: 2 inputs, 1 failed" in worker.output
        assert "[dry-run]" not in worker.output
        assert "UklGRg" not in worker.output

    def test_hold_no_traceback_after_all_the_jobs_above(self, host, worker):
        host.result(host.submit({"inputs": ["samples/week.wav"]}))
        assert "Traceback" not in worker.output


class TestRealWords:
    def test_are_heard(self):
        expected = json.loads((REPO / "samples/texts.json").read_text())
        names = ["doctor.flac", "week.wav"]
        with RunpodHost() as host, host.worker(MODEL="pocketsphinx", RUNPOD_ENDPOINT_ID="ep") as worker:
            job = host.submit({"inputs": [sample(name) for name in names], "timestamps": ["word"]})
            post = host.result(job, 60)
            for name, one in zip(names, post["output"]["results"], strict=True):
                said, words = one["text"].split(), expected[name].split()
                assert len(set(said) & set(words)) >= 0.6 * len(set(words)), (said, words)
                assert [word["word"] for word in one["timestamps"]["word"]] == said
                assert one["text"] not in worker.output
            assert post["output"]["model"] == "pocketsphinx"
            ours = [line for line in worker.output.splitlines() if f"job {job}:" in line]
            assert ours
            assert all(json.loads(line)["level"] == "INFO" for line in ours)


class TestLargeResults:
    @pytest.fixture(scope="class")
    def poor(self):
        with RunpodHost() as host, host.worker(SKIP_MODEL_LOAD=1, MAX_RESULT_BYTES=2000):
            yield host

    def check(self, post):
        short = post["output"]
        assert "error" not in post
        assert set(short) == {"model", "usage", "timing", "result_url", "result_bytes"}
        with urllib.request.urlopen(short["result_url"]) as response:
            data = response.read()
        assert len(data) == short["result_bytes"] > 2000
        full = json.loads(data)
        assert set(full) == {"model", "results", "usage", "timing"}
        assert full["usage"] == short["usage"] == {"inputs": 21, "failed": 1, "audio_sec": short["usage"]["audio_sec"]}
        assert [one["index"] for one in full["results"]] == list(range(21))
        assert all(one["text"].startswith("[dry-run]") and one["timestamps"]["word"] for one in full["results"][:20])
        assert full["results"][20]["error"]["code"] == "source_not_found"

    def test_without_a_bucket_fail_and_say_what_to_do(self, poor):
        post = poor.result(poor.submit(MANY))
        assert post["output"]["code"] == "result_too_large"
        assert "MAX_RESULT_BYTES" in post["error"]
        assert "BUCKET_NAME" in post["error"]
        assert "results" not in post["output"]

    def test_small_ones_are_posted_as_ever(self, poor):
        assert poor.result(poor.submit({"inputs": ["samples/week.wav"]}))["output"]["results"][0]["text"]

    def test_go_to_the_workers_bucket(self, bucket):
        with (
            RunpodHost() as host,
            host.worker(
                SKIP_MODEL_LOAD=1,
                MAX_RESULT_BYTES=2000,
                BUCKET_ENDPOINT_URL=bucket["endpoint"],
                BUCKET_NAME=bucket["bucket"],
                BUCKET_ACCESS_KEY_ID=bucket["key"],
                BUCKET_SECRET_ACCESS_KEY=bucket["secret"],
            ),
        ):
            self.check(host.result(host.submit(MANY)))


class TestStopping:
    def test_finishes_the_job_under_way_and_leaves_nothing_running(self, site):
        with RunpodHost() as host, host.worker(SKIP_MODEL_LOAD=1, ALLOW_PRIVATE_URLS=1) as worker:
            job = host.submit({"inputs": [site.url("gate/term"), "samples/doctor.flac"]})
            try:
                eventually(lambda: "gate/term" in site.hits)
                assert worker.children(), (
                    "decoding runs in processes of its own, so there is something to be left behind"
                )
                worker.terminate()
                time.sleep(0.8)
                assert worker.running
                assert not host.has_result(job)
            finally:
                site.gate("gate/term").set()
            assert worker.wait(15) == 0, worker.output
            assert host.result(job, 1)["output"]["usage"]["failed"] == 0
            assert worker.children(patience=3) == []


class TestLostDevice:
    class Broken(Backend):
        def load(self):
            pass

        def infer(self, batch):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    @pytest.fixture
    def door(self):
        settings = Settings(model="parakeet", allowed_paths=(REPO,))
        with Engine(settings, create_backend=lambda model: self.Broken()) as engine:
            yield RunpodWorker(settings, engine=engine)

    def test_asks_for_a_fresh_worker(self, door):
        answer = asyncio.run(door.handle(LOST))
        assert answer["refresh_worker"] is True
        assert [one["error"]["code"] for one in answer["results"]] == ["device_lost"] * 2
        assert answer["results"][0]["error"]["retryable"] is True

    def test_still_does_with_the_next_job(self, door):
        asyncio.run(door.handle(LOST))
        assert asyncio.run(door.handle({"id": "next", "input": LOST["input"]}))["refresh_worker"] is True

    def test_ends_the_pod_in_the_sdks_reading(self, door):
        from runpod.serverless.modules.rp_job import run_job

        result = asyncio.run(run_job(door.handle, dict(LOST)))
        assert result["stopPod"] is True
        assert isinstance(result["error"], str)
        assert "refresh_worker" not in result["output"]

    def test_a_bad_input_alone_asks_for_none(self, door):
        answer = asyncio.run(door.handle({"id": "bad", "input": {"inputs": [str(REPO / "samples/none.wav")]}}))
        assert "error" in answer
        assert "refresh_worker" not in answer


class TestOpenAi:
    """Answers that are bare text, or have none of our fields."""

    class Spoken(Backend):
        def load(self):
            pass

        def infer(self, batch):
            return [Transcript("the code is seven") for _ in batch.pieces]

        def close(self):
            pass

    def ask(self, **settings):
        settings = Settings(model="parakeet", allowed_paths=(REPO,), **settings)
        asked = {"audio": str(REPO / "samples/week.wav"), "response_format": "text"}
        with Engine(settings, create_backend=lambda model: self.Spoken()) as engine:
            job = {"id": "openai", "input": {"openai_route": "/v1/audio/transcriptions", "openai_input": asked}}
            return asyncio.run(RunpodWorker(settings, engine=engine).handle(job))

    def test_a_text_answer_may_hold_any_word(self):
        assert self.ask() == "the code is seven"

    def test_a_large_text_answer_goes_to_the_bucket_as_well(self, bucket, monkeypatch):
        monkeypatch.setattr(
            self.Spoken, "infer", lambda self, batch: [Transcript("seven " * 500) for _ in batch.pieces]
        )
        answer = self.ask(
            max_result_bytes=2000,
            bucket_endpoint_url=bucket["endpoint"],
            bucket_name=bucket["bucket"],
            bucket_access_key_id=bucket["key"],
            bucket_secret_access_key=bucket["secret"],
        )
        assert set(answer) == {"result_url", "result_bytes"}
        with urllib.request.urlopen(answer["result_url"]) as response:
            assert json.loads(response.read()).startswith("seven seven")


class TestProgressThatFails:
    def test_spoils_no_job(self, monkeypatch, site):
        from runpod.serverless.modules import rp_progress

        posted = []

        async def fail(session, job, progress):
            posted.append(progress)
            raise OSError("the job host is away")

        monkeypatch.setattr(rp_progress, "_async_progress_update", fail)
        monkeypatch.setattr(runpod, "PROGRESS_SEC", 0.05)
        settings = Settings(
            skip_model_load=True,
            allowed_paths=(REPO,),
            allow_private_urls=True,
            runpod_webhook_get_job="http://127.0.0.1:1/job-take/w?x",
        )
        inputs = [str(REPO / "samples/week.wav"), site.url("after/1.5/slow")]
        with Engine(settings) as engine:
            answer = asyncio.run(
                RunpodWorker(settings, engine=engine).handle({"id": "away", "input": {"inputs": inputs}})
            )
        assert posted
        assert "error" not in answer
        assert answer["usage"]["failed"] == 0


class TestUnfit:
    def test_a_model_that_cannot_be_loaded_ends_the_process_with_the_reason(self):
        with RunpodHost() as host, host.worker(MODEL="/no/such.nemo") as worker:
            job = host.submit({"inputs": ["samples/week.wav"]})
            assert worker.wait(60) == 1
            assert "/no/such.nemo" in worker.output
            assert worker.children(patience=3) == []
            assert host.posts_of(job) == []


class TestAGpuThatTorchCannotUse:
    """A driver that is too old, as nvidia-smi and Runpod's SDK see it, beside a torch that finds no CUDA device."""

    @pytest.fixture
    def machine(self, tmp_path, monkeypatch):
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("torch can use the GPU of this machine")
        smi = tmp_path / "nvidia-smi"
        smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI 550.54.15   Driver Version: 550.54.15   CUDA Version: 12.4'\n")
        smi.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def test_ends_the_worker_with_the_reason(self, machine):
        with RunpodHost() as host, host.worker(MODEL=MODEL) as worker:
            job = host.submit({"inputs": ["samples/week.wav"]})
            assert worker.wait(60) == 1
            assert "Fitness check failed: _check_device | ModelUnavailable: torch" in worker.output
            assert "cannot use this machine's GPU" in worker.output
            assert host.posts_of(job) == []

    def test_does_not_matter_to_a_worker_that_needs_none(self, machine):
        for values in (
            {"device": "cpu", "model": str(MODEL)},
            {"skip_model_load": True, "model": str(MODEL)},
            {"model": "pocketsphinx"},
        ):
            RunpodWorker(Settings(**values))._check_device()
        with pytest.raises(ModelUnavailable):
            RunpodWorker(Settings(model="pocketsphinx", models=(str(MODEL),)))._check_device()


class TestLocally:
    @pytest.mark.parametrize(
        ("payload", "fails"),
        [
            ({"inputs": ["samples/week.wav", "samples/none.wav"]}, False),
            ({"inputs": ["samples/none.wav"]}, True),
            ({"inputs": ["samples/week.wav"], "no_such_field": 1}, True),
        ],
    )
    def test_a_test_inputs_exit_code_tells_of_errors(self, payload, fails):
        with Process(
            "handler.py", "--test_input", json.dumps({"input": payload}), env=clean_env(SKIP_MODEL_LOAD=1)
        ) as process:
            code = process.wait(30)
            assert (code != 0) == fails, process.output
            assert ("[dry-run]" in process.output) != fails
            assert process.children(patience=3) == []

    def test_the_sdks_client_reads_the_local_api(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        client = (
            "import json, runpod; runpod.api_key = 'any'; "
            "print(json.dumps(runpod.Endpoint('.').run_sync({'input': {'inputs': ['samples/week.wav']}}, timeout=20)))"
        )
        with Process(
            "handler.py", "--rp_serve_api", "--rp_api_port", str(port), env=clean_env(SKIP_MODEL_LOAD=1)
        ) as process:
            eventually(lambda: _listens(port), 25)
            answered = subprocess.run(
                [sys.executable, "-c", client],
                capture_output=True,
                text=True,
                timeout=40,
                check=True,
                env=clean_env(RUNPOD_ENDPOINT_BASE_URL=f"http://127.0.0.1:{port}"),
            )
            output = json.loads(answered.stdout.splitlines()[-1])
            assert output["results"][0]["text"].startswith("[dry-run]")
            assert output["usage"]["failed"] == 0
            assert process.running


def _listens(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("config", "param"),
    [
        ({"endpointUrl": 5}, "s3Config.endpointUrl"),
        ({"accessId": ["a"]}, "s3Config.accessId"),
        ({"accessId": "a", "accessSecret": {}}, "s3Config.accessSecret"),
        ({"bucketName": True}, "s3Config.bucketName"),
        (["a"], "s3Config"),
        ("", "s3Config"),
    ],
)
def test_an_s3_config_of_other_types_is_told_by_field(tmp_path, config, param):
    worker = RunpodWorker(Settings(skip_model_load=True, data_dir=tmp_path))
    job = {"id": "a", "input": {"inputs": ["s3://clips/a.wav"]}, "s3Config": config}
    answer = asyncio.run(worker.handle(job))
    worker.engine.close()
    assert (answer["code"], answer["param"]) == ("invalid_request", param)
    assert param in answer["error"]


@pytest.mark.parametrize("config", [None, {}, {"accessId": None, "region": 5}])
def test_an_s3_config_may_be_empty(tmp_path, config):
    worker = RunpodWorker(Settings(skip_model_load=True, data_dir=tmp_path, allowed_paths=(REPO,)))
    job = {"id": "a", "input": {"inputs": [str(REPO / "samples/week.wav")]}, "s3Config": config}
    answer = asyncio.run(worker.handle(job))
    worker.engine.close()
    assert answer["results"][0]["text"].startswith("[dry-run]")
