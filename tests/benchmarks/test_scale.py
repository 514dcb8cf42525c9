"""The model of cost: passes as an independent simulation finds them, and the tables of docs/scale.md."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.api.cli import main
from numllama.benchmarks import scale, stages
from numllama.benchmarks.scale import Costs, cluster_rows, first_token_s, pass_s, step_s, tables
from numllama.engine.distributed.pipeline import count_parts
from numllama.engine.model.load import load_model
from tiny import tiny_gguf

ROOT = Path(__file__).parents[2]
COSTS = Costs(
    n_layer=12,
    n_embd=100,
    layer_s=[[1, 1.0], [8, 8.0]],
    prompt_s=[[8, 8.0], [64, 64.0]],
    head_s=[[1, 3.0], [8, 3.0]],
    hop_s=0.0,
    byte_s=0.0,
    request_s=1e-3,
)


def simulated(n_stage, n_part, stage_s, hop_s):
    """Compute when the last part leaves the last stage and is back, event by event."""
    free = [0.0] * n_stage
    for _ in range(n_part):
        ready = hop_s
        for i in range(n_stage):
            free[i] = max(free[i], ready) + stage_s
            ready = free[i] + hop_s
    return ready


@given(st.integers(2, 12), st.integers(1, 300))
def test_a_pass_takes_as_long_as_its_parts_take_one_after_another(n_stage, n_row):
    n = count_parts(n_row, n_stage)
    stage_s = 12 / n_stage * max(1.0, n_row / n)
    assert pass_s(COSTS, n_stage, n_row) == pytest.approx(simulated(n_stage, n, stage_s, 0.0))


def test_hops_take_latency_and_the_bytes_of_a_part():
    costs = replace(COSTS, hop_s=0.5, byte_s=0.01)
    assert pass_s(costs, 4, 1) == pytest.approx(simulated(4, 1, 3.0, 0.5 + 100 * 4 * 0.01))
    assert pass_s(costs, 1, 1) == 12.0  # one process: nothing travels


def test_stages_that_share_cores_take_turns():
    assert pass_s(replace(COSTS, n_at_once=1), 3, 64) == pytest.approx(12 * 64)  # one part, as in one process
    n = count_parts(64, 2)
    assert pass_s(replace(COSTS, n_at_once=2, speedup=1), 3, 64) == pytest.approx(12 * 64)  # no gain, no loss
    twice = pass_s(replace(COSTS, n_at_once=2, speedup=2), 2, 64)
    assert twice == pytest.approx(simulated(2, n, 6 * 64 / n, 0.0)) == pass_s(COSTS, 2, 64)


def test_a_prompt_is_cut_as_the_engine_cuts_it():
    assert first_token_s(COSTS, 1, 1024) == pytest.approx(12 * 1024 + 3)
    n_part = count_parts(64, 2)
    assert pass_s(COSTS, 2, 64, of_prompt=True) == pytest.approx((2 + n_part - 1) * 64 / n_part * 6)


@pytest.mark.parametrize("n_at_once", [1, 2])
def test_costs_come_back_from_the_times_that_they_predict(tmp_path, n_at_once):
    model = load_model(tiny_gguf(tmp_path / "m.gguf", n_layer=12))
    layers, embeddings = [[n, 2.0 + n] for n in stages.ROWS], [[n, 0.1 * n] for n in stages.ROWS]
    prompts = [[n, 1.0 + n] for n in stages.PROMPT_ROWS]
    costs = replace(COSTS, n_embd=64, layer_s=layers, prompt_s=prompts, head_s=embeddings, hop_s=0.5, byte_s=1e-4)
    seconds = {("head", n): s for n, s in embeddings} | {"row": 0.2, "rows": 0.2 + 2e-4 * 64 * 4 * 255, "requests": 0.1}
    seconds |= {("step", 0, n): step_s(costs, 1, n) for n in stages.ROWS}
    seconds |= {("prompt", 0, n): first_token_s(costs, 1, n) for n in stages.PROMPT_ROWS}
    seconds |= {(kind, "all cores"): seconds[kind, 0, n] / n_at_once for kind, n in (("step", 1), ("prompt", 256))}
    seconds["step", 1, 1] = step_s(costs, 1, 1) + 2 * 0.5
    found = stages.costs_of(seconds, model)
    for name, expected in vars(costs).items():
        np.testing.assert_allclose(getattr(found, name), expected)
    shared = replace(costs, n_at_once=n_at_once, speedup=n_at_once)
    for n in stages.SEQUENCES:
        seconds["step", 3, n] = step_s(shared, 3, n)
    seconds["prompt", 3, stages.PROMPT] = 2 * first_token_s(shared, 3, stages.PROMPT)
    lines = stages.compared(seconds, replace(found, n_at_once=n_at_once), 3)
    assert [line["deviation"] for line in lines] == ["-50 %", *["+0 %"] * len(stages.SEQUENCES)]


def test_nodes_add_throughput_until_the_driver_of_a_file_is_full():
    lines = {line["nodes"]: line for line in cluster_rows(COSTS, 1, 8, 64)}
    assert lines[10_000]["tokens/s"] == pytest.approx(10_000 * 8 / step_s(COSTS, 1, 8))
    assert lines[10_000]["requests/s of a file"] < 1000
    fast = replace(COSTS, layer=1e-6, head=1e-6)
    assert cluster_rows(fast, 1, 8, 64)[-1]["requests/s of a file"] == 1000
    assert [line["pipelines"] for line in cluster_rows(COSTS, 4, 8, 64)][:2] == [1, 2]


def test_the_page_has_the_tables_of_the_measured_node(tmp_path, capsys):
    measured, page = ROOT / "benchmarks/results/node.json", (ROOT / "docs/scale.md").read_text()
    assert tables(Costs(**json.loads(measured.read_text())), 8, 512) in page
    copy = tmp_path / "page.md"
    copy.write_text(page.replace("| 10000 ", "| 9999 "))
    scale.main([str(measured), "--page", str(copy)])
    assert copy.read_text() == page
    scale.main([str(measured)])
    assert capsys.readouterr().out.strip() in page


@pytest.mark.ray
def test_stages_are_measured_beside_their_prediction(cluster, tmp_path, capsys):
    path, costs = tiny_gguf(tmp_path / "m.gguf", n_layer=4), tmp_path / "costs.json"
    flags = "--stages", "2", "3", "--rounds", "1", "--ray", cluster.address, "--costs", str(costs)
    status = main(["bench", "stages", str(path), *flags])
    out = capsys.readouterr().out
    (verdict,) = re.findall(r"^all within 15 %: (yes|no) \(worst \d+ %\)$", out, re.MULTILINE)
    assert status == (verdict == "no")
    assert len(re.findall(r"^\| [23] .* [+-]\d+ % ", out, re.MULTILINE)) == 2 * (1 + len(stages.SEQUENCES))
    assert Costs(**json.loads(costs.read_text())).n_layer == 4
