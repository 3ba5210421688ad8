"""OpenAI's own client uploads files and runs batches: what it parses, what it pages, and what it raises."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import signal
import time
from pathlib import Path

import openai
import pytest
from gateway_host import hosting
from served import served
from serving import serving

from worker.config import Settings
from worker.entrypoints.http import batch_runner
from worker.entrypoints.http.gateway import nginx
from worker.jobs.records import Outcome
from worker.jobs.store import JobStore

WEEK = Path("samples/week.wav").read_bytes()
INLINE = "data:;base64," + base64.b64encode(WEEK).decode()
ENDPOINT = "/v1/audio/transcriptions"
ENDS = ("completed", "failed", "cancelled", "expired")


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


def settings(folder: Path, **values) -> Settings:
    return Settings(**{"skip_model_load": True, "data_dir": folder / "data", "api_key": None} | values)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serving(settings(tmp_path_factory.mktemp("batches"), max_json_bytes=200_000)) as running:
        yield running


@pytest.fixture
def server(url):
    return client(url)


def line(custom_id: object, body: object = None, **others: object) -> dict:
    body = {"model": "parakeet", "file": INLINE} if body is None else body
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body} | others


def jsonl(*lines: object) -> bytes:
    return b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)


def upload(server: openai.OpenAI, data: bytes, purpose: str = "batch", **options):
    return server.files.create(file=("input.jsonl", data), purpose=purpose, **options)


def submit(server: openai.OpenAI, data: bytes, endpoint: str = ENDPOINT, **options):
    return server.batches.create(
        input_file_id=upload(server, data).id, endpoint=endpoint, completion_window="24h", **options
    )


def ended(server: openai.OpenAI, batch, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while (found := server.batches.retrieve(batch.id)).status not in ENDS:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def results(server: openai.OpenAI, file_id: str | None) -> dict[str, dict]:
    """The lines of a file of results by their custom ids, none of them twice."""
    if file_id is None:
        return {}
    lines = [json.loads(one) for one in server.files.content(file_id).text.splitlines()]
    found = {one["custom_id"]: one for one in lines}
    assert len(found) == len(lines)
    return found


def refused(kind: type[openai.APIStatusError], code: str, param: str | None):
    return pytest.raises(kind, check=lambda error: (error.code, error.param) == (code, param))


# Files


def test_a_file_comes_back_as_it_was_sent(server):
    file = upload(server, b"any bytes \0", "user_data")
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", 11, "input.jsonl", "user_data")
    assert file.expires_at - file.created_at == 7 * 86400
    assert server.files.retrieve(file.id) == file
    assert server.files.wait_for_processing(file.id) == file
    assert server.files.content(file.id).content == b"any bytes \0"
    gone = server.files.delete(file.id)
    assert (gone.id, gone.deleted, gone.object) == (file.id, True, "file")
    for use in (server.files.retrieve, server.files.content, server.files.delete):
        with refused(openai.NotFoundError, "file_not_found", "id"):
            use(file.id)


def test_a_file_expires_when_its_client_says(tmp_path):
    with serving(settings(tmp_path)) as url:
        server = client(url)
        file = upload(server, b"x", expires_after={"anchor": "created_at", "seconds": 3600})
        assert file.expires_at - file.created_at == 3600
        folder = tmp_path / "data"
        later = JobStore(f"sqlite:///{folder}/jobs.db", folder / "uploads", clock=lambda: time.time() + 3601)
        with contextlib.closing(later) as store:
            assert store.files.find(file.id) is None
            assert len(list(store.uploads.iterdir())) == 1
            assert store.files.expire() == 1
            assert list(store.uploads.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "fun"}, "purpose"),
        ({"expires_after": {"anchor": "created_at", "seconds": 3599}}, "expires_after"),
        ({"expires_after": {"anchor": "now", "seconds": 3600}}, "expires_after"),
        ({"extra_body": {"colour": "red"}}, "colour"),
    ],
)
def test_an_upload_with_a_wrong_field_is_refused_and_leaves_nothing(tmp_path, fields, param):
    with serving(settings(tmp_path)) as url:
        with refused(openai.BadRequestError, "invalid_request", param):
            upload(client(url), b"x", **{"purpose": "batch"} | fields)
        assert list((tmp_path / "data" / "uploads").iterdir()) == []


def test_files_are_paged_in_either_order(tmp_path):
    with serving(settings(tmp_path)) as url:
        server = client(url)
        ids = [upload(server, b"x", "batch" if n % 2 else "user_data").id for n in range(7)]
        for limit in (1, 3, 7, 100):
            assert [file.id for file in server.files.list(limit=limit)] == ids[::-1]
            assert [file.id for file in server.files.list(limit=limit, order="asc")] == ids
            assert [file.id for file in server.files.list(limit=limit, purpose="batch")] == ids[1::2][::-1]
        assert [file.id for file in server.files.list(after=ids[2])] == ids[:2][::-1]
        assert server.files.list(limit=3).has_more
        for wrong, param in (({"limit": 0}, "limit"), ({"order": "up"}, "order")):
            with refused(openai.BadRequestError, "invalid_request", param):
                server.files.list(**wrong)
        with refused(openai.NotFoundError, "file_not_found", "after"):
            server.files.list(after="file-0")


def test_files_take_no_more_room_than_all_results_may(tmp_path):
    with serving(settings(tmp_path, jobs_max_bytes=10)) as url:
        server = client(url)
        first = upload(server, b"123456")
        with pytest.raises(openai.InternalServerError, match="JOBS_MAX_BYTES") as caught:
            upload(server, b"12345")
        assert (caught.value.status_code, caught.value.code) == (507, "disk_full")
        assert len(list((tmp_path / "data" / "uploads").iterdir())) == 1
        server.files.delete(first.id)
        upload(server, b"12345")


def test_a_key_sees_neither_the_files_nor_the_batches_of_another(tmp_path):
    with serving(settings(tmp_path, api_key="ann,bob", admin_api_key="eve")) as url:
        ann, bob, eve = (client(url, key) for key in ("ann", "bob", "eve"))
        audio = upload(ann, WEEK, "user_data")
        batch = submit(ann, jsonl(line("1")))
        for use in (bob.files.retrieve, bob.files.content, bob.files.delete):
            with refused(openai.NotFoundError, "file_not_found", "id"):
                use(audio.id)
        for use in (bob.batches.retrieve, bob.batches.cancel):
            with refused(openai.NotFoundError, "batch_not_found", "id"):
                use(batch.id)
        with refused(openai.NotFoundError, "file_not_found", "input_file_id"):
            bob.batches.create(input_file_id=batch.input_file_id, endpoint=ENDPOINT, completion_window="24h")
        assert (list(bob.files.list()), list(bob.batches.list())) == ([], [])
        assert [one.id for one in eve.batches.list()] == [batch.id]
        stolen = ended(bob, submit(bob, jsonl(line("1", {"model": "parakeet", "file_id": audio.id}))))
        assert results(bob, stolen.error_file_id)["1"]["response"]["body"]["error"]["code"] == "file_not_found"
        own = ended(ann, batch)
        assert own.status == "completed"
        with refused(openai.NotFoundError, "file_not_found", "id"):
            bob.files.content(own.output_file_id)


# Batches


def test_a_batch_of_pocketsphinx_transcribes(tmp_path):
    with serving(settings(tmp_path, skip_model_load=False, model="pocketsphinx")) as url:
        server = client(url)
        audio = upload(server, WEEK, "user_data")
        body = {"model": "pocketsphinx", "file_id": audio.id}
        batch = ended(server, submit(server, jsonl(line("a", body), line("b", body | {"response_format": "text"}))))
        found = results(server, batch.output_file_id)
    assert found["a"]["response"]["body"]["text"] == "see you next week"
    assert found["b"]["response"]["body"].strip() == "see you next week"


def test_each_line_gets_the_response_of_its_endpoint(server):
    audio = upload(server, WEEK, "user_data")
    good = {"model": "parakeet"}
    lines = [
        line("uploaded", good | {"file_id": audio.id}),
        line("inline", good | {"file": INLINE, "stream": False}),
        line("object", good | {"audio": {"data": base64.b64encode(WEEK).decode()}}),
        line("as in a chat", good | {"input_audio": {"data": base64.b64encode(WEEK).decode(), "format": "wav"}}),
        line("srt", good | {"file": INLINE, "response_format": "srt"}),
        line("nothing", good),
        line("unknown field", good | {"file": INLINE, "colour": "red"}),
        line("stream", good | {"file": INLINE, "stream": True}),
        line("no such file", good | {"file_id": "file-" + 32 * "0"}),
        line("both", good | {"file_id": audio.id, "file": INLINE}),
        line("no audio", good | {"file": "data:;base64," + base64.b64encode(b"noise" * 99).decode()}),
        line("no model", {"model": "nobody/nothing", "file": INLINE}),
    ]
    batch = submit(server, jsonl(*lines), metadata={"for": "test"})
    assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"for": "test"})
    assert (batch.endpoint, batch.completion_window) == (ENDPOINT, "24h")
    assert batch.expires_at - batch.created_at == 86400
    assert (batch.output_file_id, batch.error_file_id, batch.errors, batch.usage) == (None, None, None, None)
    batch = ended(server, batch)
    assert batch.status == "completed"
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (12, 5, 7)
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    assert (batch.failed_at, batch.expired_at, batch.cancelling_at, batch.cancelled_at) == (None,) * 4
    good, bad = results(server, batch.output_file_id), results(server, batch.error_file_id)
    assert list(good) == ["uploaded", "inline", "object", "as in a chat", "srt"]
    for one in good.values():
        assert one.keys() == {"id", "custom_id", "response", "error"}
        assert (one["response"]["status_code"], one["error"]) == (200, None)
        assert one["id"] == f"batch_req_{one['response']['request_id']}"
    direct = server.audio.transcriptions.create(file=("week.wav", WEEK), model="parakeet")
    assert openai.types.audio.Transcription(**good["uploaded"]["response"]["body"]) == direct
    assert "-->" in good["srt"]["response"]["body"]
    assert {
        name: (one["response"]["status_code"], *map(one["response"]["body"]["error"].get, ("code", "param")))
        for name, one in bad.items()
    } == {
        "nothing": (400, "invalid_request", "file_id"),
        "unknown field": (400, "invalid_request", "colour"),
        "stream": (400, "invalid_request", "stream"),
        "no such file": (404, "file_not_found", "file_id"),
        "both": (400, "invalid_request", "file_id"),
        "no audio": (400, "decode_failed", None),
        "no model": (404, "model_not_found", "model"),
    }
    assert all(one["error"] is None for one in bad.values())
    output = server.files.retrieve(batch.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")


def test_the_other_endpoints(server):
    translation = {"model": "whisper-large", "file": INLINE}
    body = {"model": "audio-flamingo", "messages": [{"role": "user", "content": [
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(WEEK).decode(), "format": "wav"}},
        {"type": "text", "text": "What is said?"},
    ]}]}  # fmt: skip
    for endpoint, sent, field in (
        ("/v1/audio/translations", translation, "text"),
        ("/v1/chat/completions", body, "choices"),
    ):
        batch = ended(server, submit(server, jsonl(line("1", sent, url=endpoint)), endpoint))
        assert field in results(server, batch.output_file_id)["1"]["response"]["body"]
        assert batch.error_file_id is None


def test_results_are_kept_as_long_as_the_client_says(server):
    batch = submit(server, jsonl(line("1")), output_expires_after={"anchor": "created_at", "seconds": 7200})
    file = server.files.retrieve(ended(server, batch).output_file_id)
    assert file.expires_at - file.created_at == 7200


@pytest.mark.parametrize(
    ("wrong", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b'"text"', "invalid_json_line", None),
        (line(None), "missing_required_parameter", "custom_id"),
        (line("2", method="GET"), "invalid_method", "method"),
        (line("2", url="/v1/audio/translations"), "invalid_url", "url"),
        (line("2", []), "invalid_json_line", "body"),
        (line(2), "invalid_custom_id", "custom_id"),
        (line("1"), "duplicate_custom_id", "custom_id"),
        (line("2", {"file": "x" * 200_000}), "line_too_long", None),
        (line("2", {"numbers": list(range(300_000))[:60_000]}), "line_too_long", None),
    ],
)
def test_a_wrong_line_fails_the_batch_and_is_named(server, wrong, code, param):
    batch = ended(server, submit(server, jsonl(line("1"), b"", wrong)))
    (error,) = batch.errors.data
    assert (batch.status, error.line, error.code, error.param) == ("failed", 3, code, param)
    assert error.message
    assert (batch.failed_at, batch.output_file_id) == (batch.failed_at or 0, None)
    assert batch.request_counts.total == 0


def test_all_wrong_lines_are_named_up_to_a_hundred(server):
    batch = ended(server, submit(server, jsonl(*[b"{"] * 150)))
    assert [error.line for error in batch.errors.data] == list(range(1, 101))


def test_an_empty_file_fails_the_batch(server):
    batch = ended(server, submit(server, b"\n\n"))
    assert [(error.code, error.line) for error in batch.errors.data] == [("empty_file", None)]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"metadata": {"x": "y" * 513}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": True}}, "output_expires_after"),
        ({"extra_body": {"colour": "red"}}, "colour"),
    ],
)
def test_a_batch_with_a_wrong_field_is_refused(server, fields, param):
    file = upload(server, jsonl(line("1")))
    valid = {"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h"}
    with refused(openai.BadRequestError, "invalid_request", param):
        server.batches.create(**valid | fields)


def test_the_input_of_a_batch_must_be_a_file_for_batches(server):
    audio = upload(server, WEEK, "user_data")
    with refused(openai.BadRequestError, "invalid_request", "input_file_id"):
        server.batches.create(input_file_id=audio.id, endpoint=ENDPOINT, completion_window="24h")
    with refused(openai.NotFoundError, "file_not_found", "input_file_id"):
        server.batches.create(input_file_id="file-x", endpoint=ENDPOINT, completion_window="24h")


def test_batches_are_paged(tmp_path):
    with serving(settings(tmp_path)) as url:
        server = client(url)
        ids = [submit(server, b"{").id for _ in range(5)]
        for limit in (1, 2, 100):
            assert [batch.id for batch in server.batches.list(limit=limit)] == ids[::-1]
        with refused(openai.NotFoundError, "batch_not_found", "after"):
            server.batches.list(after="batch_0")
        with refused(openai.BadRequestError, "invalid_request", "limit"):
            server.batches.list(limit=101)


# Ends before the end, several processes, and restarts


class Stored:
    """A store with a batch, and the runner of batches; the test is what runs the jobs."""

    def __init__(self, url: str, folder: Path, clock, count: int) -> None:
        self.settings = settings(folder)
        self.store, self.clock = JobStore(url, folder / "uploads", clock=clock), clock
        self.runner = batch_runner.BatchRunner(self.settings, self.store, "me")
        self.ids = [f"line {n}" for n in range(count)]
        keep = {"owner": "ann", "keep_sec": 1e9, "most_bytes": 1 << 30}
        upload = self.store.keep(io.BytesIO(jsonl(*map(line, self.ids))))
        self.input = self.store.files.add(upload, filename="x", purpose="batch", **keep)
        self.batch = self.store.batches.submit(
            owner="ann",
            endpoint=ENDPOINT,
            input_file_id=self.input.id,
            input_upload=upload,
            metadata=None,
            window_sec=86400,
            output_keep_sec=1e9,
        )

    def step(self) -> str:
        """Take the step that is due, and return the status after it."""
        self.clock.now += 1
        batch = self.store.batches.claim("me", 30)
        assert batch is not None
        self.runner._step(batch)
        return self.see().status

    def see(self):
        return self.store.batches.find(self.batch.id)

    def run(self, count: int) -> None:
        """Complete the oldest jobs."""
        ids = [job.id for job, _ in self.store.claim("a", 10, count)]
        answer = {"response": {"status_code": 200, "body": {"text": ""}}}
        assert len(ids) == count
        self.store.finish("a", {one: Outcome.completed(answer) for one in ids})

    def results(self, name: str) -> list[dict]:
        file = self.store.files.find(getattr(self.see(), f"{name}_file_id") or "")
        return [] if file is None else list(map(json.loads, self.store.files.path(file).read_text().splitlines()))


@pytest.fixture
def stored(fresh, tmp_path, clock):
    with contextlib.ExitStack() as stack:

        def make(count: int) -> Stored:
            made = Stored(fresh(), tmp_path, clock, count)
            stack.callback(made.store.close)
            return made

        yield make


def test_an_unexpected_fault_is_logged_and_the_batch_is_tried_again(stored, monkeypatch, caplog):
    batch = stored(3)
    monkeypatch.setattr(batch_runner, "RETRY_SEC", 0.01)
    validate, faults = batch.runner._validate, []

    def fault_once(held):
        if not faults:
            faults.append(held.id)
            batch.clock.now += 31  # the lease, after which the batch is due again
            raise ZeroDivisionError
        validate(held)

    monkeypatch.setattr(batch.runner, "_validate", fault_once)
    batch.runner.start()
    try:
        deadline = time.monotonic() + 20
        while batch.see().status == "validating" and time.monotonic() < deadline:
            batch.clock.now += 31
            time.sleep(0.01)
    finally:
        batch.runner.stop()
    assert faults == [batch.batch.id]
    assert batch.see().status == "in_progress"
    assert "a step of a batch failed" in caplog.text


@pytest.mark.parametrize(("end", "code"), [("cancelled", "batch_cancelled"), ("expired", "batch_expired")])
def test_what_did_not_run_before_the_end_is_named(stored, clock, monkeypatch, end, code):
    """Of five lines, three are jobs: one is done, one runs, and one waits."""
    monkeypatch.setattr(batch_runner, "WINDOW", 3)
    batch = stored(5)
    assert [batch.step(), batch.step()] == ["in_progress", "in_progress"]
    batch.run(1)
    ((running, _),) = batch.store.claim("b", 1e6)
    if end == "cancelled":
        assert batch.store.batches.cancel(batch.batch.id)
        assert batch.see().status == "cancelling"
        assert not batch.store.batches.cancel(batch.batch.id)
    else:
        clock.now += 86400
        assert batch.step() == "finalizing"
    assert batch.step() == end
    found = batch.see()
    assert (found.total, found.completed, found.failed) == (5, 1, 0)
    assert (getattr(found, f"{end}_at") or 0) > found.created_at
    assert [one["custom_id"] for one in batch.results("output")] == ["line 0"]
    assert [(one["custom_id"], one["response"], one["error"]["code"]) for one in batch.results("error")] == [
        (name, None, code) for name in batch.ids[1:]
    ]
    assert batch.store.renew("b", [running.id], 10) == set()
    assert batch.store.see(running.id) is None
    assert batch.store.batches.claim("me", 30) is None


def test_a_batch_that_is_canceled_before_it_began_has_no_results(stored):
    batch = stored(2)
    batch.store.batches.cancel(batch.batch.id)
    assert batch.step() == "cancelled"
    assert (batch.see().output_file_id, batch.see().error_file_id, batch.see().total) == (None, None, 0)


def test_lines_become_jobs_a_window_at_a_time_and_each_once(stored, monkeypatch):
    monkeypatch.setattr(batch_runner, "WINDOW", 4)
    batch = stored(11)
    batch.step()
    most = 0
    while batch.step() == "in_progress":
        counts = batch.store.batches.counts(batch.batch)
        most = max(most, counts["pending"])
        if counts["pending"]:
            batch.run(min(3, counts["pending"]))
    assert (most, batch.step()) == (4, "completed")
    assert [one["custom_id"] for one in batch.results("output")] == batch.ids
    assert batch.store.expire(-1, 0) == 0, "the jobs of a batch are removed with its end"


def test_a_step_of_a_process_that_lost_the_batch_writes_nothing(stored, clock, monkeypatch):
    batch = stored(3)
    for method in ("update", "add_jobs", "finish"):
        write = getattr(batch.store.batches, method)

        def late(*args, write=write, **values):
            clock.now += 31
            assert batch.store.batches.claim("other", 0) is not None
            return write(*args, **values)

        before, uploads = batch.see(), set(batch.store.uploads.iterdir())
        with monkeypatch.context() as patch:
            patch.setattr(batch.store.batches, method, late)
            batch.step()
        assert batch.see() == before
        assert set(batch.store.uploads.iterdir()) == uploads
        batch.step()
        if method == "add_jobs":
            batch.run(3)
            batch.step()
    assert batch.see().status == "completed"
    assert [one["custom_id"] for one in batch.results("output")] == batch.ids


def test_an_input_that_is_deleted_stays_until_its_batch_has_ended(stored, clock):
    batch = stored(1)
    assert batch.store.files.delete(batch.input.id)
    path = batch.store.upload_path(batch.input.upload)
    batch.store.sweep(-math.inf)
    assert path.exists()
    batch.step()
    batch.step()
    batch.run(1)
    assert [batch.step(), batch.step()] == ["finalizing", "completed"]
    kept = batch.store.upload_path(batch.store.files.find(batch.see().output_file_id).upload)
    batch.store.sweep(-math.inf)
    assert (path.exists(), kept.exists()) == (False, True)


def test_an_input_that_vanishes_fails_the_batch(stored):
    batch = stored(1)
    batch.store.upload_path(batch.input.upload).unlink()
    assert batch.step() == "failed"
    assert batch.see().errors[0]["code"] == "input_file_lost"


def test_jobs_of_batches_are_shown_and_canceled_with_their_batch_only(stored):
    batch = stored(2)
    batch.step()
    batch.step()
    assert (batch.store.recent(), sum(batch.store.counts().values()), batch.store.cancel_pending()) == ([], 0, 0)
    batch.run(2)
    assert batch.store.expire(-1, 0) == 0
    assert batch.store.batches.counts(batch.batch)["completed"] == 2


def test_a_job_that_killed_its_processes_is_an_error_without_a_response(stored, clock):
    batch = stored(1)
    batch.step()
    batch.step()
    for _ in range(4):
        batch.store.claim("dies", 1)
        clock.now += 2
    assert [batch.step(), batch.step()] == ["finalizing", "completed"]
    (one,) = batch.results("error")
    assert (one["response"], one["error"]["code"]) == (None, "worker_lost")
    assert batch.see().failed == 1


def test_batches_that_ended_long_ago_are_removed(stored, clock):
    batch = stored(1)
    clock.now += 100
    batch.store.batches.expire(50)
    assert batch.see() is not None
    batch.store.batches.cancel(batch.batch.id)
    batch.step()
    batch.store.batches.expire(50)
    assert batch.see() is None


@pytest.mark.slow
def test_a_batch_survives_the_death_of_its_server(tmp_path):
    ids = [str(n) for n in range(1200)]
    with served(tmp_path, JOB_LEASE_SEC="2") as first:
        batch = submit(client(first.url), jsonl(*map(line, ids)))
        deadline = time.monotonic() + 60
        while not client(first.url).batches.retrieve(batch.id).request_counts.completed:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(10)
    with served(tmp_path, JOB_LEASE_SEC="2") as second:
        server = client(second.url)
        batch = ended(server, batch, 120)
        assert (batch.status, batch.request_counts.completed) == ("completed", len(ids))
        assert list(results(server, batch.output_file_id)) == ids


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_processes_share_batches(tmp_path_factory, request, store):
    if nginx.find() is None:
        pytest.skip("nginx is not installed")
    more = {"JOBS_URL": request.getfixturevalue("postgres")()} if store == "postgresql" else {}
    with hosting(tmp_path_factory.mktemp("gw"), workers=2, **more) as host:
        server = client(host.url)
        audio = upload(server, WEEK, "user_data")
        ids = [str(n) for n in range(300)]
        body = {"model": "parakeet", "file_id": audio.id}
        batches = [submit(server, jsonl(*(line(one, body) for one in ids))) for _ in range(3)]
        server.batches.cancel(batches[2].id)
        for batch in [ended(server, one, 120) for one in batches[:2]]:
            assert (batch.status, batch.request_counts.completed) == ("completed", 300)
            assert list(results(server, batch.output_file_id)) == ids
        last = ended(server, batches[2])
        assert last.status == "cancelled"
        server.files.delete(audio.id)


@pytest.mark.slow
def test_fifty_thousand_lines_take_bounded_memory_and_never_block_the_server(tmp_path):
    """The lines are validated, some run, and the batch is canceled: all are in the files of results."""
    data = b"".join(
        b'{"custom_id": "%d", "method": "POST", "url": "%s", "body": {"file": "%s"}}\n'
        % (number, ENDPOINT.encode(), b"data:;base64," + b"A" * 2000)
        for number in range(50_000)
    )
    with served(tmp_path) as process:
        server = client(process.url)
        file = upload(server, data)
        with process.watch():
            batch = server.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
            deadline = time.monotonic() + 90
            while not (found := server.batches.retrieve(batch.id)).request_counts.failed:
                assert time.monotonic() < deadline, found
                time.sleep(0.1)
            assert found.request_counts.total == 50_000
            server.batches.cancel(batch.id)
            batch = ended(server, batch, 90)
        assert batch.status == "cancelled"
        assert len(results(server, batch.error_file_id)) == 50_000
        assert process.grown < 150 * 1024**2
        assert process.silent_sec < 0.5
        too_many = ended(server, submit(server, data + data[: data.index(b"\n") + 1]), 90)
        assert [error.code for error in too_many.errors.data] == ["request_limit_exceeded"]
