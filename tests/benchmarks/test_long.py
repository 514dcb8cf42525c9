"""`bench long`: a model after many cached tokens."""

from __future__ import annotations

import pytest

from numllama.benchmarks import long
from numllama.benchmarks.command import run_part
from numllama.engine.errors import EngineError
from tiny import tiny_gguf


def test_a_whole_prompt_is_the_sum_of_its_chunks():
    """Chunks of 512 tokens take half a second longer from each to the next: 1, 1.5, 2, 2.5, and the next one 3."""
    assert long.whole_prompt(2048, near=512 / 1, far=512 / 3) == pytest.approx(1 + 1.5 + 2 + 2.5)


def test_each_type_of_cache_has_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(long, "N_PROMPT", 8)
    monkeypatch.setattr(long, "N_DECODED", 2)
    file = tmp_path / "tiny.gguf"
    tiny_gguf(file)
    assert run_part(["long", str(file), "--depth", "16", "--cache-type", "f16", "f32", "--threads", "1"]) == 0
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| f")]
    assert [line[0].strip() for line in lines] == ["f16", "f16", "f32", "f32"]
    assert [line[2].strip() for line in lines] == ["0", "16", "0", "16"]
    assert float(lines[2][1]) == pytest.approx(2 * float(lines[0][1]), rel=0.01)  # the table shows three digits


def test_the_cache_is_filled_to_its_depth(tmp_path):
    model = long.load_model(tiny_gguf(tmp_path / "tiny.gguf"))
    cache = long.filled_cache(model, "f16", 16)
    assert cache.k[0].shape[1] == 16 + long.N_PROMPT and cache.k[0][0, :16].all() and not cache.k[0][0, 16:].any()


def test_an_unknown_type_of_cache_is_refused():
    with pytest.raises(EngineError, match=r"'q7_0', expected one or two \(q8_0/q4_0\) of f16 f32"):
        run_part(["long", "x.gguf", "--cache-type", "q7_0"])
