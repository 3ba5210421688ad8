"""The threads of an operation: one for small operations, and threads that sleep while they wait."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from worker import child

torch = pytest.importorskip("torch", reason="torch is not installed")

from worker.backends.common.threads import one_thread

LOADS_TORCH = """
from worker.backends import create
from worker.catalog import find
from worker.config import Settings
create(find("parakeet"), Settings(device="cpu"))
import torch
"""


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_one_thread_ends_with_its_context_and_with_an_error_in_it():
    with one_thread():
        assert torch.get_num_threads() == 1
        with one_thread():
            assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(ValueError, match="inside"), one_thread():
        raise ValueError("inside")
    assert torch.get_num_threads() == 3


def test_two_threads_whose_contexts_overlap_both_get_all_threads_back():
    inside, leave, after = threading.Event(), threading.Event(), []

    def other() -> None:
        with one_thread():
            inside.set()
            leave.wait(10)
        after.append(torch.get_num_threads())

    thread = threading.Thread(target=other)
    with one_thread():
        thread.start()
        assert inside.wait(10)
    leave.set()
    thread.join(10)
    assert after == [3]
    assert torch.get_num_threads() == 3


def openmp_settings(**variables: str) -> str:
    """Return what the OpenMP library says of its settings in a process that makes a backend and then loads torch."""
    environment = child.environment(OMP_DISPLAY_ENV="VERBOSE", **variables)
    for name in {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} - set(variables):
        environment.pop(name, None)
    command = [sys.executable, "-c", LOADS_TORCH]
    done = subprocess.run(
        command, cwd=child.ROOT, env=environment, check=True, capture_output=True, text=True, timeout=120
    )
    return done.stderr


def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise():
    assert "GOMP_SPINCOUNT = '0'" in openmp_settings()
    assert "GOMP_SPINCOUNT = '123'" in openmp_settings(GOMP_SPINCOUNT="123")
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in openmp_settings(OMP_WAIT_POLICY="ACTIVE")
