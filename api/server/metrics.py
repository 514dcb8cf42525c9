"""Metrics of the server in Prometheus' format: GET /metrics.

counted per event         requests, tokens, time to the first token and between tokens
read on each scrape       loaded models, their slots and queues
from prometheus-client    the process: memory, CPU, open files
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

from fastapi import APIRouter, Request, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from ...engine.run.piece import Piece
from ...engine.serve.engine import Engine

BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """The metrics of one server."""

    def __init__(self, engine: Engine):
        self.registry = r = CollectorRegistry()
        self.requests = Counter("numllama_requests", "HTTP requests", ["method", "route", "status"], registry=r)
        self.prompt_tokens = Counter("numllama_prompt_tokens", "Prompt tokens", registry=r)
        self.cached_tokens = Counter("numllama_prompt_tokens_cached", "Prompt tokens reused from the cache", registry=r)
        self.sampled_tokens = Counter("numllama_sampled_tokens", "Sampled tokens", registry=r)
        self.guesses = Counter("numllama_draft_tokens", "Guesses at the next tokens that were computed", registry=r)
        self.right = Counter("numllama_draft_tokens_accepted", "Guesses that were the next token", registry=r)
        self.embeddings = Counter("numllama_embeddings", "Texts embedded", registry=r)
        self.first = Histogram(
            "numllama_time_to_first_token_seconds",
            "Time from a request to its first token",
            buckets=BUCKETS_S,
            registry=r,
        )
        self.between = Histogram(
            "numllama_inter_token_seconds",
            "Time between consecutive tokens of an answer",
            buckets=BUCKETS_S,
            registry=r,
        )
        r.register(StateCollector(engine))
        ProcessCollector(registry=r)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def stopwatch(self, began: float) -> Stopwatch:
        """Return a stopwatch for one answer, requested at `began` on the clock of perf_counter (seconds)."""
        return Stopwatch(self, began)


class Stopwatch:
    """Records token times and counts of one answer; `record` must be called with every piece."""

    def __init__(self, metrics: Metrics, began: float):
        self.metrics, self.last = metrics, began
        self.histogram = metrics.first

    def record(self, piece: Piece) -> None:
        """Count the tokens of `piece`, and observe the time since the previous token."""
        if piece.token is not None:
            now = perf_counter()
            self.histogram.observe(now - self.last)
            self.histogram, self.last = self.metrics.between, now
        if t := piece.timings:
            self.metrics.prompt_tokens.inc(t.prompt_eval_count)
            self.metrics.cached_tokens.inc(t.prompt_eval_cached_count)
            self.metrics.sampled_tokens.inc(t.eval_count)
            self.metrics.guesses.inc(t.draft_tokens)
            self.metrics.right.inc(t.draft_accepted_tokens)
        self.metrics.embeddings.inc(len(piece.embeddings))


class StateCollector:
    """A Prometheus collector of the current state: loaded models, queues, slots, memory."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        """Yield gauges with the current values.  Called on each scrape."""
        pool, loaded = self.engine.pool, self.engine.pool.loaded()
        yield GaugeMetricFamily("numllama_loaded_models", "Loaded models", len(loaded))
        yield GaugeMetricFamily("numllama_load_queue", "Model loads running or waiting", pool.n_waiting)
        families = [
            GaugeMetricFamily(f"numllama_model_{name}", about, labels=["model"])
            for name, about in (
                ("bytes", "Bytes of weights and KV cache"),
                ("slots", "Slots for concurrent sequences"),
                ("running", "Sequences with a slot"),
                ("waiting", "Requests waiting for a slot"),
            )
        ]
        for entry in loaded:
            runner = entry.runner
            scheduler = runner.scheduler
            values = runner.nbytes, runner.cache.n_slot, len(scheduler.running), len(scheduler.waiting)
            for family, value in zip(families, values, strict=True):
                family.add_metric([entry.model.name.short], value)
        yield from families


router = APIRouter()


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    return Response(request.app.state.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
