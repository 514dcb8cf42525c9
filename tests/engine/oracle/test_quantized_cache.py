"""A right engine with a quantized cache: what attention computes is rotated, and coarser than anything else."""

import pytest

from numllama.engine.model.load import load_model
from numllama.engine.oracle.judge import judge
from numllama.kernels import SETS
from tiny import tiny_gguf

from .engines import IDS, dump_of, values_of


@pytest.mark.parametrize("cache", ["q8_0", "q4_0"])
def test_a_rotated_cache_is_no_alarm(tmp_path, cache):
    model = load_model(tiny_gguf(tmp_path / "m.gguf", n_embd=128, n_head=2, n_head_kv=1))  # heads of 64
    report = judge(model, IDS, dump_of(values_of(model, SETS["ggml"], IDS, cache)))
    assert report.agrees, [verdict.label for verdict in report.wrong]
    notes = {verdict.note for verdict in report.verdicts if verdict.label.startswith("kqv_out")}
    assert notes == {"rotated by a Hadamard matrix, as in a quantized cache"}
    assert any("kqv_out: the cache were" in note for note in report.notes)
