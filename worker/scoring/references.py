"""The reference clips, and each model's transcript and features of them, computed once.

    clip ── in memory? ── no ──▶ in the cache? ── no ──▶ engine ──▶ cache

The clip `cid` of the video `uid` is the file `<uid>_<cid>.mov` or `<uid>/<cid>.mov`, with any suffix of an audio or
video file, anywhere in the folder. The folder is scanned once; links to folders are followed.

A cache file is `<model>/<video>/<clip>/<hash>.json` and holds the text and the features. The hash covers the bytes of
the clip, the ids of the models, and VERSION, so a clip that changes gets another file; no file is ever changed or
deleted. A file appears whole or not at all, so several processes may share the folder; a damaged file is computed
again. If you put other weights under an old model name, delete that model's folder in the cache.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker.audio.files import below, is_audio
from worker.engine.engine import Engine
from worker.errors import Cancelled, InputError, ReferenceFailed
from worker.futures import fail, into, settle
from worker.scoring.models import ClipFeatures, ScoringModel
from worker.types import Response, Source

log = logging.getLogger(__name__)

VERSION = 1


class _CacheFile(BaseModel):
    """The contents of a file in the cache. `features` has shape (width,)."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    text: str
    features: list[float] = Field(min_length=1)


class References:
    """The clips of a folder, and what each model makes of them. Thread-safe.

    `folder` is the scanned folder, and `clips` are its files, each once.
    """

    def __init__(self, folder: Path, cache: Path, engine: Engine) -> None:
        self.folder, self._cache, self._engine = folder, cache, engine
        self._names = _scan(folder)
        self.clips = tuple(dict.fromkeys(self._names.values()))
        self._results: dict[tuple[str, Path], Future[ClipFeatures]] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="references")

    def find(self, uid: str, cid: str) -> Path | None:
        """Return the file of the clip `cid` of the video `uid`, or None if there is no such clip."""
        return self._names.get(f"{uid}_{cid}")

    def get(self, model: ScoringModel, clip: Path) -> Future[ClipFeatures]:
        """Return a future of the model's transcript and features of a clip; callers of one clip share a future.

        The future fails with ReferenceFailed if the clip is at fault, else with the model's error. A failure is not
        stored, so the next call tries again.
        """
        key = (model.key, clip)
        with self._lock:
            future = self._results.get(key)
            if future is not None:
                return future
            future = self._results[key] = Future()
            if self._closed:
                fail(future, Cancelled("the worker is shutting down"))
                return future
            # The caller may be an event loop, so other threads read the files.
            lookup = self._pool.submit(self._look_up, model, clip)
        future.add_done_callback(lambda done: self._results.pop(key, None) if done.exception() else None)
        lookup.add_done_callback(into(future, lambda found: self._compute(future, model, clip, *found)))
        return future

    def close(self) -> None:
        """Stop: the futures of unfinished clips fail with Cancelled."""
        with self._lock:
            self._closed = True
            pending = list(self._results.values())
        for future in pending:
            fail(future, Cancelled("the worker is shutting down"))
        self._pool.shutdown(cancel_futures=True)

    def _look_up(self, model: ScoringModel, clip: Path) -> tuple[Path, ClipFeatures | None]:
        """Return the clip's path in the cache, and the cached result if the file exists."""
        try:
            path = self._cache_path(model, clip)
        except OSError as error:
            raise ReferenceFailed(f"the reference clip {clip.name} cannot be read: {error.strerror}") from error
        try:
            cached = _CacheFile.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return path, None
        except (OSError, ValidationError) as error:
            log.warning("the cache file %s is damaged and is computed again: %s", path, type(error).__name__)
            return path, None
        return path, ClipFeatures(cached.text, np.asarray(cached.features, np.float32))

    def _compute(
        self, future: Future[ClipFeatures], model: ScoringModel, clip: Path, path: Path, cached: ClipFeatures | None
    ) -> None:
        """Settle the future from the cache, else by the engine; then write the cache file."""
        if cached is not None:
            settle(future, cached)
            return
        running = self._engine.submit(model.request(Source("path", str(clip), trusted=True)))
        future.add_done_callback(lambda _: running.cancel())

        def finish(response: Response) -> None:
            try:
                result = model.read(response)
            except InputError as error:
                raise ReferenceFailed(f"the reference clip {clip.name} cannot be read: {error.message}") from error
            self._pool.submit(_write, path, result).add_done_callback(lambda _: settle(future, result))

        running.add_done_callback(into(future, finish))

    def _cache_path(self, model: ScoringModel, clip: Path) -> Path:
        video, _, name = clip.stem.rpartition("_") if "_" in clip.stem else (clip.parent.name, "", clip.stem)
        versions = "\n".join(
            (str(VERSION), model.embedder, model.transcriber, str(self._engine.settings.skip_model_load))
        )
        digest = hashlib.blake2b(versions.encode(), digest_size=16)
        with clip.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return self._cache / model.key / video / name / f"{digest.hexdigest()}.json"


def _write(path: Path, result: ClipFeatures) -> None:
    """Write a cache file. A failure is logged only, because scoring works without the cache."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = _CacheFile(text=result.text, features=result.features.tolist()).model_dump_json()
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        log.warning("the cache file %s cannot be written: %s", path, error)


def _scan(folder: Path) -> dict[str, Path]:
    """Return the clips by `<uid>_<cid>`. Of several files for one name, .mov wins, then the first by path."""

    def unreadable(error: OSError) -> None:
        log.warning("the folder %s is skipped: %s", error.filename, error.strerror)

    files = [path for path in below(folder, unreadable) if is_audio(path) and path.is_file()]
    clips: dict[str, Path] = {}
    for path in sorted(files, key=lambda path: (path.suffix.lower() != ".mov", path)):
        names = [path.stem] if path.parent == folder else [path.stem, f"{path.parent.name}_{path.stem}"]
        for name in names:
            if "_" in name and clips.setdefault(name, path) != path:
                log.warning("%s is skipped: the clip %s is already %s", path, name, clips[name])
    return clips
