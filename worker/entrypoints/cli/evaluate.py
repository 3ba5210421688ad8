"""evaluate: the transcripts of labeled audio, compared with the labels."""

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


def run(args: argparse.Namespace) -> int:
    """Evaluate a corpus, write the report, and return the exit code.

    Raises RequestError, ConfigError and ModelUnavailable.
    """
    corpus = _corpus(args)
    for output in (args.output, args.html):
        if output is not None:
            outputs.check_writable(output)
    settings = Settings.of(model=args.model, model_dir=args.model_dir, device=args.device)
    options = {"model": args.model, "language": args.language, "prompt": args.prompt}
    if "max_new_tokens" in catalog.find(settings.default_model).options:
        options["max_new_tokens"] = args.max_new_tokens
    options = {name: value for name, value in options.items() if value is not None}
    how = {"match_mode": args.match_mode, "normalizer": args.normalizer}
    prepare(corpus, settings, options, trusted=True, **how)  # reports errors before the model is loaded
    with (
        session.quiet_stdout(),
        python.load(settings, args.model) as bundle,
        bar(len(corpus.pairs), shown=session.bar_shown(args)) as add,
    ):
        report = evaluate(bundle.engine, corpus, options, trusted=True, on_result=add, **how)
    if args.html is not None:
        Path(args.html).write_text(to_html(report), encoding="utf-8")
    outputs.write(args.output, outputs.dumps(report), sys.stdout.buffer)
    for detail in report["details"]:
        if warning := detail.get("warning"):
            session.say(f"{detail['file']}: {warning}")
        if error := detail.get("error"):
            session.say(f"{detail['file']}: {error['code']}: {error['message']}")
    for name in report["summary"]["unlabelled"]:
        session.say(f"{name}: the audio has no label")
    for name in report["summary"]["missing_audio"]:
        session.say(f"{name}: the label has no audio")
    return 1 if report["summary"]["failed"] else 0


def _corpus(args: argparse.Namespace) -> Corpus:
    """Return the audio to evaluate and its labels. Raises RequestError."""
    if bool(args.manifest) == bool(args.audio_dir):
        raise RequestError("specify either --audio-dir (and --gt-dir) or --manifest")
    return read_manifest(args.manifest) if args.manifest else read_folder(args.audio_dir, args.gt_dir)
