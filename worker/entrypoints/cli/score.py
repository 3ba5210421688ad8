"""score: recordings against one reference, a file (--reference) or a clip of a config.json (--config, --uid, --cid)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from worker.entrypoints import python
from worker.entrypoints.cli import outputs, session
from worker.entrypoints.cli.inputs import expand
from worker.errors import AviaryError, RequestError
from worker.protocol import render
from worker.types import Failure

Json = dict[str, Any]


def run(given: argparse.Namespace) -> int:
    """Raises RequestError, ConfigError, ModelUnavailable, and what is wrong with the reference."""
    if bool(given.reference) == bool(given.config):
        raise RequestError("give either --reference, or --config with --uid and --cid")
    if given.config and not (given.uid and given.cid):
        raise RequestError("--config needs --uid and --cid")
    inputs = expand(session.typed(given))
    sink = outputs.create(given.format, given.output, inputs, sys.stdout.buffer)
    tally = session.Tally(len(inputs))
    sources = [one.source for one in inputs]
    with session.quiet_stdout(), tally.until_interrupted():
        for index, result in enumerate(_by_config(given, sources) if given.config else _by_reference(given, sources)):
            shape = {"index": index, "file": sources[index], **result}
            tally.add(shape)
            sink.add(index, shape)
    sink.close(
        {"usage": {name: count for name, count in tally.usage.items() if name != "audio_sec"}}
    )  # no score tells it
    return tally.report()


def _by_reference(given: argparse.Namespace, sources: list[str]) -> Iterator[Json]:
    with python.load_model(given.model_dir, given.model, device=given.device) as bundle:
        for one in bundle.score(sources, given.reference, progress=session.bar_shown(given)):
            yield {"error": render.error_json(one.error)} if isinstance(one, Failure) else {**one}


def _by_config(given: argparse.Namespace, sources: list[str]) -> Iterator[Json]:
    """`--model` is a key of the config."""
    from worker.config import Settings
    from worker.engine.engine import Engine
    from worker.protocol.request import source_of
    from worker.scoring.scorer import Scorer

    settings = Settings.of(model_dir=given.model_dir, device=given.device)
    with Engine(settings) as engine, Scorer.open(given.config, engine, settings) as scorer:
        scorer.check(given.uid, given.cid, given.model)
        scores = [
            scorer.score(given.uid, given.cid, source_of(source, trusted=True), given.model) for source in sources
        ]
        for score in scores:
            try:
                yield {**score.result()}
            except AviaryError as error:
                yield {"error": render.error_json(error)}
