"""Files in Ollama's dialect compute what their twins in llama.cpp's compute, and are shown as they are."""

import re
from dataclasses import replace

import numpy as np
import pytest
from dialects import file_of, gemma3_twins, i32s, mistral3_twins, rewritten

from numllama.engine.gguf.dialect import has_tower, projector_view, read_as, text_view
from numllama.engine.gguf.dialect.projector import neighbours_from_halves
from numllama.engine.gguf.dialect.text import TEXT_ROWS
from numllama.engine.gguf.read import BOOL, F32, GGUF, STR, U8, U32, ArrayType
from numllama.engine.model.batch import Batch
from numllama.engine.model.decoder import forward
from numllama.engine.model.families import FAMILIES
from numllama.engine.model.load import load_model
from numllama.engine.store.show import show_file
from numllama.engine.tokenizer import from_gguf
from numllama.engine.vision.tower import load_vision
from numllama.kernels import EXACT
from tiny import tiny_gguf
from tiny_llava import tiny_mmproj

TOKENS = [1, 5, 9, 40, 3, 7, 7, 22, 13, 8, 2, 90] * 2
EOT = 128009


def logits(path):
    model = load_model(path)
    batch = Batch.of(TOKENS, outputs=range(len(TOKENS)))
    return forward(model, batch, model.new_cache(64, type="f32"), EXACT)


# ---- whole models: the same weights in both dialects give the same bits


@pytest.mark.parametrize("tower", [False, True])
def test_a_mistral3_file_equals_its_twin_bit_for_bit(tmp_path, tower):
    ollamas, theirs = mistral3_twins(tmp_path, tower)
    np.testing.assert_array_equal(logits(ollamas), logits(theirs))


def test_without_yarn_s_keys_a_mistral3_file_would_compute_something_else(tmp_path):
    """The test above shows nothing otherwise."""
    _, theirs = mistral3_twins(tmp_path)
    drop = [key for key in GGUF.open(theirs).kv if "yarn" in key or "temperature" in key]
    assert (logits(rewritten(theirs, tmp_path / "dropped.gguf", drop=drop)) != logits(theirs)).mean() > 0.9


@pytest.mark.parametrize("n_ctx", [256, 131072])
def test_a_gemma3_file_equals_its_twin_bit_for_bit(tmp_path, n_ctx):
    ollamas, theirs = gemma3_twins(tmp_path, n_ctx)
    np.testing.assert_array_equal(logits(ollamas), logits(theirs))
    assert [rope.scale for rope in load_model(ollamas).hparams.rope].count(1 / 8) == (1 if n_ctx > 256 else 0)


def test_gemma3_loses_the_tokens_that_have_no_row(tmp_path):
    ollamas, theirs = (GGUF.open(path) for path in gemma3_twins(tmp_path))
    n = theirs.tensors["token_embd.weight"].shape[0]
    assert len(ollamas.kv["tokenizer.ggml.tokens"]) == n + 2
    for key in ("tokens", "scores", "token_type"):
        assert len(text_view(ollamas).kv[f"tokenizer.ggml.{key}"]) == n


def test_a_mistral3_file_without_yarn_may_have_an_empty_scaling_type(tmp_path):
    more = {"mistral3.rope.scaling.type": STR(""), "mistral3.rope.scaling.factor": F32(0.0)}
    path = rewritten(mistral3_twins(tmp_path)[0], tmp_path / "empty.gguf", more=more)
    assert load_model(path).hparams.rope[0].scale == 1


def test_a_clip_file_without_a_type_is_the_first_llava_s(tmp_path):
    path = tiny_mmproj(tmp_path / "theirs.gguf", swapped=True)
    untyped = rewritten(path, tmp_path / "ollamas.gguf", drop=["clip.projector_type"])
    tile = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    got, expected = (load_vision(path).rows(tile, EXACT) for path in (untyped, path))
    np.testing.assert_array_equal(got, expected)
    assert read_as(GGUF.open(untyped)) == "vision mlp"


# ---- what is shown


def test_a_file_of_llama_cpp_s_is_returned_unchanged(tmp_path):
    for family in ("llama", "mistral3", "gemma3"):
        gguf = GGUF.open(tiny_gguf(tmp_path / f"{family}.gguf", family))
        assert text_view(gguf) is gguf and projector_view(gguf) is gguf and read_as(gguf) == ""


def test_show_has_the_file_s_own_keys_and_says_how_it_is_read(tmp_path):
    ollamas, _ = mistral3_twins(tmp_path, tower=True)
    shown = show_file(ollamas)
    assert shown["read_as"] == "mistral3, vision pixtral"
    assert "mistral3.rope.scaling.beta_fast" in shown["model_info"]
    assert "mistral3.rope.scaling.yarn_beta_fast" not in shown["model_info"]
    assert "v.patch_conv.weight" in [tensor["name"] for tensor in shown["tensors"]]
    assert shown["capabilities"] == ["completion", "vision"]


def test_a_translated_file_translates_to_itself(tmp_path):
    view = text_view(GGUF.open(mistral3_twins(tmp_path, tower=True)[0]))
    again = text_view(view)
    assert again.kv.keys() == view.kv.keys() and again.tensors.keys() == view.tensors.keys()


# ---- towers


def test_a_tower_inside_becomes_a_projector_file(tmp_path):
    gguf = GGUF.open(mistral3_twins(tmp_path, tower=True)[0])
    view = projector_view(gguf)
    assert has_tower(gguf) and not has_tower(text_view(gguf))
    assert view.kv["clip.projector_type"] == "pixtral" and view.kv["clip.vision.projection_dim"] == 64
    assert view.kv["clip.use_silu"] is True and view.kv["clip.rope.freq_base"] == 1e4
    assert not any(name.startswith(("blk.", "token_embd.")) for name in view.tensors)
    assert not view.tensors["v.token_embd.img_break"].dequantize().any()
    assert {"v.patch_embd.weight", "v.pre_ln.weight", "v.blk.0.ln1.weight", "v.blk.0.ln2.weight"} <= view.tensors.keys()
    assert {"mm.1.weight", "mm.2.weight", "mm.patch_merger.weight", "mm.input_norm.weight"} <= view.tensors.keys()
    old, new = (file.tensors["v.blk.0.attn_q.weight"].dequantize() for file in (gguf, view))
    order = [0, 4, 1, 5, 2, 6, 3, 7]  # of each head's eight rows
    np.testing.assert_array_equal(new, old[order + [8 + i for i in order]])
    np.testing.assert_array_equal(
        view.tensors["v.blk.0.attn_v.weight"].blocks, gguf.tensors["v.blk.0.attn_v.weight"].blocks
    )
    assert view.tensors["v.patch_embd.weight"].format.name == "F32"
    np.testing.assert_array_equal(
        view.tensors["v.patch_embd.weight"].dequantize(), gguf.tensors["v.patch_conv.weight"].dequantize()
    )


def test_rows_of_a_head_are_interleaved_and_heads_do_not_mix():
    assert neighbours_from_halves(8, 1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert neighbours_from_halves(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_gemma3_s_tower_has_its_names_and_the_old_order_of_the_feed_forward_block(tmp_path):
    names = [
        "v.patch_embedding.weight",
        "v.position_embedding.weight",
        "v.blk.0.mlp.fc1.weight",
        "mm.mm_input_projection.weight",
    ]
    gguf = file_of(tmp_path / "g.gguf", "gemma3", {"vision.block_count": U32(1)}, dict.fromkeys(names, (4, 4)))
    view = projector_view(gguf)
    new = ["v.patch_embd.weight", "v.position_embd.weight", "v.blk.0.ffn_down.weight", "mm.input_projection.weight"]
    assert sorted(view.tensors) == sorted(new)
    assert [view.tensors[name].format.name for name in new] == ["F32", "F32", "F16", "F16"]
    assert view.kv["clip.vision.image_mean"].tolist() == [0.5, 0.5, 0.5]


def test_qwen35_s_patches_are_split_by_frame_and_its_qkv_merged(tmp_path):
    tensors = {f"v.blk.0.attn_{part}.weight": (4, 4) for part in "qkv"} | {"v.patch_embed.weight": (4 * 3, 2, 2, 2)}
    gguf = file_of(tmp_path / "q.gguf", "qwen35", {"vision.block_count": U32(1)}, tensors)
    view = projector_view(gguf)
    frames = gguf.tensors["v.patch_embed.weight"].dequantize()
    for frame, name in enumerate(("v.patch_embd.weight", "v.patch_embd.weight.1")):
        got = view.tensors[name].dequantize()
        assert got.shape == (4, 3, 2, 2)
        assert all((got[o, i] == frames[o * 3 + i, frame]).all() for o in range(4) for i in range(3))
    parts = [gguf.tensors[f"v.blk.0.attn_{part}.weight"].dequantize() for part in "qkv"]
    np.testing.assert_array_equal(view.tensors["v.blk.0.attn_qkv.weight"].dequantize(), np.concatenate(parts))
    assert view.kv["clip.vision.feed_forward_length"] == 4304 and view.kv["clip.vision.is_deepstack_layers"] == [False]


def test_deepstack_mergers_are_named_by_their_layers(tmp_path):
    keys = {
        "vision.block_count": U32(27),
        "vision.deepstack_visual_indexes": i32s(8, 16, 24),
        "vision.patch_size": U32(16),
    }
    tensors = {"v.deepstack_merger.1.linear_fc2.bias": (4,), "v.pos_embed.weight": (2304, 4)}
    view = projector_view(file_of(tmp_path / "q.gguf", "qwen3vl", keys, tensors))
    assert sorted(view.tensors) == ["v.deepstack.16.fc2.bias", "v.position_embd.weight"]
    assert view.kv["clip.vision.image_size"] == 48 * 16
    assert [il for il, is_on in enumerate(view.kv["clip.vision.is_deepstack_layers"]) if is_on] == [8, 16, 24]


def test_llama4_s_adapter_is_renamed_before_its_layers(tmp_path):
    names = [
        "v.vision_adapter.mlp.fc1.weight",
        "v.blk.0.mlp.fc1.weight",
        "v.positional_embedding_vlm",
        "mm.linear_1.weight",
    ]
    keys = {"vision.pixel_shuffle_ratio": F32(0.5)}
    view = projector_view(file_of(tmp_path / "l.gguf", "llama4", keys, dict.fromkeys(names, (4, 4))))
    new = ["mm.model.fc.weight", "mm.model.mlp.1.weight", "v.blk.0.ffn_up.weight", "v.position_embd.weight"]
    assert sorted(view.tensors) == new and view.kv["clip.vision.projector.scale_factor"] == 2


def test_deepseekocr_s_second_tower_is_sam(tmp_path):
    names = ["s.position_embd", "s.blk.0.attn.rel_pos_h", "mm.layers.weight", "v.pre_layrnorm.weight"]
    view = projector_view(file_of(tmp_path / "d.gguf", "deepseekocr", {}, dict.fromkeys(names, (4, 4))))
    new = ["mm.model.fc.weight", "v.pre_ln.weight", "v.sam.blk.0.attn.pos_h.weight", "v.sam.pos_embd.weight"]
    assert sorted(view.tensors) == new


def test_gemma4_s_ear_keeps_its_two_norms_apart(tmp_path):
    names = ["a.blk.0.ln1.weight", "a.blk.0.ln2.weight", "a.blk.0.layer_pre_norm.weight", "a.pre_encode.out.weight"]
    gguf = file_of(
        tmp_path / "g.gguf", "gemma4", {}, dict.fromkeys([*names, "mm.a.fc.weight", "v.patch_embd.weight"], (4, 4))
    )
    view = projector_view(gguf)
    moved = {
        "a.blk.0.attn_pre_norm.weight": "a.blk.0.ln1.weight",
        "a.blk.0.attn_post_norm.weight": "a.blk.0.ln2.weight",
        "a.blk.0.ln2.weight": "a.blk.0.layer_pre_norm.weight",
        "a.input_projection.weight": "a.pre_encode.out.weight",
        "a.pre_encode.out.weight": "mm.a.fc.weight",
    }
    for new, old in moved.items():
        np.testing.assert_array_equal(view.tensors[new].blocks, gguf.tensors[old].blocks)


# ---- text, row by row; the worked examples are those of Ollama's converters


def llama3_file(path, **keys):
    tokens = [f"t{i}" for i in range(EOT + 1)]
    tokens[128000], tokens[128001], tokens[128006], tokens[EOT] = (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|eot_id|>",
    )
    values = {
        "tokenizer.ggml.model": STR("gpt2"),
        "tokenizer.ggml.tokens": ArrayType(STR)(tokens),
        "tokenizer.ggml.merges": ArrayType(STR)([]),
        "tokenizer.ggml.bos_token_id": U32(128000),
        "tokenizer.ggml.eos_token_id": U32(128001),
    }
    return file_of(path, "llama", values | {f"tokenizer.ggml.{key}": value for key, value in keys.items()})


def test_llama_3_without_a_pre_gets_its_own_and_its_end_of_turn(tmp_path):
    kv = text_view(llama3_file(tmp_path / "l.gguf")).kv
    got = [kv[f"tokenizer.ggml.{key}"] for key in ("pre", "eos_token_id", "eot_token_id")]
    assert got == ["llama-bpe", EOT, EOT] and kv["tokenizer.ggml.eos_token_ids"].tolist() == [EOT]
    vocab = from_gguf(kv).vocab
    assert vocab.add_bos and {128001, EOT} <= vocab.eog


def test_llama_3_keeps_a_pre_that_it_has_and_a_right_file_is_left_alone(tmp_path):
    assert text_view(llama3_file(tmp_path / "a.gguf", pre=STR("smaug-bpe"))).kv["tokenizer.ggml.pre"] == "smaug-bpe"
    right = llama3_file(tmp_path / "b.gguf", pre=STR("llama-bpe"), eos_token_id=U32(EOT))
    assert text_view(right) is right


def test_gptoss_is_renamed(tmp_path):
    names = ["blk.0.attn_out.weight", "blk.0.attn_out.bias", "blk.0.attn_sinks", "blk.0.ffn_norm.weight"]
    tensors = dict.fromkeys(names, (4, 4)) | {"blk.0.ffn_gate_exps.weight": (2, 8, 4)}
    gguf = file_of(tmp_path / "o.gguf", "gptoss", {"block_count": U32(1)}, tensors)
    view = text_view(gguf)
    new = [
        "attn_output.bias",
        "attn_output.weight",
        "attn_sinks.weight",
        "ffn_gate_exps.weight",
        "post_attention_norm.weight",
    ]
    assert sorted(view.tensors) == [f"blk.0.{name}" for name in new]
    assert [view.kv[f"gpt-oss.{key}"] for key in ("block_count", "expert_feed_forward_length")] == [1, 8]
    assert view.kv["tokenizer.ggml.pre"] == "gpt-4o" and view.kv["gpt-oss.rope.scaling.type"] == "yarn"


def test_a_gptoss_file_equals_its_twin_bit_for_bit(tmp_path):
    theirs = tiny_gguf(tmp_path / "theirs.gguf", "gpt-oss", quant="F16", tokenizer="bpe")
    gguf = GGUF.open(theirs)
    keys = {key: key.replace("gpt-oss.", "gptoss.") for key in gguf.kv}
    drop = ["gpt-oss.expert_feed_forward_length", "gpt-oss.rope.scaling.type", "tokenizer.ggml.pre"]
    old = {".attn_output.": ".attn_out.", ".attn_sinks.weight": ".attn_sinks", ".post_attention_norm.": ".ffn_norm."}
    names = {name: name.replace(part, old[part]) for name in gguf.tensors for part in old if part in name}
    more = {"general.architecture": STR("gptoss")}
    ollamas = rewritten(theirs, tmp_path / "ollamas.gguf", keys, names, drop=drop, more=more)
    np.testing.assert_array_equal(logits(ollamas), logits(theirs))


def test_names_that_are_right_already_stay(tmp_path):
    names = ["blk.0.attn_output.weight", "blk.0.attn_sinks.weight"]
    assert sorted(text_view(file_of(tmp_path / "o.gguf", "gptoss", {}, dict.fromkeys(names, (4, 4)))).tensors) == names


def test_embeddinggemma_has_two_dense_layers_after_pooling(tmp_path):
    tensors = {"dense.0.weight": (3072, 768), "dense.1.weight": (768, 3072), "norm.weight": (768,)}
    view = text_view(
        file_of(tmp_path / "e.gguf", "gemma3", {"pooling_type": U32(1), "attention.causal": BOOL(False)}, tensors)
    )
    assert sorted(view.tensors) == ["dense_2.weight", "dense_3.weight", "output_norm.weight"]
    keys = ("dense_2_feat_in", "dense_2_feat_out", "dense_3_feat_in", "dense_3_feat_out", "pooling_type")
    assert [view.kv[f"gemma-embedding.{key}"] for key in keys] == [768, 3072, 3072, 768, 1]
    assert "gemma-embedding.attention.causal" not in view.kv


def test_lfm2_s_width_is_that_of_its_tensor(tmp_path):
    tensors = {"blk.0.ffn_gate.weight": (8192, 32), "output_norm.weight": (32,)}
    view = text_view(file_of(tmp_path / "l.gguf", "lfm2", {"feed_forward_length": U32(12288)}, tensors))
    assert view.kv["lfm2.feed_forward_length"] == 8192 and "token_embd_norm.weight" in view.tensors


def test_qwen35_has_one_count_of_key_heads_and_four_sections(tmp_path):
    keys = {"attention.head_count_kv": i32s(0, 0, 0, 4), "rope.dimension_sections": i32s(11, 11, 10)}
    tensors = dict.fromkeys(["blk.0.ssm_dt", "mtp.fc.weight", "v.pos_embed.weight"], (4, 4))
    for name in ("qwen35", "qwen35moe"):
        view = text_view(file_of(tmp_path / "q.gguf", name, keys, tensors))
        assert view.kv[f"{name}.attention.head_count_kv"] == 4 and list(view.tensors) == ["blk.0.ssm_dt.bias"]
        assert view.kv[f"{name}.rope.dimension_sections"].tolist() == [11, 11, 10, 0]


def test_other_qwens_get_their_sections(tmp_path):
    view = text_view(file_of(tmp_path / "a.gguf", "qwen25vl", {"rope.mrope_section": i32s(16, 24, 24)}))
    assert view.kv["qwen2vl.rope.dimension_sections"].tolist() == [16, 24, 24, 0]
    for name in ("qwen3vl", "qwen3vlmoe"):
        view = text_view(file_of(tmp_path / "b.gguf", name, {"vision.deepstack_visual_indexes": i32s(8, 16, 24)}))
        assert view.kv[f"{name}.rope.dimension_sections"].tolist() == [24, 20, 20, 0]
        assert view.kv[f"{name}.n_deepstack_layers"] == 3
    view = text_view(
        file_of(tmp_path / "c.gguf", "qwen3next", {"attention.head_count_kv": i32s(0, 2)}, {"blk.1.ssm_dt": (4,)})
    )
    assert view.kv["qwen3next.attention.head_count_kv"] == 2 and list(view.tensors) == ["blk.1.ssm_dt.bias"]


def test_glm4moelite_is_deepseek2_with_absorbed_attention(tmp_path):
    keys = {"attention.kv_lora_rank": U32(512), "rope.dimension_count": U32(64), "attention.key_length": U32(256)}
    kv = text_view(
        file_of(tmp_path / "g.gguf", "glm4moelite", keys | {"tokenizer.ggml.eos_token_ids": i32s(5, 6, 7)})
    ).kv
    names = ("key_length", "value_length", "key_length_mla", "value_length_mla", "head_count_kv")
    assert [kv[f"deepseek2.attention.{name}"] for name in names] == [576, 512, 256, 256, 1]
    assert [kv[f"tokenizer.ggml.{role}_token_id"] for role in ("eot", "eom")] == [6, 7]


def test_gemma3n_s_embedding_is_cut_to_the_rows_of_the_text_model(tmp_path):
    tokens = ["<0x41>", "<unused1>", "a", "image", "sound"]
    keys = {"tokenizer.ggml.tokens": ArrayType(STR)(tokens), "tokenizer.ggml.token_type": i32s(1, 4, 1, 3, 3)}
    tensors = {"token_embd.weight": (5, 4), "per_layer_token_embd.weight": (3, 4)}
    gguf = file_of(tmp_path / "g.gguf", "gemma3n", keys, tensors)
    view = text_view(gguf)
    np.testing.assert_array_equal(
        view.tensors["token_embd.weight"].dequantize(), gguf.tensors["token_embd.weight"].dequantize()[:3]
    )
    assert view.tensors["token_embd.weight"].shape == (3, 4)
    assert view.kv["tokenizer.ggml.tokens"] == tokens[:3]
    assert view.kv["tokenizer.ggml.token_type"].tolist() == [6, 1, 1]
    assert view.kv["tokenizer.ggml.eos_token_ids"].tolist() == [1, 106]


def test_a_character_map_of_letters_is_decoded(tmp_path):
    def charsmap(*letters):
        keys = {"tokenizer.ggml.model": STR("t5"), "tokenizer.ggml.precompiled_charsmap": ArrayType(STR)(list(letters))}
        gguf = file_of(tmp_path / "b.gguf", "bert", keys)
        return text_view(gguf), gguf

    view, _ = charsmap("A", "Q", "I", "D")
    assert view.kv["tokenizer.ggml.precompiled_charsmap"].tolist() == [1, 2, 3]
    assert view.kv_types["tokenizer.ggml.precompiled_charsmap"] == ArrayType(U8)
    assert charsmap("A", "Q", "I", "=")[0].kv["tokenizer.ggml.precompiled_charsmap"].tolist() == [1, 2]
    for letters in (["AQ", "I", "D"], ["A", "-", "I", "D"], ["A"], []):
        view, gguf = charsmap(*letters)
        assert view is gguf


def test_the_rest_are_renamed(tmp_path):
    view = text_view(file_of(tmp_path / "a.gguf", "olmo3", {"block_count": U32(2)}))
    assert (view.kv["general.architecture"], view.kv["olmo2.block_count"]) == ("olmo2", 2)
    tensors = {"blk.1.ffn_latent_in.weight": (6, 4), "mtp.x": (4,)}
    view = text_view(file_of(tmp_path / "b.gguf", "nemotron_h_moe", {}, tensors))
    assert list(view.tensors) == ["blk.1.ffn_latent_down.weight"] and view.kv["nemotron_h_moe.moe_latent_size"] == 6
    tensors = {"blk.1.ffn_down_exps.weight": (2, 4, 896), "blk.1.ffn_down_shexp.weight": (4, 1792), "s.x": (4,)}
    view = text_view(file_of(tmp_path / "c.gguf", "deepseekocr", {}, tensors))
    assert view.kv["deepseek2-ocr.expert_shared_count"] == 2 and "s.x" not in view.tensors
    keys = {"tokenizer.ggml.model": STR("llama")}
    view = text_view(
        file_of(tmp_path / "d.gguf", "gemma4", keys, {"blk.0.ffn_gate_inp.per_expert_scale": (4,), "v.x": (4,)})
    )
    assert list(view.tensors) == ["blk.0.ffn_down_exps.scale"] and view.kv["tokenizer.ggml.model"] == "gemma4"
    assert not text_view(file_of(tmp_path / "e.gguf", "llama4", {}, {"v.x": (4,), "mm.y": (4,)})).tensors


# ---- odd files

ODD = [None, True, "", "x", "llama", "t5", -1, 0, 2, 2**62, 1e-40, float("nan"), float("inf"), [], ["a"], [1, 2, 3]]
ODD += [[[1], ["a"]], [True] * 3, np.array([1.5, np.nan, 2]), np.array([-1, 5, 2**62]), np.array([], np.int32)]
READ = """rope.global.freq_base attention.layer_norm_rms_epsilon context_length rope.scaling.beta_fast rope.scaling.type
    feed_forward_length attention.head_count_kv rope.dimension_sections rope.mrope_section attention.key_length
    attention.kv_lora_rank rope.dimension_count expert_feed_forward_length vision.block_count vision.embedding_length
    vision.attention.head_count vision.num_channels vision.fullatt_block_indexes vision.deepstack_visual_indexes
    vision.patch_size vision.pixel_shuffle_ratio audio.block_count embedding_length tokenizer.ggml.tokens
    tokenizer.ggml.token_type tokenizer.ggml.pre tokenizer.ggml.model tokenizer.ggml.eos_token_id
    tokenizer.ggml.eos_token_ids tokenizer.ggml.precompiled_charsmap tokenizer.chat_template general.architecture
    clip.projector_type clip.has_vision_encoder""".split()
TENSORS = {
    **dict.fromkeys(["token_embd.weight", "per_layer_token_embd.weight", "dense.0.weight", "dense.1.weight"], (3, 4)),
    **dict.fromkeys(["blk.0.ffn_gate_exps.weight", "blk.0.ssm_dt", "blk.0.ffn_latent_in.weight", "s.x", "mtp.x"], (4,)),
    **{f"v.blk.0.attn_{part}.weight": (6, 4) for part in "qkv"},
    **{"v.patch_embed.weight": (6, 2, 2, 2), "v.pos_embed.weight": (4, 4), "a.blk.0.ln1.weight": (4,)},
    **{"output_norm.weight": (4,), "v.blk.0.attn_q.bias": (6,)},
}


@pytest.mark.parametrize("architecture", sorted({row.architecture for row in TEXT_ROWS} | {"clip"}))
def test_odd_values_are_translated_without_an_error(tmp_path, architecture):
    """Each key that a rule reads has each odd value; a reader of the view refuses what it cannot use."""
    whole = file_of(tmp_path / "odd.gguf", architecture, {"vision.block_count": U32(1)}, TENSORS)
    bare = replace(whole, tensors={}, tensor_offsets={})
    for name in READ:
        key = name if name.startswith(("general.", "tokenizer.", "clip.")) else f"{architecture}.{name}"
        for value in ODD:
            for gguf in (whole, bare):
                odd = replace(gguf, kv=gguf.kv | {key: value}, kv_types=gguf.kv_types | {key: STR})
                assert isinstance(read_as(odd), str)


# ---- all recorded pairs, whose views Ollama's own code has been compared with

LEFT = ("general.", "tokenizer.ggml.scores", "tokenizer.ggml.add_")  # keys that llama.cpp's converter writes otherwise
ALL = ["embeddinggemma", "gemma3", "gemma3-vision", "gptoss", "lfm2", "llama3", "mistral3", "mistral3-vision", "qwen35"]


def assert_view_has(view, twin):
    """Check that `view` has the keys and tensors of the file `twin`, and no other tensors."""
    for key in twin.kv:
        if not key.startswith(LEFT):
            np.testing.assert_array_equal(view.kv[key], twin.kv[key], key)
    assert view.tensors.keys() == twin.tensors.keys()
    for name, tensor in twin.tensors.items():
        assert view.tensors[name].format is tensor.format
        np.testing.assert_array_equal(view.tensors[name].blocks, tensor.blocks, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_recorded_text_model_equals_its_twin(whole, name):
    folder = whole.path("dialect/files")
    twin = GGUF.open(folder / f"{name}.llamacpp.gguf")
    assert_view_has(text_view(GGUF.open(folder / f"{name}.ollama.gguf")), twin)
    if twin.kv["general.architecture"] in FAMILIES:
        got, expected = (logits(folder / f"{name}.{dialect}.gguf") for dialect in ("ollama", "llamacpp"))
        np.testing.assert_array_equal(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3-vision", "mistral3-vision"])
def test_every_recorded_tower_equals_its_twin(whole, name):
    folder = whole.path("dialect/files")
    view, twin = projector_view(GGUF.open(folder / f"{name}.ollama.gguf")), GGUF.open(folder / f"{name}.mmproj.gguf")
    if name == "gemma3-vision":  # the twin has the new order; a reader decides by the shapes
        exchanged = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
        named = {re.sub("ffn_(up|down)", lambda found: exchanged[found[0]], n): t for n, t in view.tensors.items()}
        view = replace(view, tensors=named)
    assert_view_has(view, twin)
