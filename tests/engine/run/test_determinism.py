"""Determinism: a request's logits have the same bits in any batch, in any chunks, on any number of threads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core import config

from numllama.engine.model.batch import Batch
from numllama.engine.model.decoder import forward
from numllama.engine.model.load import load_model
from numllama.kernels import GGML, NUMBA, threads
from tiny import tiny_gguf

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="LLVM's vectors need the compiler")
TOKENS = [int(t) for t in np.random.default_rng(3).integers(3, 200, 40)]


@pytest.fixture(scope="module", params=["Q4_0", "Q8_0", "F16", "Q4_0 experts", "Q8_0 gemma3"])
def model(request, tmp_path_factory):
    path, (quant, *more) = tmp_path_factory.mktemp("models") / "tiny.gguf", request.param.split()
    options = {"experts": {"n_expert": 5}, "gemma3": {"family": "gemma3"}}[more[0]] if more else {}
    return load_model(tiny_gguf(path, quant=quant, n_head=2, n_head_kv=1, **options))


@pytest.fixture(autouse=True)
def all_threads():
    yield
    threads.limit(None)


def test_numba_kernels_match_ggml_kernels(model):
    batch = Batch.of(TOKENS, outputs=range(40))
    expected, got = (forward(model, batch, model.new_cache(40, type="f32"), kernels) for kernels in (GGML, NUMBA))
    # float32 sums in another order; some flip the rounding of an activation, which moves a logit by at least 0.07
    # (docs/compatibility.md, "Tolerances")
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.1 * expected.std())
    assert np.median(np.abs(got - expected)) < 1e-3 * expected.std()


@given(
    cuts=st.lists(st.integers(1, 39), unique=True, max_size=6).map(sorted),
    others=st.lists(st.integers(0, 9), min_size=7, max_size=7),
    n_thread=st.integers(1, 2),
    type=st.sampled_from(["f16", "f32", "q8_0", "q4_0"]),
)
@settings(deadline=None, max_examples=25)
def test_logits_depend_on_the_request_alone(model, cuts, others, n_thread, type):
    """`cuts` divide the prompt into chunks; chunk i shares its batch with others[i] tokens of another sequence."""
    threads.limit(1)
    alone = forward(model, Batch.of(TOKENS), model.new_cache(40, type=type), NUMBA)[0]
    threads.limit(n_thread)
    cache, n_other = model.new_cache(80, n_slot=2, type=type), 0
    for i, (start, stop) in enumerate(zip([0, *cuts], [*cuts, 40], strict=True)):
        mine = Batch.of(TOKENS[start:stop], 1, start)
        other = Batch.of(list(range(5, 5 + others[i])), 0, n_other, outputs=())
        n_other += others[i]
        logits = forward(model, Batch.join([other, mine] if others[i] else [mine]), cache, NUMBA)[-1]
    assert logits.tobytes() == alone.tobytes()
