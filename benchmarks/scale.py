"""A model of cost: the speed of clusters of 2 to 10,000 nodes, from what one node and a network were measured to do.

    python -m numllama.benchmarks.scale benchmarks/results/node.json [--batch 8] [--prompt 512] [--page docs/scale.md]

    stage time    its layers, for the rows of one part: read by straight lines between measured numbers of rows
    hop           latency + bytes of the part's hidden states / bandwidth
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
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from .table import markdown

NODES = (2, 4, 8, 16, 64, 256, 1024, 4096, 10_000)
CHUNK, BUSY_CHUNK = 512, 64  # tokens of a prompt in a pass: alone, and while others decode (engine/run/scheduler.py)
PARTS_PER_STAGE, MIN_ROWS = 2, 8  # of a pass, and rows of a prompt in a part (engine/distributed/pipeline.py)
FLOAT_BYTES = 4
ANSWER = 128  # tokens
BEGIN, END = "<!-- begin scale -->", "<!-- end scale -->"


@dataclass(frozen=True)
class Costs:
    """Measured times in seconds.

    layer_s      of one layer, by the number of sequences that decode a token each
    prompt_s     of one layer, by the number of a prompt's tokens
    head_s       of embeddings and output matrix, by the number of sequences
    hop_s        latency of a hop
    byte_s       of each byte of a hop
    request_s    of the driver of a batch, for each request
    """

    n_layer: int
    n_embd: int
    layer_s: Mapping[int, float]
    prompt_s: Mapping[int, float]
    head_s: Mapping[int, float]
    hop_s: float
    byte_s: float
    request_s: float

    def scaled(self, n_layer: int, n_embd: int, layer: float, head: float) -> Costs:
        """Return the costs of a model whose layers and output matrix have `layer` and `head` times as many weights."""

        def times(table: Mapping[int, float], factor: float) -> dict[int, float]:
            return {rows: factor * seconds for rows, seconds in table.items()}

        return replace(
            self,
            n_layer=n_layer,
            n_embd=n_embd,
            layer_s=times(self.layer_s, layer),
            prompt_s=times(self.prompt_s, layer),
            head_s=times(self.head_s, head),
        )


def read_off(table: Mapping[int, float], rows: float) -> float:
    """Return the seconds for `rows`, on straight lines through the measured ones; beyond the last in proportion."""
    known = sorted(table)
    if rows > known[-1]:
        return table[known[-1]] * rows / known[-1]
    return float(np.interp(rows, known, [table[n] for n in known]))


def pass_s(costs: Costs, n_stage: int, rows: int, *, of_prompt: bool = False, at_once: float = math.inf) -> float:
    """Return the seconds of a pass through the stages.

    at_once   stages that can work at the same time without slowing one another: fewer than all where they share cores
    """
    least = MIN_ROWS if of_prompt else 1
    n_part = 1 if n_stage == 1 else max(1, min(PARTS_PER_STAGE * n_stage, rows // least))
    table = costs.prompt_s if of_prompt else costs.layer_s
    stage = read_off(table, rows / n_part) * costs.n_layer / n_stage
    if n_stage == 1:
        return stage
    hop = costs.hop_s + rows / n_part * costs.n_embd * FLOAT_BYTES * costs.byte_s
    n_turn = n_stage + n_part - 1
    active = [min(turn + 1, n_stage, n_part, n_turn - turn) for turn in range(n_turn)]
    return stage * sum(max(1.0, n / at_once) for n in active) + (n_stage + 1) * hop


def step_s(costs: Costs, n_stage: int, n_sequence: int, at_once: float = math.inf) -> float:
    """Return the seconds in which each of `n_sequence` sequences gains a token."""
    return pass_s(costs, n_stage, n_sequence, at_once=at_once) + read_off(costs.head_s, n_sequence)


def first_token_s(costs: Costs, n_stage: int, n_prompt: int, n_sequence: int = 0, at_once: float = math.inf) -> float:
    """Return the seconds from a prompt to its first token, beside `n_sequence` sequences that decode."""
    chunk = BUSY_CHUNK if n_sequence else CHUNK
    sizes = [min(chunk, n_prompt - start) for start in range(0, n_prompt, chunk)]
    beside = step_s(costs, n_stage, n_sequence, at_once) if n_sequence else 0.0
    own = sum(pass_s(costs, n_stage, size, of_prompt=True, at_once=at_once) for size in sizes)
    return own + beside * (len(sizes) + 0.5) + read_off(costs.head_s, 1)  # half a step until the first chunk


def cluster_rows(costs: Costs, n_stage: int, batch: int, n_prompt: int) -> list[dict[str, float]]:
    """Return a line for each number of nodes: tokens per second, first tokens, a file of requests."""
    lines = []
    for n_node in (n for n in NODES if n >= n_stage):
        n_pipeline = n_node // n_stage
        answer = first_token_s(costs, n_stage, n_prompt) / batch + ANSWER * step_s(costs, n_stage, batch) / batch
        lines.append(
            {
                "nodes": n_node,
                "pipelines": n_pipeline,
                "tokens/s": n_pipeline * batch / step_s(costs, n_stage, batch),
                "first token, idle (s)": first_token_s(costs, n_stage, n_prompt),
                "busy (s)": first_token_s(costs, n_stage, n_prompt, batch - 1),
                "requests/s of a file": min(n_pipeline / answer, 1 / costs.request_s),
            }
        )
    return lines


LAYER, HEAD = 44.0e6, 65.5e6  # weights of a layer and of the output matrix of the measured model, TinyLlama's shape
MODELS = {  # name: layers, n_embd, weights of a layer and of the output matrix, stages
    "1.1B, a replica on each node": (22, 2048, 44.0e6, 65.5e6, 1),
    "8B, a replica on each node": (32, 4096, 218.1e6, 525.3e6, 1),
    "70B, four stages of 24 GiB": (80, 8192, 855.6e6, 1050.7e6, 4),
}


def read_costs(path: Path) -> Costs:
    """Read the costs that `bench stages --costs FILE` wrote."""
    values = json.loads(path.read_text())
    tables = {name: {int(n): s for n, s in table.items()} for name, table in values.items() if isinstance(table, dict)}
    return Costs(**values | tables)


def write_costs(costs: Costs, path: Path) -> None:
    """Write costs as JSON."""
    path.write_text(json.dumps(asdict(costs), indent=2) + "\n")


def tables(costs: Costs, batch: int, n_prompt: int) -> str:
    """Return the prediction for MODELS as Markdown."""
    parts = []
    for name, (n_layer, n_embd, layer, head, n_stage) in MODELS.items():
        lines = cluster_rows(costs.scaled(n_layer, n_embd, layer / LAYER, head / HEAD), n_stage, batch, n_prompt)
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
    text = tables(read_costs(options.costs), options.batch, options.prompt)
    if not options.page:
        return print(text)
    before, begin, rest = options.page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    options.page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


if __name__ == "__main__":
    main()
