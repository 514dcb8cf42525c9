"""An independent backend is right, and its mistakes are located and explained: caches, decode steps, heads, experts."""

from functools import cache

import pytest

from numllama.engine.model.load import load_model
from numllama.engine.oracle.judge import judge
from numllama.engine.oracle.values import split_label
from tiny import tiny_gguf

from .backend import run
from .engines import IDS, dump_of
from .mistakes import MISTAKES


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")

    @cache
    def load(name):
        family, _, quant = name.partition("-")
        family, n_expert = ("llama", 4) if family == "mixtral" else (family, 0)
        return load_model(tiny_gguf(folder / f"{name}.gguf", family, quant or "F32", n_expert=n_expert))

    return load


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen3"])
def test_the_backend_is_right(name, models):
    model = models(name)
    for n_decode in (0, 5):
        report = judge(model, IDS, dump_of(run(model, IDS, n_decode=n_decode)), n_decode)
        assert [(verdict.label, verdict.bits, verdict.cause) for verdict in report.wrong] == []


PARAMETERS = [  # mistakes in quantized formats are slow, as their hypotheses come late in the table
    pytest.param(mistake, id=mistake.name, marks=[pytest.mark.slow] if "-" in mistake.model else [])
    for mistake in MISTAKES
]


@pytest.mark.parametrize("mistake", PARAMETERS)
def test_a_mistake_is_located_and_explained(mistake, models):
    model = models(mistake.model)
    report = judge(model, IDS, dump_of(run(model, IDS, mistake.steps, mistake.n_decode)), mistake.n_decode)
    assert report.wrong and split_label(report.wrong[0].label)[0] == mistake.first
    assert bool(report.wrong[0].cause) == mistake.explained
    if mistake.n_decode:
        assert min(report.wrong[0].rows) >= len(IDS) - mistake.n_decode
