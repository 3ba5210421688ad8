"""JSONL manifests of any length: each line's object, plus the model's output for its audio, in order and exactly once.

    process(manifest, output, ask)      run.py      the core: calls `ask` in threads, writes in order, resumes
    process_manifest(…)                 askers.py   the same with a server or a Runpod endpoint
    process_in_batches(…)               batches.py  the same with the Batch Jobs of an endpoint
    with_client(client, task)           askers.py   an `ask` that uses a blocking client
    with_engine(engine, task)           askers.py   an `ask` that uses the engine of this process
    on_ray(settings, task)              ray.py      an `ask` that uses engines on a Ray cluster

A line is a JSON object with the audio's path (relative to the manifest) or URL in `audio_filepath`, `audio`, `source`,
`path` or `url`. NeMo's `offset` and `duration` select a segment of a file; without `offset`, it starts at 0. For
`transcribe`, NeMo's `source_lang` or `lang`, `target_lang`, `taskname` and `pnc` are options of their line, and win
over those of the run. A field that cannot be honored is the line's `error`. Blank lines are skipped.

The output has the fields of each line, plus one of these: `pred_text` (transcribe; with timestamps=True also
`timestamps`, which for a segment count from its start), `caption`, `embedding_path` (an .npy file, relative to the
output), both of these (analyze), or `error`. With confidence=True, `transcribe` adds NeMo's `words` and
`word_confidence`; the model must have timestamps. Damaged audio, speech without words
and a text that a limit on new tokens cut off add `warning`.
"""

from worker.manifest.askers import output_path, process_manifest, with_client, with_engine
from worker.manifest.lines import Line
from worker.manifest.ray import on_ray
from worker.manifest.run import Asker, LineResult, Summary, process

__all__ = [
    "Asker",
    "Line",
    "LineResult",
    "Summary",
    "on_ray",
    "output_path",
    "process",
    "process_manifest",
    "with_client",
    "with_engine",
]
