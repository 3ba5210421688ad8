"""evaluate: what a model hears in labelled audio, counted against the labels."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from worker import catalog
from worker.config import Settings
from worker.entrypoints import python
from worker.entrypoints.cli import outputs, session
from worker.entrypoints.progress import bar
from worker.errors import RequestError
from worker.evaluation import Corpus, evaluate, prepare, read_folder, read_manifest, to_html


def run(given: argparse.Namespace) -> int:
    """Raises RequestError, ConfigError and ModelUnavailable."""
    corpus = _corpus(given)
    for output in (given.output, given.html):
        if output is not None:
            outputs.check_writable(output)
    settings = Settings.of(model=given.model, model_dir=given.model_dir, device=given.device)
    options = {"model": given.model, "language": given.language, "prompt": given.prompt}
    if "max_new_tokens" in catalog.find(settings.default_model).options:
        options["max_new_tokens"] = given.max_new_tokens
    options = {name: value for name, value in options.items() if value is not None}
    how = {"match_mode": given.match_mode, "normalizer": given.normalizer}
    prepare(corpus, settings, options, trusted=True, **how)  # what is wrong is told before the model is loaded
    with (
        session.quiet_stdout(),
        python.load(settings, given.model) as bundle,
        bar(len(corpus.pairs), shown=session.bar_shown(given)) as add,
    ):
        answer = evaluate(bundle.engine, corpus, options, trusted=True, on_result=add, **how)
    if given.html is not None:
        Path(given.html).write_text(to_html(answer), encoding="utf-8")
    outputs.write(given.output, outputs.dumps(answer), sys.stdout.buffer)
    for detail in answer["details"]:
        if warning := detail.get("warning"):
            session.say(f"{detail['file']}: {warning}")
        if error := detail.get("error"):
            session.say(f"{detail['file']}: {error['code']}: {error['message']}")
    for name in answer["summary"]["unlabelled"]:
        session.say(f"{name}: has no label")
    for name in answer["summary"]["missing_audio"]:
        session.say(f"{name}: has no audio")
    return 1 if answer["summary"]["failed"] else 0


def _corpus(given: argparse.Namespace) -> Corpus:
    if bool(given.manifest) == bool(given.audio_dir):
        raise RequestError("give either --audio-dir (and --gt-dir) or --manifest")
    return read_manifest(given.manifest) if given.manifest else read_folder(given.audio_dir, given.gt_dir)
