"""What a server has done and is doing, for Prometheus: GET /metrics.

counted as it happens     requests, tokens, times to the first token and between tokens
read when asked           models in memory, their slots and queues
by prometheus-client      this process: memory, processor, files
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

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """The figures of one server."""

    def __init__(self, engine: Engine):
        self.registry = r = CollectorRegistry()
        self.requests = Counter("numllama_requests", "Requests answered", ["method", "route", "status"], registry=r)
        self.prompt_tokens = Counter("numllama_prompt_tokens", "Tokens of prompts", registry=r)
        self.cached_tokens = Counter("numllama_prompt_tokens_cached", "of them known to a cache", registry=r)
        self.sampled_tokens = Counter("numllama_sampled_tokens", "Tokens of answers", registry=r)
        self.embeddings = Counter("numllama_embeddings", "Texts made vectors", registry=r)
        self.first = Histogram(
            "numllama_time_to_first_token_seconds", "From a request to its first token", buckets=SECONDS, registry=r
        )
        self.between = Histogram(
            "numllama_inter_token_seconds", "From one token of an answer to the next", buckets=SECONDS, registry=r
        )
        r.register(Now(engine))
        ProcessCollector(registry=r)

    def text(self) -> bytes:
        """All of it in Prometheus' format."""
        return generate_latest(self.registry)

    def answer(self, began: float) -> Stopwatch:
        """What takes the times of one answer, asked for at `began` on the clock of perf_counter."""
        return Stopwatch(self, began)


class Stopwatch:
    """Told of every piece, it knows the times between tokens."""

    def __init__(self, metrics: Metrics, began: float):
        self.metrics, self.last = metrics, began
        self.histogram = metrics.first

    def see(self, piece: Piece) -> None:
        if piece.token is not None:
            now = perf_counter()
            self.histogram.observe(now - self.last)
            self.histogram, self.last = self.metrics.between, now
        if t := piece.timings:
            self.metrics.prompt_tokens.inc(t.prompt_eval_count)
            self.metrics.cached_tokens.inc(t.prompt_eval_cached_count)
            self.metrics.sampled_tokens.inc(t.eval_count)
        self.metrics.embeddings.inc(len(piece.embeddings))


class Now:
    """The collector of what is in memory at the moment."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        """What is read when somebody asks: models, queues, slots, memory."""
        pool, loaded = self.engine.pool, self.engine.pool.loaded()
        yield GaugeMetricFamily("numllama_loaded_models", "Models in memory", len(loaded))
        yield GaugeMetricFamily("numllama_load_queue", "Loads going on or waiting", pool.n_waiting)
        families = [
            GaugeMetricFamily(f"numllama_model_{name}", about, labels=["model"])
            for name, about in (
                ("bytes", "Weights and cache"),
                ("slots", "Sequences that can be computed at once"),
                ("running", "Sequences that are"),
                ("waiting", "Requests that wait for a slot"),
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
