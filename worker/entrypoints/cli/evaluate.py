"""evaluate: the transcripts of labeled audio, compared with the labels."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from worker import catalog
from worker.config import Settings
from worker.entrypoints import python
from worker.entrypoints.cli import outputs, session
from worker.entrypoints.progress import bar
from worker.errors import RequestError
from worker.evaluation import (
    Corpus,
    audio_links,
    count_and_names,
    evaluate,
    prepare,
    read_folder,
    read_manifest,
    to_html,
)


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
    if "max_new_tokens" in catalog.find(settings.default_model, settings.places).options:
        options["max_new_tokens"] = args.max_new_tokens
    options = {name: value for name, value in options.items() if value is not None}
    how = {"match_mode": args.match_mode, "normalizer": args.normalizer}
    prepare(corpus, settings, options, trusted=True, **how)  # reports errors before the model is loaded
    shown = session.bar_shown(args)
    with (
        session.quiet_stdout(),
        python.load(settings, args.model, progress=shown) as bundle,
        bar([pair.file for pair in corpus.pairs], shown=shown) as line,
    ):
        report = evaluate(
            bundle.engine,
            corpus,
            options,
            trusted=True,
            on_result=line.add if line else None,
            on_progress=line.show if line else None,
            **how,
        )
    if args.html is not None:
        page = to_html(report, audio=audio_links(corpus, Path(args.html).parent))
        Path(args.html).write_text(page, encoding="utf-8")
    outputs.write(args.output, outputs.dumps(report), sys.stdout.buffer)
    for detail in report["details"]:
        if warning := detail.get("warning"):
            session.say(f"{detail['file']}: {warning}")
        if (error := detail.get("error")) and not shown:  # the bar has printed it
            session.say(f"{detail['file']}: {error['code']}: {error['message']}")
    summary = report["summary"]
    if unlabelled := summary["unlabelled"]:
        session.say(f"audio without a label: {count_and_names(unlabelled)}")
    if missing := summary["missing_audio"]:
        session.say(f"labels without audio: {count_and_names(missing)}")
    session.say(_rates(summary))
    return 1 if summary["failed"] else 0


def _rates(summary: dict[str, Any]) -> str:
    """Return the summary in one line."""
    return (
        f"WER {summary['wer']:.1%}, CER {summary['cer']:.1%} ({summary['normalizer']}); "
        f"WER {summary['plain_wer']:.1%}, CER {summary['plain_cer']:.1%} (plain: punctuation counts); "
        f"{summary['tp']} of {summary['count']} files match their label ({summary['match_mode']}); "
        f"{summary['failed']} failed"
    )


def _corpus(args: argparse.Namespace) -> Corpus:
    """Return the audio to evaluate and its labels. Raises RequestError."""
    if bool(args.manifest) == bool(args.audio_dir):
        raise RequestError("specify either --audio-dir (and --gt-dir) or --manifest")
    return read_manifest(args.manifest) if args.manifest else read_folder(args.audio_dir, args.gt_dir)
