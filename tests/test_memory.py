"""The host's memory while a model loads."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from worker.backends.common import memory

FREED = """
import ctypes
from pathlib import Path
from worker.backends.common import memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

blocks = [ctypes.create_string_buffer(b"x" * 60_000, 60_000) for _ in range(2000)]
kept = blocks[::100]  # so that the C library cannot shrink its heap from the end
del blocks
before = resident()
memory.release()
print(before - resident())
"""


def test_the_collector_rests():
    with memory.many_objects():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off():
    gc.disable()
    try:
        with memory.many_objects():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.skipif(memory._trim() is None, reason="not glibc")
def test_free_memory_goes_back_to_the_system():
    done = subprocess.run(
        [sys.executable, "-c", FREED], cwd=Path(__file__).parent.parent, check=True, capture_output=True
    )
    assert int(done.stdout) > 60_000_000


def test_another_c_library_has_nothing_to_do(monkeypatch):
    monkeypatch.setattr(memory, "_trim", lambda: None)
    memory.release()
