"""The metrics of several workers as those of one worker: /metrics for Prometheus, /stats for people.

    Totals.add(texts, living) ──▶ Totals.collect()    Prometheus' text of each process → the sums
    add_stats(parts)                                  the JSON of each process → the sums, in the same shape

Counters, histograms and gauges are added up. A model's state becomes the number of workers in which the model is in
that state. The last counts of a process stay in the sum after the process ends, so a counter never falls because a
worker was replaced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

Stats = dict[str, Any]
# The states of a model. /stats reports the first of them that the model has in any worker.
_STATES = ("ready", "loading", "failed")


class _Series(NamedTuple):
    """The name of a time series: its metric family, sample, and labels."""

    family: str
    sample: str
    labels: tuple[tuple[str, str], ...]


class Totals:
    """The sums over all processes since the start, those that have ended included."""

    def __init__(self) -> None:
        self._families: dict[str, Metric] = {}
        self._living: dict[str, dict[_Series, float]] = {}
        self._ended: dict[_Series, float] = {}

    def add(self, texts: Mapping[str, str], living: Collection[str]) -> None:
        """Add a reading of all processes.

        `texts` are the responses of /metrics by the name of the process. `living` are the names of the running
        processes; a running process without a text keeps the numbers of its last text.
        """
        for process, text in texts.items():
            self._living[process] = dict(self._read(text))
        for process in self._living.keys() - set(living):
            lasting = {
                series: value
                for series, value in self._living.pop(process).items()
                if self._families[series.family].type in ("counter", "histogram")
            }
            self._ended = _sum([self._ended, lasting])

    def collect(self) -> list[Metric]:
        """Return the sums as metrics of prometheus_client."""
        metrics = {name: Metric(name, family.documentation, family.type) for name, family in self._families.items()}
        for series, value in _sum([self._ended, *self._living.values()]).items():
            metrics[series.family].add_sample(series.sample, dict(series.labels), value)
        return list(metrics.values())

    def _read(self, text: str) -> Iterable[tuple[_Series, float]]:
        for family in text_string_to_metric_families(text):
            self._families.setdefault(family.name, family)
            for sample in family.samples:
                yield _Series(family.name, sample.name, tuple(sample.labels.items())), sample.value


def _sum(parts: Iterable[Mapping[_Series, float]]) -> dict[_Series, float]:
    total: dict[_Series, float] = {}
    for part in parts:
        for series, value in part.items():
            total[series] = total.get(series, 0.0) + value
    return total


def add_stats(parts: Sequence[Stats]) -> Stats:
    """Return the sums of the /stats of at least one worker, in the same shape.

    Rates are computed over the device seconds of all workers. `uptime_sec` is the longest.
    """
    total: Stats = _add(parts)
    total["uptime_sec"] = max(part["uptime_sec"] for part in parts)
    batches = [part["batches"] for part in parts if part["batches"]["count"]]
    busy = sum(batch["device_busy_sec"] for batch in batches)
    audio = [(batch["rtfx"] or 0) * batch["device_busy_sec"] for batch in batches]
    padding = sum(
        sec * batch["padding_share"] / (1 - batch["padding_share"])
        for sec, batch in zip(audio, batches, strict=True)
        if batch["padding_share"]
    )
    total["batches"]["rtfx"] = round(sum(audio) / busy, 1) if busy else None
    total["batches"]["padding_share"] = round(padding / (sum(audio) + padding), 4) if sum(audio) else None
    states = [part["models"] for part in parts]
    total["models"] = {
        name: next((state for state in _STATES if any(models.get(name) == state for models in states)), "loading")
        for models in states
        for name in models
    }
    return total


def _add(values: Sequence[Any]) -> Any:
    """Return the sum of numbers, the merged dicts, or the first of other values."""
    if all(isinstance(value, dict) for value in values):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: _add([value[name] for value in values if name in value]) for name in names}
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return round(sum(numbers), 2) if numbers else values[0]
