"""Every example runs as its docstring says, and prints what the samples contain."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving import serving

from worker.config import Settings

ROOT = Path(__file__).resolve().parent.parent
TEXTS: dict[str, str] = json.loads((ROOT / "samples" / "texts.json").read_text())
MODEL = {"MODEL": "pocketsphinx"}


def run(name: str, *arguments: str, **environment: str) -> str:
    """Run an example as its docstring says, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def words(lines: list[str]) -> str:
    """The text of lines such as ` 0.13 s  see`, whose times rise."""
    times = [float(line.split()[0]) for line in lines]
    assert times == sorted(times)
    return " ".join(line.split()[2] for line in lines)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The server that the docstrings of the examples start."""
    settings = Settings(
        model="pocketsphinx",
        data_dir=tmp_path_factory.mktemp("data"),
        allow_private_urls=True,
        webhook_secret="secret",
    )
    with serving(settings) as url:
        yield url


def test_runpod_payload():
    output = json.loads(run("runpod_payload", **MODEL))
    week, missing = output["results"]
    assert week["text"] == TEXTS["week.wav"]
    assert [word["word"] for word in week["timestamps"]["word"]] == TEXTS["week.wav"].split()
    assert week["formatted"].startswith("1\n00:00:00,130 --> ")
    assert missing["error"]["code"] == "source_not_found"


def test_openai_client(server):
    *timed, streamed = run("openai_client", server).splitlines()
    assert words(timed) == TEXTS["week.wav"]
    assert streamed.strip() == TEXTS["week.wav"]


def test_python_api():
    lines = run("python_api").splitlines()
    assert words(lines[:4]) == TEXTS["week.wav"]
    doctor, missing, people = sorted(lines[4:])
    assert doctor == f"samples/doctor.flac: {TEXTS['doctor.flac']}"
    assert missing.startswith("samples/missing.wav: error source_not_found: ")
    assert people == f"samples/people.mp3: {TEXTS['people.mp3']}"


def test_manifest(server, tmp_path):
    shown = run("manifest", str(tmp_path), server)
    assert shown.splitlines() == [f"{name}: {TEXTS[name]}" for name in ("week.wav", "doctor.flac", "people.mp3")]
    assert run("manifest", str(tmp_path), server) == shown, "the second run resumes a finished manifest"


def test_job_with_webhook(server):
    assert run("job_with_webhook", server) == f"completed {TEXTS['week.wav']}\n"


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_its_docstring_says_how_to_run_it(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    assert f".venv/bin/python -m examples.{path.stem}" in (ast.get_docstring(ast.parse(text)) or "")
    assert f"test_{path.stem}" in globals(), "every example is run here"
