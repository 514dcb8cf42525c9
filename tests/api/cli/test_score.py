"""`numllama score`: its lines, its JSON, its base file, and Ctrl-C."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from numllama.engine.oracle.base_file import BaseReader
from tiny import tiny_gguf

TEXT = "once upon a time there was a little boy and a big dog in the world. " * 20


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def test_the_perplexity_is_printed_after_each_chunk_and_at_the_end(numllama, file, text):
    status, out, err = numllama("score", file, "--text", text, "-c", "64", "--chunks", "3")
    running, final = out.splitlines()
    assert (status, err) == (0, "") and running.startswith("[1]") and ",[3]" in running and running.endswith(",")
    value = running.rstrip(",").rpartition("]")[2]
    assert final.startswith(f"Final estimate: PPL = {value} +/- ")
    by_json = json.loads(numllama("score", file, "-f", "-", "-c", "64", "--chunks", "3", "--json", stdin=TEXT).out)
    assert f"{by_json['perplexity']['value']:.4f}" == value and by_json["tokens"] == 3 * 31
    assert by_json["chunks"] == by_json["of"] == 3 and by_json["cache"] == "f16"


def test_a_model_beside_its_own_base_file_diverges_by_its_rounding_only(numllama, file, text, tmp_path):
    base = str(tmp_path / "base.bin")
    options = "--kernels", "exact", "--kl-divergence-base", base
    assert numllama("score", file, "-f", text, "-c", "64", *options).status == 0
    status, out, _ = numllama("score", file, *options, "--kl-divergence")
    assert status == 0 and "Same top p: 100.000 ±" in out and "Maximum KLD:" in out
    report = json.loads(numllama("score", file, *options, "--kl-divergence", "--json").out)
    assert abs(report["kld"]["value"]) < 1e-5  # log-probabilities are kept in steps of 2.4e-4
    assert report["correlation"] > 0.999999
    assert report["perplexity"]["value"] == pytest.approx(report["perplexity_base"]["value"], rel=1e-4)


def test_ctrl_c_prints_and_saves_the_chunks_that_are_done(numllama, file, text, tmp_path, monkeypatch):
    from numllama.api.cli import score

    given, calls = score.scored_logits, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return given(*args)

    monkeypatch.setattr(score, "scored_logits", interrupted)
    base = tmp_path / "base.bin"
    status, out, _ = numllama("score", file, "-f", text, "-c", "32", "--kl-divergence-base", str(base))
    assert status == 130 and out.startswith("[1]") and "[3]" not in out and "interrupted after 2 of" in out
    assert BaseReader(base).chunks.shape == (2, 32)
    calls[:] = [None, None]
    status, out, _ = numllama("score", file, "-f", text, "-c", "32")
    assert (status, out) == (130, "")


def test_errors_of_score_are_one_line(numllama, file, text, tmp_path):
    other = tmp_path / "other.bin"
    np.array([0x676F6C5F, 0x5F737469, 4, 9, 1, 0, 0, 0, 0, *[0] * 7], "<i4").tofile(other)
    for args, message in [
        ([file], "no text: give a file by --text FILE"),
        ([file, "-f", str(tmp_path / "none")], "none cannot be read: No such file"),
        ([file, "-f", text, "--kernels", "x"], "unknown kernel set 'x'; choose from"),
        ([file, "-f", text, "--cache-type", "q9"], "unknown cache type 'q9'; choose from f16"),
        ([file, "-f", text, "-c", "9", "--cache-type", "q8_0"], "cannot keep heads of 16; choose another --cache-type"),
        ([file, "-f", text, "-c", "4096"], "expected at least 4096, one context (--ctx-size)"),
        ([file, "--kl-divergence"], "--kl-divergence needs --kl-divergence-base FILE"),
        ([file, "--kl-divergence", "--kl-divergence-base", text], "not a file of log-probabilities"),
        ([file, "--kl-divergence", "--kl-divergence-base", str(other)], "for a vocabulary of 9, and the model's has"),
        (["nope", "-f", text], "model 'nope' not found"),
    ]:
        status, out, err = numllama("score", *args)
        assert (status, out) == (1, "") and err.startswith("Error: ") and message in err and err.count("\n") == 1, err


def llama_perplexity(*args, ends_with=r"Final estimate: PPL = "):
    """Run a native llama-perplexity and return its text.  Skips without one.

    Its log is written by another thread, which sometimes loses its last lines: then it runs again.
    """
    folder = os.environ.get("NUMLLAMA_LLAMA_CPP") or pytest.skip("NUMLLAMA_LLAMA_CPP names no folder of programs")
    program = Path(folder) / "llama-perplexity"
    assert program.exists(), f"{program} is missing"
    for _ in range(5):
        done = subprocess.run(
            [program, "-t", "1", *args],
            env=os.environ | {"LD_LIBRARY_PATH": folder},
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        assert done.returncode == 0, done.stderr[-500:]
        if re.search(ends_with, written := done.stdout + done.stderr):
            return written
    raise AssertionError(f"no {ends_with!r} in {written[-500:]}")


def estimates(text):
    """Return the perplexity after each chunk, of lines such as "[1]5.1,[2]5.2,"."""
    return [float(value) for value in re.findall(r"\[\d+\]([0-9.]+)", text)]


def final(text):
    return float(re.search(r"Final estimate: PPL = ([0-9.]+)", text)[1])


PLAIN = "-fa", "off", "-ctk", "f32", "-ctv", "f32", "--no-repack"


@pytest.mark.peer
@pytest.mark.parametrize("quant", ["F32", "Q8_0", "Q4_0"])
def test_the_perplexity_is_that_of_llama_perplexity(numllama, text, tmp_path, quant):
    """Its four digits, with its defaults; in float32 also with its plainest options, from the sets that are exact."""
    path = str(tiny_gguf(tmp_path / "m.gguf", quant=quant, n_embd=128, n_ff=192, n_head=2, n_head_kv=1, n_ctx=4096))
    for options in (("-c", "64", "--chunks", "4"), ("-c", "32", "--chunks", "7")):
        theirs = llama_perplexity("-m", path, "-f", text, *options)
        ours = numllama("score", path, "-f", text, *options, "--kernels", "llamacpp").out
        assert final(ours) == pytest.approx(final(theirs), rel=1e-7)  # the C library's expf, and NumPy's
        assert estimates(ours) == pytest.approx(estimates(theirs), rel=1e-7)
        if quant == "F32":
            plain = final(llama_perplexity("-m", path, "-f", text, *options, *PLAIN))
            for kernels in ("numba", "exact"):
                out = numllama("score", path, "-f", text, *options, "--kernels", kernels, "--cache-type", "f32").out
                assert final(out) == pytest.approx(plain, rel=1e-6)


@pytest.mark.peer
def test_either_program_reads_the_base_file_of_the_other(numllama, text, tmp_path):
    sizes = {"n_embd": 128, "n_ff": 192, "n_head": 2, "n_head_kv": 1, "n_ctx": 4096}
    full, small = (str(tiny_gguf(tmp_path / f"{q}.gguf", quant=q, **sizes)) for q in ("F32", "Q4_0"))
    options, base = ("-f", text, "-c", "64", "--chunks", "4"), [str(tmp_path / name) for name in ("theirs", "ours")]
    llama_perplexity("-m", full, *options, "--kl-divergence-base", base[0])
    numllama("score", full, *options, "--kl-divergence-base", base[1], "--kernels", "llamacpp")
    theirs, ours = (Path(path).read_bytes() for path in base)
    assert theirs[: 20 + 4 * 256] == ours[: 20 + 4 * 256] and len(theirs) == len(ours)
    different = np.frombuffer(theirs, "<u2", offset=20) != np.frombuffer(ours, "<u2", offset=20)
    assert different.mean() < 1e-3  # codes of log-probabilities next to a tie, and scales' last bits
    tables = []
    for path in base:
        tables.append(
            llama_perplexity(
                "-m", small, "-c", "64", "--kl-divergence-base", path, "--kl-divergence", ends_with="Same top p:"
            )
        )
        tables.append(
            numllama("score", small, "--kl-divergence-base", path, "--kl-divergence", "--kernels", "llamacpp").out
        )
    names = (
        "Mean PPL(Q)",
        "Mean PPL(base)",
        "Cor(ln(PPL(Q)), ln(PPL(base)))",
        "Mean ln(PPL(Q)/PPL(base))",
        "Mean    KLD",
    )
    names += (
        "Maximum KLD",
        "99.9%   KLD",
        "Median  KLD",
        " 5.0%   KLD",
        "Mean    Δp",
        "Maximum Δp",
        "RMS Δp",
        "Same top p",
    )
    for name in names:
        found = [re.search(rf"^{re.escape(name)} *:(.*)$", table, re.MULTILINE) for table in tables]
        rows = np.array([[float(x) for x in re.findall(r"-?[0-9.]+", match[1])] for match in found])
        # a base of another's last bits changes the last printed digit
        np.testing.assert_allclose(rows, np.tile(rows[0], (4, 1)), rtol=1e-5, atol=2e-3, err_msg=name)
