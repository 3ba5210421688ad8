"""The destinations and formats of results: stdout, a file, or a folder with one file per input.

    create(forms, …) ──▶ Sink:    add(index, result, formatted) for each result    close(summary) at the end

Results are added as they finish. The jsonl sink and the folder write each result at once; the document sinks write all
results at `close`, in the order of the inputs. Results are plain JSON. `formatted` holds the result in the other
formats, by name: text, the JSON of verbose_json and diarized_json, or the array of npy. Only a folder holds several
formats.
"""

from __future__ import annotations

import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from worker.entrypoints.cli.arguments import TRANSCRIPTS
from worker.entrypoints.cli.inputs import Input, places
from worker.errors import RequestError

if TYPE_CHECKING:
    import numpy as np

Json = dict[str, Any]

_JSON = ("verbose_json", "diarized_json")  # formats of a transcript that are JSON
_ALSO = ("txt", *_JSON)  # formats of a transcript that a file can hold several of
SUFFIXES = {
    **{form: f".{form}" for form in ("json", "jsonl", "npy", *TRANSCRIPTS)},
    "textgrid": ".TextGrid",
    "verbose_json": ".json",
    "diarized_json": ".diarized.json",
}
_OF_ONE = ("npy", *(form for form in TRANSCRIPTS if form not in _ALSO))  # a file can hold only one result


class Sink(ABC):
    """The destination of the results of one command."""

    @abstractmethod
    def paths(self, index: int) -> Sequence[Path]:
        """Return the files that the result of the input at `index` is written to, of which any may exist already."""

    @abstractmethod
    def add(self, index: int, result: Json, formatted: Mapping[str, Any]) -> None:
        """Add the result of the input at `index`. The result of a failed input has `error`, and no other format."""

    def close(self, summary: Json) -> None:
        """Finish, after the last result or an interruption.

        `summary` holds the fields of the document beside `results`.
        """
        return


def create(forms: Sequence[str], output: str | None, inputs: Sequence[Input], stdout: BinaryIO) -> Sink:
    """Return the sink for these formats.

    `output` is a file, a folder, or None for stdout. Raises RequestError if it cannot be written, or if a file cannot
    hold so many results or formats.
    """
    if is_folder(output):
        return _Folder(Path(output or ""), forms, inputs)
    form = forms[0]
    if len(forms) > 1:
        raise RequestError(f"{', '.join(forms)} require a folder; specify --output-dir FOLDER", param="output")
    if form in _OF_ONE and len(inputs) > 1:
        raise RequestError(
            f"{form} of {len(inputs)} inputs requires a folder; specify --output-dir FOLDER", param="output"
        )
    if output is not None:
        check_writable(output)
    return _Lines(output, stdout) if form == "jsonl" else _Document(form, output, stdout, len(inputs))


def is_folder(output: str | None) -> bool:
    """Return whether results are written to a folder: its name ends with a slash, or it exists."""
    return output is not None and (output.endswith(os.sep) or os.path.isdir(output))


def check_writable(output: str) -> None:
    """Raise RequestError if the file `output` cannot be written. Commands check this before the work starts."""
    target = output if os.path.exists(output) else os.path.dirname(output) or "."
    if os.path.isdir(output) or not os.path.exists(target) or not os.access(target, os.W_OK):
        raise RequestError(f"cannot write {output}", param="output")


def write(output: str | None, data: bytes, stdout: BinaryIO) -> None:
    """Write the data to the file `output`, or to stdout if it is None."""
    if output is None:
        stdout.write(data)
        stdout.flush()
    else:
        Path(output).write_bytes(data)


def dumps(value: Any, indent: int | None = 2) -> bytes:
    """Return the value as strict JSON with a final newline.

    Bytes of a file name that are not UTF-8 become question marks.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent).encode("utf-8", "replace") + b"\n"


class _Lines(Sink):
    """A sink that writes one line of JSON per result."""

    def __init__(self, output: str | None, stdout: BinaryIO) -> None:
        self._output, self._stream, self._stdout = output, stdout, stdout

    def paths(self, _index: int) -> Sequence[Path]:
        return _of_file(self._output)

    def add(self, _index: int, result: Json, _formatted: Mapping[str, Any]) -> None:
        if self._output is not None and self._stream is self._stdout:
            self._stream = open(self._output, "wb")  # noqa: SIM115  `close` closes it
        self._stream.write(dumps(result, indent=None))
        self._stream.flush()

    def close(self, _summary: Json) -> None:
        if self._stream is not self._stdout:
            self._stream.close()


class _Document(Sink):
    """A sink that writes all results as one document at the end."""

    def __init__(self, form: str, output: str | None, stdout: BinaryIO, count: int) -> None:
        self._form, self._output, self._stdout, self._count = form, output, stdout, count
        self._results: dict[int, tuple[Json, Any]] = {}

    def paths(self, _index: int) -> Sequence[Path]:
        return _of_file(self._output)

    def add(self, index: int, result: Json, formatted: Mapping[str, Any]) -> None:
        self._results[index] = result, formatted.get(self._form)

    def close(self, summary: Json) -> None:
        pairs = [pair for _, pair in sorted(self._results.items())]
        good = [(result, formatted) for result, formatted in pairs if "error" not in result]
        if self._form == "json":
            results = [result for result, _ in pairs]
            vectors = any("embedding" in result for result in results)  # an indented vector has one number per line
            data = dumps({"results": results, **summary}, indent=None if vectors else 2)
        elif self._count == 1:
            data = _one(self._form, *good[0]) if good else b""
        elif self._form in _JSON:
            data = dumps([{"file": result["file"], **(one or {"error": result.get("error")})} for result, one in pairs])
        else:
            texts = [f"==> {result['file']} <==\n{formatted}\n" for result, formatted in good]
            data = "\n".join(texts).encode("utf-8", "replace")
        if data:
            write(self._output, data, self._stdout)


class _Folder(Sink):
    """A sink that writes one file per result and format, atomically. A failed input gets no file."""

    def __init__(self, folder: Path, forms: Sequence[str], inputs: Sequence[Input]) -> None:
        self._folder, self._forms = folder, forms
        suffixes = dict(SUFFIXES)
        if "json" in forms:
            suffixes["verbose_json"] = ".verbose.json"
        taken: set[str] = set()
        self._names = list(zip(*(places(inputs, suffixes[form], taken) for form in forms), strict=True))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"cannot write to {folder}: {error.strerror}", param="output") from error
        if not os.access(folder, os.W_OK):
            raise RequestError(f"cannot write to {folder}", param="output")

    def paths(self, index: int) -> Sequence[Path]:
        return [self._folder / name for name in self._names[index]]

    def add(self, index: int, result: Json, formatted: Mapping[str, Any]) -> None:
        if "error" in result:
            return
        for form, path in zip(self._forms, self.paths(index), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            # The name is short, because the final name may have the longest length allowed. Two commands may run.
            part = path.with_name(f".{os.getpid()}-{index}.part")
            part.write_bytes(_one(form, result, formatted.get(form)))
            os.replace(part, path)


def _of_file(output: str | None) -> Sequence[Path]:
    return [] if output is None else [Path(output)]


def _one(form: str, result: Mapping[str, Any], formatted: Any) -> bytes:
    """Return one result as the content of a file."""
    if form in ("json", "jsonl"):
        return dumps(result, indent=None if form == "jsonl" or "embedding" in result else 2)
    if form == "npy":
        return _npy(formatted)
    return dumps(formatted) if form in _JSON else _text(formatted)


def _text(text: str) -> bytes:
    return text.rstrip("\n").encode("utf-8", "replace") + b"\n"


def _npy(values: np.ndarray) -> bytes:
    """Return an array in NumPy's file format."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(values, dtype="<f4"), allow_pickle=False)
    return buffer.getvalue()
