"""Rules for text models: the marks of Ollama's dialect in each architecture, and the translation to llama.cpp's.

Rows of one architecture are tried in order.  Marks are looked for in the file as it is; a rule may remove them.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ....kernels.tensor import Tensor
from ..read import F32, I32, STR, U8, U32, TypedValue
from .view import Rule, View, array_of

PRE = "tokenizer.ggml.pre"
EOS = "tokenizer.ggml.eos_token_id"
CHARSMAP = "tokenizer.ggml.precompiled_charsmap"
END_OF_TEXT, START_HEADER, EOT = 128001, 128006, 128009  # Llama 3's ids
MIN_SCALED_CONTEXT = 131072  # Gemma 3 of 4B and more
NORMAL, BYTE = 1, 6  # tokenizer.ggml.token_type


@dataclass(frozen=True)
class TextRow:
    """An architecture in Ollama's dialect.

    architecture   general.architecture in the file
    becomes        the one that llama.cpp has for it
    is_marked      whether the file is in the dialect; without its marks it is llama.cpp's already
    """

    architecture: str
    becomes: str
    is_marked: Callable[[View], bool]
    translate: Rule


def always(view: View) -> bool:
    return True


def pre_is_unset(view: View) -> bool:
    """Return whether `tokenizer.ggml.pre` is missing, "" or "default"."""
    value = view.get(PRE)
    return value is None or (isinstance(value, str) and value in ("", "default"))


def maximum_of_array(view: View, key: str, if_zero: int | None) -> None:
    """Replace an array of numbers, one for each layer, by its maximum, or by `if_zero` if that is 0."""
    if numbers := view.integers(key):
        view.set_integer(key, max(numbers) or if_zero)


# ---- llama


def is_llama_3(view: View) -> bool:
    """Return whether the tokens are Llama 3's while `pre` is missing or the end of a turn is not the end of text."""
    tokens, template = view.texts("tokenizer.ggml.tokens"), view.get("tokenizer.chat_template")
    if len(tokens) <= EOT or tokens[EOT] != "<|eot_id|>":
        return False
    marks = ("<|start_header_id|>", "<|eot_id|>")
    is_chat = tokens[START_HEADER] == marks[0] or (isinstance(template, str) and any(m in template for m in marks))
    return is_chat and (pre_is_unset(view) or view.integer(EOS) == END_OF_TEXT)


def translate_llama(view: View) -> None:
    if pre_is_unset(view):
        view.set(PRE, STR("llama-bpe"))
    for key in (EOS, "tokenizer.ggml.eot_token_id"):
        id = view.integer(key)
        if id is None or id < 0 or id == END_OF_TEXT:
            view.set(key, U32(EOT))
    view.set("tokenizer.ggml.eos_token_ids", array_of(I32, [EOT]))


# ---- Gemma


def is_ollama_gemma3(view: View) -> bool:
    return (
        view.has("mm.tokens_per_image", "rope.global.freq_base", "rope.local.freq_base")
        or view.has("tokenizer.ggml.add_padding_token", "tokenizer.ggml.add_unknown_token")
        or view.has_tensor("v.", "mm.")
        or not view.has("attention.layer_norm_rms_epsilon")
    )


def translate_gemma3(view: View) -> None:
    view.copy(("rope.global.freq_base", "rope.freq_base"), ("rope.local.freq_base", "rope.freq_base_swa"))
    view.default("attention.layer_norm_rms_epsilon", F32(1e-6))
    view.default("rope.freq_base", F32(1e6))
    view.default("rope.freq_base_swa", F32(1e4))
    if (view.integer("context_length") or 0) >= MIN_SCALED_CONTEXT:
        view.default("rope.scaling.type", STR("linear"))
        view.default("rope.scaling.factor", F32(8))
    view.cut_vocabulary(view.ne("token_embd.weight", 1))
    view.hide("v.", "mm.")


def translate_embeddinggemma(view: View) -> None:
    view.rename_architecture("gemma-embedding")
    view.remove("attention.causal", "attention.sliding_window_pattern")
    view.default("rope.freq_base_swa", F32(1e4))
    if "dense.1.weight" in view.tensors:
        for name, dense in (("dense_2", "dense.0.weight"), ("dense_3", "dense.1.weight")):
            view.set_integer(f"{name}_feat_in", view.ne(dense, 0))
            view.set_integer(f"{name}_feat_out", view.ne(dense, 1))
    view.rename(
        ("dense.0.weight", "dense_2.weight"),
        ("dense.1.weight", "dense_3.weight"),
        ("norm.weight", "output_norm.weight"),
    )


def translate_gemma3n(view: View) -> None:
    """Translate Gemma 3n, whose token embedding has rows for images and sounds that the text model does not use."""
    n = view.ne("per_layer_token_embd.weight", 1) or 0
    view.set("tokenizer.ggml.model", STR("llama"))
    table = view.tensors["token_embd.weight"]
    if isinstance(table, Tensor) and table.shape[0] > n:
        view.put_blocks("token_embd.weight", table, (n, *table.shape[1:]), table.blocks[:n])
    view.cut_vocabulary(n)
    types = view.get("tokenizer.ggml.token_type")
    if isinstance(types, np.ndarray) and types.dtype == np.int32:
        types = types.copy()
        for id, text in enumerate(view.texts("tokenizer.ggml.tokens")[: len(types)]):
            if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
                types[id] = BYTE
            elif text.startswith("<unused"):
                types[id] = NORMAL
        view.kv["tokenizer.ggml.token_type"] = types
    ends = view.get("tokenizer.ggml.eos_token_ids")
    if not isinstance(ends, np.ndarray) or ends.dtype.kind not in "iu":
        view.set("tokenizer.ggml.eos_token_ids", array_of(I32, [1, 106]))
    elif 106 not in ends:
        view.kv["tokenizer.ggml.eos_token_ids"] = np.append(ends, ends.dtype.type(106))


def translate_gemma4(view: View) -> None:
    """Translate Gemma 4.  Gates and ups of experts stay apart, which llama.cpp reads too."""
    if view.source.text("tokenizer.ggml.model") == "llama":
        view.set("tokenizer.ggml.model", STR("gemma4"))
    view.hide("a.", "v.", "mm.", "model.vision_tower.")
    view.replace((".ffn_gate_inp.per_expert_scale", ".ffn_down_exps.scale"))


# ---- Mistral


def is_ollama_mistral3(view: View) -> bool:
    keys = ("rope.scaling.beta_fast", "rope.scaling.mscale_all_dim", "rope.scaling_beta")
    return view.has(*keys) or view.has_tensor("v.", "mm.")


def translate_mistral3(view: View) -> None:
    """Translate Mistral 3: without YaRN's keys a reader computes something else and does not notice."""
    view.copy(
        ("rope.scaling.beta_fast", "rope.scaling.yarn_beta_fast"),
        ("rope.scaling.beta_slow", "rope.scaling.yarn_beta_slow"),
        ("rope.scaling.mscale_all_dim", "rope.scaling.yarn_log_multiplier"),
        ("rope.scaling_beta", "attention.temperature_scale"),
    )
    if isinstance(kind := view.get("rope.scaling.type"), str) and not kind:  # some files without YaRN
        view.remove("rope.scaling.type")
    if pre_is_unset(view):
        view.set(PRE, STR("tekken"))
    view.hide("v.", "mm.")


# ---- OpenAI, Liquid, Allen AI


def translate_gptoss(view: View) -> None:
    view.rename_architecture("gpt-oss")
    width = view.ne("blk.0.ffn_gate_exps.weight", 1)
    view.default("expert_feed_forward_length", None if width is None else U32(width))
    view.default("rope.scaling.type", STR("yarn"))
    view.set(PRE, STR("gpt-4o"))
    view.replace((".attn_out", ".attn_output"), (".ffn_norm", ".post_attention_norm"))
    view.append(".attn_sinks", ".weight")


def translate_lfm2(view: View) -> None:
    """Translate LFM2; llama.cpp has its last norm under the name of an embedding's."""
    view.rename(("output_norm.weight", "token_embd_norm.weight"))
    view.set(PRE, STR("lfm2"))
    view.set_integer("feed_forward_length", view.ne("blk.0.ffn_gate.weight", 1))


def translate_olmo3(view: View) -> None:
    view.rename_architecture("olmo2")


# ---- Qwen


def is_ollama_qwen35(view: View) -> bool:
    keys = ["vision.block_count", "image_token_id", "ssm.v_head_reordered", "rope.mrope_interleaved"]
    keys += ["feed_forward_length"] if view.arch == "qwen35moe" else []
    return view.has(*keys) or view.has_tensor("mtp.", "v.")


def translate_qwen35(view: View) -> None:
    """Translate Qwen 3.5.  Layers that guess the token after next are hidden: text is the same without."""
    maximum_of_array(view, "attention.head_count_kv", if_zero=2)
    sections = view.integers("rope.dimension_sections")
    if len(sections) == 3:
        view.set("rope.dimension_sections", array_of(I32, [*sections, 0]))
    view.append(".ssm_dt", ".bias")
    view.hide("v.", "mm.", "mtp.")


def translate_qwen3next(view: View) -> None:
    maximum_of_array(view, "attention.head_count_kv", if_zero=None)
    view.append(".ssm_dt", ".bias")


def translate_qwen25vl(view: View) -> None:
    view.rename_architecture("qwen2vl")
    sections = view.integers("rope.mrope_section")
    if len(sections) >= 3:
        view.set("rope.dimension_sections", array_of(I32, [*sections[:3], 0]))
    view.hide("v.", "mm.")


def translate_qwen3vl(view: View) -> None:
    view.set("rope.dimension_sections", array_of(I32, [24, 20, 20, 0]))
    view.default("n_deepstack_layers", U32(len(view.integers("vision.deepstack_visual_indexes"))))
    view.hide("v.", "mm.")


# ---- others


def translate_glm4moelite(view: View) -> None:
    """Translate GLM 4.7 Flash to DeepSeek 2 with absorbed attention: one key head, as wide as the latent and RoPE."""
    length = view.integer("attention.key_length")
    view.rename_architecture("deepseek2")
    view.set("attention.head_count_kv", U32(1))
    rank, n_rot = view.integer("attention.kv_lora_rank"), view.integer("rope.dimension_count")
    if rank is not None and n_rot is not None:
        view.set("attention.key_length", U32(rank + n_rot))
        view.set("attention.value_length", U32(rank))
    view.set_integer("attention.key_length_mla", length)
    view.set_integer("attention.value_length_mla", length)
    view.default("expert_group_count", U32(1))
    view.default("expert_group_used_count", U32(1))
    view.set(PRE, STR("glm4"))
    ids = [id for id in view.integers("tokenizer.ggml.eos_token_ids") if id >= 0]
    for role, id in zip(("eot", "eom"), ids[1:], strict=False):
        view.default(f"tokenizer.ggml.{role}_token_id", U32(id))


def decoded_charsmap(view: View) -> TypedValue | None:
    """Return the character map of a T5 tokenizer that was written as an array of base64's letters."""
    letters = view.texts(CHARSMAP)
    if view.source.text("tokenizer.ggml.model") != "t5" or not letters:
        return None
    text = "".join(letters).split("=")[0]
    if any(len(letter) != 1 for letter in letters) or not re.fullmatch("[A-Za-z0-9+/]+", text):
        return None
    n_byte = len(text) * 6 // 8
    return array_of(U8, base64.b64decode(text + "A" * (-len(text) % 4))[:n_byte]) if n_byte else None


def translate_bert(view: View) -> None:
    charsmap = decoded_charsmap(view)
    assert charsmap
    view.set(CHARSMAP, charsmap)


def is_ollama_nemotron(view: View) -> bool:
    return view.has_tensor("blk.0.ffn_latent_in", "blk.1.ffn_latent_in", "mtp.")


def translate_nemotron(view: View) -> None:
    latent = [re.fullmatch(r"blk\.(\d+)\.ffn_latent_in\.weight", name) for name in view.tensors]
    if found := sorted((int(match[1]), match[0]) for match in latent if match):
        width = view.ne(found[0][1], 1)
        view.default("moe_latent_size", None if width is None else U32(width))
    view.replace((".ffn_latent_in", ".ffn_latent_down"), (".ffn_latent_out", ".ffn_latent_up"))
    view.hide("mtp.")


def translate_llama4(view: View) -> None:
    view.hide("v.", "mm.")


def translate_deepseekocr(view: View) -> None:
    view.rename_architecture("deepseek2-ocr")
    view.default("attention.layer_norm_rms_epsilon", F32(1e-6))
    width, shared = view.ne("blk.1.ffn_down_exps.weight", 0), view.ne("blk.1.ffn_down_shexp.weight", 0)  # 0 is dense
    view.default("expert_feed_forward_length", None if width is None else U32(width))
    length = view.integer("expert_feed_forward_length")
    view.default("expert_shared_count", U32(shared // length) if shared and length else None)
    view.hide("s.", "v.", "mm.")


def differs_in_rows(view: View) -> bool:
    rows = view.ne("token_embd.weight", 1), view.ne("per_layer_token_embd.weight", 1)
    return None not in rows and rows[0] != rows[1]


TEXT_ROWS = (
    TextRow("llama", "llama", is_llama_3, translate_llama),
    TextRow("gemma3", "gemma-embedding", lambda view: "dense.0.weight" in view.tensors, translate_embeddinggemma),
    TextRow("gemma3", "gemma3", is_ollama_gemma3, translate_gemma3),
    TextRow("mistral3", "mistral3", is_ollama_mistral3, translate_mistral3),
    TextRow("gptoss", "gpt-oss", always, translate_gptoss),
    TextRow(
        "lfm2",
        "lfm2",
        lambda view: "output_norm.weight" in view.tensors and "token_embd_norm.weight" not in view.tensors,
        translate_lfm2,
    ),
    TextRow("olmo3", "olmo2", always, translate_olmo3),
    TextRow("qwen35", "qwen35", is_ollama_qwen35, translate_qwen35),
    TextRow("qwen35moe", "qwen35moe", is_ollama_qwen35, translate_qwen35),
    TextRow(
        "qwen3next", "qwen3next", lambda view: any(n.endswith(".ssm_dt") for n in view.tensors), translate_qwen3next
    ),
    TextRow("qwen25vl", "qwen2vl", always, translate_qwen25vl),
    TextRow("qwen3vl", "qwen3vl", lambda view: not view.has("rope.dimension_sections"), translate_qwen3vl),
    TextRow("qwen3vlmoe", "qwen3vlmoe", lambda view: not view.has("rope.dimension_sections"), translate_qwen3vl),
    TextRow("gemma3n", "gemma3n", differs_in_rows, translate_gemma3n),
    TextRow(
        "gemma4",
        "gemma4",
        lambda view: (
            view.has_tensor("a.", "v.", "mm.", "model.vision_tower.")
            or view.source.text("tokenizer.ggml.model") == "llama"
        ),
        translate_gemma4,
    ),
    TextRow("glm4moelite", "deepseek2", always, translate_glm4moelite),
    TextRow("bert", "bert", lambda view: decoded_charsmap(view) is not None, translate_bert),
    TextRow("nemotron_h_moe", "nemotron_h_moe", is_ollama_nemotron, translate_nemotron),
    TextRow("llama4", "llama4", lambda view: view.has_tensor("v.", "mm."), translate_llama4),
    TextRow("deepseekocr", "deepseek2-ocr", always, translate_deepseekocr),
)
