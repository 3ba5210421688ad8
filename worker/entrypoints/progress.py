"""A progress bar for many inputs, on a terminal or in a notebook.

It shows how many inputs are done, the seconds of audio processed a second, and the time left.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from worker.types import Failure, Result


@contextlib.contextmanager
def bar(total: int, *, shown: bool) -> Iterator[Callable[[Result | Failure], None]]:
    """Show the bar during the block, if `shown`. Yield a function to call with each outcome, on any thread.

    total: the number of inputs.
    """
    if not shown:
        yield lambda _outcome: None
        return
    from tqdm.auto import tqdm

    done_sec, lock = 0.0, threading.Lock()
    with tqdm(total=total, unit="file", dynamic_ncols=True) as line:

        def add(outcome: Result | Failure) -> None:
            nonlocal done_sec
            with lock:
                done_sec += outcome.duration_sec if isinstance(outcome, Result) else 0.0
                elapsed_sec = max(line.format_dict["elapsed"], 1e-3)
                line.set_postfix_str(f"{done_sec / elapsed_sec:.1f} s of audio/s", refresh=False)
                line.update()

        yield add
