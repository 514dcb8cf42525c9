"""Another author's bugs are located and explained, and right engines pass, over every family and arithmetic."""

from functools import cache

import pytest

from numllama.engine.oracle.judge import judge
from numllama.engine.oracle.values import split_label

from .engines import F32, IDS, RIGHT, WRONG, dump_of, values_of
from .family_bugs import FAMILY_BUGS
from .kit_models import kit_model

MODELS = (
    "llama",
    "llama:Q4_0",
    "llama:Q4_K",
    "gemma2",
    "gemma3",
    "qwen3",
    "phi3",
    "glm4",
    "granite",
    "mixtral",
    "bert",
    "mistral3",
    "qwen3moe",
    "gpt-oss",
    "smollm3",
    "gemma-embedding",
    "nomic-bert",
    "jina-bert-v2",
    "jina-bert-v2-code",
    "llama-wide",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return cache(lambda name: kit_model(folder, name))


def ids_of(model):
    return [id % model.hparams.n_vocab for id in IDS]


QUICK_STEP = 8  # of the wrong engines, the part that every run tries


def some(values, quick):
    """Return all values as parameters; those that are not quick are slow."""
    return [
        pytest.param(value, id=getattr(value, "name", value), marks=[] if quick(i, value) else [pytest.mark.slow])
        for i, value in enumerate(values)
    ]


@pytest.mark.parametrize("engine", some([*WRONG, *FAMILY_BUGS], lambda i, engine: i % QUICK_STEP == 0))
def test_the_first_wrong_value_is_found(engine, models):
    model = models(engine.model)
    ids = ids_of(model)
    kernels, changed = engine.change(F32, model)
    values = values_of(changed, kernels, ids, keep=lambda name: name not in engine.lacks)
    report = judge(model, ids, dump_of(values, ids))
    assert not report.agrees
    first = report.wrong[0]
    assert split_label(first.label)[0] == engine.first
    assert bool(first.cause) == engine.explained


HIDDEN_STATES = ("embd", "inp_embd", "l_out", "result_norm", "result_output", "result_embd")
FROM_HIDDEN_STATES = [
    engine
    for engine in [*WRONG, *FAMILY_BUGS]
    if engine.name
    in (
        "half of the pairs",
        "q rows of Hugging Face alone",
        "no residual around feed-forward",
        "layers one too early",
        "gpt-oss without sinks",
        "jina bias grows",
        "gemma2 cap before scale",
        "qwen3moe router without norm",
    )
]


@pytest.mark.parametrize("engine", some(FROM_HIDDEN_STATES, lambda i, engine: i == 0))
def test_the_layer_and_the_cause_are_found_from_hidden_states_alone(engine, models):
    model = models(engine.model)
    ids = ids_of(model)
    kernels, changed = engine.change(F32, model)
    values = values_of(changed, kernels, ids, keep=lambda name: name in HIDDEN_STATES)
    report = judge(model, ids, dump_of(values, ids))
    assert report.wrong[0].label == "l_out-0" and report.wrong[0].cause


# Each arithmetic with every fifth model; the other pairs are slow
PAIRS = [
    pytest.param(name, arithmetic, marks=[pytest.mark.slow] if (i + j) % 5 else [])
    for i, name in enumerate(MODELS)
    for j, arithmetic in enumerate(RIGHT)
]


@pytest.mark.parametrize(("name", "arithmetic"), PAIRS)
def test_a_right_engine_is_not_called_wrong(name, arithmetic, models):
    model = models(name)
    ids = ids_of(model)
    kernels, cache_type = RIGHT[arithmetic]
    if "_" in cache_type and model.hparams.n_head_dim % 32:
        pytest.skip("heads that do not fill the blocks of a quantized cache")
    report = judge(model, ids, dump_of(values_of(model, kernels, ids, cache_type), ids))
    assert [(verdict.label, verdict.bits, verdict.cause) for verdict in report.wrong] == []
