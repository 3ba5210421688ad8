"""`python -m worker`: see `worker.entrypoints.cli`."""

from worker.entrypoints.cli import run_process

run_process()
