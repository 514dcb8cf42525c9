"""`bench stages FILE`: a model in 2 to 4 stages, measured beside what scale.py predicts from one process and a hop.

    numllama bench stages FILE.gguf [--threads 1] [--rounds 10] [--costs FILE.json]

one process     seconds of a layer, by rows; of embeddings and output matrix
hop             half of what a token takes more where all layers are one stage, in a process of its own: sockets, and
                waking its threads; each byte is measured in a ring that computes nothing
at once         stages for which this machine has cores, and their speedup: that of a pass by all cores
predicted       scale.py, from these
measured        a model in stages (engine/distributed) on a Ray cluster here
overhead        time of a token in stages, beyond that in one process with as many threads, for each stage

All take turns, and all times are the least of the rounds, as other programs only add time.  Each number of stages has a
process for each stage, with its part of the model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np

from ..engine.distributed.cluster import join_cluster, node_address
from ..engine.distributed.pipeline import StagedCache
from ..engine.distributed.ring import RELAY_GROUP, Address, Port, Ring, relay
from ..engine.model.batch import Batch
from ..engine.model.decoder import embeddings, forward, logits
from ..engine.model.load import load_model
from ..engine.model.model import Model, require_decoder
from ..engine.model.trace import no_tap
from ..kernels import NUMBA, threads
from .machine import best
from .scale import Costs, first_token_s, step_s
from .table import markdown

SEQUENCES = (1, 4, 8, 32)
PROMPT, DEPTH = 256, 64  # tokens of the prompt that is measured; cached before a measured token
ROWS, PROMPT_ROWS = (1, 2, 4, 8, 16, 32), (8, 16, 32, 64, 128, 256)
STEPS_A_ROUND = 5  # of decoding: a step takes a tenth of a prompt's time
N_CALL = 100  # actor calls that are measured together


class PassOn:
    """An actor of a ring that computes nothing."""

    def listen(self, key: bytes) -> Address:
        """Open a port for the actor before.  -> its address"""
        self._port = Port(node_address(join_cluster()), key)
        return self._port.address

    def relay(self, following: Address, key: bytes) -> None:
        """Pass on what comes."""
        relay(self._port, following, key, lambda value: value)

    def nothing(self, body: Any) -> Any:
        """Return what came."""
        return body


def step_of(n: int) -> Batch:
    """Return the batch of `n` sequences that decode a token."""
    return Batch.join([Batch.of([3 + DEPTH], slot, DEPTH) for slot in range(n)])


def prompt_batch(n: int) -> Batch:
    """Return the batch of a prompt of `n` tokens."""
    return Batch.of([3 + i % 250 for i in range(n)])


def least_seconds(calls: Mapping[Hashable, tuple[Callable[[], Any], int]], n_round: int) -> dict[Hashable, float]:
    """Return the least seconds of each call, which take turns.  calls: name: (call, how often in a row)"""
    found = [{name: best(call, n) for name, (call, n) in calls.items()} for _ in range(n_round)]
    return {name: min(times[name] for times in found) for name in calls}


class Measurement:
    """A model in this process, in a stage, and in several; `calls` has what is to be measured."""

    def __init__(self, model: Model, stages: list[int], n_thread: int, address: str):
        self.model, self.n_thread, self.ray = model, n_thread, join_cluster(address)
        self.own = model.new_cache(PROMPT, max(SEQUENCES))
        self.caches = {
            n: StagedCache([], model, PROMPT, max(SEQUENCES), "f16", n_stage=n, n_thread=n_thread, address=address)
            for n in (1, *stages)
        }
        actor = self.ray.remote(num_cpus=0, concurrency_groups={RELAY_GROUP: 1})(PassOn)
        self.actors = [actor.remote()]
        self.ring = Ring(self.ray, self.actors)
        self.zeros = np.zeros((PROMPT, model.hparams.n_embd), np.float32)

    def close(self) -> None:
        """End all processes."""
        self.ring.close()
        for actor in self.actors:
            self.ray.kill(actor)
        for cache in self.caches.values():
            cache.close()

    def forward(self, batch: Batch, n_stage: int = 0, n_thread: int = 0) -> None:
        """Run a forward pass; in this process if `n_stage` is 0, with so many threads."""
        threads.limit(n_thread or self.n_thread)
        forward(self.model, batch, self.caches[n_stage] if n_stage else self.own, NUMBA)

    def head(self, batch: Batch) -> None:
        """Compute embeddings and logits."""
        logits(self.model, embeddings(self.model, batch, NUMBA, no_tap), NUMBA)

    def calls(self) -> dict[Hashable, tuple[Callable[[], Any], int]]:
        """Return what is measured: name: (call, how often in a row)."""
        one, many, all_cores = step_of(1), prompt_batch(PROMPT), threads.N_CORE
        calls = dict[Hashable, tuple[Callable[[], Any], int]]()
        for n in ROWS:
            calls["head", n] = partial(self.head, step_of(n)), STEPS_A_ROUND
            calls["step", 0, n] = partial(self.forward, step_of(n)), STEPS_A_ROUND
        for n in PROMPT_ROWS:
            calls["prompt", 0, n] = partial(self.forward, prompt_batch(n)), 1
        calls["step", "all cores"] = partial(self.forward, one, n_thread=all_cores), STEPS_A_ROUND
        calls["prompt", "all cores"] = partial(self.forward, many, n_thread=all_cores), 1
        for n_stage in self.caches:
            for n in SEQUENCES:
                calls["step", n_stage, n] = partial(self.forward, step_of(n), n_stage), STEPS_A_ROUND
            calls["prompt", n_stage, PROMPT] = partial(self.forward, many, n_stage), 1
        calls["row"] = partial(self.ring.run, [(self.zeros[:1], one)]), STEPS_A_ROUND
        calls["rows"] = partial(self.ring.run, [(self.zeros, many)]), STEPS_A_ROUND
        calls["requests"] = self.requests, 1
        return calls

    def requests(self) -> None:
        """Call an actor N_CALL times."""
        self.ray.get([self.actors[0].nothing.remote("x" * 1000) for _ in range(N_CALL)])


def costs_of(seconds: Mapping[Hashable, float], model: Model) -> Costs:
    """Return the costs of a cluster of such machines."""
    n_layer, n_embd = model.hparams.n_layer, model.hparams.n_embd
    n_byte = 4 * n_embd * (PROMPT - 1)
    return Costs(
        n_layer=n_layer,
        n_embd=n_embd,
        layer_s=[[n, (seconds["step", 0, n] - seconds["head", n]) / n_layer] for n in ROWS],
        prompt_s=[[n, (seconds["prompt", 0, n] - seconds["head", 1]) / n_layer] for n in PROMPT_ROWS],
        head_s=[[n, seconds["head", n]] for n in ROWS],
        hop_s=max(0.0, seconds["step", 1, 1] - seconds["step", 0, 1]) / 2,
        byte_s=max(0.0, seconds["rows"] - seconds["row"]) / 2 / n_byte,
        request_s=seconds["requests"] / N_CALL,
    )


def compared(seconds: Mapping[Hashable, float], costs: Costs, n_stage: int) -> list[dict[str, Any]]:
    """Return what was predicted, what was measured and the deviation, a line for each case of `n_stage` stages."""

    def line(name: str, predicted: float, found: float) -> dict[str, Any]:
        deviation = f"{100 * (predicted / found - 1):+.0f} %"
        return {"stages": n_stage, "": name, "predicted": predicted, "measured": found, "deviation": deviation}

    prefill, decoding = (
        replace(costs, speedup=max(1.0, seconds[kind, 0, n] / seconds[kind, "all cores"]))
        for kind, n in (("prompt", PROMPT), ("step", 1))
    )
    first, steps = first_token_s(prefill, n_stage, PROMPT), {n: step_s(decoding, n_stage, n) for n in SEQUENCES}
    return [
        line("first token (s)", first, seconds["prompt", n_stage, PROMPT]),
        *(line(f"tokens/s, {n} at once", n / steps[n], n / seconds["step", n_stage, n]) for n in SEQUENCES),
    ]


def bench_stages(options: argparse.Namespace) -> int:
    """Run `bench stages`.  -> exit status: 1 if a prediction is wrong by more than --within.  Raises: EngineError"""
    model = load_model(options.file, {})
    require_decoder(model)
    threads.limit(options.threads)
    measurement = Measurement(model, options.stages, options.threads, "" if options.ray == "local" else options.ray)
    try:
        seconds = least_seconds(measurement.calls(), options.rounds)
        costs, at_once = costs_of(seconds, model), {n: measurement.caches[n].n_at_once for n in options.stages}
    finally:
        measurement.close()
    if options.costs:
        options.costs.write_text(json.dumps(asdict(costs), indent=2) + "\n")
    print(f"hop {1e3 * costs.hop_s:.3f} ms, {1e-6 / max(costs.byte_s, 1e-12):.0f} MB/s")
    for n in options.stages:
        more = seconds["step", n, 1] - seconds["step", 0, 1]
        print(f"{n} stages, {at_once[n]} at once: {1e3 * more / n:.2f} ms overhead for each token and stage")
    lines = [line for n in options.stages for line in compared(seconds, replace(costs, n_at_once=at_once[n]), n)]
    print(f"\n{markdown(lines, list(lines[0]))}")
    worst = max(abs(line["predicted"] / line["measured"] - 1) for line in lines)
    verdict = "no" if worst > options.within else "yes"
    print(f"\nall within {100 * options.within:.0f} %: {verdict} (worst {100 * worst:.0f} %)")
    return int(worst > options.within)
