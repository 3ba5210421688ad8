"""manifest: every line of a JSONL manifest, by engines here or on a Ray cluster, a server, or a Runpod endpoint."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

from worker import logs
from worker.config import Settings
from worker.entrypoints import python
from worker.entrypoints.cli import session
from worker.entrypoints.progress import manifest_bar
from worker.errors import ConfigError, RequestError
from worker.manifest import Asker, Summary, on_ray, output_path, process, process_manifest, with_engine


def run(given: argparse.Namespace) -> int:
    """Process the manifest, print the path of the output, and return the exit code.

    Raises the error that ends a run, such as RequestError, ModelUnavailable or ServerUnreachable. The finished lines
    are written by then, and the same command resumes after them.
    """
    if given.batch and given.endpoint is None:
        raise RequestError("--batch requires --endpoint", param="batch")
    output = output_path(given.manifest, given.output, given.task)
    options = session.options(given)
    options |= {"model": given.model} if given.model else {}
    last: Summary | None = None

    def note(show: Callable[[Summary], None], summary: Summary) -> None:
        nonlocal last
        last = summary
        show(summary)

    with session.quiet_stdout(), contextlib.ExitStack() as stack:
        if given.server is None and given.endpoint is None:
            ask, concurrency = _asks(given, options, stack)
            progress = functools.partial(note, stack.enter_context(manifest_bar(shown=sys.stderr.isatty())))
            process(
                given.manifest,
                output,
                ask,
                concurrency=concurrency,
                retry_failed=given.retry_failed,
                progress=progress,
                options=options,
            )
        else:
            progress = functools.partial(note, stack.enter_context(manifest_bar(shown=sys.stderr.isatty())))
            url, api_key = _remote(given)
            asyncio.run(
                process_manifest(
                    given.manifest,
                    given.output,
                    url,
                    given.concurrency,
                    task=given.task,
                    api_key=api_key,
                    batch=given.batch,
                    retry_failed=given.retry_failed,
                    progress=progress,
                    **options,
                )
            )
    print(output)
    assert last is not None  # every run ends with a summary
    session.say(f"{last.lines} lines, {last.resumed} of them from an earlier run, in {last.elapsed_sec:.1f} s")
    if last.failed:
        codes = ", ".join(f"{code} {count}" for code, count in last.errors.most_common())
        session.say(f"{last.failed} lines failed ({codes}); --retry-failed processes them again")
    return 1 if last.failed else 0


def _remote(given: argparse.Namespace) -> tuple[str, str | None]:
    """Return the URL and the API key of the server or endpoint. Raises ConfigError without an endpoint's address."""
    if given.endpoint is None:
        return given.server, given.api_key
    from worker.client import runpod

    settings = Settings()
    logs.configure(settings)  # the log shows how far the batches are
    url = f"{settings.runpod_endpoint_base_url.rstrip('/')}/{given.endpoint}"
    if "/" in given.endpoint or not runpod.is_endpoint(url):
        raise ConfigError(
            f"{url} is not the address of a Runpod endpoint. --endpoint takes the id alone, and "
            "RUNPOD_ENDPOINT_BASE_URL, if set, must end in /v2."
        )
    if not (key := given.api_key or settings.runpod_api_key):
        raise ConfigError("a Runpod endpoint requires a key: set RUNPOD_API_KEY or use --api-key")
    return url, key


def _asks(given: argparse.Namespace, options: Mapping[str, Any], stack: contextlib.ExitStack) -> tuple[Asker, int]:
    """Return the asker, which works until the stack is closed, and the number of lines in flight at a time."""
    settings = session.settings(given, given.task)
    if given.ray is None:
        bundle = stack.enter_context(python.load(settings, given.model, progress=sys.stderr.isatty()))
        return with_engine(bundle.engine, given.task, **bundle.naming(options)), given.concurrency
    cluster = stack.enter_context(
        on_ray(settings, given.task, address=given.ray, engines=given.engines, each=given.concurrency, **options)
    )
    return cluster, cluster.concurrency
