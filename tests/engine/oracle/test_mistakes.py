"""An independent backend is right, and its mistakes are located and explained: caches, decode steps, heads, experts."""

from functools import cache

import pytest

from numllama.engine.oracle.judge import judge
from numllama.engine.oracle.values import split_label

from .backend import run
from .engines import IDS, dump_of
from .kit_models import kit_model
from .mistakes import MISTAKES


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return cache(lambda name: kit_model(folder, name))


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen3"])
def test_the_backend_is_right(name, models):
    model = models(name)
    for n_decode in (0, 5):
        report = judge(model, IDS, dump_of(run(model, IDS, n_decode=n_decode)), n_decode)
        assert [(verdict.label, verdict.bits, verdict.cause) for verdict in report.wrong] == []


PARAMETERS = [  # mistakes in quantized formats are slow, as their hypotheses come late in the table
    pytest.param(mistake, id=mistake.name, marks=[pytest.mark.slow] if ":" in mistake.model else [])
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
