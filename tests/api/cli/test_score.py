"""`numllama score`: its lines, its JSON, its base file, and Ctrl-C."""

import json

import numpy as np
import pytest

from numllama.engine.oracle.base_file import BaseReader

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
