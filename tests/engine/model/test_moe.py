"""Mixtures of experts: the choice of experts, their weights, and independence from the rest of the batch."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from numllama.engine.errors import BadGGUF, UnsupportedArchitecture
from numllama.engine.gguf.read import GGUF
from numllama.engine.model.batch import Batch
from numllama.engine.model.decoder import forward
from numllama.engine.model.families import FAMILIES
from numllama.engine.model.load import load_model
from numllama.engine.model.moe import mixture, top_experts
from numllama.engine.model.trace import Trace, no_tap
from numllama.engine.serve.runner import kernel_names
from numllama.kernels import NUMPY, SETS, Tensor
from numllama.kernels.quants import FORMATS_BY_NAME
from numllama.kernels.warmup import warmups
from tiny import tiny_gguf

TOKENS = [1, 5, 9, 40, 3, 7, 7, 22, 13, 8, 2]
ORDERED = [name for name in ("exact", "ggml", "numba") if name in SETS]


@pytest.fixture(scope="module", params=["llama-Q8_0", "llama-Q4_0", "qwen3moe-Q8_0"])
def model(request, tmp_path_factory):
    path, (family, quant) = tmp_path_factory.mktemp("models") / "tiny.gguf", request.param.split("-")
    return load_model(tiny_gguf(path, family, quant, n_expert=5, seed=1))


def tensor(x):
    x = np.array(x, np.float32)
    return Tensor("w", FORMATS_BY_NAME["F32"], x.shape, x)


def test_a_token_uses_the_two_experts_that_the_router_prefers():
    """One component, three experts with gate 100 and different up and down: silu(100) = 100, so out = 100 up down.

    The router's logits 0, ln 2 and ln 6 are probabilities 1/9, 2/9 and 6/9; the two largest have weights 1/4 and 3/4.
    """
    blk = SimpleNamespace(
        ffn_gate_inp=tensor([[0], [np.log(2)], [np.log(6)]]),
        ffn_gate_exps=tensor([[[100]]] * 3),
        ffn_up_exps=tensor([[[1]], [[2]], [[3]]]),
        ffn_down_exps=tensor([[[1]], [[1]], [[1]]]),
    )
    for name in ("gate_inp", "gate_exps", "up_exps", "down_exps"):
        setattr(blk, f"ffn_{name}_bias", None)
    hparams = SimpleNamespace(n_expert_used=2)
    model = SimpleNamespace(hparams=hparams, decoder=SimpleNamespace(blk=[blk]), family=FAMILIES["llama"])
    out = mixture(model, 0, np.ones((1, 1), np.float32), NUMPY, no_tap)
    np.testing.assert_allclose(out, [[3 / 4 * 300 + 1 / 4 * 200]], rtol=1e-6)


def test_ties_go_to_the_first_expert():
    assert top_experts(np.array([[0.2, 0.3, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]]), 2).tolist() == [[1, 3], [0, 1]]


@pytest.mark.parametrize("kernels", ORDERED)
def test_chunks_and_other_sequences_change_no_bit(model, kernels):
    kernels = SETS[kernels]
    cache = model.new_cache(32, n_slot=2)
    whole = forward(model, Batch.of(TOKENS, outputs=range(11)), cache, kernels)
    cache, rows = model.new_cache(32, n_slot=2), []
    for start, size in ((0, 4), (4, 1), (5, 6)):
        mine = Batch.of(TOKENS[start : start + size], slot=1, start=start, outputs=range(size))
        other = Batch.of([9, 17, 30][: 4 - size % 3], start=3 * start)
        rows.append(forward(model, Batch.join([other, mine]), cache, kernels)[1:])
    np.testing.assert_array_equal(np.concatenate(rows), whole)


def test_a_tap_sees_llama_cpp_s_names(model):
    trace = Trace("ffn_*", kernels=NUMPY)
    forward(model, Batch.of(TOKENS, outputs=range(11)), model.new_cache(16), NUMPY, trace)
    assert [name for name, il in trace.values if il == 0] == (
        "ffn_inp ffn_norm ffn_moe_logits ffn_moe_probs ffn_moe_topk ffn_moe_weights ffn_moe_weights_norm"
        " ffn_moe_gate ffn_moe_up ffn_moe_swiglu ffn_moe_down ffn_moe_weighted ffn_moe_out"
    ).split()
    np.testing.assert_allclose(trace.values["ffn_moe_weights_norm", 0].sum(axis=1), 1, rtol=1e-6)
    assert len(np.unique(trace.values["ffn_moe_topk", 1])) == 5  # every expert is chosen somewhere


def test_kernels_of_router_and_experts_are_compiled_at_loading(model):
    expected = {"F32 product", f"{model.weights.blk[0].ffn_up_exps.format.name} product", "softmax"}
    assert expected <= set(kernel_names(model)) & {name for name, _ in warmups()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"llama.expert_used_count": 5}, "'llama.expert_used_count' is 5, expected a number up to the expert count, 4"),
        ({"llama.expert_used_count": 0}, "'llama.expert_used_count' is 0, expected a number from 1"),
        ({"llama.expert_used_count": None}, "'llama.expert_used_count' is 0, expected a number from 1"),
        ({"llama.expert_count": 3}, r"tensor 'blk.0.ffn_gate_inp.weight' has shape \[4, 64\], expected \[3, 64\]"),
        ({"llama.expert_feed_forward_length": 7}, r"'blk.0.ffn_gate_exps.weight' has shape .*, expected \[4, 7, 64\]"),
    ],
)
def test_an_invalid_mixture_is_refused_with_a_reason(tmp_path, change, message):
    gguf = GGUF.open(tiny_gguf(tmp_path / "tiny.gguf", n_expert=4))
    kv = {key: value for key, value in {**gguf.kv, **change}.items() if value is not None}
    with pytest.raises(BadGGUF, match=message):
        load_model(replace(gguf, kv=kv))


def test_old_files_with_a_tensor_for_each_expert_are_refused(tmp_path):
    gguf = GGUF.open(tiny_gguf(tmp_path / "tiny.gguf", n_expert=4))
    tensors = {name.replace("ffn_gate_exps", "ffn_gate.0"): tensor for name, tensor in gguf.tensors.items()}
    with pytest.raises(UnsupportedArchitecture, match="each expert is a separate tensor"):
        load_model(replace(gguf, tensors=tensors))
