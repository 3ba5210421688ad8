"""Devices in processes of their own: the same answers and errors as here, and nothing lost or left when a process
ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from conftest import DIGITS, LABELS, MODEL
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from runpod_host import REPO, Process, alive_in_session, clean_env
from scripted import CLUE, FACTORY, Scripted
from serving import serving

from worker import catalog
from worker.config import Settings
from worker.engine import remote
from worker.engine.engine import Engine
from worker.engine.placement import Placement
from worker.engine.remote.device import Device
from worker.engine.remote.wire import Wire, pack
from worker.entrypoints import python
from worker.entrypoints.runpod import RunpodWorker
from worker.errors import DeviceLost, ModelError, ModelUnavailable, OutOfMemory
from worker.faults import translate
from worker.protocol.request import parse
from worker.types import Batch, Clip, Embedding, Failure, Options, Piece

pytestmark = pytest.mark.slow

ROW = catalog.find("music-flamingo")


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    deadline = time.monotonic() + 5
    while left := [name for name in processes() if "worker.engine.remote.process" in name]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def processes() -> list[str]:
    """The command lines of this process's living children."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(remote.device, "FACTORY", FACTORY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPO), str(REPO / "tests")]))


@pytest.fixture
def device(scripted):
    lost = []
    made = Device(Placement("the first", {"OMP_NUM_THREADS": "1"}, (), Settings()))
    made.watch(lost.append)
    made.lost = lost
    yield made
    made.close()


def piece(prompt: str | None = None, seconds: float = 1, **options) -> Piece:
    return Piece(Clip(np.full(round(seconds * 16_000), 0.25, np.float32)), Options(ROW.id, prompt=prompt), **options)


def eventually(found, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


# The wire

arrays = st.builds(
    lambda size, start, step: np.arange(size, dtype=np.float32)[start::step],
    st.integers(0, 300_000),
    st.integers(0, 9),
    st.sampled_from([1, 1, 3]),
)


@given(st.lists(arrays, max_size=4), st.text())
@hypothesis_settings(max_examples=30, deadline=None)
def test_what_is_sent_is_received(sent, text):
    ours, theirs = socket.socketpair()
    here, there = Wire(ours), Wire(theirs)
    sender = threading.Thread(target=lambda: [here.send(pack((sent, text))), here.hang_up()])
    sender.start()
    got, said = there.receive()
    assert said == text
    assert len(got) == len(sent)
    assert all(np.array_equal(a, b) and a.flags.writeable for a, b in zip(got, sent, strict=True))
    with pytest.raises(EOFError):
        there.receive()
    sender.join()
    here.close()
    there.close()


# One device


def test_a_backend_elsewhere_is_one_like_any_other(device):
    backend = device.create(ROW)
    assert backend.weight_bytes() == 7
    assert backend.overhead_sec != 6
    backend.load()
    assert (backend.overhead_sec, backend.least_sec) == (6, 30)
    backend.warm()
    clips = [
        Piece(Clip(np.random.default_rng(i).normal(size=1000 * i).astype(np.float32)), Options(ROW.id))
        for i in (1, 3, 2)
    ]
    sums = [f"{one.clip.samples.sum(dtype='float64'):.3f}" for one in clips]
    assert [one.text for one in backend.infer(Batch(tuple(clips)))] == sums
    assert backend.infer(Batch((piece("pid"),)))[0].text == str(device.pid)
    backend.close()
    with pytest.raises(ModelError, match="KeyError"):
        backend.infer(Batch((piece(),)))


def test_arrays_come_back(monkeypatch):
    made = Device(Placement("dry", {}, (), Settings(skip_model_load=True)))
    made.watch(lambda _error: None)
    backend = made.create(ROW)
    backend.load()
    (one,) = backend.infer(Batch((Piece(Clip(np.zeros(32_000, np.float32)), Options(ROW.id, task="embed")),)))
    made.close()
    assert isinstance(one, Embedding)
    assert one.values.shape == (50, 1280)


@pytest.mark.parametrize(
    ("prompt", "kind"), [("fail", ModelError), ("fill", OutOfMemory), ("ours", OutOfMemory), ("lose", DeviceLost)]
)
def test_what_is_raised_there_is_raised_here(device, prompt, kind):
    backend = device.create(ROW)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        backend.infer(Batch((piece(prompt),)))
    assert type(caught.value) is kind
    assert translate(caught.value) is caught.value
    assert "scripted.py" in str(caught.value.__cause__), "the traceback of the process"
    assert backend.infer(Batch((piece(),)))[0].text == "4000.000"


def test_text_is_told_as_it_is_written_on_the_thread_that_asked(device):
    backend, told, where = device.create(ROW), [], set()

    def tell(text):
        told.append((time.monotonic(), text))
        where.add(threading.current_thread())

    (output,) = backend.infer(Batch((piece("write 20", on_text=tell),)))
    assert "".join(text for _, text in told) == output.text
    assert told[-1][0] - told[0][0] > 0.1
    assert where == {threading.current_thread()}


def test_what_is_cancelled_ends_and_its_neighbour_goes_on(device):
    backend, told = device.create(ROW), []
    first, second = backend.infer(
        Batch((piece("write 3000", on_text=told.append, cancelled=lambda: len(told) > 10), piece("write 5")))
    )
    assert 10 < len(first.text.split()) < 3000
    assert second.text == "0 1 2 3 4 "


@pytest.mark.parametrize("prompt", ["die", "crash"])
def test_a_process_that_ends_is_a_device_that_is_lost(device, prompt):
    backend = device.create(ROW)
    with pytest.raises(DeviceLost) as caught:
        backend.infer(Batch((piece(prompt),)))
    assert f"code -{9 if prompt == 'die' else 11}" in str(caught.value.__cause__)
    eventually(lambda: device.lost)
    assert [type(one) for one in device.lost] == [DeviceLost]
    with pytest.raises(DeviceLost):
        device.create(ROW)
    backend.close()


def test_a_message_that_is_not_understood_is_a_device_that_is_lost(device, monkeypatch, caplog):
    monkeypatch.setattr(Wire, "receive", lambda _wire: ())  # not even the number of a call
    with pytest.raises(DeviceLost):
        device.create(ROW).load()
    eventually(lambda: len(device.lost) == 1)
    assert "unexpected message from the process of device the first" in caplog.text


def test_closing_ends_a_process_that_is_at_work_and_is_no_loss(device):
    backend, raised = device.create(ROW), []

    def work():
        try:
            backend.infer(Batch((piece("write 100000"),)))
        except DeviceLost as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.2)
    started = time.monotonic()
    device.close()
    thread.join(5)
    assert raised
    assert time.monotonic() - started < remote.device.END_SEC
    assert not device.lost


def test_what_is_printed_there_is_no_result_here(capfd, scripted):
    made = Device(Placement("it", {}, (), Settings()))
    made.watch(lambda _error: None)
    made.create(ROW).infer(Batch((piece("print"),)))
    made.close()
    out, err = capfd.readouterr()
    assert out == ""
    assert "what a library prints" in err
    assert "what its native half prints" in err


def test_a_process_that_cannot_start_is_a_lost_device(scripted, monkeypatch):
    monkeypatch.setattr(remote.device, "FACTORY", "scripted:nothing")
    with Engine(Settings(device="cpu,cpu")) as engine:
        with pytest.raises(DeviceLost):
            engine.load(ROW.id).result(30)
        eventually(lambda: engine.lost is not None)


# An engine with several


@pytest.fixture
def clips(tmp_path):
    """So many files of other lengths and loudness, with what `_sum` says of each."""

    def make(count: int) -> tuple[list[str], list[float]]:
        paths = []
        for i in range(count):
            paths.append(str(tmp_path / f"{i}.wav"))
            soundfile.write(paths[-1], np.full(16_000 + 80 * i, 0.25, np.float32), 16_000, subtype="FLOAT")
        return paths, [0.25 * (16_000 + 80 * i) for i in range(count)]

    return make


@pytest.fixture
def settings(tmp_path):
    return Settings(
        model=ROW.id, device="cpu,cpu", allowed_paths=(tmp_path,), data_dir=tmp_path / "data", batch_max_items=4
    )


def submit(engine, inputs, **options):
    return engine.submit(parse({"inputs": inputs, "task": "chat"}, engine.settings), **options)


def pids(engine) -> list[int]:
    return [device.pid for device in engine._devices]


def test_a_device_that_is_killed_amid_its_work_costs_no_answer(scripted, settings, clips):
    paths, expected = clips(60)
    ran = Counter()
    with Engine(settings, on_batch=lambda batch, _seconds, device: ran.update({device: len(batch.pieces)})) as engine:
        engine.load(ROW.id).result(30)
        future = submit(engine, paths)
        eventually(lambda: ran["0"] and ran["1"])
        os.kill(pids(engine)[0], signal.SIGKILL)
        assert not future.done()
        assert [float(one.output.text) for one in future.result(30).results] == expected
        eventually(lambda: engine.devices.lost == 1)
        assert (engine.devices.count, engine.lost, engine.models) == (2, None, {ROW.id: "ready"})
        assert len(submit(engine, paths).result(30).results) == 60
        os.kill(pids(engine)[1], signal.SIGKILL)
        eventually(lambda: engine.lost is not None)
        assert {one.error.code for one in submit(engine, paths[:3]).result(10).results} == {"device_lost"}
        with pytest.raises(DeviceLost):
            engine.load(ROW.id).result(5)


@pytest.mark.parametrize("poison", ["die", "lose"])
def test_a_poisonous_clip_fails_alone_and_does_not_take_every_device(scripted, settings, clips, poison):
    paths, expected = clips(40)
    inputs = [{"source": path, "prompt": poison if i == 11 else "sum"} for i, path in enumerate(paths)]
    with Engine(settings.model_copy(update={"device": "cpu,cpu,cpu"})) as engine:
        engine.load(ROW.id).result(30)
        results = submit(engine, inputs).result(60).results
        assert [i for i, one in enumerate(results) if isinstance(one, Failure)] == [11]
        assert results[11].error.code == "device_lost"
        assert [float(one.output.text) for i, one in enumerate(results) if i != 11] == [*expected[:11], *expected[12:]]
        eventually(lambda: engine.devices.lost == 2)
        assert engine.lost is None


def test_a_request_that_is_cancelled_frees_its_devices(scripted, settings, clips):
    paths, _ = clips(2)
    told = []
    with Engine(settings) as engine:
        engine.load(ROW.id).result(30)
        long = [{"source": path, "prompt": "write 100000"} for path in paths]
        futures = [submit(engine, [one], on_text=lambda _index, text: told.append(text)) for one in long]
        eventually(lambda: len(told) > 10)
        for future in futures:
            future.cancel()
        started = time.monotonic()
        assert len(submit(engine, paths).result(10).results) == 2
        assert time.monotonic() - started < 3


def test_the_cause_of_an_error_is_in_the_log_under_its_id(scripted, settings, clips, caplog):
    (path,), _ = clips(1)
    with caplog.at_level(logging.ERROR, "worker"), Engine(settings) as engine:
        (one,) = submit(engine, [{"source": path, "prompt": "fail"}]).result(30).results
    assert CLUE not in one.error.message
    assert one.error.message.rpartition("id ")[2].strip(")") in caplog.text
    assert CLUE in caplog.text


def test_a_model_that_no_device_can_load_says_so(scripted, settings, clips, tmp_path, monkeypatch):
    (path,), _ = clips(1)
    monkeypatch.chdir(tmp_path)  # the processes are where this one is
    (tmp_path / "gated").touch()
    with Engine(settings) as engine:
        (one,) = submit(engine, [path]).result(30).results
        assert "it is gated" in one.error.message
        with pytest.raises(ModelUnavailable, match="gated"):
            engine.load(ROW.id).result(30)
        assert engine.devices.lost == 0


def test_a_load_that_fails_in_the_process_says_why_and_logs_its_traceback(
    scripted, settings, clips, tmp_path, monkeypatch, caplog
):
    (path,), _ = clips(1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").touch()
    with caplog.at_level(logging.ERROR, "worker"), Engine(settings) as engine:
        (one,) = submit(engine, [path]).result(30).results
        assert one.error.code == "model_unavailable"
        assert one.error.message == f"{ROW.id} could not be loaded: OSError: {CLUE}"
        assert engine.devices.lost == 0
    assert f"{ROW.id} could not be loaded" in caplog.text
    assert "scripted.py" in caplog.text, "the traceback of the process"


def test_out_of_memory_in_the_process_halves_the_batch(scripted, settings, clips, caplog):
    paths, _ = clips(8)
    inputs = [{"source": path, "prompt": "crowd"} for path in paths]
    large = settings.model_copy(update={"batch_max_items": 8, "batch_wait_sec": 1.0})
    with caplog.at_level(logging.WARNING, "worker"), Engine(large) as engine:
        engine.load(ROW.id).result(30)
        results = submit(engine, inputs).result(30).results
    assert "out of memory with" in caplog.text
    assert {one.output.text for one in results} <= {"1", "2"}


def test_parakeet_on_two_devices_and_on_the_one_that_is_left():
    pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
    names = [list(LABELS)[i % len(LABELS)] for i in range(60)]
    ran = Counter()
    settings = Settings(model=str(MODEL), device="cpu,cpu", allowed_paths=(DIGITS,))

    def ask():
        results = engine.submit(parse({"inputs": [str(DIGITS / name) for name in names]}, settings)).result(120).results
        assert [one.index for one in results] == list(range(60))
        assert [one.output.text for one in results] == [LABELS[name] for name in names]

    with Engine(settings, on_batch=lambda batch, _seconds, device: ran.update({device: len(batch.pieces)})) as engine:
        engine.load(str(MODEL)).result(200)
        ask()
        assert set(ran) == {"0", "1"}
        os.kill(pids(engine)[1], signal.SIGKILL)
        ask()
        assert engine.lost is None


# The handler


def test_the_handler_works_on_with_what_is_left_and_is_replaced_when_idle(scripted, settings, clips):
    paths, _ = clips(8)

    def job(name, inputs):
        return {"id": name, "input": {"task": "chat", "inputs": inputs}}

    async def run(door):
        first = await door.handle(job("first", paths))
        slow = asyncio.create_task(door.handle(job("slow", [{"source": paths[0], "prompt": "write 150"}])))
        await asyncio.sleep(0.3)
        poisoned = await door.handle(job("poisoned", [{"source": paths[1], "prompt": "die"}]))
        return first, poisoned, await slow

    with Engine(settings.model_copy(update={"device": "cpu,cpu,cpu"})) as engine:
        engine.load(ROW.id).result(30)
        first, poisoned, slow = asyncio.run(run(RunpodWorker(settings, engine=engine)))
        assert "refresh_worker" not in first
        assert first["usage"] == {"inputs": 8, "failed": 0, "audio_sec": first["usage"]["audio_sec"]}
        assert poisoned["results"][0]["error"]["code"] == "device_lost"
        assert "refresh_worker" not in poisoned, "it would end the other job"
        assert slow["results"][0]["text"].startswith("0 1 2")
        assert slow["refresh_worker"] is True


# The server


def test_the_server_serves_from_the_first_that_is_ready_and_says_what_is_lost(settings, clips):
    gate, made = threading.Event(), []

    class Model(Scripted):
        def load(self):
            assert not made or gate.wait(10)  # the first is ready, the second not yet
            made.append(self)

    paths, _ = clips(1)
    with Engine(settings, create_backend=lambda _row: Model()) as engine, serving(settings, engine) as url:
        assert not engine.load(ROW.id).done()
        assert httpx.post(f"{url}/transcribe", json={"paths": paths}).status_code == 200
        gate.set()
        engine.load(ROW.id).result(10)

        def says() -> tuple:
            health, metrics = httpx.get(f"{url}/health").json(), httpx.get(f"{url}/metrics").text
            gauge = {
                state: f'aviary_devices{{state="{state}"}} {count}.0' in metrics
                for state, count in (("working", 2 - health["devices"]["lost"]), ("lost", health["devices"]["lost"]))
            }
            assert all(gauge.values()), metrics
            assert httpx.get(f"{url}/stats").json()["devices"] == health["devices"]
            return health["devices"], health["status"], httpx.get(f"{url}/health/live").status_code

        assert says() == ({"count": 2, "lost": 0}, "healthy", 200)
        for lost, status, code in ((1, "healthy", 200), (2, "unhealthy", 503)):
            engine._runners[lost - 1].models.lose(DeviceLost("it went"))
            eventually(lambda lost=lost: engine.devices.lost == lost)
            eventually(lambda: not engine._runners[0]._thread.is_alive())
            assert says() == ({"count": 2, "lost": lost}, status, code)


# The end of it all

HOLD = """
import sys, time
from worker.config import Settings
from worker.engine.engine import Engine
from worker.protocol.request import parse
settings = Settings(skip_model_load=True, device="cpu,cpu", allowed_paths=("samples",))
engine = Engine(settings)
def ask():
    return engine.submit(parse({"inputs": ["samples/week.wav"] * 5}, settings)).result(30).results[0].output.text
engine.load("parakeet").result()
print("ready", ask(), flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", ask(), engine.devices, flush=True)
    engine.close()
    print("closed", flush=True)
"""


@pytest.fixture
def holder():
    with Process("-c", HOLD, env=clean_env()) as process:
        eventually(lambda: "ready [dry-run]" in process.output, 30)
        assert sum("worker.engine.remote.process" in name for name in alive_in_session(process.pid)) == 2
        yield process


def test_they_end_with_an_engine_that_is_killed(holder):
    os.kill(holder.pid, signal.SIGKILL)
    eventually(lambda: not alive_in_session(holder.pid))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_for_the_whole_group_leaves_them_to_the_engine(holder, number):
    for name in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                "worker.engine.remote.process" in (name / "cmdline").read_text()
                and int((name / "stat").read_text().rpartition(")")[2].split()[3]) == holder.pid
            ):
                os.kill(int(name.name), number)
    time.sleep(0.2)
    os.kill(holder.pid, signal.SIGINT)
    eventually(lambda: "closed" in holder.output)
    assert "Devices(count=2, lost=0)" in holder.output
    eventually(lambda: not alive_in_session(holder.pid))


def test_python_begins_with_the_first_device_that_is_ready(scripted, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow").touch()
    with python.load(settings) as bundle:
        assert (tmp_path / "first").exists(), "the other device is still loading"
        assert bundle.engine.models[ROW.id] == "ready"
        (tmp_path / "first").unlink()
        bundle.engine.load(ROW.id).result(10)
