"""The numbers of several workers as one worker's: what Prometheus reads at /metrics, and the same for people at /stats.

Counters, histograms and gauges add up; a model's state becomes the number of workers in which it is in that state.
What a
process had counted when it was last asked stays in the sum after its end, so that a counter never falls because a
worker was replaced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

Stats = dict[str, Any]
_STATES = ("ready", "loading", "failed")  # of a model: the first that it has anywhere is what /stats says


class _Series(NamedTuple):
    family: str
    sample: str
    labels: tuple[tuple[str, str], ...]


class Totals:
    """The sums of what all processes that there ever were have told."""

    def __init__(self) -> None:
        self._families: dict[str, Metric] = {}
        self._living: dict[str, dict[_Series, float]] = {}
        self._ended: dict[_Series, float] = {}

    def add(self, texts: Mapping[str, str], living: Collection[str]) -> None:
        """`texts`: what each process answered at /metrics, by the process's name; `living`: the names of those that
        run. One that runs and did not answer counts as it did last."""
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
        """The sums, as prometheus_client wants them."""
        found = {name: Metric(name, one.documentation, one.type) for name, one in self._families.items()}
        for series, value in _sum([self._ended, *self._living.values()]).items():
            found[series.family].add_sample(series.sample, dict(series.labels), value)
        return list(found.values())

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
    """What workers answered at /stats (at least one) → the same shape for all of them. Rates are of the device seconds
    of all; `uptime_sec` is the longest."""
    total: Stats = _add(parts)
    total["uptime_sec"] = max(part["uptime_sec"] for part in parts)
    batches = [part["batches"] for part in parts if part["batches"]["count"]]
    busy = sum(one["device_busy_sec"] for one in batches)
    heard = [(one["rtfx"] or 0) * one["device_busy_sec"] for one in batches]
    padding = sum(
        sec * one["padding_share"] / (1 - one["padding_share"])
        for sec, one in zip(heard, batches, strict=True)
        if one["padding_share"]
    )
    total["batches"]["rtfx"] = round(sum(heard) / busy, 1) if busy else None
    total["batches"]["padding_share"] = round(padding / (sum(heard) + padding), 4) if sum(heard) else None
    states = [part["models"] for part in parts]
    total["models"] = {
        name: next((state for state in _STATES if any(one.get(name) == state for one in states)), "loading")
        for one in states
        for name in one
    }
    return total


def _add(values: Sequence[Any]) -> Any:
    """Numbers added up, dicts merged; of anything else the first."""
    if all(isinstance(value, dict) for value in values):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: _add([value[name] for value in values if name in value]) for name in names}
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return round(sum(numbers), 2) if numbers else values[0]
