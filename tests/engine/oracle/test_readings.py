"""Wrong readings of formats are located and explained: halves, nibbles, six-bit scales, signs, tables of codes."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from numllama.engine.oracle.judge import judge
from numllama.engine.oracle.values import split_label
from numllama.kernels.quants import FORMATS_BY_NAME

from .engines import F32, IDS, dump_of, values_of
from .kit_models import kit_model
from .readings import RIGHT_READINGS, WRONG_READINGS, read


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return cache(lambda name: kit_model(folder, name))


def first_query_matrix(model):
    return model.weights.blk[0].attn_q


@pytest.mark.parametrize("name", RIGHT_READINGS)
def test_the_reading_is_right_without_a_mistake(name, models):
    w = first_query_matrix(models(f"llama:{name}"))
    assert w.format is FORMATS_BY_NAME[name]
    np.testing.assert_allclose(read(w, RIGHT_READINGS[name]), w.dequantize(), rtol=1e-6, atol=1e-9)


QUICK_STEP = 11  # of the readings, the part that every run tries
PARAMETERS = [
    pytest.param(reading, id=f"{reading.format} {reading.name}", marks=[pytest.mark.slow] if i % QUICK_STEP else [])
    for i, reading in enumerate(WRONG_READINGS)
]


@pytest.mark.parametrize("reading", PARAMETERS)
def test_a_wrong_reading_is_located_and_explained(reading, models):
    model = models(f"llama:{reading.format}")
    wrong = first_query_matrix(model)
    rows = read(wrong, reading.at)
    kernels = replace(F32, matmul=lambda w, x: x @ rows.T if w is wrong else F32.matmul(w, x))
    report = judge(model, IDS, dump_of(values_of(model, kernels)))
    assert split_label(report.wrong[0].label) == ("Qcur", 0), report.wrong[0].label
    assert [bool(verdict.cause) for verdict in report.wrong] == [reading.explained]
