"""Every command and every program of README.md and docs/ runs, as it is written, or stands in a list with its reason.

Commands run in a shell, in a folder with the samples. Servers run until they are ready. If a page names no model, or
one whose weights are not here, the dry run stands in for it. tests/test_docs.py compares what the server responds.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import serving
from test_docs import ADDRESS, DOCS, NOT_RUN, ROOT, blocks, curl

from worker.config import Settings

pytestmark = pytest.mark.slow

PAGES = [ROOT / "README.md", *DOCS]

# Commands that do not run here: the beginning of the command, or a part of it, and the reason.
EXCEPTIONS = {
    r"make ": "tests/test_package.py runs make; these tests cannot run themselves",
    r"\.venv/bin/python -m (cogapp|pytest) ": "tests/test_adding_a_model.py follows the page",
    r"docker ": "Docker; tests/test_published.py and tests/test_deploy.py check the files and flags",
    r"curl .*api\.runpod\.ai": "an account of Runpod",
    r"curl \S+/jobs/\S+/result": "tests/test_docs.py runs it with the id of a job of its own",
    r"python handler\.py --rp_serve_api": "it serves until it is stopped; tests/test_runpod.py calls it",
    r"export API_KEY=": "it sets up the commands that follow it",
    r"sudo ": "root and systemd; tests/test_deploy.py checks the unit",
    r"pip install ": "an index of packages; tests/test_package.py checks the extras",
    r"(ray|serve) ": "a Ray cluster; tests/test_ray_serve.py deploys the file",
    r"python -m worker manifest .* --endpoint": "an account of Runpod; tests/test_batch_jobs.py runs it",
    r"python -m worker models pull ": "the hub; tests/test_cli_models.py downloads from one of its own",
    r"python -m worker manifest .* --ray": "a Ray cluster; tests/test_manifest_ray.py runs it",
}


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks; a line that ends with a backslash goes on in the next one."""
    lines = [line for code in blocks(page, "bash") for line in code.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def exception(command: str) -> str | None:
    return next((pattern for pattern in EXCEPTIONS if re.match(pattern, command)), None)


COMMANDS = [(page.stem, command) for page in PAGES for command in commands(page)]
RUN = [pytest.param(command, id=f"{page}: {command[:60]}") for page, command in COMMANDS if not exception(command)]
CURL = [one for one in RUN if str(one.values[0]).startswith("curl ")]
SERVE = [one for one in RUN if " -m worker serve" in str(one.values[0])]
OTHER = [one for one in RUN if one not in CURL and one not in SERVE]


def test_no_exception_is_left_over_and_the_others_run():
    used = {exception(command) for _, command in COMMANDS}
    assert set(EXCEPTIONS) == used - {None}
    assert len(CURL) >= 4
    assert len(SERVE) >= 6
    assert len(OTHER) >= 8
    languages = {
        language for page in PAGES for language in re.findall(r"^```(\w*)\n.*?^```$", page.read_text(), re.M | re.S)
    }
    # A diff is a step of docs/adding-a-model.md, which tests/test_adding_a_model.py follows.
    assert languages <= {"bash", "python", "json", "yaml", "text", "diff"}, "a language that no test runs or reads"


def test_no_exception_for_python_is_left_over():
    """tests/test_docs.py runs all other blocks, and tests/test_adding_a_model.py those of its page."""
    for word in NOT_RUN:
        assert any(word in code for page in DOCS for code in blocks(page, "python")), word


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with what the commands name: a Python, the samples, labels, a manifest and the handler."""
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    for name in ("handler.py", "test_input.json", "worker"):
        (tmp_path / name).symlink_to(ROOT / name)
    programs = tmp_path / "programs"
    environment = tmp_path / ".venv" / "bin"
    for place in (programs, environment):
        place.mkdir(parents=True)
        python = place / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
    for name in ("audio", "labels"):
        (tmp_path / name).mkdir()
    shutil.copy(ROOT / "samples" / "week.wav", tmp_path / "audio")
    (tmp_path / "labels" / "week.txt").write_text("see you next week")
    (tmp_path / "data.jsonl").write_text('{"audio_filepath": "samples/week.wav"}\n')
    return tmp_path


@pytest.fixture
def start(folder) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command in the folder."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="docs-") as data:  # the paths of sockets must be short
        yield functools.partial(started, folder, data)


def started(folder: Path, data: str, command: str, **settings: Any) -> subprocess.Popen[str]:
    environment = {
        "PATH": f"{folder / 'programs'}:{os.environ['PATH']}",
        "HOME": os.environ.get("HOME", "/"),
        "DATA_DIR": data,
        "OMP_NUM_THREADS": "1",
        **({} if "pocketsphinx" in command else {"SKIP_MODEL_LOAD": "1"}),
        **settings,
    }
    return subprocess.Popen(
        ["bash", "-c", command], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("command", OTHER)
def test_a_command_runs(command, folder, start):
    running = start(command)
    out, err = running.communicate(timeout=120)
    allowed = (0, 1) if command.endswith("doctor") else (0,)  # what this machine lacks is for doctor to say
    assert running.returncode in allowed, err
    assert out or list(folder.rglob("*.srt")) or list(folder.rglob("enriched/*")), err
    if "--html" in command:
        assert (folder / "report.html").is_file()


@pytest.mark.parametrize("command", SERVE)
def test_a_server_becomes_ready_and_stops(command, start):
    if "--workers" in command and shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = start(command, PORT=str(port))
    try:
        deadline = time.monotonic() + 100
        while not ready(port):
            assert running.poll() is None, running.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) in (0, -signal.SIGTERM)
    finally:
        running.kill()
        running.communicate()


def ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ping").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    data = tmp_path_factory.mktemp("data")
    settings = Settings(model="pocketsphinx", data_dir=data, allow_private_urls=True, webhook_secret="secret")
    with serving(settings) as url:
        yield url


@pytest.mark.parametrize("command", CURL)
def test_the_server_accepts_the_request(command, server):
    answer = curl(command, server)
    refused = "language=xx" in command  # docs/errors.md shows an error
    assert answer.status_code == (400 if refused else 200), answer.text
    assert ADDRESS in command
