"""A model of cost: the speed of clusters of 2 to 10,000 nodes, from measurements of one node and one hop.

    python -m numllama.benchmarks.scale benchmarks/results/node.json [--batch 8] [--prompt 512] [--page docs/scale.md]

    stage time    its layers, for the rows of one part: read by straight lines between measured numbers of rows
    hop           latency, with the threads that it wakes, + bytes of the part's hidden states / bandwidth
    pass          stages + parts - 1 turns of a stage's time, as parts follow one another, and stages + 1 hops; a turn
                  is longer where more stages share a machine than it has cores for
    step          a pass + embeddings, output matrix and sampling of all sequences, in the driver
    throughput    pipelines x sequences / step; a batch of requests has one driver, with a time for each request
    first token   the prompt's chunks, each a pass; in a busy pipeline each has 64 tokens and the others' rows

`numllama bench stages FILE` measures the costs and checks the prediction against 2 to 4 processes.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..engine.distributed.pipeline import count_parts
from .table import markdown

NODES = (2, 4, 8, 16, 64, 256, 1024, 4096, 10_000)
CHUNK, BUSY_CHUNK = 512, 64  # tokens of a prompt in a pass: alone, and while others decode (engine/run/scheduler.py)
ANSWER = 128  # tokens
LAYER, HEAD = 44.0e6, 65.5e6  # weights of a layer and of the output matrix of the measured model, TinyLlama's shape
MODELS = {  # name: layers, n_embd, weights of a layer and of the output matrix, stages
    "1.1B, a replica on each node": (22, 2048, 44.0e6, 65.5e6, 1),
    "8B, a replica on each node": (32, 4096, 218.1e6, 525.3e6, 1),
    "70B, four stages of 24 GiB": (80, 8192, 855.6e6, 1050.7e6, 4),
}
TABLES = re.compile("(?<=<!-- begin scale -->\n).*?(?=\n<!-- end scale -->)", re.DOTALL)
Times = Sequence[Sequence[float]]  # (rows, seconds), by rows


@dataclass(frozen=True)
class Costs:
    """Measured times in seconds, of a model whose layers and output matrix have `layer` and `head` as many weights.

    layer_s, prompt_s   of one layer: sequences that decode a token each; tokens of a prompt
    head_s              of embeddings and output matrix, by sequences
    hop_s, byte_s       latency of a hop to a process that waits; each byte
    request_s           of the driver of a batch, for each request
    n_at_once, speedup  stages for which one machine has cores, and how much faster they are than one; 0: a machine each
    """

    n_layer: int
    n_embd: int
    layer_s: Times
    prompt_s: Times
    head_s: Times
    hop_s: float
    byte_s: float
    request_s: float
    layer: float = 1.0
    head: float = 1.0
    n_at_once: int = 0
    speedup: float = 1.0


def read_off(times: Times, rows: float) -> float:
    """Return the seconds for `rows`, on straight lines through the measured ones; beyond the last in proportion."""
    known, seconds = zip(*times, strict=True)
    return float(np.interp(rows, known, seconds)) * max(1.0, rows / known[-1])


def pass_s(costs: Costs, n_stage: int, rows: int, *, of_prompt: bool = False) -> float:
    """Return the seconds of a pass through the stages."""
    n_part = count_parts(rows, costs.n_at_once or n_stage)
    each = read_off(costs.prompt_s if of_prompt else costs.layer_s, rows / n_part)
    stage = each * costs.layer * costs.n_layer / n_stage
    n_turn, n_hop = n_stage + n_part - 1, n_stage + 1 if n_stage > 1 else 0
    active = [min(turn + 1, n_stage, n_part, n_turn - turn) if costs.n_at_once else 1 for turn in range(n_turn)]
    hop = costs.hop_s + rows / n_part * costs.n_embd * 4 * costs.byte_s
    return stage * sum(max(1.0, n / costs.speedup) for n in active) + n_hop * hop


def step_s(costs: Costs, n_stage: int, n_sequence: int) -> float:
    """Return the seconds in which each of `n_sequence` sequences gains a token."""
    return pass_s(costs, n_stage, n_sequence) + read_off(costs.head_s, n_sequence) * costs.head


def first_token_s(costs: Costs, n_stage: int, n_prompt: int, n_sequence: int = 0) -> float:
    """Return the seconds from a prompt to its first token, beside `n_sequence` sequences that decode."""
    chunk = BUSY_CHUNK if n_sequence else CHUNK
    sizes = [min(chunk, n_prompt - start) for start in range(0, n_prompt, chunk)]
    beside = step_s(costs, n_stage, n_sequence) * (len(sizes) + 0.5) if n_sequence else 0.0  # and a half to begin
    own = sum(pass_s(costs, n_stage, size, of_prompt=True) for size in sizes)
    return own + beside + read_off(costs.head_s, 1) * costs.head


def cluster_rows(costs: Costs, n_stage: int, batch: int, n_prompt: int) -> list[dict[str, float]]:
    """Return a line for each number of nodes: tokens per second, first tokens, a file of requests."""
    step, first = step_s(costs, n_stage, batch), first_token_s(costs, n_stage, n_prompt)
    busy, request = first_token_s(costs, n_stage, n_prompt, batch - 1), (first + ANSWER * step) / batch
    return [
        {
            "nodes": n_node,
            "pipelines": (n := n_node // n_stage),
            "tokens/s": n * batch / step,
            "first token, idle (s)": first,
            "busy (s)": busy,
            "requests/s of a file": min(n / request, 1 / costs.request_s),
        }
        for n_node in NODES
        if n_node >= n_stage
    ]


def tables(costs: Costs, batch: int, n_prompt: int) -> str:
    """Return the prediction for MODELS as Markdown."""
    parts = []
    for name, (n_layer, n_embd, layer, head, n_stage) in MODELS.items():
        scaled = replace(costs, n_layer=n_layer, n_embd=n_embd, layer=layer / LAYER, head=head / HEAD)
        lines = cluster_rows(scaled, n_stage, batch, n_prompt)
        parts.append(f"**{name}**\n\n{markdown(lines, list(lines[0]))}")
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(prog="python -m numllama.benchmarks.scale")
    parser.add_argument("costs", type=Path, metavar="COSTS.json", help="what bench stages --costs FILE measured")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="sequences in each pipeline (8)")
    parser.add_argument("--prompt", type=int, default=512, metavar="N", help="tokens of a prompt (512)")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="write the tables between the marks in FILE.md")
    options = parser.parse_args(arguments)
    text = tables(Costs(**json.loads(options.costs.read_text())), options.batch, options.prompt)
    if options.page:
        options.page.write_text(TABLES.sub(text, options.page.read_text()))
    else:
        print(text)


if __name__ == "__main__":
    main()
