"""The benchmarks run, check what they time, and write what they print."""

import json
from dataclasses import replace

import numpy as np
import pytest
from numba.core import config

from numllama.benchmarks import decode, kernels, machine, models, report, vision
from numllama.engine.gguf import GGUF
from numllama.kernels.quants import FORMATS_BY_NAME
from tiny import tiny_gguf

compiled = pytest.mark.skipif(config.DISABLE_JIT, reason="LLVM's vectors need the compiler")


@compiled
def test_decode_prints_and_writes_a_row_for_each_task_and_thread_count(tmp_path, capsys):
    model = tiny_gguf(tmp_path / "tiny.gguf")
    options = "--rounds 1 --threads 1 2 --prefill 8 --depth 0 --batch 2".split()
    decode.main([str(model), *options, "--jsonl", str(tmp_path / "rows.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["task"], row["threads"]) for row in rows] == [
        (task, n) for task in ("prefill 8", "decode @0", "batch 2") for n in (1, 2)
    ]
    assert all(row["ours"] > 0 for row in rows)
    assert capsys.readouterr().out.count("\n| batch 2 |") == 2


@compiled
def test_an_image_is_timed_with_each_number_of_threads(tmp_path, capsys):
    mmproj = vision.random_mmproj(tmp_path / "mmproj.gguf", n_layer=2, n_embd=64, n_out=32, image_size=28)
    vision.main([str(mmproj), "--rounds", "1", "--threads", "1", "2", "--jsonl", str(tmp_path / "rows.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["threads"] for row in rows] == [1, 2] and all(row["ours ms"] > 0 for row in rows)
    assert "| threads | ours ms | GFLOP/s | others |" in capsys.readouterr().out


def test_other_rows_than_llama_cpp_s_are_not_timed():
    rows = np.random.default_rng(0).standard_normal((3, 64))
    vision.check(rows, rows + 1e-3)
    with pytest.raises(AssertionError, match="rows differ"):
        vision.check(rows, np.roll(rows, 1, axis=0))


@compiled
def test_a_kernel_is_checked_before_it_is_timed(monkeypatch):
    w = kernels.weight(FORMATS_BY_NAME["Q8_0"], 64, 64)
    x = np.ones((1, 64), np.float32)
    kernels.check(w, x)
    broken = replace(kernels.NUMBA, matmul=lambda w, x: 1.001 * kernels.packed.matmul(w, x))
    monkeypatch.setattr(kernels, "NUMBA", broken)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        kernels.check(w, x)


@compiled
def test_the_machine_s_limits_are_positive():
    assert machine.read_bandwidth(1 << 22) > 0 and machine.dot_peak() > 0 and machine.fma_peak() > 0


def test_a_model_of_another_format_keeps_shapes_and_key_values(tmp_path):
    source = tiny_gguf(tmp_path / "tiny.gguf")
    models.requantized(str(source), FORMATS_BY_NAME["Q8_0"], str(tmp_path / "other.gguf"))
    before, after = GGUF.open(source), GGUF.open(tmp_path / "other.gguf")
    assert {name: w.shape for name, w in after.tensors.items()} == {name: w.shape for name, w in before.tensors.items()}
    assert after.kv.keys() == before.kv.keys()
    assert after.tensors["blk.0.attn_norm.weight"].format == before.tensors["blk.0.attn_norm.weight"].format


def test_a_table_leaves_missing_values_out():
    table = report.markdown([{"a": 1234.5, "b": None}, {"a": 0.01234}], ["a", "b"])
    assert table == "| a | b |\n|---|---|\n| 1234 |  |\n| 0.0123 |  |"
