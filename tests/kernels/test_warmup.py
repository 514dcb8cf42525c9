"""After a warm-up nothing is left to compile."""

import os
import subprocess
import sys

import pytest

from tiny import tiny_gguf

GENERATE = """
import sys
from numllama.engine.generate import generate
from numllama.engine.model import load_model
from numllama.engine.options import Options
for path in sys.argv[1:]:
    list(generate(load_model(path), "once upon a time", Options(num_predict=3)))
"""


@pytest.mark.slow
def test_a_first_answer_compiles_nothing_after_a_warm_up(tmp_path):
    """Half a minute: a cache folder of its own is filled, and no later file comes into it."""
    environ = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    models = [
        tiny_gguf(tmp_path / "norm.gguf", quant="Q4_0"),
        tiny_gguf(tmp_path / "neox.gguf", quant="Q4_K", family="qwen2", bias=True),
    ]

    def files():
        return {path for path in (tmp_path / "cache").rglob("*") if path.suffix == ".nbc"}

    warm = "from numllama.kernels.warmup import warmups\nfor _, job in warmups(): job()"
    subprocess.run([sys.executable, "-c", warm], env=environ, check=True)
    compiled = files()
    subprocess.run([sys.executable, "-c", GENERATE, *map(str, models)], env=environ, check=True)
    assert len(compiled) > 20
    assert sorted(path.name for path in files() - compiled) == []
