"""The metrics of one server process: /metrics for Prometheus, and the same as /stats for people.

Each application has a registry of its own. Labels are few and bounded: models of the catalog and MODELS, devices,
tasks, error codes, route templates.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.engine.engine import Engine
from worker.types import Batch, Caption, Failure, Reply, Request, Response, Result, Transcript

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The counters and histograms of one application.

    `batch` is called on the threads of the devices, `response` and `request` on the event loop.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = functools.partial(Counter, registry=self.registry)
        histogram = functools.partial(Histogram, registry=self.registry)
        self._started = time.time()
        self._requests = counter("aviary_http_requests", "HTTP requests served", ["route", "method", "status"])
        self._latency = histogram(
            "aviary_http_request_seconds",
            "Time from an HTTP request to the end of its response",
            ["route"],
            buckets=_SECONDS,
        )
        self._inputs = counter("aviary_inputs", "Inputs finished", ["task", "outcome"])
        self._audio = counter("aviary_audio_seconds", "Seconds of audio in successful inputs", ["task"])
        self._tokens = counter("aviary_generated_tokens", "Tokens generated")
        self._stages = counter("aviary_stage_seconds", "Seconds spent by stage, summed over inputs", ["stage"])
        self._wait = histogram(
            "aviary_queue_wait_seconds", "Mean wait of a request's inputs for the device", buckets=_SECONDS
        )
        self._batches = counter("aviary_batches", "Batches run", ["model", "device"])
        self._sizes = histogram("aviary_batch_size", "Pieces in a batch", buckets=(1, 2, 4, 8, 16, 32, 64))
        self._device = counter("aviary_device_seconds", "Seconds the device was busy", ["model", "device"])
        self._device_audio = counter("aviary_device_audio_seconds", "Seconds of audio run on the device", ["model"])
        self._padding = counter("aviary_padding_seconds", "Seconds of padding run on the device", ["model"])
        self._in_flight = Gauge("aviary_inputs_in_flight", "Inputs accepted and not finished", registry=self.registry)
        self._realtime = Gauge("aviary_realtime_sessions", "Realtime sessions that are open", registry=self.registry)
        self._accepted = 0

    def watch(self, engine: Engine) -> None:
        """Add the engine's own numbers, which are read at each request to /metrics."""
        self.registry.register(_EngineCollector(engine))

    def in_flight(self, inputs: int) -> None:
        """Set the number of accepted inputs that are not finished."""
        self._accepted = inputs
        self._in_flight.set(inputs)

    def realtime(self, sessions: int) -> None:
        """Set the number of realtime sessions that are open."""
        self._realtime.set(sessions)

    def batch(self, batch: Batch, seconds: float, device: str) -> None:
        """Count a batch that took `seconds` on `device`."""
        model = batch.options.model
        audio_sec = sum(piece.duration_sec for piece in batch.pieces)
        self._batches.labels(model, device).inc()
        self._sizes.observe(len(batch.pieces))
        self._device.labels(model, device).inc(seconds)
        self._device_audio.labels(model).inc(audio_sec)
        self._padding.labels(model).inc(max(0.0, batch.padded_sec - audio_sec))

    def response(self, request: Request, response: Response) -> None:
        """Count the inputs of a finished request."""
        task = request.items[0].options.task if request.items else "none"
        for outcome in response.results:
            self._inputs.labels(task, outcome.error.code if isinstance(outcome, Failure) else "ok").inc()
            if isinstance(outcome, Result):
                self._audio.labels(task).inc(outcome.audio_sec)
                self._tokens.inc(_tokens(outcome))
        timing = response.timing
        for stage in ("fetch", "decode", "queue", "model"):
            self._stages.labels(stage).inc(getattr(timing, f"{stage}_sec"))
        self._wait.observe(timing.queue_sec / max(1, len(response.results)))

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an HTTP request by the template of its route."""
        self._requests.labels(route, method, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def stats(self, engine: Engine) -> dict[str, Any]:
        """Return the sums since the start, for people."""
        busy, audio, padding = (_total(counter) for counter in (self._device, self._device_audio, self._padding))
        batches = _total(self._batches)
        outcomes = {sample.labels["outcome"]: 0.0 for sample in _samples(self._inputs)}
        for sample in _samples(self._inputs):
            outcomes[sample.labels["outcome"]] += sample.value
        return {
            "uptime_sec": round(time.time() - self._started, 1),
            "requests": round(_total(self._requests)),
            "inputs": {
                "answered": round(outcomes.pop("ok", 0)),
                "failed": {code: round(n) for code, n in outcomes.items()},
                "in_flight": self._accepted,
            },
            "queue": {"pieces_waiting": engine.waiting, "decoded_sec_held": round(engine.held_sec, 1)},
            "audio_sec": round(_total(self._audio), 1),
            "tokens_generated": round(_total(self._tokens)),
            "batches": {
                "count": round(batches),
                "device_busy_sec": round(busy, 2),
                "rtfx": round(audio / busy, 1) if busy else None,
                "padding_share": round(padding / (audio + padding), 4) if audio else None,
            },
            "devices": dataclasses.asdict(engine.devices),
            "models": engine.models,
        }


class MetricsMiddleware:
    """ASGI middleware that counts and times every request by the template of its route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, then count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in ("GET", "POST", "OPTIONS") else "other"
            self._metrics.request(route, method, status, time.perf_counter() - started)


class _EngineCollector:
    """A collector for Prometheus' registry that reads the engine's state."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "aviary_pieces_waiting", "Decoded pieces waiting for the device", value=self._engine.waiting
        )
        yield GaugeMetricFamily(
            "aviary_decoded_seconds_held", "Seconds of decoded audio in memory", value=self._engine.held_sec
        )
        models = GaugeMetricFamily(
            "aviary_model_state", "1 for the current state of each model", labels=["model", "state"]
        )
        for model, state in self._engine.models.items():
            models.add_metric([model, state], 1)
        yield models
        devices = GaugeMetricFamily("aviary_devices", "Devices by state: working or lost", labels=["state"])
        devices.add_metric(["working"], self._engine.devices.count - self._engine.devices.lost)
        devices.add_metric(["lost"], self._engine.devices.lost)
        yield devices
        memory = _device_memory()
        if memory is not None:
            yield GaugeMetricFamily("aviary_device_memory_bytes", "Device memory allocated to tensors", value=memory)


def _device_memory() -> int | None:
    """Return the bytes that tensors take on the GPU; None without a GPU, or before torch is imported."""
    import sys

    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.memory_allocated())


def _tokens(result: Result) -> int:
    output = result.output
    if isinstance(output, Reply):
        return output.completion_tokens
    return (output.tokens_generated or 0) if isinstance(output, Transcript | Caption) else 0


def _samples(counter: Counter) -> list[Any]:
    return [sample for metric in counter.collect() for sample in metric.samples if sample.name.endswith("_total")]


def _total(counter: Counter) -> float:
    return float(sum(sample.value for sample in _samples(counter)))
