"""Processes of one machine load their models one after another."""

from __future__ import annotations

import concurrent.futures
import logging
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import FIXTURES

from worker import catalog
from worker.backends.base import Backend
from worker.config import Settings
from worker.engine.engine import Engine
from worker.engine.loading import alone
from worker.engine.model_manager import ModelManager

HOLDER = """
import sys, time
from pathlib import Path
from worker.config import Settings
from worker.engine.loading import alone
with alone(Settings(data_dir=Path(sys.argv[1]))):
    print("loading", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """A process that loads a model until it is killed."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "loading\n"
        yield process
        process.kill()


def test_a_load_waits_for_another_process_and_its_death_ends_the_wait(tmp_path, other, caplog):
    caplog.set_level(logging.INFO)
    entered = threading.Event()

    def load():
        with alone(Settings(data_dir=tmp_path)):
            entered.set()

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    assert not entered.wait(0.3)
    assert "waiting for another process of this machine to load its model" in caplog.text
    other.send_signal(signal.SIGKILL)
    assert entered.wait(10)
    thread.join(10)


def test_an_engine_loads_alone(tmp_path, other):
    pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
    path = str(FIXTURES / "ctc-digits.nemo")
    with Engine(Settings(model=path, device="cpu", data_dir=tmp_path)) as engine:
        load = engine.load(path)
        with pytest.raises(concurrent.futures.TimeoutError):
            load.result(3)
        other.kill()
        load.result(60)


def test_processes_with_other_folders_do_not_wait(tmp_path, other, caplog):
    caplog.set_level(logging.INFO)
    with alone(Settings(data_dir=tmp_path / "mine")):
        pass
    assert not caplog.records


def test_without_a_data_dir_it_loads_all_the_same(tmp_path, caplog):
    (tmp_path / "file").touch()
    entered = False
    with alone(Settings(data_dir=tmp_path / "file")):
        entered = True
    assert entered
    assert "may load at the same time" in caplog.text


def test_a_model_loads_alone_once_there_is_room(tmp_path):
    order: list[str] = []

    class Recorded(Backend):
        def load(self):
            order.append("load")

        def infer(self, batch):
            raise AssertionError

    class Context:
        def __enter__(self):
            order.append("alone")

        def __exit__(self, *_):
            order.append("done")

    manager = ModelManager(lambda row: Recorded(), alone=Context)
    future = manager.load(catalog.find("whisper-small").id)
    while not manager.has_work:
        pass
    manager.warm()
    future.result(10)
    assert order == ["alone", "load", "done"]
    manager.close()
