"""The folders of this machine in which a repository's files may be, in the order of the search.

    owner/name ──▶ MODEL_DIR/owner/name ──▶ MODEL_DIR/name ──▶ MODEL_DIR if it is called `name` ──▶ the hub caches

The settings say where these folders are: `Settings.places`. Nothing is downloaded, and nothing but refs/main is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Places:
    """A folder of models, and the hub caches that exist. By default, there are none."""

    model_dir: Path | None = None
    caches: tuple[Path, ...] = ()

    def file(self, name: str) -> Path | None:
        """Return the file of this name: a path, or a path in MODEL_DIR. None if there is no such file."""
        path = Path(name).expanduser()
        candidates = (path, *([self.model_dir / path] if self.model_dir else []))
        return next((candidate for candidate in candidates if candidate.is_file()), None)

    def folders(self, name: str) -> Iterator[Path]:
        """Return the folders that exist for `owner/name`."""
        return (folder for folder in (*self._model_dirs(name), *self._snapshots(name)) if folder.is_dir())

    def _model_dirs(self, name: str) -> Iterator[Path]:
        """Yield the model's folders in MODEL_DIR. `..` cannot lead out of MODEL_DIR."""
        last = Path(name).name
        if self.model_dir and ".." not in Path(name).parts:
            yield from (self.model_dir / name, self.model_dir / last)
            if self.model_dir.name == last:
                yield self.model_dir

    def _snapshots(self, name: str) -> Iterator[Path]:
        """Yield the model's snapshots in the caches; in each cache, the snapshot that refs/main names comes first."""
        for cache in self.caches:
            repository = cache / f"models--{name.replace('/', '--')}"
            main = repository / "refs" / "main"
            if main.is_file():
                yield repository / "snapshots" / main.read_text().strip()
            yield from sorted((repository / "snapshots").glob("*"))


def nemo_in(folder: Path, name: str) -> Path | None:
    """Return the .nemo file in the folder of a model, of several the one with its name; None if there is none."""
    files = sorted(folder.glob("*.nemo"))
    return next((path for path in files if path.stem == name.rsplit("/", maxsplit=1)[-1]), files[0] if files else None)
