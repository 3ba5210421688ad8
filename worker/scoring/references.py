"""The reference clips: which there are, and what each model hears in them, computed once.

    clip ── in memory? ── no ──▶ in the cache? ── no ──▶ engine ──▶ cache

The clip `cid` of the video `uid` is the file `<uid>_<cid>.mov`, of that or another suffix of audio, anywhere under the
folder; `<uid>/<cid>.mov` is found too. The folder is looked through once, with the folders that links lead to.

The cache is `<model>/<video>/<clip>/<hash>.json` with the text and the features; the hash is that of the file's bytes,
the
models' ids and VERSION. Nothing there is ever deleted or changed: a clip that changed has another hash. Files appear
whole
or not at all, so processes may share the folder; a damaged one is computed anew. Who puts other weights under an old
name deletes the model's folder.
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


class _Kept(BaseModel):
    """A file of the cache."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    text: str
    features: list[float] = Field(min_length=1)


class References:
    """Thread-safe. `clips` are the files; `find` gives the one of a uid and a cid."""

    def __init__(self, folder: Path, cache: Path, engine: Engine) -> None:
        self.folder, self._cache, self._engine = folder, cache, engine
        self._names = _scan(folder)
        self.clips = tuple(dict.fromkeys(self._names.values()))
        self._heard: dict[tuple[str, Path], Future[ClipFeatures]] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="references")

    def find(self, uid: str, cid: str) -> Path | None:
        return self._names.get(f"{uid}_{cid}")

    def get(self, model: ScoringModel, clip: Path) -> Future[ClipFeatures]:
        """What the model hears in a clip; the same future for all who ask. A failure is forgotten, so that the next to
        ask tries again. Fails with ReferenceFailed where the clip is at fault, else with the model's error."""
        key = (model.key, clip)
        with self._lock:
            future = self._heard.get(key)
            if future is not None:
                return future
            future = self._heard[key] = Future()
            if self._closed:
                fail(future, Cancelled("the worker is shutting down"))
                return future
            # Files are read on threads of our own: those who ask may be an event loop.
            looked = self._pool.submit(self._look, model, clip)
        future.add_done_callback(lambda done: self._heard.pop(key, None) if done.exception() else None)
        looked.add_done_callback(into(future, lambda found: self._ask(future, model, clip, *found)))
        return future

    def close(self) -> None:
        """What is not there yet fails as cancelled."""
        with self._lock:
            self._closed = True
            pending = list(self._heard.values())
        for future in pending:
            fail(future, Cancelled("the worker is shutting down"))
        self._pool.shutdown(cancel_futures=True)

    def _look(self, model: ScoringModel, clip: Path) -> tuple[Path, ClipFeatures | None]:
        """Where in the cache it belongs, and what is there."""
        try:
            place = self._place(model, clip)
        except OSError as error:
            raise ReferenceFailed(f"the reference clip {clip.name} cannot be read: {error.strerror}") from error
        try:
            kept = _Kept.model_validate_json(place.read_bytes())
        except FileNotFoundError:
            return place, None
        except (OSError, ValidationError) as error:
            log.warning("%s is damaged and computed anew: %s", place, type(error).__name__)
            return place, None
        return place, ClipFeatures(kept.text, np.asarray(kept.features, np.float32))

    def _ask(
        self, future: Future[ClipFeatures], model: ScoringModel, clip: Path, place: Path, kept: ClipFeatures | None
    ) -> None:
        if kept is not None:
            settle(future, kept)
            return
        running = self._engine.submit(model.request(Source("path", str(clip), trusted=True)))
        future.add_done_callback(lambda _: running.cancel())

        def keep(response: Response) -> None:
            try:
                heard = model.read(response)
            except InputError as error:
                raise ReferenceFailed(f"the reference clip {clip.name} cannot be heard: {error.message}") from error
            self._pool.submit(_write, place, heard).add_done_callback(lambda _: settle(future, heard))

        running.add_done_callback(into(future, keep))

    def _place(self, model: ScoringModel, clip: Path) -> Path:
        video, _, name = clip.stem.rpartition("_") if "_" in clip.stem else (clip.parent.name, "", clip.stem)
        known = "\n".join((str(VERSION), model.embedder, model.transcriber, str(self._engine.settings.skip_model_load)))
        digest = hashlib.blake2b(known.encode(), digest_size=16)
        with clip.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return self._cache / model.key / video / name / f"{digest.hexdigest()}.json"


def _write(place: Path, heard: ClipFeatures) -> None:
    """Keeps it, if the disk lets us: without the cache scoring goes on."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        text = _Kept(text=heard.text, features=heard.features.tolist()).model_dump_json()
        descriptor, name = tempfile.mkstemp(dir=place.parent, prefix=".", suffix=".part")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(name, place)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        log.warning("%s is not kept: %s", place, error)


def _scan(folder: Path) -> dict[str, Path]:
    """The clips by `<uid>_<cid>`. Of two files for one name the .mov wins, then the first in the alphabet."""

    def unreadable(error: OSError) -> None:
        log.warning("%s is left out: %s", error.filename, error.strerror)

    files = [path for path in below(folder, unreadable) if is_audio(path) and path.is_file()]
    found: dict[str, Path] = {}
    for path in sorted(files, key=lambda path: (path.suffix.lower() != ".mov", path)):
        names = [path.stem] if path.parent == folder else [path.stem, f"{path.parent.name}_{path.stem}"]
        for name in names:
            if "_" in name and found.setdefault(name, path) != path:
                log.warning("%s is left out as clip %s, which is %s", path, name, found[name])
    return found
