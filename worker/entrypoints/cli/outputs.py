"""The destinations and formats of results: stdout, a file, or a folder with one file per input.

    create(form, …) ──▶ Sink:    add(index, result) for each result    close(summary) at the end

Results are added as they finish. The jsonl sink and the folder write each result at once; the document sinks write all
results at `close`, in the order of the inputs. Results are plain JSON. Their field `formatted` is the text, srt, vtt or
verbose_json.
"""

from __future__ import annotations

import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from worker.entrypoints.cli.inputs import Input, places
from worker.errors import RequestError

Json = dict[str, Any]

SUFFIXES = {
    "json": ".json",
    "jsonl": ".jsonl",
    "txt": ".txt",
    "srt": ".srt",
    "vtt": ".vtt",
    "verbose_json": ".json",
    "npy": ".npy",
}
_OF_ONE = ("srt", "vtt", "npy")  # a file of such a format can hold only one result


class Sink(ABC):
    """The destination of the results of one command."""

    @abstractmethod
    def add(self, index: int, result: Json) -> None:
        """Add the result of the input at `index`. The result of a failed input has `error`."""

    def close(self, summary: Json) -> None:
        """Finish, after the last result or an interruption.

        `summary` holds the fields of the document beside `results`.
        """
        return


def create(form: str, output: str | None, inputs: Sequence[Input], stdout: BinaryIO) -> Sink:
    """Return the sink for a format.

    `output` is a file, a folder, or None for stdout. Raises RequestError if it cannot be written, or if a file cannot
    hold so many results of the format.
    """
    if output is not None and (output.endswith(os.sep) or os.path.isdir(output)):
        return _Folder(Path(output), form, places(inputs, SUFFIXES[form]))
    if form in _OF_ONE and len(inputs) > 1:
        raise RequestError(
            f"{form} of {len(inputs)} inputs requires a folder; specify --output FOLDER/", param="output"
        )
    if output is not None:
        check_writable(output)
    return _Lines(output, stdout) if form == "jsonl" else _Document(form, output, stdout, len(inputs))


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

    def add(self, _index: int, result: Json) -> None:
        if self._output is not None:
            self._stream, self._output = open(self._output, "wb"), None  # noqa: SIM115  `close` closes it
        self._stream.write(dumps(result, indent=None))
        self._stream.flush()

    def close(self, _summary: Json) -> None:
        if self._stream is not self._stdout:
            self._stream.close()


class _Document(Sink):
    """A sink that writes all results as one document at the end."""

    def __init__(self, form: str, output: str | None, stdout: BinaryIO, count: int) -> None:
        self._form, self._output, self._stdout, self._count = form, output, stdout, count
        self._results: dict[int, Json] = {}

    def add(self, index: int, result: Json) -> None:
        self._results[index] = result

    def close(self, summary: Json) -> None:
        results = [result for _, result in sorted(self._results.items())]
        good = [result for result in results if "error" not in result]
        if self._form == "json":
            vectors = any("embedding" in result for result in results)  # an indented vector has one number per line
            data = dumps({"results": results, **summary}, indent=None if vectors else 2)
        elif self._count == 1:
            data = _one(self._form, good[0]) if good else b""
        elif self._form == "verbose_json":
            data = dumps(
                [
                    {"file": result["file"], **(result.get("formatted") or {"error": result.get("error")})}
                    for result in results
                ]
            )
        else:
            data = "\n".join(f"==> {result['file']} <==\n{result['formatted']}\n" for result in good).encode(
                "utf-8", "replace"
            )
        if data:
            write(self._output, data, self._stdout)


class _Folder(Sink):
    """A sink that writes one file per result. A failed input gets no file. Each file is written atomically."""

    def __init__(self, folder: Path, form: str, names: Sequence[PurePath]) -> None:
        self._folder, self._form, self._names = folder, form, names
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"cannot write to {folder}: {error.strerror}", param="output") from error
        if not os.access(folder, os.W_OK):
            raise RequestError(f"cannot write to {folder}", param="output")

    def add(self, index: int, result: Json) -> None:
        if "error" in result:
            return
        path = self._folder / self._names[index]
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{index}.part")  # short, because the final name may have the longest length allowed
        part.write_bytes(_one(self._form, result))
        os.replace(part, path)


def _one(form: str, result: Mapping[str, Any]) -> bytes:
    """Return one result as the content of a file."""
    if form in ("json", "jsonl"):
        return dumps(result, indent=None if form == "jsonl" or "embedding" in result else 2)
    if form == "npy":
        return _npy(result)
    return dumps(result["formatted"]) if form == "verbose_json" else _text(result["formatted"])


def _text(text: str) -> bytes:
    return text.rstrip("\n").encode("utf-8", "replace") + b"\n"


def _npy(result: Mapping[str, Any]) -> bytes:
    """Return the embedding, which is base64 in the result, in NumPy's file format."""
    import base64

    import numpy as np

    buffer = io.BytesIO()
    values = np.frombuffer(base64.b64decode(result["embedding"]), "<f4").reshape(result["shape"])
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()
