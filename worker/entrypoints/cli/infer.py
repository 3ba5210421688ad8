"""transcribe, translate, caption, embed, chat, analyze: one request for all inputs.

    inputs ── expand ──▶ one request ──▶ engine ── each outcome as it finishes ──▶ sink (stdout, file or folder)

Errors in the arguments are reported before the model is loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from worker import catalog
from worker.config import Settings
from worker.entrypoints import python
from worker.entrypoints.cli import outputs, session
from worker.entrypoints.cli.inputs import expand
from worker.net.s3 import Bucket
from worker.protocol import render
from worker.protocol.request import parse
from worker.types import Response, Timing

Json = dict[str, Any]

_FORMS = {"jsonl": "json", "txt": "text", "npy": "json"}


def run(given: argparse.Namespace) -> int:
    """Run the task on all inputs, write the results, and return the exit code.

    Raises RequestError, ConfigError and ModelUnavailable, all before anything is written.
    """
    inputs = expand(session.typed(given))
    sink = outputs.create(given.format, given.output, inputs, sys.stdout.buffer)
    settings = Settings.of(model=given.model, model_dir=given.model_dir, device=given.device)
    payload = _payload(given, catalog.find(settings.default_model))
    named = {"model": given.model} if given.model else {}
    # A mistake in the options is reported before the model loads.
    parse({**payload, **named, "inputs": ["any"]}, settings, trusted=True)
    payload |= {"inputs": [one.source for one in inputs], "progress": session.bar_shown(given)}
    put, tally = Bucket(settings).put, session.Tally(len(inputs))
    with session.quiet_stdout(), python.load(settings, given.model) as bundle:
        with tally.until_interrupted(), contextlib.closing(bundle.outcomes(payload)) as running:
            for done in running:
                answer = render.to_json(Response(bundle.model, (done.outcome,), Timing()), put)
                index = done.outcome.index
                result = _result(given.command, inputs[index].source, answer["results"][0], done.elapsed_sec)
                tally.add(result)
                sink.add(index, result)
        sink.close({"model": bundle.model, "usage": tally.usage})
        bundle.close(wait=not tally.is_interrupted)
        return tally.report()


def _payload(given: argparse.Namespace, row: catalog.Model) -> Json:
    payload = session.options(given)
    if payload.get("max_new_tokens") is not None and "max_new_tokens" not in row.options:
        session.say(f"{row.id} does not write token by token: --max-new-tokens changes nothing")
        payload["max_new_tokens"] = None
    if given.command == "chat":
        system = [{"role": "system", "content": given.system}] if given.system else []
        payload["messages"] = [*system, {"role": "user", "content": payload.pop("prompt")}]
    if given.format == "npy":
        payload["encoding"] = "base64"
    payload |= {"task": given.command, "format": _FORMS.get(given.format, given.format)}
    return {name: value for name, value in payload.items() if value is not None}


def _result(task: str, file: str, shape: Json, elapsed_sec: float) -> Json:
    """Return the result in the form of the command line, with the input's file instead of its id."""
    result = {
        "index": shape["index"],
        "file": file,
        **{name: shape[name] for name in shape if name not in ("index", "id")},
    }
    if "error" not in result:
        if task in ("transcribe", "translate"):
            result.setdefault("tokens_generated", None)
        result["elapsed_sec"] = round(elapsed_sec, 3)
    return result
