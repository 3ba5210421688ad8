"""Every example runs as its docstring says, and prints what the samples contain."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from serving import serving

from worker.config import Settings

ROOT = Path(__file__).resolve().parent.parent
TEXTS: dict[str, str] = json.loads((ROOT / "samples" / "texts.json").read_text())
ADDRESS = "http://127.0.0.1:8000"
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


NOTEBOOK = ROOT / "examples" / "notebook.ipynb"


@pytest.mark.slow
def test_notebook(server):
    """Each cell runs in a real kernel, started in the folder of the notebook as Jupyter does."""
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert text.count(ADDRESS) == 1
    book = nbformat.reads(text.replace(ADDRESS, server), as_version=4)
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(book, timeout=120, kernel_name="python3", resources=resources).execute()

    shown = [
        "\n".join(str(value) for output in cell.outputs for value in (output.get("text"), output.get("data")) if value)
        for cell in book.cells
        if cell.cell_type == "code"
    ]
    _imports, bundle, answer, text, words, array, many, streamed, _close, client, manifest = shown
    assert "ModelBundle(model='pocketsphinx'" in bundle
    assert "<summary>4</summary>" in answer
    assert TEXTS["week.wav"] in text
    assert all(word in words for word in TEXTS["week.wav"].split())
    assert TEXTS["doctor.flac"] in array
    assert all(expected in many for expected in (TEXTS["week.wav"], TEXTS["people.mp3"], "source_not_found"))
    assert f"samples/people.mp3 {TEXTS['people.mp3']}" in streamed
    assert all(TEXTS[name] in client for name in ("week.wav", "train.mp4", "monday.m4a"))
    assert TEXTS["week.wav"] in manifest


def test_the_notebook_is_kept_without_its_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_its_docstring_says_how_to_run_it(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    assert f".venv/bin/python -m examples.{path.stem}" in (ast.get_docstring(ast.parse(text)) or "")
    assert f"test_{path.stem}" in globals(), "every example is run here"
