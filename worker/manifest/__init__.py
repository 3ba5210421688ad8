"""JSONL manifests of any length: each line's object comes back with what was asked for, in order, once, whatever
happens.

    process(manifest, output, ask)      run.py    the core: reads, asks in threads, writes in order; resumes
    process_manifest(...)               asks.py   the same, asking a server or a Runpod endpoint
    with_engine(engine, task)           asks.py   an `ask` that runs in this process
    on_ray(settings, task)              cluster.py   an `ask` of engines on a Ray cluster

A line is an object with the audio's path (relative to the manifest) or URL in `audio_filepath`, `audio`, `source`,
`path` or
`url`. NeMo's `offset`, with its `duration`, makes it a segment of a file; a `duration` alone describes the file. Blank
lines count for nothing. The output has each line's fields and `pred_text` (transcribe; with timestamps=True also
`timestamps`, as in
any answer, a segment's from its own start), `caption`, `embedding_path` (an .npy, relative to the output), or `error`;
and a `warning` where the audio is damaged (a server's transcripts tell of it with timestamps only).
"""

from worker.manifest.askers import output_path, process_manifest, with_engine
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
    "with_engine",
]
