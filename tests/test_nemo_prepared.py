"""Weights that are prepared in the image load as the .nemo file does, and only in its place."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path

import pytest
from conftest import FIXTURES

from worker.backends import create
from worker.backends.nemo import encoder, prepared
from worker.catalog import find
from worker.config import Settings
from worker.errors import ModelUnavailable

pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
import torch
from test_nemo_restore import same, tensors, texts

NAMES = ["parakeet-digits", "canary-digits", "canary-languages", "ctc-digits"]


@pytest.fixture
def parakeet(tmp_path) -> Path:
    return Path(shutil.copy(FIXTURES / "parakeet-digits.nemo", tmp_path))


@pytest.fixture
def restored(monkeypatch) -> list[Path]:
    """Return the list of the files that backends restore from."""
    paths: list[Path] = []
    restore = encoder.restore
    monkeypatch.setattr(encoder, "restore", lambda path, *rest: paths.append(path) or restore(path, *rest))
    return paths


def load(path: Path, dtype: str):
    backend = create(find(str(path)), Settings(device="cpu", dtype=dtype))
    backend.load()
    return backend


@pytest.mark.parametrize("name", NAMES)
def test_a_prepared_file_gives_every_tensor_that_the_cast_gives(tmp_path, restored, name):
    path = Path(shutil.copy(FIXTURES / f"{name}.nemo", tmp_path))
    plain = load(path, "bfloat16")
    assert prepared.prepare(path) == tmp_path / f"{name}.nemo.bfloat16"
    ready = load(path, "bfloat16")
    assert restored == [path, tmp_path / f"{name}.nemo.bfloat16"]
    assert same(tensors(ready._model), tensors(plain._model))
    assert texts(ready) == texts(plain)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{name}.nemo", f"{name}.nemo.bfloat16"]


def test_the_prepared_weights_take_half_the_bytes(parakeet):
    assert prepared.prepare(parakeet).stat().st_size < 0.6 * parakeet.stat().st_size


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_precision_reads_the_nemo_file(parakeet, restored, dtype):
    prepared.prepare(parakeet)
    load(parakeet, dtype)
    assert restored == [parakeet]


def test_a_file_that_was_made_of_another_is_ignored(parakeet, restored, caplog):
    shutil.copy(FIXTURES / "ctc-digits.nemo", other := parakeet.with_name("other.nemo"))
    os.replace(prepared.prepare(other), f"{parakeet}.bfloat16")
    load(parakeet, "bfloat16")
    assert restored == [parakeet]
    assert "is not used: it was made of another file" in caplog.text


def rewrite(path: Path, name: str, change) -> None:
    """Change the content of one member of an archive."""
    with tarfile.open(path) as archive:
        members = [(m, archive.extractfile(m).read() if m.isfile() else b"") for m in archive.getmembers()]
    with tarfile.open(path, "w") as made:
        for member, content in members:
            changed = change(content) if member.name.endswith(name) else content
            member.size = len(changed)
            made.addfile(member, io.BytesIO(changed))


def test_one_changed_tensor_makes_it_another_file(parakeet, restored):
    """Sizes and names are the same; the checkpoint's checksums differ."""

    def add(number: int, content: bytes) -> bytes:
        state = torch.load(io.BytesIO(content))
        state["encoder.pre_encode.out.weight"][0, 0] += number
        torch.save(state, saved := io.BytesIO())
        return saved.getvalue()

    rewrite(parakeet, "model_weights.ckpt", partial(add, 0))
    prepared.prepare(parakeet)
    size = parakeet.stat().st_size
    rewrite(parakeet, "model_weights.ckpt", partial(add, 1))
    assert parakeet.stat().st_size == size
    load(parakeet, "bfloat16")
    assert restored == [parakeet]


def test_a_damaged_file_is_ignored(parakeet, restored, caplog):
    Path(f"{parakeet}.bfloat16").write_bytes(b"not a tar archive" * 1000)
    load(parakeet, "bfloat16")
    assert restored == [parakeet]
    assert "cannot be read as a .nemo file" in caplog.text


def test_its_configuration_is_vetted_too(parakeet):
    evil = (b"modules.ConformerEncoder", b"modules.SomethingElse")
    rewrite(prepared.prepare(parakeet), "model_config.yaml", lambda content: content.replace(*evil))
    with pytest.raises(ModelUnavailable, match="SomethingElse"):
        load(parakeet, "bfloat16")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker.backends.nemo.prepared", *arguments]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parent.parent
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)


def test_the_command_that_the_image_runs(parakeet, tmp_path):
    done = run(str(parakeet))
    assert done.returncode == 0, done.stderr
    assert f"{parakeet}.bfloat16: " in done.stdout
    assert "needs no preparation" in run("openai/whisper-small").stdout
    failed = run(str(tmp_path / "parakeet-missing.nemo"))
    assert failed.returncode == 1
    assert "could not be prepared: no such file" in failed.stderr
    assert "RUN if" in (dockerfile := (Path(__file__).parent.parent / "Dockerfile").read_text())
    assert 'python -m worker.backends.nemo.prepared "$BAKE_MODEL"' in dockerfile
