"""Layers in one call against layers in steps: the same bits in logits and in the cache."""

from dataclasses import replace

import numpy as np
import pytest
from adapters import ALL, tiny_lora
from hypothesis import given, settings
from hypothesis import strategies as st

from numllama.engine.model.batch import Batch, Span
from numllama.engine.model.decoder import forward
from numllama.engine.model.families import DECODERS
from numllama.engine.model.load import load_model
from numllama.engine.model.trace import Trace, Watch, no_tap
from numllama.engine.model.whole import LayerCalls, groups, whole_layers
from numllama.kernels import SETS, LowRank
from numllama.kernels.decode_layer import LayerCall
from numllama.kernels.kv import CACHE_TYPES
from numllama.kernels.quants import FORMATS_BY_NAME
from tiny import tiny_gguf

pytestmark = pytest.mark.skipif("numba" not in SETS, reason="LLVM's vectors need the compiler")

N_SLOT = 3
IN_STEPS = (
    "gpt-oss",  # its experts' activation
    "gemma-embedding",  # it decodes nothing
)
WHOLE = [family.name for family in DECODERS if family.name not in IN_STEPS]


def both(model, cache_type="f16", n_ctx=64):
    """Return (kernels, cache) for layers in one call and for layers in steps."""
    numba = SETS["numba"]
    return [(kernels, model.new_cache(n_ctx, N_SLOT, cache_type)) for kernels in (numba, replace(numba, layers=None))]


def step(places, seed=0):
    """Make a batch of one token at each of `places` (slot, position)."""
    tokens = np.random.default_rng(seed).integers(3, 200, len(places))
    return Batch(tokens, tuple(Span(*place, 1) for place in places), np.arange(len(places), dtype=np.int32))


def assert_equal(model, pair, batch):
    (whole, cache), (steps, other) = pair
    assert whole_layers(model, batch, cache, whole, no_tap) and not whole_layers(model, batch, other, steps, no_tap)
    expected, got = forward(model, batch, other, steps), forward(model, batch, cache, whole)
    assert got.tobytes() == expected.tobytes()
    for a, b in zip((*cache.k, *cache.v), (*other.k, *other.v), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("family", WHOLE)
def test_every_family_gives_the_same_bits(tmp_path, family):
    model = load_model(tiny_gguf(tmp_path / "m.gguf", family))
    pair = both(model)
    for position in range(12):  # more than the windows
        assert_equal(model, pair, step([(slot, position) for slot in range(N_SLOT)], position))


@pytest.mark.parametrize(
    ("family", "names"), [("qwen2", ALL), ("qwen3moe", ("attn_q", "ffn_gate_inp", "ffn_up_exps", "ffn_down_exps"))]
)
def test_adapters_give_the_same_bits(tmp_path, family, names):
    base = tiny_gguf(tmp_path / "m.gguf", family, quant="Q8_0")
    first = tiny_lora(tmp_path / "a.gguf", base, names)
    second = tiny_lora(tmp_path / "b.gguf", base, names, seed=1, quant="F16", rank=2)
    model = load_model(base, {first: 0.5, second: -2})
    pair = both(model)
    for position in range(4):
        assert_equal(model, pair, step([(slot, position) for slot in range(N_SLOT)], position))
        assert_equal(model, pair, step([(1, 20 + position)], position))


def test_experts_are_packed_when_they_are_chosen(tmp_path):
    model = load_model(tiny_gguf(tmp_path / "m.gguf", "qwen3moe", "Q8_0"))
    stack = model.weights.blk[1].ffn_up_exps
    (kernels, cache), _ = both(model)
    forward(model, step([(0, 0)]), cache, kernels)
    assert [len(w._forms) for w in stack.matrices].count(1) == 3  # of 8
    for position in range(1, 9):
        forward(model, step([(slot, position) for slot in range(N_SLOT)], position), cache, kernels)
    assert [len(w._forms) for w in stack.matrices].count(1) > 3


OTHER_CACHES = [("Q4_K", cache) for cache in ("bf16", "q5_1", "q5_0", "q4_1", "q8_0/q4_0", "f16/q8_0", "q4_0/f32")]


@pytest.mark.parametrize(
    ("quant", "cache_type"),
    [(q, c) for q in ("F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_K") for c in ("f16", "f32", "q8_0", "q4_0")]
    + OTHER_CACHES,
)
def test_every_weight_format_and_cache_type_gives_the_same_bits(tmp_path, quant, cache_type):
    model = load_model(tiny_gguf(tmp_path / "m.gguf", quant=quant, n_head=2, n_embd=64 if quant != "Q4_K" else 0))
    pair = both(model, cache_type)
    for position in range(3):
        assert_equal(model, pair, step([(0, position), (2, position + 1)], position))


@pytest.mark.parametrize("n_head", [8, 4, 1])  # heads of 8, 16 and 64
def test_heads_smaller_than_a_vector_and_rows_not_in_whole_groups(tmp_path, n_head):
    model = load_model(tiny_gguf(tmp_path / "m.gguf", quant="Q8_0", n_head=n_head, n_head_kv=1, n_ff=160))
    for position in range(3):
        assert_equal(model, both(model), step([(0, position), (1, 0), (2, 7)], position))


def test_positions_beyond_the_cached_rope_angles(tmp_path):
    model = load_model(tiny_gguf(tmp_path / "m.gguf", llama__context_length=3000))
    pair = both(model, n_ctx=3000)
    for position in (0, 511, 512, 2600):
        assert_equal(model, pair, step([(1, position)]))


@given(data=st.data())
@settings(max_examples=25)
def test_any_slots_and_positions(data, tmp_path_factory):
    model = load_model(tiny_gguf(tmp_path_factory.mktemp("any") / "m.gguf", "qwen3", "Q8_0"))
    pair = both(model)
    place = st.tuples(st.integers(0, N_SLOT - 1), st.integers(0, 63))
    for batch in data.draw(st.lists(st.lists(place, min_size=1, max_size=6).map(step), min_size=1, max_size=3)):
        assert_equal(model, pair, batch)


def test_a_tap_that_reads_values_gets_every_step(tmp_path):
    model = load_model(tiny_gguf(tmp_path / "m.gguf"))
    (kernels, cache), _ = both(model)
    batch, seen = step([(0, 0)]), []
    trace = Trace("ffn_inp", "l_out")
    forward(model, batch, cache, kernels, trace)
    assert list(trace.values) == [("ffn_inp", 0), ("l_out", 0), ("ffn_inp", 1), ("l_out", 1)]
    forward(model, batch, cache, kernels, Watch(seen.append))
    assert seen == [-1, 1, -1, -1]  # both layers are one call, with one tap


@pytest.mark.parametrize(
    "family, options", [("gpt-oss", {}), ("llama", {"quant": "TQ1_0"}), ("llama", {"quant": "TQ1_0", "n_expert": 4})]
)
def test_unsupported_models_run_in_steps(tmp_path, family, options):
    model = load_model(tiny_gguf(tmp_path / "m.gguf", family, **options))
    (kernels, cache), _ = both(model)
    assert whole_layers(model, step([(0, 0)]), cache, kernels, no_tap) is None


@pytest.mark.parametrize(
    "cause",
    ["an unknown tensor", "an adapter in TQ1_0", "a cache in float64", "another activation", "values in iq4_nl"],
)
def test_a_layer_with_unsupported_parts_does_not_fit(tmp_path, cause):
    model = load_model(tiny_gguf(tmp_path / "m.gguf"))
    weights, act = dict(vars(model.weights.blk[0])), "silu"
    k, v = model.new_cache(8).k[0], model.new_cache(8).v[0]
    assert LayerCall.fits(weights, k, v, act)
    if cause == "a cache in float64":
        k = model.new_cache(8, type="f64").k[0]
    elif cause == "values in iq4_nl":
        v = np.zeros((1, 8, 2, 1), CACHE_TYPES["iq4_nl"])
    elif cause == "another activation":
        act = "relu"
    elif cause == "an adapter in TQ1_0":
        q = weights["attn_q"]
        thin = replace(q, format=FORMATS_BY_NAME["TQ1_0"])
        weights["attn_q"] = replace(q, low_rank=(LowRank(q, thin, 1.0),))
    else:
        weights["ffn_sub_norm"] = weights["ffn_norm"]
    assert not LayerCall.fits(weights, k, v, act)


@pytest.mark.parametrize("place", [(0, 64), (0, -1), (N_SLOT, 0), (-1, 0)])
def test_a_position_outside_the_cache_is_an_error(tmp_path, place):
    model = load_model(tiny_gguf(tmp_path / "m.gguf"))
    (kernels, cache), _ = both(model)
    with pytest.raises(IndexError, match=r"positions \[\[1, 5\], .*\], the cache has 3 slots of 64 positions"):
        forward(model, step([(1, 5), place]), cache, kernels)
    assert not any(array.any() for array in (*cache.k, *cache.v))


def test_layers_run_in_steps_until_another_process_has_compiled_them_whole(tmp_path, monkeypatch):
    model = load_model(tiny_gguf(tmp_path / "m.gguf"))
    (kernels, cache), _ = both(model)
    monkeypatch.setattr("numllama.engine.model.whole.is_compiling", lambda: True)
    assert whole_layers(model, step([(0, 0)]), cache, kernels, no_tap) is None


def test_a_prompt_runs_in_steps(tmp_path):
    model = load_model(tiny_gguf(tmp_path / "m.gguf"))
    (kernels, cache), _ = both(model)
    assert whole_layers(model, Batch.of([3, 4]), cache, kernels, no_tap) is None


@pytest.mark.parametrize(
    ("n_layer", "together", "sizes"), [(5, 2, [2, 2, 1]), (4, 2, [2, 2]), (3, 9, [3]), (2, 0, [1, 1])]
)
def test_groups_hold_every_layer_once_and_the_last_may_be_short(n_layer, together, sizes):
    got = groups(n_layer, together)
    assert [il for group in got for il in group] == list(range(n_layer)) and [len(group) for group in got] == sizes


def test_a_partial_last_group_runs(tmp_path, monkeypatch):
    """5 layers in calls of 2."""
    model = load_model(tiny_gguf(tmp_path / "m.gguf", n_layer=5))
    pair = both(model)
    n_weight = LayerCalls(model, pair[0][1])[0].n_weight
    monkeypatch.setattr("numllama.engine.model.whole.PRODUCTS_PER_CALL", 2 * 2 * n_weight)
    seen = []
    forward(model, step([(0, 0), (1, 0)]), model.new_cache(64, N_SLOT), SETS["numba"], Watch(seen.append))
    assert seen == [-1, 1, 3, 4, -1, -1]  # the embeddings, each group's last layer, the last norm, the logits
    assert_equal(model, pair, step([(0, 0), (1, 0)]))
