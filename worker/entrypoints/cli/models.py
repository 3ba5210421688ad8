"""models: what is in the catalog and on this machine; download a model, or remove it.

aviary models             name, id, size on disk, license and tasks of each model, one a line
aviary models pull NAME   downloads the weights to the cache, and prints where they are
aviary models rm NAME     removes them from the caches
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from worker.entrypoints.cli.session import say

if TYPE_CHECKING:
    from worker.backends.common.hub_cache import Download
    from worker.catalog import Model
    from worker.config import Settings

_GIB = 1 << 30


def run(_args: argparse.Namespace) -> int:
    """Print each model of the catalog and each further one in the caches, and return the exit code."""
    from worker import catalog
    from worker.backends.common import hub_cache
    from worker.config import Settings

    settings = Settings()
    for model in (*catalog.MODELS, *hub_cache.others(settings)):
        size = _place(model, settings)
        print(f"{model.name:28} {model.id:48} {size:>14}  {model.licence:27} {', '.join(model.tasks)}")
    return 0


def pull(args: argparse.Namespace) -> int:
    """Download a model, and return the exit code: 1 if the hub or the disk did not allow it."""
    from worker.backends.common import checkpoints, hub_cache
    from worker.config import Settings
    from worker.errors import ModelUnavailable
    from worker.protocol.model_names import find_model

    settings = Settings()
    model = find_model(args.name, settings, trusted=True)
    if model.weights == "embedded":
        say(f"{model.id} is part of a package; there is nothing to download")
        return 0
    try:
        with _bar(model) as show:
            is_new = hub_cache.pull(model, settings, show)
    except ModelUnavailable as error:
        say(error.message)
        return 1
    if not is_new:
        say(f"{model.id} is on this machine already")
    print(checkpoints.on_disk(model, settings))
    return 0


def remove(args: argparse.Namespace) -> int:
    """Remove a model after a question on a terminal, and return the exit code: 1 if the user declines."""
    from worker import catalog
    from worker.backends.common import hub_cache
    from worker.config import Settings
    from worker.errors import ModelInUse, ModelNotFound, ModelUnavailable
    from worker.protocol.model_names import find_model

    settings = Settings()
    try:
        model = find_model(args.name, settings, trusted=True)
    except ModelNotFound:  # its configuration is of no known family, but its name is
        model = catalog.find(args.name)
    if not args.yes and sys.stdin.isatty():
        print(f"Remove {model.checkpoint} ({_place(model, settings)})? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return 1
    try:
        freed = hub_cache.remove(model, settings)
    except (ModelInUse, ModelUnavailable) as error:
        say(error.message)
        return 1
    say(f"removed {model.checkpoint}, {_text(freed)}")
    return 0


def _place(model: Model, settings: Settings) -> str:
    """Return the size of a model on disk, or in words where else its weights are."""
    from worker.backends.common import checkpoints

    if model.weights == "embedded":
        return "in its package"
    size = checkpoints.disk_bytes(model, settings)
    return "not downloaded" if size is None else _text(size)


def _text(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB / 10 else f"{size / (1 << 20):.1f} MiB"


@contextlib.contextmanager
def _bar(model: Model) -> Iterator[Callable[[Download], None]]:
    """Yield a function that shows the progress of a download: the size at first, then a bar on a terminal."""
    from huggingface_hub.utils import disable_progress_bars
    from tqdm.auto import tqdm

    disable_progress_bars()  # those of the small files
    with contextlib.ExitStack() as stack:
        bars: dict[int, tqdm[None]] = {}

        def show(download: Download) -> None:
            total = download.bytes_total
            if total not in bars:
                say(f"downloading {model.id}: {_text(total - download.bytes_done)} of {_text(total)}")
                bars[total] = stack.enter_context(
                    tqdm(
                        total=total,
                        initial=download.bytes_done,
                        unit="B",
                        unit_scale=True,
                        dynamic_ncols=True,
                        disable=not sys.stderr.isatty(),
                    )
                )
            bars[total].update(download.bytes_done - bars[total].n)

        yield show
