"""The import of NeMo: ahead of its use, and without the libraries that speech recognition does not use.

    start()    begins the import on a thread of its own, unless it has begun; a download may run meanwhile
    wait()     returns once NeMo is imported

NeMo imports 6,500 modules, which takes 6 s of a processor beside torch. Two thirds of this time go to libraries for
training, diarization and data sets. While NeMo is imported, each import of such a library by NeMo or Lightning binds a
`Deferred` instead, which imports the library when something uses it. Imports by other modules, and on other threads,
are as usual.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import logging
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from worker.backends.common import memory

_IMPORTERS = frozenset({"nemo", "librosa", "lightning", "lightning_fabric", "pytorch_lightning", "torchmetrics"})
_UNUSED = (
    "datasets",
    "onnx",
    "pandas",
    "pytorch_lightning",  # a second copy of Lightning, for a type annotation
    "scipy",
    "sklearn",
    "torch._dynamo",
    "transformers",
    "nemo.collections.asr.modules.transformer_encoder",  # compiles a function, which imports torch._dynamo
)

_lock = threading.Lock()
_imported: Future[None] = Future()


def start() -> Future[None]:
    """Begin to import NeMo, and return the future of the import, which fails with the import's exception."""
    with _lock:
        if not _imported.running() and not _imported.done():
            _imported.set_running_or_notify_cancel()
            threading.Thread(target=_import, name="import NeMo", daemon=True).start()
    return _imported


def wait() -> None:
    """Return once NeMo is imported. Raises ImportError if NeMo, or a library that it requires, is missing."""
    start().result()


def _import() -> None:
    try:
        with memory.many_objects(), _deferring():
            importlib.import_module("nemo.utils")
            # NeMo's own setLevel() would also set the level of every handler that the application added to its logger.
            logging.getLogger("nemo_logger").setLevel(logging.ERROR)
            importlib.import_module("nemo.collections.asr.models")
            importlib.import_module("librosa.filters")
    except BaseException as error:  # noqa: BLE001  the thread that waits gets it
        _imported.set_exception(error)
    else:
        _imported.set_result(None)


@contextlib.contextmanager
def _deferring() -> Iterator[None]:
    """Bind a Deferred wherever NeMo or Lightning, on this thread, imports an unused library."""
    original, this_thread = builtins.__import__, threading.get_ident()

    def importing(
        name: str,
        globals: Any = None,  # noqa: A002  the names that __import__ has
        locals: Any = None,  # noqa: A002
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        importer = str((globals or {}).get("__name__")).partition(".")[0]
        if not level and importer in _IMPORTERS and threading.get_ident() == this_thread:
            bound = name if fromlist else name.partition(".")[0]  # `import a.b` binds a, `from a.b import c` reads a.b
            if any(bound == unused or bound.startswith(f"{unused}.") for unused in _UNUSED):
                return Deferred(bound)
        return original(name, globals, locals, fromlist, level)

    builtins.__import__ = importing
    try:
        yield
    finally:
        builtins.__import__ = original


class Deferred:
    """A module, or an attribute of one, that is imported when it is called, subclassed or combined with a type."""

    def __init__(self, module: str, *attributes: str) -> None:
        self._module, self._attributes = module, attributes

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # typing and dataclasses ask every object for such names
            raise AttributeError(name)
        return Deferred(self._module, *self._attributes, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the attribute."""
        return self._resolve()(*args, **kwargs)

    def __mro_entries__(self, _bases: Any) -> tuple[Any, ...]:
        return (self._resolve(),)

    def __instancecheck__(self, instance: Any) -> bool:
        return self._module in sys.modules and isinstance(instance, self._resolve())

    def __or__(self, other: Any) -> Any:
        return self._resolve() | other

    def __ror__(self, other: Any) -> Any:
        return other | self._resolve()

    def _resolve(self) -> Any:
        found: Any = importlib.import_module(self._module)
        for index, name in enumerate(self._attributes, 1):
            try:
                found = getattr(found, name)
            except AttributeError:  # a module that its package does not import
                found = importlib.import_module(".".join((self._module, *self._attributes[:index])))
        return found
