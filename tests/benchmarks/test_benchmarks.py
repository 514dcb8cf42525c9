"""The benchmarks run, check what they measure, and write what they print."""

import os
import sys
from dataclasses import replace

import numpy as np
import pytest
from adapters import tiny_lora
from numba.core import config
from tiny_encoder import tiny_encoder

from numllama.benchmarks import command, decode, kernels, machine, models, results, start, table, vision, with_torch
from numllama.engine.errors import EngineError, RequestError
from numllama.engine.gguf.read import GGUF
from numllama.engine.model.load import load_model
from numllama.engine.store.file import FileModel
from numllama.kernels.quants import FORMATS_BY_NAME
from tiny import tiny_gguf

compiled = pytest.mark.skipif(config.DISABLE_JIT, reason="LLVM's vectors need the compiler")


def bench(*arguments, find=FileModel.of):
    """Run `numllama bench` and return its exit status."""
    return command.run_part([str(argument) for argument in arguments], find)


def rows_of(path):
    """Return {(cell, contender): rounds} of a file of results."""
    (run,) = results.read_runs([path])
    found = {}
    for line in run.rounds:
        found.setdefault((line["cell"], line["contender"]), []).append(line["figures"])
    return found


SMALL = "--rounds 1 --prefill 8 --depth 0 --batch 2 --busy".split()


@compiled
def test_a_model_has_a_row_for_each_task_and_thread_count(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    assert bench(tiny_gguf(tmp_path / "tiny.gguf"), *SMALL, "--threads", 1, 2, "--jsonl", path) == 0
    found = rows_of(path)
    assert [cell for cell, _ in found] == [
        *(f"{task}, {n}" for task in ("prefill 8", "decode @0", "batch 2") for n in ("1 thread", "2 threads")),
        "load",
    ]
    assert all(figures.get("tok_s", 1) > 0 for rounds in found.values() for figures in rounds)
    assert found["load", "numllama"][0]["load_s"] > 0
    out = capsys.readouterr().out
    assert out.count("| batch 2, 2 threads ") == 1 and "stopped: the rounds are done" in out


@pytest.fixture
def no_memory(monkeypatch):
    """Do not start a process for each model to measure its memory."""
    monkeypatch.setattr(decode, "peak_memories", lambda files, programs: {})


@compiled
@pytest.mark.usefixtures("no_memory")
def test_models_are_compared_with_one_another(tmp_path, capsys):
    models = [tiny_gguf(tmp_path / f"{name}.gguf") for name in "ab"]
    assert bench(*models, *SMALL, "--threads", 1) == 0
    assert "| b.gguf / a.gguf " in capsys.readouterr().out


@compiled
def test_an_encoder_is_refused(tmp_path):
    with pytest.raises(RequestError, match="'bert' is an encoder"):
        bench("model", tiny_encoder(tmp_path / "bert.gguf"))


@compiled
def test_a_model_is_timed_with_its_adapters(tmp_path, capsys):
    """The printed name is the requested one, not that of a file in the store.  llama-bench cannot apply adapters."""
    path = tiny_gguf(tmp_path / "tiny.gguf")
    files = FileModel.of(path, [tiny_lora(tmp_path / "lora.gguf", path)])
    assert decode.loaded(files).weights.blk[0].attn_q.low_rank
    programs(tmp_path)
    with pytest.raises(RequestError, match="'mine' has an adapter, which llama-bench does not apply"):
        bench("mine", *SMALL, "--peer", tmp_path, find={"mine": files}.get)


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--rounds 0", "argument --rounds: '0', expected a whole number from 1 on"),
        ("--round 3", "unrecognized arguments: --round 3"),
        ("--peer nowhere", "nowhere: llama-bench, llama-batched-bench, llama-server missing"),
        ("--jsonl /nowhere/x --start", "/nowhere/x cannot be written: No such file or directory"),
    ],
)
def test_invalid_options_are_one_line_errors(tmp_path, options, message):
    with pytest.raises(RequestError, match=f"^{message}"):
        bench(tiny_gguf(tmp_path / "tiny.gguf"), *options.split())


def test_an_image_is_timed_with_each_number_of_threads(tmp_path, capsys):
    mmproj = vision.random_mmproj(tmp_path / "mmproj.gguf", n_layer=2, n_embd=64, n_out=32, image_size=28)
    assert bench("vision", mmproj, "--rounds", 1, "--busy", "--threads", 1, 2, "--jsonl", tmp_path / "rows.jsonl") == 0
    found = rows_of(tmp_path / "rows.jsonl")
    assert [cell for cell, _ in found] == ["1 thread", "2 threads"]
    assert all(figures["ms"] > 0 for rounds in found.values() for figures in rounds)
    assert "GFLOP" in capsys.readouterr().out


def test_rows_that_differ_from_llama_cpp_s_are_not_timed():
    rows = np.random.default_rng(0).standard_normal((3, 64))
    vision.check_vision(rows, rows + 1e-3)
    with pytest.raises(AssertionError, match="rows differ"):
        vision.check_vision(rows, np.roll(rows, 1, axis=0))


def programs(folder):
    """Write programs in place of llama.cpp's that always print 100 tokens per second."""
    for name in ("llama-bench", "llama-batched-bench", "llama-server"):
        program = folder / name
        program.write_text(f"#!{sys.executable}\nprint('[{{\"avg_ts\": 100.0}}]')\n")
        program.chmod(0o755)


@compiled
@pytest.mark.usefixtures("no_memory")
def test_a_peer_is_compared_round_by_round(tmp_path, monkeypatch, capsys):
    programs(tmp_path)
    monkeypatch.setattr("numllama.benchmarks.llama_cpp.seconds_until_healthy", lambda programs, path: 1e9)
    model = tiny_gguf(tmp_path / "tiny.gguf")
    options = "--rounds 6 --threads 1 --prefill 8 --depth 0 --batch --busy".split()
    assert bench("model", model, *options, "--peer", tmp_path, "--jsonl", tmp_path / "rows.jsonl") == 0
    (run,) = results.read_runs([tmp_path / "rows.jsonl"])
    assert run.header["contenders"]["llama.cpp"]["commit"] == "unknown"  # the script prints no commit
    assert rows_of(tmp_path / "rows.jsonl")["decode @0, 1 thread", "llama.cpp"] == [{"tok_s": 100.0}] * 6
    verdicts = {(v["cell"], v["figure"]): v for v in run.end["verdicts"]}
    load = verdicts["load", "load_s"]
    assert load["verdict"] == "faster" and load["ratio"] < 1e-3 and load["low"] <= load["ratio"] <= load["high"]
    assert "| numllama / llama.cpp |" in capsys.readouterr().out


@compiled
def test_a_peer_that_printed_nothing_runs_again(tmp_path):
    """llama-batched-bench loses its output now and then; with more sequences than the window has room for, always."""
    programs(tmp_path)
    once = tmp_path / "once"
    text = f"import os; os.path.exists({str(once)!r}) and print('{{\"speed_tg\": 7.5}}'); open({str(once)!r}, 'w')"
    (tmp_path / "llama-batched-bench").write_text(f"#!{sys.executable}\n{text}\n")
    task = decode.Bench(FileModel.of(tiny_gguf(tmp_path / "tiny.gguf")), tmp_path, 256, 2).batched(2)
    assert task.peer(1) == 7.5
    (tmp_path / "llama-batched-bench").write_text(f"#!{sys.executable}\n")
    with pytest.raises(RequestError, match="measured nothing with 2 sequences: omit --batch 2"):
        task.peer(1)


WORKS = """
import sys, time
repetitions = int(sys.argv[sys.argv.index("-r") + 1])
while time.process_time() < 0.2 + 0.02 * repetitions:
    pass
print('[{"avg_ts": 1600}]')
"""


@compiled
def test_cpu_seconds_of_short_work_come_from_many_repetitions(tmp_path, monkeypatch):
    """llama-bench here computes 32 tokens in 20 ms of CPU time, after a start of 200 ms."""
    programs(tmp_path)
    (tmp_path / "llama-bench").write_text(f"#!{sys.executable}\n{WORKS}")
    files = FileModel.of(tiny_gguf(tmp_path / "tiny.gguf"))
    task = decode.Bench(files, tmp_path, 256, 1, cpu=True).decode(0)
    assert task.ours(1) > 0
    assert task.peer(1) == pytest.approx(decode.STEPS / 0.02, rel=0.3)  # starts and ends differ by milliseconds
    monkeypatch.setattr(decode.disturbance, "own_cpu_seconds", lambda: 1.0)
    with pytest.raises(RequestError, match=r"^llama-bench took no more CPU time for more work, expected some"):
        task.peer(1)


@compiled
@pytest.mark.oracle
def test_torch_runs_prompts_of_the_same_shape(tmp_path):
    pytest.importorskip("transformers", reason="needs torch and transformers")
    hp = load_model(tiny_gguf(tmp_path / "tiny.gguf")).hparams
    assert with_torch.prefill_with_torch(hp)(8, 1) > 0


def test_peak_memory_is_the_child_s_own():
    if not hasattr(os, "wait4"):
        pytest.skip("needs os.wait4")
    own = b"x" * (300 << 20)  # this process is larger than the small child
    assert start.peak_memory([sys.executable, "-c", "pass"]) < 100 << 20 < len(own)
    assert start.peak_memory([sys.executable, "-c", "x = b'x' * (600 << 20)"]) > 600 << 20
    with pytest.raises(RequestError, match="exited with 3"):
        start.peak_memory([sys.executable, "-c", "raise SystemExit(3)"])


@compiled
def test_a_kernel_is_checked_before_it_is_timed(monkeypatch):
    w = kernels.weight(FORMATS_BY_NAME["Q8_0"], 64, 64)
    x = np.ones((1, 64), np.float32)
    kernels.check_matmul(w, x)
    broken = replace(kernels.NUMBA, matmul=lambda w, x: 1.001 * kernels.packed.matmul(w, x))
    monkeypatch.setattr(kernels, "NUMBA", broken)
    with pytest.raises(EngineError, match=r"matmul Q8_0 is .* away from its reference, .*: not timed"):
        kernels.check_matmul(w, x)


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
    text = table.markdown([{"a": 1234.5, "b": None}, {"a": 0.01234, "b": "x|y"}], ["a", "b"])
    assert text.splitlines() == ["| a      | b    |", "|--------|------|", "| 1234   |      |", "| 0.0123 | x\\|y |"]
