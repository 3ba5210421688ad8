"""Where results go, and in what form: stdout, a file, or a folder with a file for each input.

`create` gives the sink for a format. Each result is added as it is done: jsonl and a folder write it there and then,
the others
write all at `close`, in the inputs' order. Results are plain JSON; `formatted` in them is the text, srt, vtt or
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
_OF_ONE = ("srt", "vtt", "npy")  # no two of them fit into one file


class Sink(ABC):
    """`add` is called for each result, by the place of its input; a failure has `error`."""

    @abstractmethod
    def add(self, index: int, result: Json) -> None: ...

    def close(self, summary: Json) -> None:
        """After the last, or when interrupted. summary: what an answer holds beside its results."""
        return


def create(form: str, output: str | None, inputs: Sequence[Input], stdout: BinaryIO) -> Sink:
    """Raises RequestError where the output cannot be written, or cannot hold so many results."""
    if output is not None and (output.endswith(os.sep) or os.path.isdir(output)):
        return _Folder(Path(output), form, places(inputs, SUFFIXES[form]))
    if form in _OF_ONE and len(inputs) > 1:
        raise RequestError(f"{form} of {len(inputs)} inputs needs a folder: --output FOLDER/", param="output")
    if output is not None:
        check_writable(output)
    return _Lines(output, stdout) if form == "jsonl" else _Document(form, output, stdout, len(inputs))


def check_writable(output: str) -> None:
    """Raises RequestError unless a file can be written there: better told now than when the work is done."""
    target = output if os.path.exists(output) else os.path.dirname(output) or "."
    if os.path.isdir(output) or not os.path.exists(target) or not os.access(target, os.W_OK):
        raise RequestError(f"cannot write {output}", param="output")


def write(output: str | None, data: bytes, stdout: BinaryIO) -> None:
    """To the file, or to stdout where there is none."""
    if output is None:
        stdout.write(data)
        stdout.flush()
    else:
        Path(output).write_bytes(data)


def dumps(value: Any, indent: int | None = 2) -> bytes:
    """Strict JSON and a line's end. Bytes of a file's name that are not UTF-8 become question marks."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent).encode("utf-8", "replace") + b"\n"


class _Lines(Sink):
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
    def __init__(self, form: str, output: str | None, stdout: BinaryIO, count: int) -> None:
        self._form, self._output, self._stdout, self._count = form, output, stdout, count
        self._results: dict[int, Json] = {}

    def add(self, index: int, result: Json) -> None:
        self._results[index] = result

    def close(self, summary: Json) -> None:
        results = [result for _, result in sorted(self._results.items())]
        good = [result for result in results if "error" not in result]
        if self._form == "json":
            vectors = any("embedding" in result for result in results)  # one number a line helps nobody
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
    """A failed input has no file. A file is there whole or not at all."""

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
        part = path.with_name(f".{index}.part")  # the name itself may have no room for more
        part.write_bytes(_one(self._form, result))
        os.replace(part, path)


def _one(form: str, result: Mapping[str, Any]) -> bytes:
    """One result as the whole content of a file."""
    if form in ("json", "jsonl"):
        return dumps(result, indent=None if form == "jsonl" or "embedding" in result else 2)
    if form == "npy":
        return _npy(result)
    return dumps(result["formatted"]) if form == "verbose_json" else _text(result["formatted"])


def _text(text: str) -> bytes:
    return text.rstrip("\n").encode("utf-8", "replace") + b"\n"


def _npy(result: Mapping[str, Any]) -> bytes:
    import base64

    import numpy as np

    buffer = io.BytesIO()
    values = np.frombuffer(base64.b64decode(result["embedding"]), "<f4").reshape(result["shape"])
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()
