"""The fuzzer: a short run finds nothing, the same case comes again, and a broken promise is found."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tools.fuzz import __main__ as command
from tools.fuzz import inputs, targets
from tools.fuzz.mutations import damage, distort, scribble
from tools.fuzz.session import Fault
from worker.entrypoints.http import multipart
from worker.entrypoints.runpod import RunpodWorker

SECONDS = 5


def run(seconds: float = 0, **options: Any) -> command.Report:
    return asyncio.run(command.fuzz(seconds, options.pop("seed", 0), **options))


def test_a_short_run_finds_nothing():
    report = run(SECONDS)
    assert not report.faults
    assert report.cases.keys() == set(targets.TARGETS)
    assert report.cases["payloads"] > 5


def test_a_case_depends_on_its_seed_target_and_number_only():
    files = [bytes(range(256)) * 4, b"RIFF" * 100]

    def made(seed: int, number: int) -> tuple[Any, ...]:
        random = targets.generator(seed, "forms", number)
        body = {"a": [1, {"b": "c"}], "d": None}
        return damage(files[0], random, files), str(distort(body, random)), scribble(json.dumps(body).encode(), random)

    assert made(1, 2) == made(1, 2)
    assert len({made(seed, number) for seed in range(5) for number in range(5)}) > 20


def test_damage_leaves_its_input_alone():
    payload = inputs.payloads(b"RIFF")[0]
    before = json.dumps(payload)
    for number in range(200):
        distort(payload, targets.generator(0, "payloads", number))
    assert json.dumps(payload) == before


def test_the_files_cover_many_containers():
    heads = {data[:4] for data in inputs.audio_files()}
    assert {b"RIFF", b"fLaC", b"OggS", b"\x1aE\xdf\xa3", b"FORM", b"caff"} <= heads
    assert len(heads) > 12


# Each promise, broken on purpose


@pytest.mark.parametrize("target", targets.TARGETS)
def test_an_internal_error_is_found(target, monkeypatch):
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("broken on purpose")

    monkeypatch.setattr("worker.entrypoints.tasks.parse", broken)
    monkeypatch.setattr(multipart, "_Form", broken)
    found = run(targets=[target], seconds=1).faults
    assert found
    assert found[0].startswith(f"--seed 0 --target {target} --case ")


def test_a_wrong_order_is_found(monkeypatch):
    handle = RunpodWorker.handle

    async def swapped(self: RunpodWorker, job: Any) -> Any:
        answer = await handle(self, job)
        return answer | {"results": answer["results"][::-1]}

    monkeypatch.setattr(RunpodWorker, "handle", swapped)
    assert "not in the order" in run(targets=["containers"]).faults[0]


def test_a_hang_is_found(monkeypatch):
    async def hanging(*_: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(command, "HANG_SEC", 0.1)
    monkeypatch.setitem(command.TARGETS, "containers", hanging)
    assert "no response after" in run(targets=["containers"]).faults[0]


def test_a_file_that_is_left_is_found(monkeypatch):
    async def leaving(*_: Any) -> None:
        Path(tempfile.gettempdir(), "left").write_bytes(b"x")

    monkeypatch.setitem(command.TARGETS, "forms", leaving)
    assert "files are left" in run(targets=["forms"]).faults[0]


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": Infinity}', "{", '"\ud800"'])
def test_json_that_is_not_strict_is_found(text):
    with pytest.raises(Fault):
        targets.strict(text)


def test_the_command_reports_what_it_did(capsys):
    assert command.main(["--target", "payloads", "--case", "3"]) == 0
    assert "cases: 1 of payloads; " in capsys.readouterr().out
