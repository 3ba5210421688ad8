"""docs/adding-a-model.md is true and complete: what it says is done to a copy of the repository, and nothing else is.

Its example is a family that does not exist. Then every door of the copy knows the family, and the tests that the
page names pass.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import DIGITS, LABELS

pytest.importorskip("safetensors", reason="safetensors is not installed")

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "adding-a-model.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.+?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CLIP = str(DIGITS / next(iter(LABELS)))

# Runs in the copy: prints what each door makes of the new family, as JSON. The libraries of other families are missing.
DOORS = """
import asyncio, json, sys
sys.modules |= dict.fromkeys(["torch", "transformers", "nemo"])
from fastapi.testclient import TestClient
import handler, worker
from worker.config import Settings
from worker.entrypoints.http.app import create_app

checkpoint, clip = sys.argv[1:]

def handle(**fields):
    return asyncio.run(handler.handler({"id": "job", "input": fields}))

with worker.load_model(model=checkpoint) as bundle:
    (embedding,) = bundle.embed([clip])
with TestClient(create_app(Settings()), base_url="http://localhost") as client:
    listed = client.get("/v1/models").json()
    posted = client.post("/v1/audio/embeddings", json={"model": checkpoint, "audio": {"url": clip}, "pooling": "mean"})
names = ["timbre", "acme/timbre-small", "someone/timbre-large", checkpoint]
print(json.dumps({
    "python": embedding.output.values.shape,
    "http": posted.json(),
    "models": listed,
    "handler": handle(task="embed", model=checkpoint, inputs=[clip], pooling="mean"),
    "handler's models": handle(openai_route="/v1/models"),
    "refused": handle(task="transcribe", model="timbre", inputs=[clip]),
    "offered": handle(task="embed", model="parakeet", inputs=[clip]),
    "backends": [worker.catalog.find(name).backend for name in names],
}))
"""


class Copy(NamedTuple):
    """A copy of the repository to which the page was applied."""

    root: Path
    changed: list[str]
    checkpoint: str

    def run(self, *command: str, code: int | None = 0, **environment: str) -> str:
        """Run a command of the copy, check its exit code, and return what it printed."""
        settings = ("PYTEST_", "RUNPOD_", "MODEL", "PARAKEET", "HF_", "PYTHONPATH", "COV_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
        own = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.root / "none"), "HOME": str(self.root / "none")}
        limits = {"DEVICE": "cpu", "DATA_DIR": str(self.root / "data"), "ALLOWED_PATHS": f"{DIGITS}:{self.root}"}
        done = subprocess.run(
            command,
            cwd=self.root,
            env=inherited | own | limits | {"MODEL": self.checkpoint, "RUNPOD_LOG_LEVEL": "ERROR"} | environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def python(self, *arguments: str, **options) -> str:
        return self.run(sys.executable, *arguments, **options)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Copy:
    root = tmp_path_factory.mktemp("copy") / "aviary"

    def unneeded(_folder: str, names: list[str]) -> set[str]:
        return {name for name in names if name.startswith(".") or name in ("__pycache__", "shared", "site")}

    shutil.copytree(ROOT, root, ignore=unneeded)
    changed = [apply(root, kind, text) for kind, text in BLOCKS if kind in ("python", "diff")]
    folder = root / "checkpoint"
    folder.mkdir()
    copy = Copy(root, changed, str(folder))
    copy.python(
        "-c", f"from tests.fixtures import tiny_timbre as t; from pathlib import Path; t.save(Path({str(folder)!r}))"
    )
    return copy


def apply(root: Path, kind: str, text: str) -> str:
    """Do what a block of the page says, and return the file that it names."""
    first, _, text = text.partition("\n")
    name = first.removeprefix("# ").removeprefix("+++ ")
    path = root / name
    if kind == "python":
        assert not path.exists(), f"{name} is there already"
        path.write_text(text, encoding="utf-8")
        return name
    lines = path.read_text(encoding="utf-8").splitlines()
    place = -1
    for line in text.splitlines():
        if line.startswith("+"):
            lines.insert(place, line[1:])
        else:
            assert lines.count(line[1:]) == 1, f"{name} does not have this line once: {line[1:]}"
            place = lines.index(line[1:])
        place += 1
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return name


def test_the_page_names_every_file_that_a_family_needs(copy):
    assert copy.changed == [
        "worker/catalog/rows.py",  # another checkpoint of a known family
        "worker/backends/timbre.py",
        "worker/backends/__init__.py",
        "worker/catalog/rows.py",
        "worker/catalog/rows.py",
        "tests/fixtures/tiny_timbre.py",
        "tests/test_every_backend.py",
    ]


def test_the_page_lists_every_field_of_a_row(copy):
    rows = re.findall(r"^\| (`.+?) \|", PAGE, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    fields = copy.python("-c", "from worker.catalog import Model; print(*Model.__dataclass_fields__)").split()
    assert sorted(named) == sorted(fields)


def test_every_file_that_the_page_mentions_is_there(copy):
    for name in re.findall(r"`((?:worker|tests)/[\w./]+)`", PAGE):
        assert (copy.root / name).exists(), name


def test_what_the_page_shows_passes_the_linter(copy):
    files = sorted(set(copy.changed))
    shutil.copy(ROOT / "pyproject.toml", copy.root)
    copy.python("-m", "ruff", "check", "--no-cache", *files)
    copy.python("-m", "ruff", "format", "--no-cache", "--check", *files)


def test_another_checkpoint_of_a_known_family_needs_no_more_than_its_row(copy):
    listed = copy.python("-m", "worker", "models")
    assert re.search(
        r"^whisper-large-v2 +openai/whisper-large-v2 .*  transcribe, translate, embed$", listed, re.MULTILINE
    )


@pytest.fixture(scope="module")
def doors(copy) -> dict:
    return json.loads(copy.python("-c", DOORS, copy.checkpoint, CLIP).splitlines()[-1])


def test_names_repositories_and_checkpoints_of_the_family_are_known(doors):
    assert doors["backends"] == ["timbre"] * 4


def test_the_engine_runs_it(doors):
    frames, width = doors["python"]
    assert frames > 1
    assert width == 8


def test_the_handler_runs_it(copy, doors):
    (result,) = doors["handler"]["results"]
    assert (doors["handler"]["model"], result["shape"]) == (copy.checkpoint, [8])
    assert any(abs(value) > 0.01 for value in result["embedding"])


def test_the_server_runs_it(doors):
    assert doors["http"]["embedding"] == pytest.approx(doors["handler"]["results"][0]["embedding"])


def test_v1_models_lists_it(doors):
    for models in (doors["models"], doors["handler's models"]):
        (row,) = [model for model in models["data"] if model["id"] == "acme/timbre-small"]
        assert (row["aliases"], row["tasks"], row["options"]) == (["timbre"], ["embed"], [])


def test_refusals_know_it(doors):
    assert "acme/timbre-small cannot transcribe; it supports embed." in doors["refused"]["error"]
    assert re.search(r"Models that can: .*\btimbre\b", doors["offered"]["error"])


def test_the_command_line_runs_it(copy):
    line = json.loads(copy.python("-m", "worker", "embed", CLIP, "--pooling", "mean", "--format", "jsonl"))
    assert line["shape"] == [8]


def test_the_doctor_finds_its_weights_and_its_libraries(copy):
    def doctor(*missing: str, model: str = copy.checkpoint, code: int) -> str:
        hide = f"import sys; sys.modules |= dict.fromkeys({missing})"
        start = f"from worker.entrypoints.cli import main; sys.exit(main(['doctor', '--model', {model!r}]))"
        return copy.python("-c", f"{hide}; {start}", code=code)

    well = doctor("torch", "nemo", code=0)
    assert f"ok       model     {copy.checkpoint}, weights in {copy.checkpoint}" in well
    assert "ok       device    torch is not installed; this model does not need it" in well
    assert "problem  model     acme/timbre-small is in no cache" in doctor("torch", "nemo", model="timbre", code=1)
    assert f"problem  model     {copy.checkpoint} needs safetensors" in doctor("torch", "safetensors", code=1)


def test_the_commands_of_the_page_pass(copy):
    """The page's last commands among them: the contract that every backend keeps, for the new one."""
    commands = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
    assert len(commands) == 5
    for command in dict.fromkeys(commands):
        said = copy.run("bash", "-c", command.replace(".venv/bin/python", f"'{sys.executable}'"))
        assert "cogapp" in command or "passed" in said
    assert "1 passed" in said
    tables = [page.read_text(encoding="utf-8") for page in copy.root.glob("docs/*.md")]
    assert all("acme/timbre-small" in page for page in tables if "tables.models()" in page)
