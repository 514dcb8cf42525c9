"""The benchmarks run, check what they measure, and write what they print."""

import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
from adapters import tiny_lora
from numba.core import config
from tiny_encoder import tiny_encoder

from numllama.benchmarks import decode, kernels, machine, models, report, start, vision, with_torch
from numllama.engine.errors import RequestError
from numllama.engine.gguf.read import GGUF
from numllama.engine.model.load import load_model
from numllama.engine.store.file import FileModel
from numllama.kernels.quants import FORMATS_BY_NAME
from tiny import tiny_gguf

compiled = pytest.mark.skipif(config.DISABLE_JIT, reason="LLVM's vectors need the compiler")


@compiled
def test_decode_prints_and_writes_a_row_for_each_task_and_thread_count(tmp_path, capsys):
    model = tiny_gguf(tmp_path / "tiny.gguf")
    options = "--rounds 1 --threads 1 2 --prefill 8 --depth 0 --batch 2".split()
    decode.main([str(model), *options, "--jsonl", str(tmp_path / "rows.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["task"], row.get("threads")) for row in rows] == [
        *((task, n) for task in ("prefill 8", "decode @0", "batch 2") for n in (1, 2)),
        *([("rss, MiB", None)] if hasattr(os, "wait4") else []),
        ("load, s", None),
    ]
    assert all(row["ours"] > 0 for row in rows)
    assert capsys.readouterr().out.count("\n| batch 2 |") == 2


@compiled
def test_an_encoder_is_refused(tmp_path):
    with pytest.raises(RequestError, match="'bert' is an encoder"):
        decode.main([str(tiny_encoder(tmp_path / "bert.gguf"))])


@compiled
def test_a_model_is_timed_with_its_adapters(tmp_path, capsys):
    """The printed name is the requested one, not that of a file in the store.  llama-bench cannot apply adapters."""
    path = tiny_gguf(tmp_path / "tiny.gguf")
    files = FileModel.of(path, [tiny_lora(tmp_path / "lora.gguf", path)])
    assert decode.loaded(files).weights.blk[0].attn_q.low_rank
    options = "mine --rounds 1 --threads 1 --prefill 8 --depth --batch".split()
    decode.main(options, find={"mine": files}.get)
    assert ", model mine, " in capsys.readouterr().out
    with pytest.raises(RequestError, match="'mine' has an adapter, which llama-bench does not apply"):
        decode.main([*options, "--peer", str(tmp_path)], find={"mine": files}.get)


@pytest.mark.parametrize(("others", "warned"), [(1.5, True), (0.1, False), (None, False)])
def test_a_busy_machine_is_reported(others, warned):
    options = decode.read_options(["m"], None)
    assert ("other processes used 1.5 cores" in " ".join(decode.legend(["ours"], options, others))) is warned


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--rounds 0", "argument --rounds: '0', expected a whole number from 1"),
        ("--round 3", "unrecognized arguments: --round 3"),
        ("--peer nowhere", "nowhere: llama-bench, llama-batched-bench, llama-server missing"),
    ],
)
def test_invalid_options_are_one_line_errors(tmp_path, options, message):
    with pytest.raises(RequestError, match=f"^{message}"):
        decode.main([str(tiny_gguf(tmp_path / "tiny.gguf")), *options.split()])


def test_an_image_is_timed_with_each_number_of_threads(tmp_path, capsys):
    mmproj = vision.random_mmproj(tmp_path / "mmproj.gguf", n_layer=2, n_embd=64, n_out=32, image_size=28)
    vision.main([str(mmproj), "--rounds", "1", "--threads", "1", "2", "--jsonl", str(tmp_path / "rows.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["threads"] for row in rows] == [1, 2] and all(row["ours ms"] > 0 for row in rows)
    assert "| threads | ours ms | GFLOP/s | others |" in capsys.readouterr().out


def test_rows_that_differ_from_llama_cpp_s_are_not_timed():
    rows = np.random.default_rng(0).standard_normal((3, 64))
    vision.check_vision(rows, rows + 1e-3)
    with pytest.raises(AssertionError, match="rows differ"):
        vision.check_vision(rows, np.roll(rows, 1, axis=0))


@compiled
def test_a_peer_is_compared_round_by_round(tmp_path, monkeypatch, capsys):
    """llama-bench and the others are scripts here that always print 100 tokens per second."""
    for name in ("llama-bench", "llama-batched-bench", "llama-server"):
        program = tmp_path / name
        program.write_text(f"#!{sys.executable}\nprint('[{{\"avg_ts\": 100.0}}]')\n")
        program.chmod(0o755)
    monkeypatch.setattr("numllama.benchmarks.llama_cpp.seconds_until_healthy", lambda programs, path: 1e9)
    model = tiny_gguf(tmp_path / "tiny.gguf")
    options = "--rounds 3 --threads 1 --prefill 8 --depth 0 --batch".split()
    decode.main([str(model), *options, "--peer", str(tmp_path), "--jsonl", str(tmp_path / "rows.jsonl")])
    rows = {row["task"]: row for row in map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())}
    assert rows["decode @0"]["llama.cpp"] == 100 and rows["load, s"]["ratio"] < 1e-3
    assert rows["prefill 8"]["least"] <= rows["prefill 8"]["ratio"] <= rows["prefill 8"]["most"]
    assert "llama.cpp unknown" in capsys.readouterr().out  # the script prints no commit


@compiled
@pytest.mark.oracle
def test_torch_runs_prompts_of_the_same_shape(tmp_path):
    pytest.importorskip("transformers", reason="needs torch and transformers")
    hp = load_model(tiny_gguf(tmp_path / "tiny.gguf")).hparams
    assert with_torch.prefill_with_torch(hp)(8, 1) > 0


def test_peak_memory_is_the_child_s_own():
    if not hasattr(os, "wait4"):
        pytest.skip("needs os.wait4")
    block = "x = b'x' * (600 << 20)"
    assert start.peak_memory([sys.executable, "-c", block]) > 600 << 20
    with pytest.raises(RuntimeError, match="exited with 3"):
        start.peak_memory([sys.executable, "-c", "raise SystemExit(3)"])


@compiled
def test_a_kernel_is_checked_before_it_is_timed(monkeypatch):
    w = kernels.weight(FORMATS_BY_NAME["Q8_0"], 64, 64)
    x = np.ones((1, 64), np.float32)
    kernels.check_kernel(w, x)
    broken = replace(kernels.NUMBA, matmul=lambda w, x: 1.001 * kernels.packed.matmul(w, x))
    monkeypatch.setattr(kernels, "NUMBA", broken)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        kernels.check_kernel(w, x)


@compiled
def test_the_machine_s_limits_are_positive():
    assert machine.read_bandwidth(1 << 22) > 0 and machine.dot_peak() > 0 and machine.fma_peak() > 0


def test_requantizing_keeps_shapes_and_key_values(tmp_path):
    source = tiny_gguf(tmp_path / "tiny.gguf")
    models.requantize_file(str(source), FORMATS_BY_NAME["Q8_0"], str(tmp_path / "other.gguf"))
    before, after = GGUF.open(source), GGUF.open(tmp_path / "other.gguf")
    assert {name: w.shape for name, w in after.tensors.items()} == {name: w.shape for name, w in before.tensors.items()}
    assert after.kv.keys() == before.kv.keys()
    assert after.tensors["blk.0.attn_norm.weight"].format == before.tensors["blk.0.attn_norm.weight"].format


def test_a_table_leaves_missing_values_out():
    table = report.markdown([{"a": 1234.5, "b": None}, {"a": 0.01234}], ["a", "b"])
    assert table == "| a | b |\n|---|---|\n| 1234 |  |\n| 0.0123 |  |"
