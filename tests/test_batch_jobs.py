"""Manifests as Batch Jobs of a Runpod endpoint, against a stand-in of Runpod's API in front of the true handler."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import tone
from runpod_api import BatchApi, endpoint
from serving import serving

from worker import errors
from worker.client import batch_jobs, runpod, transport
from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints.cli import manifest as cli_manifest
from worker.entrypoints.functions import process_manifest_sync
from worker.entrypoints.runpod import RunpodWorker
from worker.manifest import askers, batches, process_manifest, run

ROOT = Path(__file__).parent.parent
WEEK = str((ROOT / "samples/week.wav").resolve())


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    configured = Settings(skip_model_load=True, data_dir=tmp_path_factory.mktemp("data"))
    with Engine(configured) as engine:
        yield RunpodWorker(configured, engine)


@pytest.fixture(autouse=True)
def _small_and_impatient(monkeypatch):
    monkeypatch.setattr(transport, "FIRST_WAIT_SEC", 0.01)
    monkeypatch.setattr(runpod, "FIRST_POLL_SEC", 0.01)
    monkeypatch.setattr(batches, "FIRST_POLL_SEC", 0.01)
    monkeypatch.setattr(batches, "LONGEST_POLL_SEC", 0.02)
    monkeypatch.setattr(batches, "BATCH_LINES", 8)
    monkeypatch.setattr(batch_jobs, "CALL_REQUESTS", 3)
    monkeypatch.setattr(batch_jobs, "PAGE", 3)
    monkeypatch.setattr(run, "GROUP", 16)
    monkeypatch.setattr(askers, "RETRIES", 2)


@pytest.fixture
def manifest(tmp_path):
    """Twenty lines with a clip each, of lengths of their own."""
    path = tmp_path / "m.jsonl"
    clips = [tone(tmp_path / f"{number}.wav", 0.2 + 0.1 * number) for number in range(20)]
    path.write_text("".join(json.dumps({"path": clip.name, "n": n}) + "\n" for n, clip in enumerate(clips)))
    return path


def rows(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def text(number: int) -> str:
    return f"[dry-run] transcribe of {0.2 + 0.1 * number:.2f} s"


def complete(path) -> bool:
    return [(row["n"], row["pred_text"]) for row in rows(path)] == [(number, text(number)) for number in range(20)]


def transcribe(manifest, url, **more) -> Path:
    return asyncio.run(
        process_manifest(manifest, manifest.parent / "out", url, 2, task="transcribe", api_key="k", batch=True, **more)
    )


def notes(manifest) -> Path:
    return manifest.parent / "out" / "m.transcribe.jsonl.batches"


def test_lines_become_batches_and_come_back_in_their_order(door, manifest):
    api = BatchApi(door, speed=5)
    with endpoint(api) as server:
        output = transcribe(manifest, server.url)
    assert complete(output)
    assert [len(batch["requests"]) for batch in api.batches.values()] == [8, 8, 4]
    assert set(api.keys) == {"Bearer k"}
    assert not api.cancelled
    assert not api.jobs, "no line needs a job of its own"
    assert not notes(manifest).exists()


@pytest.mark.parametrize(
    ("task", "options"),
    [("transcribe", {"timestamps": True}), ("caption", {"style": "brief"}), ("embed", {}), ("analyze", {})],
)
def test_a_batch_says_what_jobs_say(door, tmp_path, task, options):
    """For audio of every kind, and for lines that fail: before they are sent, in the worker, and as a whole job."""
    damaged = tmp_path / "damaged.wav"
    damaged.write_bytes(b"no audio" * 99)
    with (tmp_path / "large.wav").open("wb") as file:
        file.truncate(8_000_000)
    lines = [
        {"path": WEEK, "n": 0},
        {"path": "missing.wav"},
        {"path": str(damaged)},
        {"path": WEEK, "offset": 0.2, "duration": 0.5},
        {"text": "names no audio"},
        {"path": WEEK, "lang": "xx"} if task == "transcribe" else {"path": WEEK},
        {"path": WEEK, "n": 6},
        {"path": "large.wav"},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{broken\n")
    found = []
    with endpoint(BatchApi(door)) as server:
        for batch in (False, True):
            output = asyncio.run(
                process_manifest(path, tmp_path / str(batch), server.url, task=task, batch=batch, **options)
            )
            vectors = [np.load(file) for file in sorted((tmp_path / str(batch)).rglob("*.npy"))]
            found.append((rows(output), vectors))
    (jobs, vectors), (batched, others) = found
    assert batched == jobs
    assert [row["error"]["code"] for row in batched if "error" in row][:2] == ["source_not_found", "decode_failed"]
    assert len(others) == len(vectors) == (4 if task in ("embed", "analyze") else 0)
    assert all(np.array_equal(one, other) for one, other in zip(vectors, others, strict=True))


def test_a_request_that_fails_on_runpod_becomes_a_job(door, manifest):
    api = BatchApi(door, fails=lambda payload: payload["inputs"][0]["id"].split("-")[0] in ("3", "17"))
    with endpoint(api) as server:
        assert complete(transcribe(manifest, server.url))
    assert len(api.jobs) == 2


def test_a_temporary_error_of_the_worker_becomes_a_job(door, manifest):
    def busy(output):
        if output["results"][0]["id"].startswith("5-"):
            output["results"][0] = {
                "index": 0,
                "id": output["results"][0]["id"],
                "error": {"code": "device_lost", "message": "the device is lost", "retryable": True},
            }
        return output

    api = BatchApi(door, outputs=busy)
    with endpoint(api) as server:
        assert complete(transcribe(manifest, server.url))
    assert len(api.jobs) == 1


def test_results_in_the_bucket_are_fetched_without_the_key_or_asked_for_again(door, manifest):
    stored, keys = {}, []

    def store(output):
        name = output["results"][0]["id"]
        stored[f"/bucket/{name}"] = output
        return {"model": output["model"], "result_url": server.url.replace("/v2/ep1", f"/bucket/{name}")}

    api = BatchApi(door, outputs=store)

    def answer(method, path, headers, body):
        if path.startswith("/bucket/"):
            keys.append(headers.get("Authorization"))
            return (404, {}, {}) if path.startswith("/bucket/4-") else (200, {}, stored[path])
        return api(method, path, headers, body)

    with endpoint(answer) as server:
        assert complete(transcribe(manifest, server.url))
    assert set(keys) == {None}
    assert len(api.jobs) == 1


@pytest.mark.parametrize("lost", ["requests", "finalize"])
def test_a_call_whose_response_is_lost_is_repeated(door, manifest, lost):
    api = BatchApi(door, lost=[lost])
    with endpoint(api) as server:
        assert complete(transcribe(manifest, server.url))
    assert len(api.sent) == (23 if lost == "requests" else 20)
    assert not api.jobs


def test_a_file_that_cannot_be_read_costs_only_its_line(door, manifest, monkeypatch):
    prepare = batch_jobs.BatchClient.job

    def job(self, kind, audio, options, name):
        request = prepare(self, kind, audio, options, name)
        if audio.endswith("/4.wav"):
            Path(audio).unlink()
        return request

    monkeypatch.setattr(batch_jobs.BatchClient, "job", job)
    api = BatchApi(door)
    with endpoint(api) as server:
        found = rows(transcribe(manifest, server.url))
    assert [row["n"] for row in found if "error" in row] == [4]
    assert found[4]["error"]["code"] == "source_not_found"
    assert len(api.sent) == 19


def test_a_batch_of_nothing_is_not_waited_for(door, tmp_path):
    (tmp_path / "m.jsonl").write_text('{"path": "missing.wav"}\n')
    api = BatchApi(door)
    with endpoint(api) as server:
        assert rows(transcribe(tmp_path / "m.jsonl", server.url))[0]["error"]["code"] == "source_not_found"
    assert api.cancelled == ["batch_0"]


# Resuming


def broken_off(door, manifest, **options) -> BatchApi:
    """A run that loses Runpod while the batches are under way."""
    api = BatchApi(door, **options)

    def answer(method, path, headers, body):
        if method == "GET" and len(api.batches) == 2 and api.batches["batch_1"]["status"] == "FINALIZED":
            return None
        return api(method, path, headers, body)

    with endpoint(answer) as server, pytest.raises(errors.ServerUnreachable):
        transcribe(manifest, server.url)
    assert len(api.sent) == 16
    assert not api.cancelled, "the batches are left to the next run"
    return api


def test_the_next_run_takes_the_batches_of_the_last_one(door, manifest):
    api = broken_off(door, manifest)
    with endpoint(api) as server:
        assert complete(transcribe(manifest, server.url))
    assert len(api.sent) == 20, "no line is sent twice"
    assert not api.jobs
    assert not notes(manifest).exists()


@pytest.mark.parametrize("status", ["DRAFT", "CANCELLED", "FAILED", None])
def test_a_batch_that_did_not_finish_gives_what_it_has(door, manifest, status):
    api = broken_off(door, manifest)
    first = api.batches["batch_0"]
    if status is None:  # Runpod does not have it anymore
        del api.batches["batch_0"]
        api.batches["other"] = first
    else:
        api.speed = 3
        api._run(first)
        api.speed = 1000
        first["status"] = status
    with endpoint(api) as server:
        assert complete(transcribe(manifest, server.url))
    assert len(api.sent) == 20 + (8 if status is None else 5)
    assert not api.jobs
    assert ("batch_0" in api.cancelled) == (status == "DRAFT")


def test_a_line_that_was_changed_is_sent_again(door, manifest):
    api = broken_off(door, manifest)
    changed = manifest.read_text().replace('"5.wav"', '"6.wav"')
    manifest.write_text(changed)
    with endpoint(api) as server:
        found = rows(transcribe(manifest, server.url))
    assert found[5]["pred_text"] == text(6)
    assert len(api.sent) == 21


def test_batches_of_other_options_are_not_taken(door, manifest):
    """An output that is started over, or has no line yet, may have other options than the batches beside it."""
    api = broken_off(door, manifest)
    with endpoint(api) as server:
        found = rows(transcribe(manifest, server.url, timestamps=True))
    assert len(api.sent) == 36
    assert all(row["timestamps"]["word"] for row in found)


def test_an_output_that_is_started_over_takes_no_earlier_results(door, manifest):
    api = broken_off(door, manifest)
    (manifest.parent / "out" / "m.transcribe.jsonl").unlink()
    with endpoint(api) as server:
        assert complete(transcribe(manifest, server.url))
    assert len(api.sent) == 36, "every line is sent again"
    assert not notes(manifest).exists()


def test_a_started_over_output_forgets_the_earlier_batches_for_good(door, manifest):
    """Also if the run that starts over is itself broken off."""
    api = broken_off(door, manifest)
    (manifest.parent / "out" / "m.transcribe.jsonl").unlink()
    with endpoint(lambda *call: None) as server, pytest.raises(errors.ServerUnreachable):
        transcribe(manifest, server.url)
    with endpoint(api) as server:
        assert complete(transcribe(manifest, server.url))
    assert len(api.sent) == 36


def test_a_retry_that_is_started_over_takes_no_earlier_results(door, manifest):
    clip, kept = manifest.parent / "7.wav", (manifest.parent / "7.wav").read_bytes()
    clip.write_bytes(b"no audio")
    api = BatchApi(door)
    with endpoint(api) as server:
        transcribe(manifest, server.url)
    clip.write_bytes(kept)
    lost = endpoint(lambda *call: None if call[0] == "GET" else api(*call))
    with lost as server, pytest.raises(errors.ServerUnreachable):
        transcribe(manifest, server.url, retry_failed=True)
    (manifest.parent / "out" / "m.transcribe.jsonl.retry").unlink()
    with endpoint(api) as server:
        assert complete(transcribe(manifest, server.url, retry_failed=True))
    assert len(api.sent) == 22, "the failed line is sent again"


@pytest.mark.parametrize("status", [500, 502, 504])
def test_an_outage_of_runpod_ends_the_run_and_is_no_error_of_the_lines(door, manifest, status):
    api = BatchApi(door)

    def answer(method, path, headers, body):
        return (status, {}, {"error": "no gateway"}) if method == "GET" else api(method, path, headers, body)

    with endpoint(answer) as server, pytest.raises(errors.ServerUnreachable, match=r"batch_0.*same command again"):
        transcribe(manifest, server.url)
    with endpoint(api) as server:
        assert complete(transcribe(manifest, server.url))
    assert len(api.sent) == 20


def test_notes_that_a_killed_process_left_incomplete_are_read(door, manifest):
    api = broken_off(door, manifest)
    kept = notes(manifest).read_text()
    notes(manifest).write_text(kept[:-9])
    with endpoint(api) as server:
        assert complete(transcribe(manifest, server.url))
    assert len(api.sent) == 28, "the batch whose note is incomplete is lost"


def test_a_batch_that_is_canceled_meanwhile_ends_the_run_and_the_next_one_goes_on(door, manifest):
    api = BatchApi(door, speed=1)

    def answer(method, path, headers, body):
        if method == "GET" and sum("status" in one for one in api.batches["batch_0"]["requests"]) == 4:
            api.batches["batch_0"]["status"] = "CANCELLED"
        return api(method, path, headers, body)

    with endpoint(answer) as server:
        with pytest.raises(errors.ServerUnreachable, match="batch_0 is CANCELLED"):
            transcribe(manifest, server.url)
        api.speed = 1000
        assert complete(transcribe(manifest, server.url))
    assert len(api.sent) == 24


def test_only_failed_lines_are_in_the_batches_of_a_retry(door, manifest):
    clip = manifest.parent / "7.wav"
    kept = clip.read_bytes()
    clip.write_bytes(b"no audio")
    api = BatchApi(door)
    with endpoint(api) as server:
        transcribe(manifest, server.url)
        clip.write_bytes(kept)
        assert complete(transcribe(manifest, server.url, retry_failed=True))
    assert len(api.sent) == 21


def test_a_fatal_error_ends_the_run_at_once(door, manifest):
    """Although other batches are not finished."""
    api = BatchApi(door, speed=0)
    with endpoint(lambda *call: (401, {}, {"error": "no such key"}) if call[0] == "GET" else api(*call)) as server:
        started = time.monotonic()
        with pytest.raises(errors.Unauthorized):
            transcribe(manifest, server.url)
        assert time.monotonic() - started < 5
    assert not api.cancelled


# Canceling, and the ways in


def canceled(manifest, url, may_cancel) -> float:
    """Cancel a run once `may_cancel` returns true, and return the seconds that its end took."""

    async def run():
        work = asyncio.create_task(
            process_manifest(manifest, manifest.parent / "out", url, task="transcribe", api_key="k", batch=True)
        )
        while not may_cancel():
            await asyncio.sleep(0.01)
        started = time.monotonic()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        return time.monotonic() - started

    return asyncio.run(run())


def test_a_canceled_run_cancels_its_batches_and_the_next_run_resumes(door, manifest):
    api = BatchApi(door, speed=0)
    with endpoint(api) as server:
        canceled(manifest, server.url, lambda: any(one["status"] == "FINALIZED" for one in api.batches.values()))
        assert set(api.cancelled) == {name for name, one in api.batches.items() if one["status"] == "CANCELLED"}
        assert api.cancelled
        api.speed = 1000
        assert complete(transcribe(manifest, server.url))
    assert not api.jobs


def test_without_an_event_loop(door, manifest):
    api = BatchApi(door)
    with endpoint(api) as server:
        output = process_manifest_sync(manifest, manifest.parent / "sync", server.url, api_key="k", batch=True)
    assert complete(output)
    assert api.batches


def test_an_interrupt_without_an_event_loop_cancels_the_batches(door, manifest):
    api = BatchApi(door, speed=0)

    def interrupt():
        while not any(batch["status"] == "FINALIZED" for batch in api.batches.values()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    with endpoint(api) as server:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            process_manifest_sync(manifest, manifest.parent / "out", server.url, api_key="k", batch=True)
        assert api.cancelled
        api.speed = 1000
        assert complete(transcribe(manifest, server.url))


def test_a_canceled_run_cancels_the_jobs_that_took_over_lines(door, manifest, caplog):
    api = BatchApi(door, fails=lambda payload: True)
    api.states = ("IN_QUEUE",) * 10_000
    with endpoint(api) as server:
        assert canceled(manifest, server.url, lambda: len(api.jobs) == 16) < 10
        gc.collect()  # logs the exceptions that nobody has retrieved
        assert sorted(name for name in api.cancelled if name.startswith("job-")) == sorted(api.jobs)
    assert not [record for record in caplog.records if record.exc_info], caplog.text


def test_a_run_that_waits_for_runpod_is_canceled_at_once(manifest, monkeypatch):
    monkeypatch.setattr(askers, "RETRIES", 8)
    monkeypatch.setattr(transport, "FIRST_WAIT_SEC", 1)

    with socket.create_server(("127.0.0.1", 0)) as port:
        url = f"http://127.0.0.1:{port.getsockname()[1]}/v2/ep1"
    started = time.monotonic()
    assert canceled(manifest, url, lambda: time.monotonic() - started > 1.5) < 1


def test_a_batch_of_which_runpod_has_lost_requests_ends(door, manifest):
    api = BatchApi(door)
    finalize = api._batch

    def batch(method, parts, query, body):
        if parts[1:] == ["finalize"]:
            del api.batches[parts[0]]["requests"][-2:]
        return finalize(method, parts, query, body)

    api._batch = batch
    with endpoint(api) as server:
        assert complete(transcribe(manifest, server.url))
    assert len(api.jobs) == 2 * len(api.batches)


def test_a_line_waits_for_its_job_as_long_as_runpod_keeps_it():
    assert askers.call_timeout("https://api.runpod.ai/v2/abc") == 24 * 3600
    assert askers.call_timeout("http://127.0.0.1:8000") == 600


def test_a_server_that_is_no_endpoint_has_no_batches(manifest):
    with pytest.raises(errors.RequestError, match="batch jobs need one"):
        transcribe(manifest, "http://127.0.0.1:9")


def aviary(manifest, url, *flags, **how) -> subprocess.Popen[str]:
    base, _, name = url.rpartition("/")
    environment = os.environ | {"RUNPOD_ENDPOINT_BASE_URL": base, "RUNPOD_API_KEY": "k"}
    command = [sys.executable, "-m", "worker", "manifest", str(manifest), "--output", str(manifest.parent / "out")]
    return subprocess.Popen(
        [*command, "--endpoint", name, *flags], env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True, **how
    )


@pytest.mark.slow
def test_the_command_and_its_interruption(door, manifest):
    api = BatchApi(door, speed=0)
    with endpoint(api) as server:
        with aviary(manifest, server.url, "--batch") as process:
            while not any(batch["status"] == "FINALIZED" for batch in api.batches.values()):
                time.sleep(0.02)
                assert process.poll() is None, process.stderr.read()
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
        assert process.returncode == 130, said
        assert api.cancelled == ["batch_0"]
        api.speed = 1000
        with aviary(manifest, server.url, "--batch", stdout=subprocess.PIPE) as process:
            printed, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert printed == f"{manifest.parent}/out/m.transcribe.jsonl\n"
    assert "20 of 20 requests have ended" in said
    assert complete(printed.strip())
    assert set(api.keys) == {"Bearer k"}


@pytest.mark.slow
def test_the_command_by_the_servers_own_routes(manifest, tmp_path):
    """The HTTP server has Runpod's routes for any endpoint; Batch Jobs are not among them."""
    with serving(Settings(skip_model_load=True, data_dir=tmp_path / "data")) as url:
        with aviary(manifest, f"{url}/v2/anything") as process:
            _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert complete(manifest.parent / "out" / "m.transcribe.jsonl")
        (manifest.parent / "out" / "m.transcribe.jsonl").unlink()
        with aviary(manifest, f"{url}/v2/anything", "--batch") as process:
            _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "has no batch jobs" in said


@pytest.mark.parametrize(
    ("base", "name", "key", "found"),
    [
        ("http://h/v2/", "ep", "k", "http://h/v2/ep"),
        ("https://h/v2", "ep", "k", "https://h/v2/ep"),
        ("https://h", "ep", "k", "--endpoint takes the id alone"),
        ("https://h/v2", "https://api.runpod.ai/v2/ep", "k", "--endpoint takes the id alone"),
        ("https://h/v2", "ep", "", "set RUNPOD_API_KEY or use --api-key"),
    ],
)
def test_the_address_and_the_key_of_an_endpoint(monkeypatch, base, name, key, found):
    monkeypatch.setenv("RUNPOD_ENDPOINT_BASE_URL", base)
    monkeypatch.setenv("RUNPOD_API_KEY", key)
    given = argparse.Namespace(endpoint=name, server=None, api_key=None)
    try:
        said, _ = cli_manifest._remote(given)
    except errors.ConfigError as error:
        said = error.message
    assert found in said
