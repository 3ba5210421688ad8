"""Models in the caches of the Hugging Face Hub: download them ahead of their first use, follow a download, remove them.

    pull(row, settings, on_progress)   downloads what is not on this machine; a broken download resumes
    progress(row, settings)            how far a download of the model has come, in any process of this machine
    in_use(row, settings)              a context in which no process removes the model
    remove(row, settings)              deletes the model from the caches, and nothing outside them
    others(settings)                   the models in the caches that are not in the catalog

    CACHE/models--OWNER--NAME/                  locked, shared, by each process that has the model loaded
                              blobs/            locked by the process that pulls the model
                              blobs/SHA256.aviary-part     what has arrived of a weight file
                              aviary-download.json         the files of the pull, each with its size

The locks are those of flock, on the folders themselves: they work on read-only disks, leave nothing behind, and end
with their process. On a file system without such locks, two processes may pull the same model at the same time.

huggingface_hub starts an interrupted file again from its beginning. `pull` therefore downloads the weight files itself,
to where huggingface_hub then finds them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from worker.backends.common import checkpoints
from worker.catalog import MODELS, Model, find, is_repository
from worker.config import Settings
from worker.errors import ModelInUse, ModelNotFound, ModelUnavailable, Unsupported

log = logging.getLogger(__name__)

PLAN = "aviary-download.json"
PART = ".aviary-part"
TRIES = 5  # of a connection that brings nothing
PAUSE_SEC = 1.0  # before the second try; later pauses are longer
SHOW_SEC = 0.1  # between two reports of the progress
_LOCK_SEC = 1.0  # for which `progress` in another process may hold a lock


@dataclass(frozen=True, slots=True)
class Download:
    """How far a download has come."""

    bytes_done: int
    bytes_total: int


OnProgress = Callable[[Download], None]


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """A repository that a model requires. `part`: as for `checkpoints.checkpoint`."""

    name: str
    is_nemo: bool
    part: str | None

    def find(self, settings: Settings) -> Path:
        """Return its file or folder. Raises ModelUnavailable."""
        if self.is_nemo:
            return checkpoints.nemo_file(self.name, settings)
        return checkpoints.checkpoint(self.name, settings, part=self.part)


@dataclass(frozen=True, slots=True)
class _File:
    """A weight file on the hub. `sha256` is also the name of its blob in the cache."""

    url: str
    size: int
    sha256: str


def pull(row: Model, settings: Settings, on_progress: OnProgress = lambda download: None) -> bool:
    """Download the weights of a model, and return whether some of them were not on this machine.

    If another process downloads the same model, wait for it. `on_progress` is called when the size is known, and about
    ten times a second. Raises Unsupported if the model has no repository, ModelNotFound if its configuration is of
    no known family, and ModelUnavailable, with advice, if the hub does not serve it or the disk cannot take it.
    """
    pulled = [_pull(required, settings, on_progress) for required in _required(row)]
    return any(pulled)


def progress(row: Model, settings: Settings) -> Download | None:
    """Return how far the download of a model has come, or None if no process of this machine downloads it."""
    for name in repositories(row):
        for folder in _folders(name, settings):
            try:
                sizes = json.loads((folder / PLAN).read_text())
            except (OSError, ValueError):
                continue
            if _is_locked(folder / "blobs"):
                done = (min(size, _bytes_of(folder / "blobs" / sha256)) for sha256, size in sizes.items())
                return Download(sum(done), sum(sizes.values()))
    return None


@contextlib.contextmanager
def in_use(row: Model, settings: Settings) -> Iterator[None]:
    """Keep every process of this machine from removing the model and those that it requires, during the block."""
    with contextlib.ExitStack() as stack:
        for name in repositories(row):
            for folder in _folders(name, settings):
                stack.enter_context(_locked(folder, fcntl.LOCK_SH))
        yield


def remove(row: Model, settings: Settings) -> int:
    """Delete the repository of a model from the caches, and return the bytes that this frees.

    The repository also holds the models that are a part of it. Raises ModelNotFound if no cache has it, Unsupported if
    its weights are elsewhere, ModelInUse if a process has it loaded or downloads it, and ModelUnavailable if it cannot
    be deleted.
    """
    folders = _folders(row.checkpoint, settings) if is_repository(row.checkpoint) else []
    if not folders:
        raise _not_cached(row, settings)
    with contextlib.ExitStack() as stack:
        for folder in folders:
            if folder.is_symlink():
                raise Unsupported(f"{folder} is a link to a folder outside the cache. Delete it there.", param="model")
            stack.enter_context(_alone(folder, f"{row.id} is loaded. Unload it, or end the process that uses it."))
            if (folder / "blobs").is_dir():
                stack.enter_context(_alone(folder / "blobs", f"{row.id} is being downloaded. Remove it later."))
        return sum(map(_delete, folders))


def others(settings: Settings) -> list[Model]:
    """Return the rows of the complete models in the caches that the catalog does not list, by their names."""
    folders = (folder for cache in settings.places.caches for folder in cache.glob("models--*--*"))
    found = []
    for name in sorted({folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders}):
        with contextlib.suppress(ModelNotFound):
            row = find(name)
            if row not in MODELS and checkpoints.disk_bytes(row, settings) is not None:
                found.append(row)
    return found


def repositories(row: Model) -> list[str]:
    """Return the repositories whose files a model reads."""
    names = [row.checkpoint, row.processor or "", *(repositories(find(row.transcriber)) if row.transcriber else [])]
    return [name for name in dict.fromkeys(names) if is_repository(name)]


# Download


def _required(row: Model) -> Iterator[_Checkpoint]:
    """Yield the checkpoints that a model requires, its own last."""
    if row.weights == "embedded":
        return
    if row.processor:
        yield _Checkpoint(row.processor, is_nemo=False, part=None)
    if row.transcriber:
        yield from _required(find(row.transcriber))
    yield _Checkpoint(row.checkpoint, is_nemo=row.weights == "nemo", part=row.part or "")


def _pull(required: _Checkpoint, settings: Settings, on_progress: OnProgress) -> bool:
    if _is_there(required, settings):
        return False
    if not is_repository(required.name):
        raise Unsupported(
            f"{required.name} is a path, and only the model of a repository on the hub can be downloaded.",
            param="model",
        )
    with _pulling(required.name, settings) as folder:
        if _is_there(required, settings):  # another process has downloaded it
            return False
        _fetch_weights(required, folder, settings, on_progress)
        required.find(settings)
    return True


def _is_there(required: _Checkpoint, settings: Settings) -> bool:
    try:
        required.find(settings.model_copy(update={"hf_hub_offline": True}))
    except ModelUnavailable:
        return False
    return True


@contextlib.contextmanager
def _pulling(name: str, settings: Settings) -> Iterator[Path]:
    """Yield the folder of a repository, which no other process pulls during the block."""
    with checkpoints.hub_errors(name, settings, lambda: None) as cache:
        folder = _folder(name, cache)
        with _locked_blobs(folder):
            try:
                yield folder
            finally:
                (folder / PLAN).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # the folders are not empty, unless nothing has arrived
                    (folder / "blobs").rmdir()
                    folder.rmdir()


def _fetch_weights(required: _Checkpoint, folder: Path, settings: Settings, on_progress: OnProgress) -> None:
    """Download the weight files into the blobs of the repository's folder."""
    if required.part is None:
        return
    names = None
    if not required.is_nemo:
        snapshot = checkpoints.download(required.name, settings, checkpoints.SMALL)
        find(required.name, settings.places)  # raises ModelNotFound before the weights of a model that cannot run
        names = checkpoints.missing(snapshot, required.part)
    files: list[_File] = []
    with checkpoints.hub_errors(required.name, settings, lambda: sum(file.size for file in files)):
        files += _files(required.name, names)
        (folder / PLAN).write_text(json.dumps({file.sha256: file.size for file in files}))
        blobs = {file.sha256: folder / "blobs" / file.sha256 for file in files}
        total = sum(file.size for file in files)

        def show() -> int:
            done = sum(min(file.size, _bytes_of(blobs[file.sha256])) for file in files)
            on_progress(Download(done, total))
            return total - done

        if show() > shutil.disk_usage(folder).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for file in files:
            if not blobs[file.sha256].exists():
                _fetch(file, blobs[file.sha256], show)


def _files(name: str, names: list[str] | None) -> list[_File]:
    """Return the weight files of a repository on the hub: these names, or all .nemo files.

    Files that the hub keeps in git are small, and are left to huggingface_hub.
    """
    from huggingface_hub import HfApi, constants

    info = HfApi().model_info(name, files_metadata=True, timeout=30)
    return [
        _File(
            f"{constants.ENDPOINT}/{name}/resolve/{info.sha}/{file.rfilename}",
            file.lfs.size,
            file.lfs.sha256,
        )
        for file in info.siblings or []
        if file.lfs and (file.rfilename in names if names is not None else _is_nemo(file.rfilename))
    ]


def _is_nemo(name: str) -> bool:
    return name.endswith(".nemo") and "/" not in name


def _fetch(file: _File, blob: Path, on_block: Callable[[], object]) -> None:
    """Download the rest of a file, and rename it to `blob` once it is complete and has the right hash."""
    from huggingface_hub import errors

    part = blob.with_name(blob.name + PART)
    failures = 0
    with part.open("ab") as output:
        if output.tell() > file.size:
            output.truncate(0)
        while (before := output.tell()) < file.size:
            try:
                _receive(file, output, on_block)
            except errors.HfHubHTTPError:
                raise
            except errors.HTTPError as error:
                if (failures := 0 if output.tell() > before else failures + 1) >= TRIES:
                    raise
                log.warning("the download of %s broke off (%s); it resumes", file.url, type(error).__name__)
                time.sleep(PAUSE_SEC * failures)
    if checkpoints.sha256_of(part) != file.sha256:
        part.unlink()
        raise ModelUnavailable(f"{file.url} arrived damaged. Download the model again.", retryable=True)
    part.replace(blob)


def _receive(file: _File, output: IO[bytes], on_block: Callable[[], object]) -> None:
    """Append to the output what is missing of the file, as far as the connection lasts."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    begin = output.tell()
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={begin}-"}
    request: Any = get_session().stream(
        "GET", file.url, headers=headers, follow_redirects=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
    )
    with request as response:
        hf_raise_for_status(response)
        if response.status_code != 206:  # the server sends the whole file
            output.truncate(0)
        shown = time.monotonic()
        for block in response.iter_bytes():
            output.write(block)
            output.flush()  # to where a broken download resumes
            if time.monotonic() - shown > SHOW_SEC:
                on_block()
                shown = time.monotonic()
    on_block()


# The folders of the caches


def _folder(name: str, cache: Path) -> Path:
    return cache / f"models--{name.replace('/', '--')}"


def _folders(name: str, settings: Settings) -> list[Path]:
    """Return the folders of a repository in the caches, each once."""
    folders = (_folder(name, cache) for cache in settings.places.caches)
    return list({folder.resolve(): folder for folder in folders if folder.is_dir()}.values())


def _bytes_of(blob: Path) -> int:
    """Return the bytes of a blob that are on disk."""
    for path in (blob, blob.with_name(blob.name + PART)):
        with contextlib.suppress(OSError):
            return path.stat().st_size
    return 0


def _not_cached(row: Model, settings: Settings) -> ModelNotFound | Unsupported:
    if row.weights == "embedded":
        return Unsupported(f"{row.id} is part of a package, which only pip can remove.", param="model")
    try:
        place = checkpoints.on_disk(row, settings)
    except ModelUnavailable:
        return ModelNotFound(f"{row.id} is not on this machine, so there is nothing to remove.", param="model")
    return Unsupported(f"{row.id} is outside the caches, in {place}. Delete it there.", param="model")


def _delete(folder: Path) -> int:
    """Delete a repository's folder, its snapshots first, so that none of them looks complete. Return its bytes."""
    files = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    size = sum(file.lstat().st_size for file in files)
    snapshots = folder / "snapshots"
    try:
        if snapshots.is_dir() and not snapshots.is_symlink():
            shutil.rmtree(snapshots)
        shutil.rmtree(folder)
    except OSError as error:
        raise ModelUnavailable(
            f"{folder} cannot be removed: {error.strerror}. Check its owner, and whether its disk is read-only."
        ) from error
    shutil.rmtree(folder.parent / ".locks" / folder.name, ignore_errors=True)
    return size


# Locks


@contextlib.contextmanager
def _locked(folder: Path, kind: int) -> Iterator[bool]:
    """Hold the lock of a folder during the block. Yield whether the folder is still there.

    Raises BlockingIOError if `kind` has LOCK_NB and another process holds the lock.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, kind)
        except BlockingIOError:
            raise
        except OSError as error:
            log.debug("%s cannot be locked: %s", folder, error)
        yield folder.is_dir() and folder.stat().st_ino == os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked_blobs(folder: Path) -> Iterator[None]:
    """Create the blobs of a repository's folder and hold their lock, as no other process does, during the block."""
    while True:
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        with _locked(folder / "blobs", fcntl.LOCK_EX) as is_there:
            if is_there:  # it is not if another process has removed the model in the meantime
                yield
                return


@contextlib.contextmanager
def _alone(folder: Path, reason: str) -> Iterator[None]:
    """Hold the lock of a folder during the block. Raises ModelInUse, with the reason, if another one holds it."""
    deadline = time.monotonic() + _LOCK_SEC
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(_locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ModelInUse(reason, param="model") from None
                time.sleep(0.05)
        yield


def _is_locked(folder: Path) -> bool:
    try:
        with _locked(folder, fcntl.LOCK_SH | fcntl.LOCK_NB):
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False
