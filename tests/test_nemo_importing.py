"""NeMo is imported ahead of its use, without the libraries that only training, diarization and data sets use."""

from __future__ import annotations

import builtins
import subprocess
import sys
import threading
import time
import typing
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import FIXTURES

from worker.backends.common import checkpoints
from worker.backends.nemo import importing
from worker.backends.nemo.encoder import weight_bytes
from worker.backends.nemo.importing import Deferred
from worker.config import Settings

ROOT = Path(__file__).parent.parent
FRESH = """
import sys
import soundfile
from worker.backends import create
from worker.catalog import find
from worker.config import Settings
from worker.types import Batch, Clip, Options, Piece

folder = sys.argv[1]
unused = {"torch._dynamo", "pandas", "sklearn", "scipy.signal", "transformers", "datasets", "pytorch_lightning"}
clip = Clip(soundfile.read(f"{folder}/digits/00.flac", dtype="float32")[0])
for name in ("parakeet", "ctc", "canary"):
    backend = create(find(f"{folder}/{name}-digits.nemo"), Settings(device="cpu", dtype=sys.argv[2]))
    backend.load()
    language = "en" if name == "canary" else None
    (output,) = backend.infer(Batch((Piece(clip, Options("m", language=language)),)))
    print("text:", output.text)
    print("loaded:", *sorted(unused & set(sys.modules)))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fresh_process_transcribes_without_the_unused_libraries(dtype):
    pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
    command = [sys.executable, "-c", FRESH, str(FIXTURES), dtype]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    texts = [line for line in done.stdout.splitlines() if line.startswith("text: ")]
    loaded = [line for line in done.stdout.splitlines() if line.startswith("loaded:")]
    assert len(texts) == 3
    assert all(len(text) > len("text: ") for text in texts)
    assert loaded == ["loaded:", "loaded:", "loaded: transformers"]  # it stops Canary's generation


def by(importer: str, code: str) -> dict[str, typing.Any]:
    """Run import statements as the module `importer`, and return what they bind."""
    names: dict[str, typing.Any] = {"__name__": importer}
    exec(code, names)
    return names


def test_what_nemo_imports_in_vain_is_imported_on_use():
    with importing._deferring():
        bound = by("nemo.x", "import pandas as pd, scipy.signal\nfrom pandas.api import types\nfrom json import loads")
    assert type(bound["pd"]) is type(bound["scipy"]) is type(bound["types"]) is Deferred
    assert bound["loads"]("1") == 1
    import pandas

    frame = bound["pd"].DataFrame({"a": [1]})
    assert type(frame) is pandas.DataFrame
    assert bound["scipy"].signal.windows.hann(3).tolist() == pytest.approx([0, 1, 0])
    assert bound["types"].is_integer(3)
    assert isinstance(frame, bound["pd"].DataFrame)
    assert not isinstance(1, bound["pd"].DataFrame)
    frames = bound["pd"].DataFrame
    assert len(typing.get_args(typing.Union[frames, int])) == 2  # noqa: UP007  as NeMo writes it
    assert bound["pd"].DataFrame | None == pandas.DataFrame | None
    assert None | bound["pd"].DataFrame == None | pandas.DataFrame

    class Table(bound["pd"].DataFrame):
        pass

    assert issubclass(Table, pandas.DataFrame)


def test_an_instance_check_imports_nothing():
    assert not isinstance(1, Deferred("no_such_library", "Class"))
    with pytest.raises(ModuleNotFoundError):
        Deferred("no_such_library", "Class")()


def test_the_imports_of_others_are_as_usual():
    code = "import pandas\nimport scipy.signal\nfrom sklearn.metrics import roc_curve"
    with importing._deferring(), ThreadPoolExecutor(1) as other:
        ours, theirs = by("worker.x", code), other.submit(by, "nemo.x", code).result()
    for bound in (ours, theirs):
        assert not any(isinstance(value, Deferred) for value in bound.values())
    assert builtins.__import__.__name__ == "__import__"


def test_nemo_is_imported_while_the_file_is_downloaded(monkeypatch, tmp_path):
    """The download waits for the import here, so the test ends only if both run at a time."""
    began = threading.Event()
    monkeypatch.setattr(importing, "_import", began.set)
    monkeypatch.setattr(importing, "_imported", Future())
    (tmp_path / "x.nemo").write_bytes(b"12345")

    def download(*_):
        assert began.wait(10)
        return tmp_path / "x.nemo"

    monkeypatch.setattr(checkpoints, "nemo_file", download)
    assert weight_bytes("nvidia/parakeet-x", Settings()) == 5


def test_it_is_imported_once_and_a_failure_reaches_everyone_who_waits(monkeypatch):
    calls = []

    def fail():
        calls.append(threading.current_thread().name)
        time.sleep(0.05)
        importing._imported.set_exception(ImportError("no nemo"))

    monkeypatch.setattr(importing, "_import", fail)
    monkeypatch.setattr(importing, "_imported", Future())
    with ThreadPoolExecutor(4) as pool:
        waits = [pool.submit(importing.wait) for _ in range(4)]
    for wait in waits:
        with pytest.raises(ImportError, match="no nemo"):
            wait.result()
    assert calls == ["import NeMo"]
