"""`bench stages FILE`: a model in 2 to 4 stages, measured beside what scale.py predicts from one process.

    numllama bench stages FILE.gguf [--threads 1] [--rounds 10] [--costs FILE.json]

one process     seconds of a layer, by rows; of embeddings and output matrix; of a hop from process to process
at once         how many stages this machine runs without slowing one another: the speedup of a layer by all its cores
predicted       scale.py, from these
measured        a model in stages (engine/distributed) on a Ray cluster here; all times are the least of the rounds, as
                other programs only add time
overhead        time of a token in stages, beyond that in one process with as many threads, for each stage
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..engine.distributed.cluster import join_cluster, node_address
from ..engine.distributed.pipeline import StagedCache
from ..engine.distributed.ring import RELAY_GROUP, Address, Port, Ring, relay
from ..engine.distributed.stage import run_layers
from ..engine.model.batch import Batch
from ..engine.model.cache import KVCache
from ..engine.model.decoder import embeddings, forward, logits
from ..engine.model.load import load_model
from ..engine.model.model import Model, require_decoder
from ..engine.model.trace import no_tap
from ..kernels import NUMBA, threads
from .machine import best
from .scale import Costs, first_token_s, step_s, write_costs
from .table import markdown

STAGES, SEQUENCES = (2, 3, 4), (1, 4, 8)
PROMPT, DEPTH = 256, 64  # tokens of the prompt that is measured; cached before a measured token
ROWS, PROMPT_ROWS = (1, 2, 4, 8), (8, 16, 32, 64, 128, 256)
LARGE_ROWS = 256  # of hidden states that measure a network's bandwidth


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


def step_of(n: int, at: int) -> Batch:
    """Return the batch of `n` sequences that decode a token at position `at`."""
    return Batch.join([Batch.of([3 + at], slot, at) for slot in range(n)])


def prompt_batch(n: int) -> Batch:
    """Return the batch of a prompt of `n` tokens."""
    return Batch.of([3 + i % 250 for i in range(n)])


def measure_costs(model: Model, n_round: int, address: str) -> Costs:
    """Measure what one process and a hop cost; the number of threads is that of this Python thread."""
    cache, n_layer = model.new_cache(PROMPT, max(SEQUENCES)), model.hparams.n_layer
    zeros = np.zeros((PROMPT, model.hparams.n_embd), np.float32)

    def layers(batch: Batch) -> float:
        rows = zeros[: len(batch.tokens)]
        return best(lambda: run_layers(model, rows.copy(), batch, cache, NUMBA), n_round) / n_layer

    def head(batch: Batch) -> float:
        return best(lambda: logits(model, embeddings(model, batch, NUMBA, no_tap), NUMBA), n_round)

    hop, byte, request = measure_hops(zeros, n_round, address)
    return Costs(
        n_layer=n_layer,
        n_embd=model.hparams.n_embd,
        layer_s={n: layers(step_of(n, DEPTH)) for n in ROWS},
        prompt_s={n: layers(prompt_batch(n)) for n in PROMPT_ROWS},
        head_s={n: head(step_of(n, DEPTH)) for n in ROWS},
        hop_s=hop,
        byte_s=byte,
        request_s=request,
    )


def measure_hops(rows: np.ndarray, n_round: int, address: str) -> tuple[float, float, float]:
    """Return the seconds of a hop, of each byte more, and of an actor call."""
    ray = join_cluster(address)
    actor = ray.remote(num_cpus=0, concurrency_groups={RELAY_GROUP: 1})(PassOn)
    actors = [actor.remote() for _ in range(2)]
    ring = Ring(ray, actors)

    def seconds(n: int) -> float:
        return best(lambda: ring.run([(rows[:n], prompt_batch(n))]), 20 * n_round) / (len(actors) + 1)

    hop, large = seconds(1), seconds(LARGE_ROWS)
    n_call = 100
    calls = best(lambda: ray.get([actors[0].nothing.remote("x" * 1000) for _ in range(n_call)]), n_round) / n_call
    ring.close()
    for one_actor in actors:
        ray.kill(one_actor)
    return hop, max(0.0, large - hop) / rows[1:LARGE_ROWS].nbytes, calls


def speedup(model: Model, batch: Batch, n_thread: int, n_round: int) -> float:
    """Return how much faster all cores run the layers than `n_thread` threads do."""
    cache, rows = (
        model.new_cache(PROMPT, max(SEQUENCES)),
        np.zeros((len(batch.tokens), model.hparams.n_embd), np.float32),
    )
    seconds = []
    for n in (threads.N_CORE, n_thread):
        threads.limit(n)
        seconds.append(best(lambda: run_layers(model, rows.copy(), batch, cache, NUMBA), n_round))
    return max(1.0, seconds[1] / seconds[0])


def pass_seconds(model: Model, cache: KVCache, batch: Batch, n_round: int) -> float:
    """Return the least seconds of a forward pass."""
    return best(lambda: forward(model, batch, cache, NUMBA), n_round)


def measured_lines(
    model: Model, costs: Costs, stages: Sequence[int], n_round: int, n_thread: int, address: str
) -> list[dict[str, Any]]:
    """Measure models in stages, and return what was predicted, what was measured and the error, a line for each."""
    lines = list[dict[str, Any]]()
    at_once = speedup(model, step_of(2, DEPTH), n_thread, 4 * n_round)
    at_once_of_prompt = speedup(model, prompt_batch(64), n_thread, n_round)
    print(f"at once: {at_once:.2f} stages that decode, {at_once_of_prompt:.2f} with a prompt")
    own = model.new_cache(PROMPT, max(SEQUENCES))
    for n_stage in stages:
        cache = StagedCache(
            [], model, PROMPT, max(SEQUENCES), "f16", n_stage=n_stage, n_thread=n_thread, address=address
        )
        found = pass_seconds(model, cache, prompt_batch(PROMPT), n_round)
        figures = {"first token (s)": (first_token_s(costs, n_stage, PROMPT, at_once=at_once_of_prompt), found)}
        for n in SEQUENCES:
            found = pass_seconds(model, cache, step_of(n, DEPTH), 4 * n_round)
            figures[f"tokens/s, {n} at once"] = n / step_s(costs, n_stage, n, at_once), n / found
            if n == 1:
                alone = pass_seconds(model, own, step_of(n, DEPTH), 4 * n_round)
                print(f"{n_stage} stages: {1e3 * (found - alone) / n_stage:.2f} ms overhead for each token and stage")
        cache.close()
        for name, (predicted, found) in figures.items():
            error = f"{100 * (predicted / found - 1):+.0f} %"
            lines.append({"stages": n_stage, "": name, "predicted": predicted, "measured": found, "error": error})
    return lines


def bench_stages(options: argparse.Namespace) -> int:
    """Run `bench stages`.  -> exit status: 1 if a prediction is wrong by more than --within.  Raises: EngineError"""
    model = load_model(options.file, {})
    require_decoder(model)
    threads.limit(options.threads)
    address = "" if options.ray == "local" else options.ray
    costs = measure_costs(model, options.rounds, address)
    if options.costs:
        write_costs(costs, options.costs)
    lines = measured_lines(model, costs, options.stages, options.rounds, options.threads, address)
    print(f"hop {1e3 * costs.hop_s:.3f} ms, {1e-6 / max(costs.byte_s, 1e-12):.0f} MB/s\n")
    print(markdown(lines, list(lines[0])))
    worst = max(abs(line["predicted"] / line["measured"] - 1) for line in lines)
    print(f"\nworst error {100 * worst:.0f} %, expected at most {100 * options.within:.0f} %")
    return int(worst > options.within)
