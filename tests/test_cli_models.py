"""aviary models: what is there, and a model downloaded and removed. The hub is one on loopback."""

from __future__ import annotations

import fcntl
import os
import pty
import random
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from hub_host import Hub, hub_on_loopback

from worker.backends.common import hub_cache
from worker.catalog import find
from worker.config import Settings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
NEMO = "nvidia/parakeet-ctc-0.6b"
SIZE = 3 << 20
CONFIG = b'{"architectures": ["WhisperForConditionalGeneration"]}'
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from worker.entrypoints import cli; cli.run_process()"


@pytest.fixture
def hub():
    with hub_on_loopback() as hub:
        hub.add(NEMO, model__nemo=random.Random(3).randbytes(SIZE))
        hub.add("me/whisper-mine", config__json=CONFIG, model__safetensors=bytes(1 << 20))
        yield hub


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    home = {"HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    return {**os.environ, **home, "PYTHONPATH": str(ROOT)}


def aviary(hub: Hub, environment: dict[str, str], *typed: str, code: int = 0, **more: str):
    """The command's outcome. It fails if it imports torch."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "models", *typed],
        cwd=ROOT,
        env=environment | {"HF_ENDPOINT": hub.url} | more,
        input="",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def row(listed: str, name: str) -> str:
    (found,) = (line for line in listed.splitlines() if line.split()[1] == name)
    return " ".join(found.split())


def test_a_model_is_downloaded_listed_and_removed(hub, environment):
    before = aviary(hub, environment).stdout
    assert row(before, NEMO) == f"parakeet-ctc-0.6b {NEMO} not downloaded CC-BY-4.0 transcribe"
    assert row(before, "pocketsphinx").startswith("pocketsphinx pocketsphinx in its package BSD-2-Clause")
    pulled = aviary(hub, environment, "pull", "parakeet-ctc-0.6b")
    assert pulled.stderr.splitlines() == [f"aviary: downloading {NEMO}: 3.0 MiB of 3.0 MiB"], (
        "no bar without a terminal"
    )
    assert Path(pulled.stdout.strip()).stat().st_size == SIZE
    again = aviary(hub, environment, "pull", NEMO)
    assert (again.stdout, again.stderr) == (pulled.stdout, f"aviary: {NEMO} is on this machine already\n")
    aviary(hub, environment, "pull", "me/whisper-mine")
    listed = aviary(hub, environment).stdout
    assert row(listed, NEMO) == f"parakeet-ctc-0.6b {NEMO} 3.0 MiB CC-BY-4.0 transcribe"
    assert row(listed, "me/whisper-mine").startswith("me/whisper-mine me/whisper-mine 1.0 MiB its own transcribe")
    removed = aviary(hub, environment, "rm", NEMO)
    assert (removed.stdout, removed.stderr) == ("", f"aviary: removed {NEMO}, 3.0 MiB\n")
    assert aviary(hub, environment).stdout.splitlines() == [*before.splitlines(), listed.splitlines()[-1]]


def test_what_cannot_be_done_says_why(hub, environment):
    offline = aviary(hub, environment, "pull", NEMO, code=1, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE forbids downloading it" in offline.stderr
    assert "is unreachable" in aviary(hub, environment, "pull", NEMO, code=1, HF_ENDPOINT="http://127.0.0.1:9").stderr
    assert "does not exist on the hub" in aviary(hub, environment, "pull", "me/parakeet-none", code=1).stderr
    assert "unknown model 'none'" in aviary(hub, environment, "pull", "none", code=2).stderr
    assert "nothing to remove" in aviary(hub, environment, "rm", NEMO, code=2).stderr
    assert "nothing to download" in aviary(hub, environment, "pull", "pocketsphinx").stderr
    hub.add("me/whisper-other", config__json=b'{"architectures": ["Other"]}', model__safetensors=bytes(1000))
    assert "Other" in aviary(hub, environment, "pull", "me/whisper-other", code=2).stderr
    assert "removed me/whisper-other" in aviary(hub, environment, "rm", "me/whisper-other").stderr
    aviary(hub, environment, "pull", NEMO)
    with hub_cache.in_use(find(NEMO), Settings(hf_home=Path(environment["HF_HOME"]))):
        assert f"{NEMO} is loaded" in aviary(hub, environment, "rm", NEMO, "--yes", code=1).stderr


@pytest.mark.parametrize(("typed", "answer", "code"), [([], b"n\n", 1), ([], b"y\n", 0), (["--yes"], b"", 0)])
def test_a_terminal_is_asked_before_a_removal(hub, environment, typed, answer, code):
    aviary(hub, environment, "pull", NEMO)
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer)
        done = subprocess.run(
            [sys.executable, "-m", "worker", "models", "rm", NEMO, *typed],
            cwd=ROOT,
            env=environment,
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == code, done.stderr
    assert (f"Remove {NEMO} (3.0 MiB)? [y/N]" in done.stderr) == (not typed)
    assert ("removed" in done.stderr) == (code == 0)


def test_a_terminal_sees_a_bar(hub, environment):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "worker", "models", "pull", NEMO],
            cwd=ROOT,
            env=environment | {"HF_ENDPOINT": hub.url},
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=60,
            check=False,
        )
        seen = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0, seen
    assert "100%" in seen
    assert "3.15M/3.15M" in seen
