"""Families and their files: sizes, windows, RoPE, norms.  Their logits: test_logits.py."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from numllama.engine.errors import BadGGUF, UnsupportedArchitecture
from numllama.engine.gguf.read import GGUF
from numllama.engine.gguf.write import write_gguf
from numllama.engine.model.batch import Batch
from numllama.engine.model.decoder import forward
from numllama.engine.model.families import DECODERS, GEMMA2, GEMMA3
from numllama.engine.model.families import FAMILIES as CODE
from numllama.engine.model.load import load_model
from numllama.engine.model.trace import Trace
from numllama.kernels import EXACT, NUMPY
from tiny import FAMILIES, tiny_gguf

ROOT = Path(__file__).parents[3]
TOKENS = [1, 5, 9, 40, 3, 7, 7, 22, 13, 8, 2, 90]


@pytest.fixture
def make(tmp_path):
    return lambda *args, **more: tiny_gguf(tmp_path / "tiny.gguf", *args, **more)


def logits(model, tokens=TOKENS, kernels=EXACT, tap=None, n_ctx=64):
    batch = Batch.of(tokens, outputs=range(len(tokens)))
    return forward(model, batch, model.new_cache(n_ctx, type="f32"), kernels, *([tap] if tap else []))


def test_every_decoder_has_a_tiny_file():
    assert {family.name for family in DECODERS} - {"llama"} == set(FAMILIES)


def test_every_sixth_layer_of_gemma3_sees_all_positions_with_a_larger_rope_base(make):
    hp = load_model(make("gemma3")).hparams
    assert [rule.window for rule in hp.attention] == [8, 8, 8, 8, 8, 0, 8]
    assert [(rope.base, rope.scale) for rope in hp.rope] == [(1e4, 1.0)] * 5 + [(1e6, 1 / 8), (1e4, 1.0)]


def test_windows_may_be_listed_for_each_layer_or_have_another_period(make):
    def windows(pattern):
        return [
            rule.window
            for rule in load_model(
                make("gemma2", n_layer=4, gemma2__attention__sliding_window_pattern=pattern)
            ).hparams.attention
        ]

    assert windows(np.array([True, True, False, True])) == [8, 8, 0, 8]
    assert windows(4) == [8, 8, 8, 0]
    assert windows(0) == [8, 8, 8, 8]
    with pytest.raises(
        BadGGUF, match="sliding_window_pattern' is an array of 3, expected one bool or number for each of 4"
    ):
        windows(np.array([True, False, True]))


def test_a_token_outside_every_window_changes_nothing(make):
    """Two layers with windows of 4 look back 3 + 3 positions."""
    more = {"gemma2__attention__sliding_window": 4, "gemma2__attention__sliding_window_pattern": 0}
    model = load_model(make("gemma2", **more))
    got, other = logits(model), logits(model, [2, *TOKENS[1:]])
    np.testing.assert_array_equal(got[7:], other[7:])
    assert (got[:7] != other[:7]).any(axis=1).all()


def test_missing_keys_of_gemma2_have_llama_cpp_s_defaults(tmp_path, make):
    gguf = GGUF.open(make("gemma2"))
    kv = {key: value for key, value in gguf.kv.items() if "softcapping" not in key and "window" not in key}
    hp = load_model(write(tmp_path / "without.gguf", gguf, kv)).hparams
    assert [(rule.softcap, rule.window) for rule in hp.attention] == [(50, 4096), (50, 0)]
    assert hp.logit_softcap == 30 and hp.embed_scale == 8  # sqrt(64)


def write(path, gguf, kv, without=()):
    tensors = [(name, t.format, t.shape, t.blocks) for name, t in gguf.tensors.items() if name not in without]
    write_gguf(path, kv, tensors)
    return path


@pytest.mark.parametrize("family, n_layer, expected", [(GEMMA2, 46, 128), (GEMMA3, 62, 128), (GEMMA2, 42, 256)])
def test_the_largest_gemmas_have_another_scale_of_scores(family, n_layer, expected):
    assert family.attn_scale(n_layer, 4096, 32, 256) == expected**-0.5


def test_every_fourth_layer_of_smollm3_has_no_rope(make):
    model, trace = load_model(make("smollm3")), Trace("Kcur")
    assert [rope is None for rope in model.hparams.rope] == [False, False, False, True]
    logits(model, [7, 7], tap=trace)
    h = [trace.values["Kcur", il] for il in range(4)]
    assert (h[0][0] != h[0][1]).any()  # the same token at two positions
    assert not model.hparams.ropes(64)[3]


def test_long_windows_have_their_own_rope_factors(make):
    more = {"phi3__rope__scaling__original_context_length": 32, "phi3__rope__scaling__attn_factor": 1.25}
    hp = load_model(make("phi3", rope_factors="factors", **more)).hparams
    short, long = hp.ropes(32)[0], hp.ropes(33)[0]
    assert short.factors[-1] == 2 and long.factors[-1] == 8 and short.attn_factor == 1.25


def test_a_shifted_key_is_not_stretched_again(make):
    """Cached keys already have the factor of YaRN or LongRoPE: a shift only rotates them."""
    model = load_model(make("phi3", rope_factors="factors", phi3__rope__scaling__attn_factor=1.5))
    cache, trace = model.new_cache(16, type="f32"), Trace("Kcur")
    forward(model, Batch.of(TOKENS), cache, EXACT, trace)
    length = np.linalg.norm(cache.k[0][0, 6:12])
    assert cache.shift(0, 12, keep=2, discard=4, kernels=EXACT, ropes=model.hparams.ropes(16)) == 8
    np.testing.assert_allclose(np.linalg.norm(cache.k[0][0, 2:8]), length, rtol=1e-6)


def test_keys_of_layers_without_rope_are_shifted_unchanged(make):
    model = load_model(make("smollm3"))
    cache = model.new_cache(16, type="f32")
    forward(model, Batch.of(TOKENS), cache, EXACT)
    before = cache.k[3][0].copy()
    cache.shift(0, 12, keep=2, discard=4, kernels=EXACT, ropes=model.hparams.ropes(16))
    np.testing.assert_array_equal(cache.k[3][0, 2:8], before[6:12])


@pytest.mark.parametrize("quant", ["F32", "Q8_0"])
def test_fused_matrices_equal_separate_ones(tmp_path, quant):
    """A phi3 file split by hand into llama's matrices, with phi3's RoPE."""
    fused = GGUF.open(tiny_gguf(tmp_path / "phi3.gguf", "phi3", quant))
    tensors = []
    for name, t in fused.tensors.items():
        sizes = {"attn_qkv": (64, 32, 32), "ffn_up": (96, 96)}.get(name.split(".")[-2], ())
        names = {"attn_qkv": ("attn_q", "attn_k", "attn_v"), "ffn_up": ("ffn_gate", "ffn_up")}
        starts = np.cumsum((0, *sizes))
        for part, start, size in zip(names.get(name.split(".")[-2], ()), starts, sizes, strict=False):
            blocks = t.blocks[start : start + size]
            tensors.append((name.replace(name.split(".")[-2], part), t.format, (size, t.shape[1]), blocks))
        if not sizes:
            tensors.append((name, t.format, t.shape, t.blocks))
    write_gguf(tmp_path / "parts.gguf", fused.kv, tensors)
    expected, got = logits(load_model(tmp_path / "parts.gguf")), logits(load_model(tmp_path / "phi3.gguf"))
    np.testing.assert_array_equal(got, expected)


def test_scales_of_granite_by_hand(make):
    """If blocks add nothing, logits are norm(embedding) times the output matrix, divided by logit_scale."""
    model = load_model(make("granite"))
    hp, w, trace = model.hparams, model.weights, Trace("embd", "inp_scaled")
    assert hp.attention[0].scale == 0.125 and hp.residual_scale == 0.5

    def mute(name, il, x):
        return trace(name, il, x) * (0 if name in ("attn_out", "ffn_out") else 1)

    got = logits(model, kernels=NUMPY, tap=mute)
    embd = trace.values["embd", -1]
    np.testing.assert_array_equal(trace.values["inp_scaled", -1], 4 * embd)
    expected = NUMPY.matmul(w.output, NUMPY.rms_norm(4 * embd, w.output_norm, hp.norm_eps)) / 2
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_trace_of_gemma3_has_llama_cpp_s_names(make):
    trace = Trace("*")
    logits(load_model(make("gemma3")), kernels=NUMPY, tap=trace)
    assert [name for name, il in trace.values if il in (-1, 0)] == (
        "embd inp_scaled attn_norm Qcur_normed Kcur_normed Qcur Kcur Vcur kq kq_soft_max kqv_out attn_out"
        " attn_post_norm sa_out ffn_norm ffn_gate ffn_up ffn_geglu ffn_out ffn_post_norm l_out result_norm"
        " result_output"
    ).split()


def test_a_missing_norm_and_an_unexpected_norm_are_refused(tmp_path, make):
    gguf = GGUF.open(make("qwen3"))
    with pytest.raises(BadGGUF, match=r"tensor 'blk.1.attn_k_norm.weight' is missing"):
        load_model(write(tmp_path / "lacks.gguf", gguf, gguf.kv, without=["blk.1.attn_k_norm.weight"]))
    kv = {key.replace("qwen3.", "llama."): value for key, value in gguf.kv.items()}
    kv["general.architecture"] = "llama"
    with pytest.raises(UnsupportedArchitecture, match=r"'blk.0.attn_k_norm.weight' is not used by this architecture"):
        load_model(write(tmp_path / "more.gguf", gguf, kv))


@pytest.mark.parametrize("key", ["attention.head_count_kv", "feed_forward_length"])
def test_sizes_that_differ_between_layers_are_refused(tmp_path, make, key):
    gguf = GGUF.open(make())
    equal = {**gguf.kv, f"llama.{key}": np.array([gguf.kv[f"llama.{key}"]] * 2, np.int32)}
    assert load_model(write(tmp_path / "equal.gguf", gguf, equal))
    other = {**gguf.kv, f"llama.{key}": np.array([2, 1], np.int32)}
    with pytest.raises(UnsupportedArchitecture, match=f"key 'llama.{key}' differs from layer to layer"):
        load_model(write(tmp_path / "other.gguf", gguf, other))


def test_the_table_of_families_is_up_to_date():
    document = runpy.run_path(str(ROOT / "scripts/families.py"))["document"]()
    assert document == (ROOT / "docs/families.md").read_text()
    assert all(f"\n| {name} |" in document for name in CODE)


def test_queries_of_mistral3_grow_beyond_the_original_context(make):
    """The factor changes every 8 positions: ln 1 = 0, then ln 2."""
    trace = Trace("Qcur", "Qcur_attn_temp_scaled")
    logits(load_model(make("mistral3")), tap=trace)
    before, after = trace.values["Qcur", 0], trace.values["Qcur_attn_temp_scaled", 0]
    np.testing.assert_array_equal(after[:8], before[:8])
    np.testing.assert_allclose(after[8:], before[8:] * (1 + 0.5 * np.log(2)), rtol=1e-6)


def test_yarn_with_a_rope_base_of_1_is_refused(tmp_path, make):
    gguf = GGUF.open(make("mistral3"))
    with pytest.raises(BadGGUF, match=r"rope.freq_base' is 1, expected more than 1 where YaRN"):
        load_model(write(tmp_path / "flat.gguf", gguf, gguf.kv | {"mistral3.rope.freq_base": 1.0}))


def test_the_code_in_add_a_family_md_is_that_of_glm4():
    page = (ROOT / "docs/add-a-family.md").read_text()
    lines = [line for block in page.split("```python\n")[1:] for line in block.split("```")[0].splitlines()]
    files = ("engine/model/families.py", "tests/tiny.py", "tests/golden/make_logits.py", "tests/oracles.py")
    code = "".join((ROOT / file).read_text() for file in files).split("\n")
    assert len(lines) == 5 and not [line for line in lines if line.strip() not in map(str.strip, code)]


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3moe"])
def test_leading_axes_of_1_change_nothing(tmp_path, make, family):
    """llama.cpp compares sizes along four axes, of which missing ones are 1; it computes the same logits too."""
    path = make(family, rope_factors={"llama": "freqs", "phi3": "factors"}.get(family, ""))
    gguf, n_axes = GGUF.open(path), 4
    tensors = []
    for name, tensor in gguf.tensors.items():
        ones = (1,) * (n_axes - len(tensor.shape))
        tensors.append((name, tensor.format, ones + tensor.shape, tensor.blocks.reshape(ones + tensor.blocks.shape)))
    write_gguf(tmp_path / "axes.gguf", gguf.typed, tensors)
    np.testing.assert_array_equal(logits(load_model(tmp_path / "axes.gguf")), logits(load_model(path)))


def test_trailing_axes_of_1_are_refused(tmp_path, make):
    gguf = GGUF.open(make())
    w = gguf.tensors["output_norm.weight"]
    tensors = [t for t in gguf.tensors.values() if t is not w]
    write_gguf(tmp_path / "axes.gguf", gguf.typed, [*tensors, (w.name, w.format, (64, 1), w.blocks.reshape(64, 1))])
    with pytest.raises(BadGGUF, match=r"'output_norm.weight' has shape \[64, 1\], expected \[64\]"):
        load_model(tmp_path / "axes.gguf")


@pytest.mark.parametrize("base", [3580165449.0, 1e12])  # the first is Llama-3-8B-Instruct-Gradient-1048k's
def test_a_rope_base_may_exceed_32_bits(make, base):
    (rope, _) = load_model(make(llama__rope__freq_base=base)).hparams.rope
    expected = np.float32(base) ** (-2 * np.arange(8, dtype=np.float64) / 16)
    np.testing.assert_allclose(rope.freqs, expected, rtol=1e-12)
