"""The table of causes, and the names of values."""

import numpy as np
import pytest

from numllama.engine.oracle.causes import CAUSES
from numllama.engine.oracle.causes.formats import FORMAT_MISTAKES
from numllama.engine.oracle.judge import judge
from numllama.engine.oracle.layout import fit
from numllama.engine.oracle.values import VALUES, inputs_of, kind_of
from numllama.kernels import SETS
from numllama.kernels.quants import FORMATS_BY_NAME

from .engines import IDS, dump_of, values_of
from .kit_models import kit_model


def test_the_table_has_distinct_sentences_about_known_values():
    bugs = [cause for cause in CAUSES if not cause.arithmetic]
    assert len(bugs) >= 40 and len({cause.sentence for cause in CAUSES}) == len(CAUSES)
    assert all(cause.explains <= set(VALUES) for cause in CAUSES)
    assert all(name in FORMATS_BY_NAME for mistake in FORMAT_MISTAKES for name in mistake.formats)


def test_a_missing_value_passes_its_kind_on():
    known = ["attn_norm-0", "Qcur-0", "ffn_gate-0", "ffn_up-0", "ffn_swiglu-0"]
    assert kind_of("ffn_swiglu-0", known, known, 1) == "elementwise"
    assert kind_of("ffn_swiglu-0", known, ["ffn_up-0", "ffn_swiglu-0"], 1) == "product"
    assert inputs_of("ffn_swiglu-0", known, 1) == ["ffn_gate-0", "ffn_up-0"]


def test_an_array_of_other_size_does_not_fit():
    assert fit(np.zeros(7), np.ones((3, 4)), 1) is None
    assert fit(np.ones((1, 4, 3)), np.ones((3, 4)), 1) is not None


@pytest.mark.skipif("llamacpp" not in SETS, reason="LLVM's vectors need the compiler")
def test_sums_of_flash_attention_in_float16_are_recognized(tmp_path):
    model = kit_model(tmp_path, "llama-wide")
    values = values_of(model, SETS["llamacpp"], cache="f16")  # llama.cpp's computation, bit for bit
    report = judge(model, IDS, dump_of(values))
    assert report.agrees
    assert report.notes == ["kqv_out: attention summed values in float16 (flash attention), a matter of rounding"]


def test_every_format_has_a_mistake():
    known = {name for mistake in FORMAT_MISTAKES for name in mistake.formats}
    plain = {"F32", "F64", "I8", "I16", "I32", "I64"} | {"Q8_1", "Q8_K"}  # the last two hold activations
    assert known >= set(FORMATS_BY_NAME) - plain
