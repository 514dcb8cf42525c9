"""Dumps of a native llama.cpp raise no alarm: flash attention on and off, caches of each type, every decoder family."""

import os
import subprocess
from pathlib import Path

import pytest
from llama_dump import DumpingLlama, as_dump

from numllama.engine.model.load import load_model
from numllama.engine.oracle.dumps import open_dump
from numllama.engine.oracle.judge import judge
from tiny import tiny_gguf

from .engines import IDS

pytestmark = pytest.mark.peer
MODELS = {  # arguments of tiny_gguf; heads of 32 and more, which fill the blocks of a quantized cache
    "llama": ("llama", "F32", {"n_embd": 128}),
    "llama-Q4_0": ("llama", "Q4_0", {"n_embd": 128}),
    "llama-Q4_K": ("llama", "Q4_K", {}),  # heads of 64, which llama.cpp rotates before it rounds them
    "mixtral": ("llama", "F32", {"n_embd": 128, "n_expert": 4}),
    "mistral3": ("mistral3", "F32", {}),
    "qwen3": ("qwen3", "F16", {}),
    "qwen3moe": ("qwen3moe", "Q8_0", {"n_embd": 128}),
    "gemma2": ("gemma2", "F32", {"n_embd": 128}),
    "gemma3": ("gemma3", "Q8_0", {"n_embd": 128}),
    "phi3": ("phi3", "Q5_0", {"n_embd": 128}),
    "glm4": ("glm4", "F32", {"n_embd": 128, "n_rot": 16}),
    "granite": ("granite", "F32", {"n_embd": 128}),
}
SETTINGS = [(0, "f32"), (0, "f16"), (1, "f16"), (1, "q8_0"), (1, "q4_0")]
PROMPT = "Once upon a time there was"


@pytest.fixture(scope="module")
def llama():
    return DumpingLlama.from_environment() or pytest.skip("NUMLLAMA_LLAMA_CPP names no folder with libllama.so")


def model_of(name, folder):
    family, quant, more = MODELS[name]
    path = folder / f"{name}.gguf"
    tiny_gguf(path, family, quant, **more)
    return path, load_model(path)


def found(report):
    return [(verdict.label, round(verdict.bits, 1), verdict.cause) for verdict in report.wrong]


@pytest.mark.parametrize("name", MODELS)
def test_every_value_of_llama_cpp_is_right(name, llama, tmp_path):
    path, model = model_of(name, tmp_path)
    ids = [id % model.hparams.n_vocab for id in IDS]
    for flash, cache in SETTINGS:
        values = llama.dump(path, ids, flash, cache, pre_rope=flash == 0)
        report = judge(model, ids, as_dump(values, ids))
        assert found(report) == [], (flash, cache)
        labels = {verdict.label for verdict in report.verdicts}
        assert {"Qcur-0", "kqv_out-0", "l_out-0", "result_output"} <= labels
        assert ("kq_soft_max-0" in labels) == (flash == 0)


@pytest.mark.parametrize("name", MODELS)
def test_the_text_of_llama_eval_callback_is_right(name, llama, tmp_path):
    path, model = model_of(name, tmp_path)
    program = Path(os.environ["NUMLLAMA_LLAMA_CPP"]) / "llama-eval-callback"
    for flash, cache in (("off", "f16"), ("on", "q8_0")):
        with open(tmp_path / "dump.txt", "w") as file:
            options = ["-m", path, "-p", PROMPT, "-n", "1", "-t", "1", "-fa", flash, "-ctk", cache, "-ctv", cache]
            subprocess.run([program, *options], stdout=file, stderr=subprocess.STDOUT, check=True)
        report = judge(model, model.tokenizer.encode(PROMPT), open_dump(tmp_path / "dump.txt"))
        assert found(report) == [], (flash, cache)
        assert len(report.verdicts) > 15
