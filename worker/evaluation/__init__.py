"""Evaluation: transcribe labeled audio with a model and count the errors against the labels.

    corpus = read_folder(audio_dir, gt_dir)                           or read_manifest(path), or Corpus(pairs)
    report = evaluate(engine, corpus, {"model": "parakeet"})          transcribes and waits
    page = to_html(report)                                            the report as one HTML page
    page = to_html(report, audio=audio_links(corpus, folder))         the same with players, for a page in this folder

A server submits the request itself, so that canceling and progress work as for any other request:

    evaluation = prepare(corpus, settings, options)
    response = await asyncio.wrap_future(engine.submit(evaluation.request))
    report = await asyncio.to_thread(evaluation.score, response)

`worker.evaluation.evaluate` describes the report's fields; `worker.evaluation.metrics` defines the error rates.
"""

from worker.evaluation.evaluate import MATCH_MODES, Evaluation, evaluate, prepare
from worker.evaluation.folders import Corpus, Pair, read_folder, read_manifest
from worker.evaluation.report import audio_links, count_and_names, to_html

__all__ = [
    "MATCH_MODES",
    "Corpus",
    "Evaluation",
    "Pair",
    "audio_links",
    "count_and_names",
    "evaluate",
    "prepare",
    "read_folder",
    "read_manifest",
    "to_html",
]
