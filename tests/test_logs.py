"""Log lines: one record is one line, whatever its message contains, and a traceback cannot imitate a record."""

from __future__ import annotations

import asyncio
import json
import logging
import re

import pytest

from worker import logs
from worker.config import Settings
from worker.entrypoints.runpod import RunpodWorker

RECORD = re.compile(r"\d\d:\d\d:\d\d [A-Z]+ worker\S*: ")
FORGED = "12:00:00 INFO worker.jobs: forged"


@pytest.fixture
def log():
    """The worker's logger, whose handlers are restored afterwards."""
    logger = logging.getLogger("worker")
    before = logger.handlers[:], logger.propagate, logger.level
    yield logging.getLogger("worker.tests")
    logger.handlers[:], logger.propagate, logger.level = before


@pytest.mark.parametrize("separator", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_a_message_is_one_line(log, capfd, separator):
    logs.configure(Settings())
    log.info("job %s", f"a{separator}{FORGED}")
    (line,) = capfd.readouterr().err.splitlines()
    assert RECORD.match(line)
    assert line.endswith(FORGED)


def test_control_characters_are_escaped_and_letters_are_not(log, capfd):
    logs.configure(Settings())
    log.info("a\x1b[31mred\x00\tÄ 語 \u202e😀\\n")
    assert capfd.readouterr().err.endswith(": a\\x1b[31mred\\x00\\tÄ 語 \\u202e😀\\n\n")


def test_a_traceback_imitates_no_record(log, capfd):
    logs.configure(Settings())
    try:
        raise ValueError(f"bad\r\n{FORGED}\x1b[2J")
    except ValueError:
        log.exception("failed")
    first, *rest = capfd.readouterr().err.splitlines()
    assert RECORD.match(first)
    assert "Traceback" in rest[0]
    assert any(FORGED in line for line in rest)
    assert not any(RECORD.match(line) for line in rest)
    assert "\x1b" not in "".join(rest)


def test_json_stays_one_line_a_record(log, capfd):
    logs.configure(Settings(runpod_endpoint_id="e"))
    log.info("job %s", f"a\u2028\n{FORGED}")
    (line,) = capfd.readouterr().err.splitlines()
    assert json.loads(line)["message"] == f"job a\u2028\n{FORGED}"


def test_the_id_of_a_runpod_job_splits_no_line(log, capfd, tmp_path):
    worker = RunpodWorker(Settings(skip_model_load=True, data_dir=tmp_path))
    logs.configure(worker.settings)
    job = {"id": f"1\n{FORGED}", "input": {"audio": "samples/week.wav"}}
    asyncio.run(worker.handle(job))
    worker.engine.close()
    lines = [line for line in capfd.readouterr().err.splitlines() if FORGED in line]
    assert lines
    assert all(not line.startswith("12:00:00") for line in lines)
