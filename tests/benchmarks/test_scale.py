"""The model of cost: passes as an independent simulation finds them, and the tables of docs/scale.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.benchmarks import scale
from numllama.benchmarks.scale import (
    Costs,
    cluster_rows,
    first_token_s,
    pass_s,
    read_costs,
    step_s,
    tables,
    write_costs,
)
from numllama.engine.distributed import pipeline

ROOT = Path(__file__).parents[2]
COSTS = Costs(
    n_layer=12,
    n_embd=100,
    layer_s={1: 1.0, 8: 8.0},
    prompt_s={8: 8.0, 64: 64.0},
    head_s={1: 3.0, 8: 3.0},
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


@given(st.integers(2, 12), st.integers(1, 8))
def test_a_pass_takes_as_long_as_its_parts_take_one_after_another(n_stage, n_part_or_more):
    n = min(n_part_or_more, pipeline.PARTS_PER_STAGE * n_stage)
    stage_s = 12 / n_stage * max(1.0, n_part_or_more / n)
    assert pass_s(COSTS, n_stage, n_part_or_more) == pytest.approx(simulated(n_stage, n, stage_s, 0.0))


def test_hops_take_latency_and_the_bytes_of_a_part():
    costs = Costs(**vars(COSTS) | {"hop_s": 0.5, "byte_s": 0.01})
    assert pass_s(costs, 4, 1) == pytest.approx(simulated(4, 1, 3.0, 0.5 + 100 * 4 * 0.01))
    assert pass_s(costs, 1, 1) == 12.0  # one process: nothing travels


def test_stages_that_share_cores_take_turns():
    assert pass_s(COSTS, 3, 6, at_once=1) == pytest.approx(3 * 6 * 4.0)  # all of the work, one after the other
    assert pass_s(COSTS, 3, 6, at_once=3) == pass_s(COSTS, 3, 6)


def test_a_prompt_is_cut_as_the_engine_cuts_it():
    assert first_token_s(COSTS, 1, 1024) == pytest.approx(12 * 1024 + 3)
    n_part = min(2 * scale.PARTS_PER_STAGE, 64 // scale.MIN_ROWS)
    assert pass_s(COSTS, 2, 64, of_prompt=True) == pytest.approx((2 + n_part - 1) * 64 / n_part * 6)
    assert (scale.PARTS_PER_STAGE, scale.MIN_ROWS) == (pipeline.PARTS_PER_STAGE, pipeline.MIN_ROWS)


def test_nodes_add_throughput_until_the_driver_of_a_file_is_full():
    lines = {line["nodes"]: line for line in cluster_rows(COSTS, 1, 8, 64)}
    assert lines[10_000]["tokens/s"] == pytest.approx(10_000 * 8 / step_s(COSTS, 1, 8))
    assert lines[10_000]["requests/s of a file"] < 1000
    fast = COSTS.scaled(12, 100, 1e-6, 1e-6)
    assert cluster_rows(fast, 1, 8, 64)[-1]["requests/s of a file"] == 1000
    assert [line["pipelines"] for line in cluster_rows(COSTS, 4, 8, 64)][:2] == [1, 2]


def test_costs_are_read_as_they_were_written(tmp_path):
    write_costs(COSTS, tmp_path / "costs.json")
    assert read_costs(tmp_path / "costs.json") == COSTS


def test_the_page_has_the_tables_of_the_measured_node(tmp_path, capsys):
    measured, page = ROOT / "benchmarks/results/node.json", (ROOT / "docs/scale.md").read_text()
    assert tables(read_costs(measured), 8, 512) in page
    copy = tmp_path / "page.md"
    copy.write_text(page.replace("| 10000 ", "| 9999 "))
    scale.main([str(measured), "--page", str(copy)])
    assert copy.read_text() == page
    scale.main([str(measured)])
    assert capsys.readouterr().out.strip() in page
