"""The embedding benchmark compares vectors before it times them, each contender in its own process."""

import numpy as np
import pytest
from numba.core import config
from tiny_encoder import tiny_encoder

from numllama.benchmarks import embed, models
from numllama.benchmarks.command import run_part
from numllama.benchmarks.results import read_runs
from numllama.engine.model.load import load_model
from numllama.engine.store.file import FileModel
from numllama.kernels.quants import FORMATS_BY_NAME


@pytest.mark.skipif(config.DISABLE_JIT, reason="LLVM's vectors need the compiler")
def test_the_engine_is_compared_with_a_server(tmp_path, capsys):
    model = tiny_encoder(tmp_path / "tiny.gguf")
    options = "--rounds 1 --threads 1 --texts 3 --tokens 16 --busy".split()
    assert run_part(["embed", str(model), *options, "--jsonl", str(tmp_path / "rows.jsonl")], FileModel.of) == 0
    (run,) = read_runs([tmp_path / "rows.jsonl"])
    assert sorted(line["contender"] for line in run.rounds) == ["engine", "server"]
    assert all(line["figures"]["tok_s"] > 0 for line in run.rounds)
    assert "the smallest cosine of two vectors is 1.000000" in capsys.readouterr().out


def test_contenders_that_disagree_are_not_timed():
    rows = np.eye(3, dtype=np.float32)
    right, wrong, same = (embed.Embedder("", lambda _, x=x: x, None) for x in (rows, rows[::-1], rows * 0 + 1))
    assert embed.check_embed([right, right], "abc") == 1
    with pytest.raises(AssertionError, match="vectors differ"):
        embed.check_embed([right, wrong], "abc")
    with pytest.raises(AssertionError, match="the comparison is void"):
        embed.check_embed([same, same], "abc")


def test_a_random_encoder_has_one_token_per_word(tmp_path, monkeypatch):
    monkeypatch.setitem(models.ENCODERS, "small", (1, 32, 2, 64))
    models.write_encoder("small", FORMATS_BY_NAME["Q8_0"], str(tmp_path / "small.gguf"))
    tokenizer = load_model(tmp_path / "small.gguf").tokenizer
    assert tokenizer.encode(f"{models.token_word(104)} {models.token_word(30000)}") == [101, 104, 30000, 102]
