"""The benchmark for a GPU, run on the CPU with tiny models; and the pack of wheels for a machine without a network."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu, pack
from benchmarks.gpu import bench, checkpoints, group, load, meters, report
from benchmarks.gpu.bench import Machine
from benchmarks.gpu.canary import Canary
from benchmarks.gpu.parakeet import Parakeet
from benchmarks.gpu.scale import FULL, TINY
from worker import child
from worker.backends import create
from worker.catalog import find
from worker.config import Settings

pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
pytest.importorskip("transformers")
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
LOCK = """\
# made by a tool
alpha==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:ab
    # via -r requirements.txt
beta[extra]==2.0 ; sys_platform == 'linux' \\
    --hash=sha256:bb
    # via
    #   alpha
    #   gamma
delta==4.0 \\
    --hash=sha256:dd
    # via beta
gamma==3.0 \\
    --hash=sha256:cc
    # via alpha
"""


def measured(models):
    """The rows of a group, by their names."""
    rows = {}
    try:
        for step in models.steps:
            rows |= {row.what: row for row in step()}
    finally:
        models.close()
    failed = [report.line(row) for row in rows.values() if {"failed", "not run"} & row.values.keys()]
    assert not failed
    return rows


@pytest.fixture
def _bfloat16(monkeypatch):
    """The data type that a GPU gets by default."""
    monkeypatch.setenv("DTYPE", "bfloat16")


@pytest.mark.usefixtures("_bfloat16")
def test_parakeet_is_measured_next_to_nemo(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "load", lambda who, path, device: load.measure(who, str(path), device))
    rows = measured(Parakeet(Machine("cpu", TINY, tmp_path)))
    names = " ".join(rows)
    assert all(f"2 x 1 s{whose}" in names for whose in ("", ", NeMo's transcribe"))
    ours = rows["Parakeet, 2 x 1 s"].values
    assert ours["rtfx"] > 0
    assert ours["encoder_rtfx"] > ours["rtfx"] / 3
    assert ours["captures"] == 0
    assert ours["added_gib"] is None
    promised = [row for row in rows.values() if row.promised != "reported"]
    assert len(promised) == 4
    assert all(row.kept is not None for row in promised)


def test_a_checkpoint_emits_about_as_many_tokens_as_speech_has_in_clips_of_any_length(tmp_path):
    from nemo.collections.asr.models import ASRModel

    made = checkpoints.parakeet(tmp_path, TINY, "cpu")
    model = ASRModel.restore_from(str(made.path), map_location="cpu").eval()
    assert made.weights == sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad():
        rates = [checkpoints.tokens_per_sec(model, *checkpoints.states(model, 4, seconds)) for seconds in (2, 10, 30)]
    assert rates[1] == pytest.approx(checkpoints.TOKENS_PER_SEC, rel=0.1)
    assert all(2 <= rate <= 5 for rate in rates)


@pytest.mark.usefixtures("_bfloat16")
def test_canary_is_measured_next_to_nemo(tmp_path):
    rows = measured(Canary(Machine("cpu", TINY, tmp_path)))
    theirs = rows["Canary, 2 x 1 s, NeMo's transcribe"].values
    assert theirs["tokens_per_sec"] <= TINY.canary_positions
    assert rows["Canary, 2 x 1 s"].values["rest_rtfx"] > 0


def test_the_flamingo_is_read_whole_from_its_sparse_files(tmp_path):
    made = checkpoints.flamingo(tmp_path, TINY)
    backend = create(find(str(made.path)), Settings(device="cpu"))
    backend.load()
    weights = list(backend._model.parameters())
    assert made.weights == sum(parameter.numel() for parameter in weights)
    assert not any(parameter.any() for parameter in weights)
    checkpoints.randomize(backend._model)
    assert all(parameter.any() for parameter in weights if parameter.dim() > 1)


def test_each_row_is_written_at_once_with_the_machine_and_the_libraries(tmp_path):
    out, seen = tmp_path / "rows.jsonl", 0
    for seen, row in enumerate(gpu.run(["flamingo"], "cpu", "tiny", 600, out), 1):
        records = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(records) == seen
        assert "failed" not in row.values
        assert records[-1]["what"] == row.what
        assert records[-1]["values"] == row.values
        assert {"device", "driver", "dtype", "torch", "date", "scale", "group"} <= records[-1].keys()
    assert seen == 1 + len(list(bench.grid(TINY.flamingo_grid)))


def test_what_does_not_fit_into_the_time_is_reported():
    rows = list(gpu.run(["canary"], "cpu", "tiny", 0))
    assert [row.what for row in rows] == ["canary: checkpoint", "canary: grid"]
    assert all("out of time" in row.values["not run"] for row in rows)


def test_a_step_that_the_time_cuts_short_says_so():
    def step():
        time.sleep(0.1)
        yield report.Result("first", {"sec": 0.1})
        yield report.Result("second", {"sec": 0.1})

    out = io.StringIO()
    group._measure(step, "steps: step", time.monotonic() + 0.05, {}, out)
    assert [json.loads(line)["what"] for line in out.getvalue().splitlines()] == [
        "first",
        "steps: step, further rows, if there are any",
    ]


def test_a_step_that_fails_says_why():
    def step():
        yield report.Result("first", {"sec": 0.1})
        raise OSError("the disk is full")

    out = io.StringIO()
    group._measure(step, "steps: step", time.monotonic() + 60, {}, out)
    assert json.loads(out.getvalue().splitlines()[-1])["values"] == {"failed": "OSError: the disk is full"}


def test_a_process_that_hangs_is_killed_and_reported(monkeypatch):
    monkeypatch.setattr(gpu, "GRACE_SEC", 0.1)
    (row,) = gpu.run(["canary"], "cpu", "tiny", 0)
    assert row.values["not run"] == "its process ended with exit code -9"


def test_a_row_that_fails_says_why_and_others_follow():
    def fail():
        raise ValueError("too large\nfor this device")

    row = report.attempt("a row", fail, "at least 1", lambda values: True)
    assert row.values == {"failed": "ValueError: too large"}
    assert row.kept is None


def test_a_load_is_measured_in_a_process_of_its_own():
    values = load.load("nemo", ROOT / "tests" / "fixtures" / "parakeet-digits.nemo", "cpu")
    assert values["sec"] > 0
    assert values["device_gib"] is None


def test_a_load_whose_process_fails_is_an_error(monkeypatch):
    monkeypatch.setattr(child, "command", lambda *_: [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(RuntimeError, match="exit code 3"):
        load.load("nemo", Path("some.nemo"), "cpu")


def test_the_seconds_of_modules_are_those_of_their_calls():
    class Sleeping(torch.nn.Module):
        def forward(self, inner=None):
            time.sleep(0.1)
            return inner and inner()

    outer, inner = Sleeping(), Sleeping()
    with meters.module_seconds("cpu", both=(outer, inner), inner=(inner,)) as spent:
        outer(inner)
        assert spent == {"both": pytest.approx(0.2, abs=0.09), "inner": pytest.approx(0.1, abs=0.09)}
        inner()
    assert spent["both"] > 0.3
    assert spent["inner"] > 0.2
    assert not inner._forward_hooks


def test_short_clips_are_sorted_and_within_their_bounds():
    clips = bench.short_clips(FULL._replace(short_clips=300))
    lengths = [len(clip) / 16_000 for clip in clips]
    assert lengths == sorted(lengths, reverse=True)
    assert min(lengths) >= 1
    assert max(lengths) <= 30
    assert 5 < lengths[150] < 7


def test_the_pack_holds_what_the_roots_need_and_the_machine_lacks():
    locked = pack.parse(LOCK)
    assert pack.missing(locked, ["alpha"], set()) == ["alpha", "beta", "delta", "gamma"]
    assert pack.missing(locked, ["alpha"], {"beta"}) == ["alpha", "gamma"]
    assert locked["beta"].pin == "beta[extra]==2.0 ; sys_platform == 'linux' \\\n    --hash=sha256:bb"
    assert pack.installed("# a list\nTorch==2.11.0+cu130\nhuggingface_hub @ file:///x\n\n") == {
        "torch",
        "huggingface-hub",
    }


def test_the_lock_file_has_every_package_of_the_pack():
    locked = pack.parse((ROOT / "requirements.lock").read_text())
    there = pack.installed(pack.INSTALLED.read_text())
    names = pack.missing(locked, pack.ROOTS, {*there, *pack.LEFT_OUT})
    assert {"nemo-toolkit", "lhotse", "hydra-core", "pydantic-core"} <= set(names)
    assert not {"torch", "transformers", "numpy"} & set(names)
    assert set(names) <= locked.keys()
    assert all("--hash=sha256:" in locked[name].pin for name in names)


def test_the_script_installs_then_tests_then_measures(tmp_path):
    log, python, wheels = tmp_path / "log", tmp_path / "python", tmp_path / "pack"
    wheels.mkdir()
    (wheels / "some-1-py3-none-any.whl").touch()
    python.write_text('#!/bin/sh\necho "$PYTHONPATH: $*" >> "$LOG"\n')
    python.chmod(0o755)
    subprocess.run(
        ["sh", "benchmarks/gpu/run.sh", str(wheels), "--out", "rows.jsonl"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": str(python), "LOG": str(log), "PYTHONPATH": ""},
        check=True,
        capture_output=True,
    )
    install, tests, measure = log.read_text().splitlines()
    assert "--no-index --no-deps" in install
    assert str(wheels / "some-1-py3-none-any.whl") in install
    assert "-m gpu" in tests
    assert "tests/test_parakeet.py" in tests
    assert measure.endswith("--out rows.jsonl")
    minutes = float(measure.partition("--minutes ")[2].split()[0])
    assert 7 < minutes <= 8
    site = measure.partition(":")[0]
    assert f"--target {site}" in install
    assert not Path(site).exists()
