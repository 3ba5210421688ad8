"""Child processes end with the process that started them, whatever either of them does."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from worker import child
from worker.audio import ffmpeg

# Holds the interpreter's lock, so no thread of it could notice the end of the parent.
BUSY = [sys.executable, "-c", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); sum(range(10**15))"]
IDLE = ["sleep", "1000"]
FFMPEG = [ffmpeg.executable(), "-v", "quiet", "-re", "-f", "lavfi", "-i", "sine", "-f", "null", "-"]  # without an end
PARENT = textwrap.dedent(
    f"""
    import signal, threading, time
    from worker import child

    children = []
    commands = {[BUSY, IDLE, FFMPEG]}
    starter = threading.Thread(target=lambda: children.extend(map(child.start, commands)))
    starter.start()
    starter.join()
    time.sleep(0.3)  # a child that ended with the thread that started it would be gone
    assert all(one.poll() is None for one in children)
    print(*[one.pid for one in children], flush=True)
    sum(range(10**15))
    """
)


def gone(processes: list[psutil.Process], sec: float) -> bool:
    """Whether the processes end in time. One that its new parent has not yet noticed counts as ended."""
    _, left = psutil.wait_procs(processes, sec)
    return all(one.status() == psutil.STATUS_ZOMBIE for one in left if one.is_running())


@pytest.mark.parametrize("end", [psutil.Process.kill, psutil.Process.terminate], ids=["SIGKILL", "SIGTERM"])
def test_children_end_with_a_process_that_is_killed(end):
    with subprocess.Popen([sys.executable, "-c", PARENT], cwd=child.ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(children) == 3
        end(psutil.Process(parent.pid))
        try:
            assert gone(children, 2)
        finally:
            for one in children:
                if one.is_running():
                    one.kill()


def test_a_thread_that_ends_takes_no_child_with_it():
    children: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(target=lambda: children.append(child.start(IDLE)))
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert children[0].poll() is None
    children[0].kill()
    children[0].wait()


def test_a_program_that_does_not_start_leaves_no_descriptor():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            child.start(["/nonexistent/program"])
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_child_that_has_ended_leaves_no_descriptor():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        child.start(["true"]).wait()
    assert len(os.listdir("/proc/self/fd")) == before
