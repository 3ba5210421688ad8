"""What an interrupt ends, and how soon: a command, a cell of a notebook, a server and all its processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jupyter_client
import numpy as np
import psutil
import pytest
import soundfile
from runpod_host import clean_env
from served import served

from worker.audio.decode import Decoder
from worker.config import Settings
from worker.engine.engine import Engine
from worker.protocol.request import parse

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "samples"
TEXTS: dict[str, str] = json.loads((SAMPLES / "texts.json").read_text())
AT_ONCE_SEC = 2.0
LOADS_SEC = 3.0
PROMPTLY_SEC = 6.0  # to start pocketsphinx again and transcribe a short clip, on a busy machine

# The command line with a model that does not look whether its input was canceled, as an encoder does not.
STUBBORN = """
import os, sys, time
from worker.backends.base import Backend
from worker.engine import engine

def work():
    print("busy", file=sys.stderr, flush=True)
    time.sleep(60)

class Stubborn(Backend):
    def load(self):
        if "LOADS" in os.environ:
            work()
    def infer(self, batch):
        work()

engine.create = lambda row, settings: Stubborn()
from worker.entrypoints import cli
cli.run_process()
"""


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """Four minutes of speech, which is a minute or more of work."""
    decoder = Decoder(Settings())
    parts = []
    for name in TEXTS:
        with (SAMPLES / name).open("rb") as file:
            parts += [decoder.decode(file).samples, np.zeros(4_000, np.float32)]
    decoder.close()
    once = np.concatenate(parts)
    path = tmp_path_factory.mktemp("speech") / "long.wav"
    soundfile.write(path, np.tile(once, 240 * 16_000 // len(once)), 16_000)
    return path


@contextlib.contextmanager
def all_of(top: int) -> Iterator[list[psutil.Process]]:
    """The process and those below it. They must be gone at once after the block, and are killed if they are not."""
    process = psutil.Process(top)
    family = [process, *process.children(recursive=True)]
    yield family
    _, left = psutil.wait_procs(family, AT_ONCE_SEC)
    shown = [one.cmdline() for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    assert not shown, shown


def pocketsphinxes(top: int) -> list[psutil.Process]:
    """The processes of pocketsphinx below `top`."""
    found = []
    for one in psutil.Process(top).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "pocketsphinx_process" in str(one.cmdline()):
                found.append(one)
    return found


def transcribing(top: int, count: int = 1) -> list[psutil.Process]:
    """Wait until so many processes of pocketsphinx below `top` transcribe, and return them.

    A process that is younger than LOADS_SEC may still load its model.
    """
    deadline = time.monotonic() + 120
    while True:
        before = {one: one.cpu_times().user for one in pocketsphinxes(top)}
        time.sleep(0.6)
        busy = [one for one in before if one.is_running() and one.cpu_times().user - before[one] > 0.1]
        if len(busy) == count and all(one.create_time() < time.time() - LOADS_SEC for one in busy):
            return busy
        assert time.monotonic() < deadline, "nothing is transcribed"


def until(true, sec: float = 60) -> None:
    deadline = time.monotonic() + sec
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def interrupt(process: subprocess.Popen[str], group: bool = True) -> tuple[str, float]:
    """Press Ctrl-C, and return stderr and the seconds until the process had ended."""
    started = time.monotonic()
    (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    return said, time.monotonic() - started


def command(*typed: object) -> list[str]:
    return [sys.executable, "-m", "worker", *map(str, typed)]


def started(typed: list[str], **env: str) -> subprocess.Popen[str]:
    """The command, in a group of its own, as a shell starts it."""
    return subprocess.Popen(
        typed, env=clean_env(**env), cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_ctrl_c_ends_a_long_file(speech, tmp_path):
    output = tmp_path / "out.jsonl"
    typed = command("transcribe", SAMPLES / "week.wav", speech, "--format", "jsonl", "--output", output)
    with started(typed, MODEL="pocketsphinx") as process:
        until(lambda: output.exists() and output.read_text().count("\n") == 1)
        transcribing(process.pid)
        with all_of(process.pid):
            said, took_sec = interrupt(process)
    assert process.returncode == 130
    assert said == "aviary: interrupted; the results of 1 of 2 inputs are written\n"
    assert took_sec < AT_ONCE_SEC
    assert json.loads(output.read_text())["text"] == TEXTS["week.wav"]


@pytest.mark.parametrize("name", ["transcribe", "transcribe, while it loads", "evaluate", "manifest", "score"])
def test_ctrl_c_ends_a_command_whatever_its_model_does(name, tmp_path):
    task, _, loads = name.partition(",")
    clip = SAMPLES / "week.wav"
    (tmp_path / "in.jsonl").write_text(json.dumps({"audio_filepath": str(clip), "text": "a"}) + "\n")
    typed = {
        "transcribe": [clip],
        "evaluate": ["--manifest", tmp_path / "in.jsonl"],
        "manifest": [tmp_path / "in.jsonl", "--output", tmp_path, "--task", "transcribe"],
        "score": [clip, "--reference", clip],
    }[task]
    env = {"DATA_DIR": tmp_path, "MODEL": "whisper"} | ({"LOADS": "1"} if loads else {})
    with started([sys.executable, "-c", STUBBORN, task, *map(str, typed)], **env) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "busy\n"
        with all_of(process.pid):
            said, took_sec = interrupt(process)
    assert process.returncode == 130
    assert said.startswith("aviary: interrupted")
    assert took_sec < AT_ONCE_SEC


@pytest.fixture
def kernel() -> Iterator[tuple[jupyter_client.KernelManager, jupyter_client.BlockingKernelClient]]:
    """A notebook's kernel and the client of its page."""
    manager = jupyter_client.KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(ROOT), env=clean_env(MODEL="pocketsphinx"))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run_cell(client: jupyter_client.BlockingKernelClient, code: str) -> str:
    """Run a cell, and return what it prints, or the name of its exception."""
    shown: list[str] = []

    def show(message: dict[str, Any]) -> None:
        content = message["content"]
        shown.append(content.get("text") or content.get("ename") or "")

    client.execute_interactive(code, timeout=60, output_hook=show, stop_on_error=False)
    return "".join(shown)


def test_an_interrupted_cell_frees_the_model(kernel, speech):
    manager, client = kernel
    run_cell(client, "import worker; bundle = worker.load_model()")
    code = f"try:\n    bundle.transcribe([{str(speech)!r}] * 2)\nexcept KeyboardInterrupt:\n    interrupted = True"
    cell = client.execute(code)  # IPython alone takes seconds to show a traceback, on a busy machine
    (busy,) = transcribing(manager.provisioner.pid)
    interrupted_at = time.monotonic()
    manager.interrupt_kernel()
    while client.get_shell_msg(timeout=60)["parent_header"]["msg_id"] != cell:
        pass
    assert time.monotonic() - interrupted_at < AT_ONCE_SEC
    until(lambda: not busy.is_running() or busy.status() == psutil.STATUS_ZOMBIE, AT_ONCE_SEC)
    said = run_cell(client, f"print(interrupted, bundle.transcribe({str(SAMPLES / 'week.wav')!r}).output.text)")
    assert said.endswith(f"True {TEXTS['week.wav']}\n")
    assert time.monotonic() - interrupted_at < PROMPTLY_SEC


def test_the_processes_of_a_kernel_that_is_killed_end_with_it(kernel, speech):
    manager, client = kernel
    run_cell(client, "import worker; bundle = worker.load_model()")
    top = manager.provisioner.pid
    client.execute(f"bundle.transcribe({str(speech)!r})")
    transcribing(top)
    with all_of(top):
        os.kill(top, signal.SIGKILL)  # as the kernel of the system does if memory is short


def test_a_closed_engine_stops_what_runs(speech):
    engine = Engine(Settings(model="pocketsphinx", allowed_paths=(speech.parent,)))
    future = engine.submit(parse({"inputs": [str(speech)]}, engine.settings))
    (busy,) = transcribing(os.getpid())
    with all_of(busy.pid):
        closing_at = time.monotonic()
        engine.close()
    assert time.monotonic() - closing_at < AT_ONCE_SEC + 1, "a window takes longer"
    assert future.result(0).results[0].error.code == "cancelled"


def test_nothing_is_left_of_a_server_that_is_killed(speech, tmp_path):
    """Two devices in a process each, both at full load. tests/test_child.py does the same with ffmpeg."""
    with served(
        tmp_path / "data", MODEL="pocketsphinx", DEVICE="cpu,cpu", SKIP_MODEL_LOAD="0", DECODE_WORKERS="2"
    ) as server:
        top = server.process.pid
        until(lambda: httpx.get(f"{server.url}/health").json()["status"] == "healthy", 120)
        for _ in range(2):
            with speech.open("rb") as file:
                httpx.post(f"{server.url}/transcribe/async", files={"file": file}).raise_for_status()
        transcribing(top, 2)
        with all_of(top) as family:
            named = " ".join(" ".join(one.cmdline()) for one in family)
            assert all(name in named for name in ("remote.process", "pocketsphinx_process", "decode_process"))
            server.process.kill()
