"""manifest: the same is asked about every line of a JSONL manifest, by the engine of this process or by a server."""
from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator

from worker import api
from worker.cli import session
from worker.manifest import Summary, output_path, process, process_manifest, with_engine


def run(given: argparse.Namespace) -> int:
    """Prints the output's path. What ends a run (RequestError, ModelUnavailable, a server that does not answer) is raised; what
    is done is written, and the same command goes on there."""
    output = output_path(given.manifest, given.output, given.task)
    options = {name: value for name in ("language", "prompt") if (value := getattr(given, name)) is not None}
    failed = 0

    def note(summary: Summary) -> None:
        nonlocal failed
        failed = summary.failed

    with session.quiet_stdout(), contextlib.ExitStack() as stack:
        if given.server is None:
            settings = api.settings_of(given.model, given.model_dir, device=given.device)
            bundle = stack.enter_context(api.load(settings, given.model))
            ask = with_engine(bundle.engine, given.task, **bundle.naming(options))
            told = stack.enter_context(_bar(note))
            process(given.manifest, output, ask, concurrency=given.concurrency, retry_failed=given.retry_failed, progress=told)
        else:
            named = {"model": given.model} if given.model else {}
            told = stack.enter_context(_bar(note))
            asyncio.run(process_manifest(
                given.manifest, given.output, given.server, given.concurrency, task=given.task, api_key=given.api_key,
                retry_failed=given.retry_failed, progress=told, **named, **options))
    print(output)
    if failed:
        session.say(f"{failed} lines failed; --retry-failed asks about them again")
    return 1 if failed else 0


@contextlib.contextmanager
def _bar(note: Callable[[Summary], None]) -> Iterator[Callable[[Summary], None]]:
    """What a run is to tell about itself: shown on a terminal, by the part of the manifest that is read."""
    from tqdm import tqdm

    form = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=1.0, bar_format=form, dynamic_ncols=True, disable=not sys.stderr.isatty()) as line:

        def told(summary: Summary) -> None:
            note(summary)
            line.set_postfix_str(f"{summary.lines} lines, {summary.failed} failed", refresh=False)
            line.update(summary.done - line.n)

        yield told
