"""transcribe, translate, caption, embed, chat, analyze, diarize: one request for all inputs.

    inputs ── plan ──▶ one request ──▶ engine ── each outcome as it finishes ──▶ sink (stdout, file or folder)

Errors in the arguments are reported before the model is loaded.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from typing import Any, get_args

from worker import catalog
from worker.entrypoints import python
from worker.entrypoints.cli import plan, session
from worker.errors import RequestError
from worker.net.s3 import Bucket
from worker.protocol import render
from worker.protocol.options import TIMED, WITH_SPEAKERS, names_speakers
from worker.protocol.request import parse
from worker.types import Embedding, Failure, Format, Response, Result, Timing

Json = dict[str, Any]

# The payload's formats of the command's, in the order of what they require of the model.
_FORMATS: dict[str, Format] = {
    "json": "json",
    "jsonl": "json",
    "npy": "json",
    "txt": "text",
    **{form: form for form in sorted(get_args(Format), key=lambda form: form == "verbose_json") if form != "text"},
}
_LINES = ("max_line_width", "max_line_count", "max_words_per_line", "max_chars_per_sec")


def run(given: argparse.Namespace) -> int:
    """Run the task on all inputs, write the results, and return the exit code.

    Raises RequestError, ConfigError and ModelUnavailable, all before anything is written.
    """
    settings = session.settings(given, given.command)
    row = catalog.find(settings.default_model, settings.places)
    forms = _forms(given, row)
    payload = _payload(given, forms, row)
    named = {"model": given.model} if given.model else {}
    # A mistake in the options is reported before the model loads.
    for form in forms:
        parse({**payload, **named, "inputs": ["any"], "format": _FORMATS[form]}, settings, trusted=True)
    work = plan.make(given, forms)
    if not work.todo:
        return 0
    shown = session.bar_shown(given)
    payload |= {"inputs": [work.inputs[index].source for index in work.todo], "progress": shown}
    put, tally = Bucket(settings).put, session.Tally(len(work.todo), bar_shown=shown)
    with (
        session.quiet_stdout(),
        python.load(settings, given.model, progress=shown) as bundle,
        plan.failed_list(given.failed_list) as list_failed,
    ):
        with tally.until_interrupted(), contextlib.closing(bundle.outcomes(payload)) as running:
            for done in running:
                answer = render.to_json(Response(bundle.model, (done.outcome,), Timing()), put)
                index = work.todo[done.outcome.index]
                shape = answer["results"][0]
                result = _result(given.command, index, work.inputs[index].source, shape, done.elapsed_sec)
                tally.add(result)
                if "error" in result:
                    list_failed(work.inputs[index])
                work.sink.add(index, result, _formatted(done.outcome, shape, forms))
        work.sink.close({"model": bundle.model, "usage": tally.usage})
        bundle.close(wait=not tally.is_interrupted)
        return tally.report()


def _forms(given: argparse.Namespace, row: catalog.Model) -> Sequence[str]:
    """Return the formats to write; of "all", those that the model can write. Raises RequestError."""
    forms: Sequence[str] = given.format
    if forms == ("all",):
        has_speakers = names_speakers(vars(given))
        left_out = {"jsonl", *(() if row.timestamps else TIMED), *(() if has_speakers else WITH_SPEAKERS)}
        forms = [form for form in given.forms if form not in left_out]
    for name in _LINES:
        if getattr(given, name, None) is not None and not {"srt", "vtt", "lrc"} & set(forms):
            raise RequestError(f"--{name.replace('_', '-')} requires --format srt, vtt or lrc", param=name)
    return forms


def _payload(given: argparse.Namespace, forms: Sequence[str], row: catalog.Model) -> Json:
    payload = session.options(given)
    if payload.get("max_new_tokens") is not None and "max_new_tokens" not in row.options:
        session.say(f"{row.id} does not write token by token: --max-new-tokens changes nothing")
        payload["max_new_tokens"] = None
    if given.command == "chat":
        system = [{"role": "system", "content": given.system}] if given.system else []
        payload["messages"] = [*system, {"role": "user", "content": payload.pop("prompt")}]
    if list(forms) == ["npy"]:
        payload["encoding"] = "base64"  # no result shows the numbers
    payload |= {"task": given.command, "format": [_FORMATS[form] for form in _FORMATS if form in forms][-1]}
    return {name: value for name, value in payload.items() if value is not None}


def _formatted(outcome: Result | Failure, shape: Json, forms: Sequence[str]) -> Json:
    """Return the outcome in each format other than JSON. A failed one has none."""
    if isinstance(outcome, Failure) or "error" in shape:
        return {}
    formatted = {form: render.formatted(outcome, shape, _FORMATS[form]) for form in forms}
    if isinstance(outcome.output, Embedding):
        formatted["npy"] = outcome.output.values
    return formatted


def _result(task: str, index: int, file: str, shape: Json, elapsed_sec: float) -> Json:
    """Return the result in the form of the command line, with the input's file instead of its id."""
    result = {
        "index": index,
        "file": file,
        **{name: shape[name] for name in shape if name not in ("index", "id", "formatted")},
    }
    if "error" not in result:
        if task in ("transcribe", "translate"):
            result.setdefault("tokens_generated", None)
        result["elapsed_sec"] = round(elapsed_sec, 3)
    return result
