"""Comparisons of files of results, formats of a model, and the harness measured by itself."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from numba.core import config

from numllama.benchmarks import compare, harness, kernels, report
from numllama.benchmarks.command import run_part
from numllama.benchmarks.fake import Fake
from numllama.benchmarks.figures import FIGURES
from numllama.benchmarks.harness import Claim
from numllama.benchmarks.knee import knee_lines
from numllama.benchmarks.results import Run, read_runs
from numllama.engine.errors import EngineError, RequestError
from numllama.engine.store.file import FileModel
from tiny import tiny_gguf

compiled = pytest.mark.skipif(config.DISABLE_JIT, reason="LLVM's vectors need the compiler")


def write_run(path, speeds, *, cpu="one", disturbed=False, commits=None, settings=None, n=12, seed=0):
    """Write a run in which contenders have `speeds`, with 1 % of noise that each round's contenders share or not."""
    rng = np.random.default_rng(seed)
    commits = commits or {}
    header = {
        "type": "run",
        "schema": "numllama.bench/1",
        "run": path.stem,
        "part": "model",
        "settings": settings or {"prefill": [8]},
    }
    header |= {"machine": {"cpu": cpu}, "contenders": {name: {"commit": commits.get(name, "")} for name in speeds}}
    lines = [header]
    for i in range(n):
        for name, speed in speeds.items():
            value = speed * float(np.exp(0.01 * rng.standard_normal()))
            line = {"type": "round", "run": path.stem, "cell": "x", "round": i, "order": 0, "contender": name}
            lines.append(
                line | {"figures": {"tok_s": value}, "disturbance": {}, "disturbed": ["busy"] if disturbed else []}
            )
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def compared(a, b, capsys):
    assert run_part(["compare", str(a), str(b)]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| model")]
    return {row[2].strip(): (row[8].strip(), row[9].strip()) for row in rows}


def test_runs_of_two_days_are_compared_with_room_for_drift(tmp_path, capsys):
    before = write_run(tmp_path / "a.jsonl", {"ours": 100})
    assert compared(before, write_run(tmp_path / "b.jsonl", {"ours": 103}, seed=1), capsys)["ours"][0] == "cannot tell"
    word, why = compared(before, write_run(tmp_path / "c.jsonl", {"ours": 120}, seed=1), capsys)["ours"]
    assert (word, why) == ("faster", "not interleaved: 5 % for drift")


def test_a_contender_of_both_runs_is_a_bridge_between_days_and_machines(tmp_path, capsys):
    """The machine is half as fast on the second day, and ours is 10 % faster beside the same llama.cpp."""
    commits = {"llama.cpp": "0c1e"}
    before = write_run(tmp_path / "a.jsonl", {"llama.cpp": 50, "ours": 100}, commits=commits)
    after = write_run(tmp_path / "b.jsonl", {"llama.cpp": 25, "ours": 55}, commits=commits, cpu="two", seed=1)
    word, why = compared(before, after, capsys)["ours"]
    assert (word, why) == ("faster", "relative to llama.cpp, which both measured")


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"cpu": "two"}, "machine: cpu one, then two"),
        ({"settings": {"prefill": [9]}}, "settings: prefill [8], then [9]"),
        ({"disturbed": True}, "every round was disturbed"),
        ({"n": 3}, "12 and 3 undisturbed rounds are too few"),
    ],
)
def test_it_says_when_runs_may_not_be_compared(tmp_path, capsys, other, why):
    before = write_run(tmp_path / "a.jsonl", {"ours": 100})
    after = write_run(tmp_path / "b.jsonl", {"ours": 200}, seed=1, **other)
    if other == {"n": 3}:
        after = write_run(tmp_path / "b.jsonl", {"ours": 200}, n=2)
        why = "12 and 2 undisturbed rounds are too few"
    got = compared(before, after, capsys)["ours"]
    assert got == ("cannot tell", why) or (other == {"n": 3} and got[0] in ("cannot tell", "faster"))


def test_files_without_anything_in_common_are_refused(tmp_path):
    a, b = write_run(tmp_path / "a.jsonl", {"x": 1}), write_run(tmp_path / "b.jsonl", {"y": 1})
    with pytest.raises(RequestError, match="have no cell and contender in common"):
        run_part(["compare", str(a), str(b)])


def test_the_mann_whitney_cut_is_that_of_all_arrangements():
    from itertools import combinations

    counts = [sum(i < j for i in chosen for j in set(range(9)) - set(chosen)) for chosen in combinations(range(9), 4)]
    for level in (0.02, 0.05, 0.1, 0.3):
        expected = max(k for k in range(21) if 2 * sum(c < k for c in counts) / len(counts) <= level)
        assert compare.u_cut(4, 5, level) == expected


def test_report_joins_files(tmp_path, capsys):
    files = [str(write_run(tmp_path / f"{name}.jsonl", {"a": 1, "b": 2})) for name in "xy"]
    assert run_part(["report", *files, "--csv", str(tmp_path / "t.csv")]) == 0
    assert run_part(["report", *files]) == 0
    assert (
        capsys.readouterr().out.count("| b / a |") == 2 and (tmp_path / "t.csv").read_text().count("speed, tok/s") == 2
    )


def test_a_label_has_its_unit():
    assert report.figure_label(FIGURES["decode_tok_s_server"]) == "decode by the server's clock, tok/s"
    assert report.figure_label(FIGURES["ttft_p50"]) == "ttft p50, ms"


def test_worked_example_of_the_front():
    """Of four formats, one is slower and farther than another."""
    points = [
        report.FormatPoint(*p) for p in (("A", 1.0, 0.0, 9), ("B", 2.0, 0.1, 5), ("C", 1.5, 0.2, 4), ("D", 3.0, 0.5, 3))
    ]
    assert [p.name for p in points if report.on_front(p, points)] == ["A", "B", "D"]


def test_the_knee_is_the_last_load_that_helped():
    header = {"part": "serve", "contenders": {"a": {}}}
    speeds = {"1 client": 10.0, "2 clients": 19.0, "4 clients": 30.0, "8 clients": 31.0}
    rounds = [
        {"cell": c, "round": 0, "contender": "a", "figures": {"output_tok_s": v}, "disturbed": []}
        for c, v in speeds.items()
    ]
    assert knee_lines(Run(header, rounds)) == ["a: the knee is at 4 clients: 30 tok/s, then 31"]


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        (False, "a: the knee is at 2/s: 0.7 s of the median answer, and 4 s at 4/s"),
        (True, "a: the knee is at 1/s: 100% answers within the limits, and 50% at 2/s"),
    ],
)
def test_the_knee_of_a_ramp_of_rates_is_the_last_that_the_server_keeps_up_with(limits, line):
    times = {"1/s poisson": (0.5, 1.0), "2/s poisson": (0.7, 1.0), "4/s poisson": (4.0, 0.0)}
    lines = []
    for cell, (e2e, good) in times.items():
        figures = {"e2e_p50": e2e} | ({"requests_s": 2.0, "goodput_s": good if e2e > 0.6 else 2.0} if limits else {})
        lines.append({"cell": cell, "round": 0, "contender": "a", "figures": figures, "disturbed": []})
    assert knee_lines(Run({"part": "serve", "contenders": {"a": {}}}, lines)) == [line]


def test_memory_is_less_or_more_and_not_faster(tmp_path, capsys):
    path = write_run(tmp_path / "x.jsonl", {"a": 100, "b": 150})
    path.write_text(path.read_text().replace("tok_s", "memory_mib"))
    assert run_part(["report", str(path)]) == 0
    (row,) = [row for row in capsys.readouterr().out.splitlines() if "memory, MiB" in row]
    assert row.split("|")[-2].strip() == "more"


@compiled
def test_formats_have_size_speed_and_distance(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("numllama.benchmarks.formats.peak_mib", lambda path: None)
    source = tiny_gguf(tmp_path / "tiny.gguf", n_embd=64, n_ff=64)
    flags = "--formats q8_0,Q4_0 --tokens 32 --rounds 1 --threads 1 --busy".split()
    path = tmp_path / "rows.jsonl"
    assert (
        run_part(["formats", str(source), *flags, "--jsonl", str(path), "--keep", str(tmp_path / "kept")], FileModel.of)
        == 0
    )
    (run,) = read_runs([path])
    sides = run.header["contenders"]
    assert (
        list(sides) == ["source", "Q8_0", "Q4_0"]
        and sides["source"]["kl"] < 1e-9 < sides["Q8_0"]["kl"] < sides["Q4_0"]["kl"]
    )
    assert sides["source"]["size_mib"] > sides["Q8_0"]["size_mib"] > sides["Q4_0"]["size_mib"]
    assert sorted(file.name for file in (tmp_path / "kept").iterdir()) == ["tiny-Q4_0.gguf", "tiny-Q8_0.gguf"]
    assert "| on the front |" in capsys.readouterr().out
    with pytest.raises(
        EngineError, match=r"tiny-Q8_0.gguf to Q4_0: quantization is only supported for F16, BF16 and F32 models"
    ):
        run_part(["formats", str(tmp_path / "kept/tiny-Q8_0.gguf"), "--formats", "Q4_0", *flags[2:]], FileModel.of)
    with pytest.raises(EngineError, match="unsupported quantization type Q9_9"):
        run_part(["formats", str(source), "--formats", "Q9_9"], FileModel.of)


@compiled
def test_kernels_are_results_like_others(tmp_path, capsys, monkeypatch):
    """Two files of them are reported and compared; a file is resumed without measuring a row again."""
    monkeypatch.setattr(kernels, "ATTENTION_SHAPES", ((1, 64, 4, 2, 64, ", few", {}), (40, 64, 4, 2, 64, "", {})))
    monkeypatch.setattr(kernels, "N_OUT", 64)
    for name in ("read_bandwidth", "dot_peak", "fma_peak"):
        monkeypatch.setattr(kernels.machine, name, lambda: 1.0)
    monkeypatch.setattr("numllama.benchmarks.disturbance.MAX_OTHERS_SHARE", 99)
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    flags = "--format Q8_0 --tokens 1 2 --threads 1 --rounds 4".split()
    for file in files:
        assert run_part(["kernels", *flags, "--jsonl", file]) == 0
    assert "| matmul " in capsys.readouterr().out
    (run,) = read_runs([tmp_path / "a.jsonl"])
    assert run.cells[:2] == ["matmul Q8_0, 1 token, 1 thread", "matmul Q8_0, 2 tokens, 1 thread"]
    assert len(run.rounds) == 4 * len(run.cells) and all(line["figures"]["us"] > 0 for line in run.rounds)
    assert run_part(["report", *files]) == 0 and run_part(["compare", *files]) == 0
    out = capsys.readouterr().out
    assert out.count("| GB/s") == 2 and "| kernels | matmul Q8_0, 1 token, 1 thread" in out

    lines = [line for line in (tmp_path / "a.jsonl").read_text().splitlines() if not re.search('"end"|"rope', line)]
    (tmp_path / "half.jsonl").write_text("\n".join(lines) + "\n")
    measured = []
    monkeypatch.setattr(kernels, "measure_row", lambda row, n, results: measured.append(row.kernel))
    assert run_part(["kernels", *flags, "--jsonl", str(tmp_path / "half.jsonl")]) == 0
    assert set(measured) == {"rope 32 x 64"}


@compiled
def test_a_wrong_kernel_is_not_timed(monkeypatch):
    """Of each type of cache, attention is compared with its twin before it is timed."""
    monkeypatch.setattr(kernels, "ATTENTION_SHAPES", ((40, 64, 4, 2, 64, "", {}),))
    assert [row.format for row in kernels.attention_rows([1])] == ["f16", "q8_0", "q4_0"]
    exact = kernels.attention_numpy
    monkeypatch.setattr(kernels, "attention_numpy", lambda *arguments: exact(*arguments) + np.float32(0.001))
    with pytest.raises(EngineError, match=r"attention 4/2 heads of 64, 64 positions, f16 is 0\.001 away from its ref"):
        next(kernels.attention_rows([1]))


def test_the_harness_reports_a_claim_that_does_not_hold(monkeypatch, capsys):
    claims = [Claim("x", "1", "1", True), Claim("y", "1", "2", False), Claim("z", "1", "?", None)]
    monkeypatch.setattr(harness, "simulated_claims", lambda n, seed: iter(claims))
    for name in ("real_claims", "figure_claims", "lie_claims"):
        monkeypatch.setattr(harness, name, lambda *_: iter(()))
    assert run_part(["self"]) == 1
    out = capsys.readouterr().out
    assert "1 of 3 claims hold, 1 do not, 1 cannot be told here" in out and "cannot tell: the machine is busy" in out


def test_simulated_claims_hold():
    claims = list(harness.simulated_claims(40, seed=0))
    assert len(claims) == 7 and all(claim.holds for claim in claims)


def test_figures_of_what_was_sent_are_those_of_the_script():
    fake = Fake("ollama", first=0.5, step=0.03)
    times = fake.token_times(harness.N_TOKEN)
    got = harness.sent_figures(fake, [[*times, times[-1]]])
    assert got["ttft_p50"] == 0.5 and got["tpot_p50"] == pytest.approx(0.03) and got["gap_p99"] == pytest.approx(0.03)


@pytest.mark.slow
def test_every_claim_about_lies_holds():
    """Over sockets; test_lies.py has them on a clock that stands still."""
    assert not [claim.what for claim in harness.lie_claims() if claim.holds is False]
