"""Another author's bugs are located and explained, and right engines pass, over every family and arithmetic."""

from functools import cache

import pytest
from tiny_encoder import tiny_encoder

from numllama.engine.model.load import load_model
from numllama.engine.oracle.judge import judge
from numllama.engine.oracle.values import split_label
from tiny import tiny_gguf

from .engines import F32, IDS, RIGHT, WRONG, dump_of, values_of

MODELS = (
    "llama",
    "llama-Q4_0",
    "llama-Q4_K",
    "gemma2",
    "gemma3",
    "qwen3",
    "phi3",
    "glm4",
    "granite",
    "mixtral",
    "bert",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")

    @cache
    def load(name):
        path, (family, _, quant) = folder / f"{name}.gguf", name.partition("-")
        if family == "bert":
            tiny_encoder(path)
        elif name == "mixtral":
            tiny_gguf(path, "llama", n_expert=4)
        elif name == "llama-small":
            tiny_gguf(path, "llama", llama__attention__layer_norm_rms_epsilon=1e-3)
        else:
            tiny_gguf(path, family, quant or "F32")
        return load_model(path)

    return load


def ids_of(model):
    return [id % model.hparams.n_vocab for id in IDS]


QUICK_STEP = 8  # of the wrong engines, the part that every run tries


def some(values, quick):
    """Return all values as parameters; those that are not quick are slow."""
    return [
        pytest.param(value, id=getattr(value, "name", value), marks=[] if quick(i, value) else [pytest.mark.slow])
        for i, value in enumerate(values)
    ]


@pytest.mark.parametrize("engine", some(WRONG, lambda i, engine: i % QUICK_STEP == 0))
def test_the_first_wrong_value_is_found(engine, models):
    model = models(engine.model)
    ids = ids_of(model)
    kernels, changed = engine.change(F32, model)
    report = judge(model, ids, dump_of(values_of(changed, kernels, ids), ids))
    assert not report.agrees
    first = report.wrong[0]
    assert split_label(first.label)[0] == engine.first
    assert bool(first.cause) == engine.explained


# Each arithmetic with every third model; the other pairs are slow
PAIRS = [
    pytest.param(name, arithmetic, marks=[pytest.mark.slow] if (i + j) % 3 else [])
    for i, name in enumerate(MODELS)
    for j, arithmetic in enumerate(RIGHT)
]


@pytest.mark.parametrize(("name", "arithmetic"), PAIRS)
def test_a_right_engine_is_not_called_wrong(name, arithmetic, models):
    model = models(name)
    ids = ids_of(model)
    kernels, cache_type = RIGHT[arithmetic]
    report = judge(model, ids, dump_of(values_of(model, kernels, ids, cache_type), ids))
    assert [(verdict.label, verdict.bits, verdict.cause) for verdict in report.wrong] == []
