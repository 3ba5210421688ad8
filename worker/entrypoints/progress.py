"""A progress bar for many inputs: how many are done, seconds of audio a second, time left. On a terminal or in a
notebook."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from worker.types import Failure, Result


@contextlib.contextmanager
def bar(total: int, *, shown: bool) -> Iterator[Callable[[Result | Failure], None]]:
    """Gives what is to be called with each outcome, on any thread."""
    if not shown:
        yield lambda _outcome: None
        return
    from tqdm.auto import tqdm

    heard_sec = 0.0
    with tqdm(total=total, unit="file", dynamic_ncols=True) as line:

        def add(outcome: Result | Failure) -> None:
            nonlocal heard_sec
            heard_sec += outcome.duration_sec if isinstance(outcome, Result) else 0.0
            line.set_postfix_str(
                f"{heard_sec / max(line.format_dict['elapsed'], 1e-3):.1f} s of audio/s", refresh=False
            )
            line.update()

        yield add
