"""score: recordings against one reference clip, a file (--reference) or a clip of a config.json (--config, --uid,
--cid).
"""

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


def run(args: argparse.Namespace) -> int:
    """Score all inputs, write the results, and return the exit code.

    Raises RequestError, ConfigError, ModelUnavailable, and InputError for a reference that cannot be read.
    """
    if bool(args.reference) == bool(args.config):
        raise RequestError("specify either --reference, or --config with --uid and --cid")
    if args.config and not (args.uid and args.cid):
        raise RequestError("--config requires --uid and --cid")
    inputs = expand(session.typed(args))
    sink = outputs.create((args.format,), args.output, inputs, sys.stdout.buffer)
    tally = session.Tally(len(inputs), bar_shown=bool(args.reference) and session.bar_shown(args))
    sources = [source.source for source in inputs]
    with session.quiet_stdout(), tally.until_interrupted():
        for index, result in enumerate(_by_config(args, sources) if args.config else _by_reference(args, sources)):
            shape = {"index": index, "file": sources[index], **result}
            tally.add(shape)
            sink.add(index, shape, {})
    # A score does not contain the duration of its audio.
    sink.close({"usage": {name: count for name, count in tally.usage.items() if name != "audio_sec"}})
    return tally.report()


def _by_reference(args: argparse.Namespace, sources: list[str]) -> Iterator[Json]:
    """Yield the scores against the file of --reference, in the order of the sources."""
    with python.load_model(args.model_dir, args.model, device=args.device) as bundle:
        for score in bundle.score(sources, args.reference, progress=session.bar_shown(args)):
            yield {"error": render.error_json(score.error)} if isinstance(score, Failure) else {**score}


def _by_config(args: argparse.Namespace, sources: list[str]) -> Iterator[Json]:
    """Yield the scores against a clip of the config, in the order of the sources. --model is a key of the config."""
    from worker.config import Settings
    from worker.engine.engine import Engine
    from worker.protocol.request import source_of
    from worker.scoring.scorer import Scorer

    settings = Settings.of(model_dir=args.model_dir, device=args.device)
    with Engine(settings) as engine, Scorer.open(args.config, engine, settings) as scorer:
        scorer.check(args.uid, args.cid, args.model)
        scores = [scorer.score(args.uid, args.cid, source_of(source, trusted=True), args.model) for source in sources]
        for score in scores:
            try:
                yield {**score.result()}
            except AviaryError as error:
                yield {"error": render.error_json(error)}
