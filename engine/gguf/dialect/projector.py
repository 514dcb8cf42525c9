"""Rules for vision towers: a tower inside a text model's file, read as a projector file of llama.cpp's.

Rules run on the whole file, and keys of the text model stay: a projector's reader asks for its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..read import BOOL, F32, GGUF, STR, U32
from .view import Rule, View, array_of

MAX_LAYERS = 512  # llama.cpp's LLAMA_MAX_LAYERS
HALF = (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145467, 0.45782750, 0.40821072), (0.26862955, 0.26130259, 0.27577710)  # Pixtral's
QWEN_MEAN, QWEN_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")


def projector_type(gguf: GGUF) -> str:
    """Return the type of a projector file, "" if it has none."""
    return gguf.text("clip.projector_type") or gguf.text("clip.vision.projector_type")


def translate_clip(view: View) -> bool:
    """Set the projector type that the first LLaVAs' files lack; return whether it was missing."""
    if view.get("clip.has_vision_encoder") is not True or view.has("clip.projector_type", "clip.vision.projector_type"):
        return False
    view.set("clip.projector_type", STR("mlp"))
    return True


def copy_sizes(view: View, *names: str) -> None:
    """Copy keys of the tower to a projector's: "<architecture>.vision.X" to "clip.vision.X"."""
    view.copy(*[(f"vision.{name}", f"clip.vision.{name}") for name in names])
    view.copy(("embedding_length", "clip.vision.projection_dim"))


def set_projector(
    view: View, kind: str, activation: str, mean: Sequence[float] = HALF, std: Sequence[float] = HALF
) -> None:
    """Set the type, and where they are missing the activation function and the normalization of pixels."""
    view.default("clip.vision.image_mean", array_of(F32, mean))
    view.default("clip.vision.image_std", array_of(F32, std))
    view.default("clip.has_vision_encoder", BOOL(True))
    view.default(f"clip.use_{activation}", BOOL(True))
    view.set("clip.projector_type", STR(kind))


def gemma3_tower(view: View) -> None:
    """Translate Gemma 3's SigLIP.  fc1 becomes ffn_down: old projectors exchange the names, and a reader knows that."""
    copy_sizes(view, *SIZES, "image_size", "patch_size", "attention.layer_norm_epsilon")
    set_projector(view, "gemma3", "gelu")
    view.replace(
        ("v.patch_embedding", "v.patch_embd"),
        ("v.position_embedding", "v.position_embd"),
        ("v.post_layernorm", "v.post_ln"),
        (".layer_norm1", ".ln1"),
        (".layer_norm2", ".ln2"),
        (".attn_output", ".attn_out"),
        (".mlp.fc1", ".ffn_down"),
        (".mlp.fc2", ".ffn_up"),
        ("mm.mm_input_projection", "mm.input_projection"),
        ("mm.mm_soft_emb_norm", "mm.soft_emb_norm"),
    )
    view.promote("v.patch_embd.weight", "v.position_embd.weight")


def mistral3_tower(view: View) -> None:
    """Translate Pixtral.  The row for [IMG_BREAK] is zeros, as in Ollama; the token's embedding is not in reach."""
    copy_sizes(view, *SIZES, "image_size", "patch_size", "num_channels")
    view.copy(
        ("spatial_merge_size", "clip.vision.spatial_merge_size"), ("vision.rope.freq_base", "clip.rope.freq_base")
    )
    view.default("clip.vision.attention.layer_norm_epsilon", F32(1e-5))
    set_projector(view, "pixtral", "silu", CLIP_MEAN, CLIP_STD)
    if n_embd := view.ne("output_norm.weight", 0):
        view.put("v.token_embd.img_break", np.zeros(n_embd, np.float32))
    n_head = view.integer("vision.attention.head_count") or 0
    for il in range(n_blocks(view, 0)):
        for name in (f"v.blk.{il}.attn_q.weight", f"v.blk.{il}.attn_k.weight"):
            tensor = view.f16(name)
            if tensor is not None and n_head > 0 and tensor.shape[0] and tensor.shape[0] % (2 * n_head) == 0:
                view.put_blocks(
                    name, tensor, tensor.shape, tensor.blocks[neighbours_from_halves(tensor.shape[0], n_head)]
                )
    view.replace(
        ("v.patch_conv", "v.patch_embd"),
        ("v.encoder_norm", "v.pre_ln"),
        (".attn_output", ".attn_out"),
        (".attn_norm", ".ln1"),
        (".ffn_norm", ".ln2"),
        ("mm.linear_1", "mm.1"),
        ("mm.linear_2", "mm.2"),
        ("mm.patch_merger.merging_layer", "mm.patch_merger"),
        ("mm.norm", "mm.input_norm"),
    )
    view.promote("v.patch_embd.weight")


def neighbours_from_halves(n_row: int, n_head: int) -> np.ndarray:
    """Return the order of rows that puts the pairs of RoPE beside each other, head by head.  -> int [n_row]

    One head of 8 rows: 0 4 1 5 2 6 3 7.
    """
    return np.arange(n_row).reshape(n_head, 2, -1).swapaxes(1, 2).reshape(-1)


def qwen35_tower(view: View) -> None:
    """Translate Qwen 3.5's tower, whose file tells neither the feed-forward width nor the image size."""
    copy_sizes(
        view,
        "block_count",
        "embedding_length",
        "attention.head_count",
        "patch_size",
        "spatial_merge_size",
        "num_channels",
    )
    view.default("clip.vision.feed_forward_length", U32(4304))
    view.default("clip.vision.image_size", U32(768))
    view.default("clip.vision.attention.layer_norm_epsilon", F32(1e-6))
    if n := n_blocks(view, 0):
        view.default("clip.vision.is_deepstack_layers", array_of(BOOL, [False] * n))
    set_projector(view, "qwen3vl_merger", "gelu")
    merge_qkv(view, n_blocks(view, 27), as_f32=False)
    split_frames(view)
    view.replace(
        ("v.pos_embed", "v.position_embd"),
        ("v.patch_embed", "v.patch_embd"),
        ("v.merger.norm", "v.post_ln"),
        ("v.merger.linear_fc1", "mm.0"),
        ("v.merger.linear_fc2", "mm.2"),
        (".mlp.linear_fc1", ".ffn_up"),
        (".mlp.linear_fc2", ".ffn_down"),
        (".norm1", ".ln1"),
        (".norm2", ".ln2"),
    )
    view.promote("v.position_embd.weight")


def qwen25vl_tower(view: View) -> None:
    """Translate Qwen 2.5 VL's tower, whose layers have windows but for every eighth, or as the file lists them."""
    copy_sizes(
        view,
        *("attention.head_count", "attention.layer_norm_epsilon", "block_count", "embedding_length", "num_channels"),
        *("patch_size", "spatial_merge_size", "window_size"),
    )
    width = view.ne("v.blk.0.ffn_up.weight", 1)
    view.default("clip.vision.feed_forward_length", None if width is None else U32(width))
    if full := view.integers("vision.fullatt_block_indexes"):
        view.set("clip.vision.n_wa_pattern", U32(full[0] + 1))
    view.default("clip.vision.n_wa_pattern", U32(8))
    view.default("clip.vision.image_size", U32(560))
    set_projector(view, "qwen2.5vl_merger", "silu", QWEN_MEAN, QWEN_STD)
    view.rename(
        ("v.merger.ln_q.weight", "v.post_ln.weight"),
        *[(f"v.merger.mlp.{i}.{part}", f"mm.{i}.{part}") for i in (0, 2) for part in ("weight", "bias")],
        ("v.patch_embd_0.weight", "v.patch_embd.weight"),
        ("v.patch_embd_1.weight", "v.patch_embd.weight.1"),
    )
    view.promote("v.patch_embd.weight", "v.patch_embd.weight.1")


def qwen3vl_tower(view: View) -> None:
    """Translate Qwen 3 VL's tower; some layers ("deepstack") have a merger of their own."""
    copy_sizes(
        view,
        *("attention.head_count", "attention.layer_norm_epsilon", "block_count", "embedding_length", "num_channels"),
        *("patch_size", "spatial_merge_size", "temporal_patch_size", "rope.freq_base", "image_mean", "image_std"),
    )
    view.copy(
        ("vision.shortest_edge", "clip.vision.image_min_pixels"),
        ("vision.longest_edge", "clip.vision.image_max_pixels"),
    )
    view.default("clip.vision.num_channels", U32(3))
    view.default("clip.vision.temporal_patch_size", U32(2))
    view.default("clip.vision.rope.freq_base", F32(1e4))
    width, n_pos = view.ne("v.blk.0.mlp.linear_fc1.weight", 1), view.ne("v.pos_embed.weight", 1)
    view.default("clip.vision.feed_forward_length", None if width is None else U32(width))
    patch_size = view.integer("vision.patch_size")
    view.default("clip.vision.image_size", U32(math.isqrt(n_pos) * patch_size) if n_pos and patch_size else None)
    view.default("clip.vision.image_min_pixels", U32(65536))
    view.default("clip.vision.image_max_pixels", U32(16777216))
    indexes = view.integers("vision.deepstack_visual_indexes")
    view.default("clip.vision.is_deepstack_layers", array_of(BOOL, [il in indexes for il in range(n_blocks(view, 0))]))
    set_projector(view, "qwen3vl_merger", "gelu")
    merge_qkv(view, n_blocks(view, 0), as_f32=True)
    split_frames(view)
    both = ("weight", "bias")
    view.rename(
        *[(f"v.merger.norm.{part}", f"v.post_ln.{part}") for part in both],
        *[(f"v.merger.linear_fc{i}.{part}", f"mm.{j}.{part}") for i, j in ((1, 0), (2, 2)) for part in both],
        ("v.patch_embed.bias", "v.patch_embd.bias"),
        ("v.pos_embed.weight", "v.position_embd.weight"),
    )
    for i, il in enumerate(indexes):
        for old, new in (("norm", "norm"), ("linear_fc1", "fc1"), ("linear_fc2", "fc2")):
            view.rename_beginning(f"v.deepstack_merger.{i}.{old}.", f"v.deepstack.{il}.{new}.")
    view.replace(
        (".norm1", ".ln1"), (".norm2", ".ln2"), (".mlp.linear_fc1", ".ffn_up"), (".mlp.linear_fc2", ".ffn_down")
    )
    view.promote("v.position_embd.weight")


def gemma4_tower(view: View) -> None:
    """Translate Gemma 4's tower and, where the file has one, its audio encoder."""
    copy_sizes(view, *SIZES, "attention.layer_norm_epsilon", "patch_size")
    view.default("clip.vision.image_size", U32(224))
    view.default("clip.vision.image_mean", array_of(F32, [0, 0, 0]))
    view.default("clip.vision.image_std", array_of(F32, [1, 1, 1]))
    view.default("clip.has_vision_encoder", BOOL(True))
    view.set("clip.vision.projector_type", STR("gemma4v"))
    view.promote("v.patch_embd.weight")
    if not view.has_tensor("a."):
        return
    view.copy(*[(f"audio.{name}", f"clip.audio.{name}") for name in (*SIZES, "attention.layer_norm_epsilon")])
    view.default("clip.audio.num_mel_bins", U32(128))
    view.copy(("embedding_length", "clip.audio.projection_dim"))
    view.default("clip.has_audio_encoder", BOOL(True))
    view.set("clip.audio.projector_type", STR("gemma4a"))
    view.rename(
        ("a.pre_encode.out.weight", "a.input_projection.weight"),
        ("mm.a.fc.weight", "a.pre_encode.out.weight"),
        ("mm.a.fc.bias", "a.pre_encode.out.bias"),
    )
    n_layer = view.integer("audio.block_count")
    for blk in (f"a.blk.{il}" for il in range(12 if n_layer is None else min(n_layer, MAX_LAYERS))):
        names = (
            ("ln1", "attn_pre_norm"),
            ("ln2", "attn_post_norm"),
            ("layer_pre_norm", "ln2"),
            ("linear_pos", "attn_k_rel"),
        )
        view.rename(*[(f"{blk}.{old}.weight", f"{blk}.{new}.weight") for old, new in names])


def llama4_tower(view: View) -> None:
    """Translate Llama 4's tower."""
    copy_sizes(view, *SIZES, "image_size", "patch_size")
    view.copy(("vision.layer_norm_epsilon", "clip.vision.attention.layer_norm_epsilon"))
    ratio = view.get("vision.pixel_shuffle_ratio")
    if isinstance(ratio, float) and 2**-31 < ratio < math.inf:
        scale = math.floor(np.float32(1) / np.float32(ratio) + np.float32(0.5))
    else:
        scale = 0
    view.default("clip.vision.projector.scale_factor", U32(scale or 2))
    set_projector(view, "llama4", "gelu")
    view.set("clip.vision.projector_type", STR("llama4"))
    view.rename(("v.positional_embedding_vlm", "v.position_embd.weight"))
    view.replace(
        ("v.vision_adapter.mlp.fc1", "mm.model.mlp.1"),
        ("v.vision_adapter.mlp.fc2", "mm.model.mlp.2"),
        ("mm.linear_1", "mm.model.fc"),
        ("v.class_embedding", "v.class_embd"),
        ("v.layernorm_post", "v.post_ln"),
        ("v.layernorm_pre", "v.pre_ln"),
        ("v.patch_embedding", "v.patch_embd"),
        (".attn_output", ".attn_out"),
        (".attn_norm", ".ln1"),
        (".ffn_norm", ".ln2"),
        (".mlp.fc1", ".ffn_up"),
        (".mlp.fc2", ".ffn_down"),
    )


def deepseekocr_tower(view: View) -> None:
    """Translate DeepSeek OCR's two towers, CLIP and SAM.  Misspelled names are the file's own."""
    view.copy(
        *[(f"vision.{name}", f"clip.vision.{name}") for name in ("block_count", "embedding_length", "image_size")],
        ("vision.patch_size", "clip.vision.patch_size"),
        ("vision.head_count", "clip.vision.attention.head_count"),
        *[(f"sam.{name}", f"clip.vision.sam.{name}") for name in ("block_count", "embedding_length", "head_count")],
    )
    numbers = {"feed_forward_length": 64, "projection_dim": 1280, "projector.scale_factor": 1, "window_size": 14}
    for key, value in numbers.items():
        view.default(f"clip.vision.{key}", U32(value))
    view.default("clip.vision.attention.layer_norm_epsilon", F32(1e-6))
    set_projector(view, "deepseekocr", "gelu")
    view.rename_beginning("s.", "v.sam.")
    view.rename(("v.sam.position_embd", "v.sam.pos_embd.weight"))
    view.replace(
        (".self_attn.out_proj", ".attn_out"),
        (".self_attn.qkv_proj", ".attn_qkv"),
        (".layer_norm1", ".ln1"),
        (".layer_norm2", ".ln2"),
        (".mlp.fc1", ".ffn_up"),
        (".mlp.fc2", ".ffn_down"),
        ("v.pre_layrnorm", "v.pre_ln"),
        (".attn.proj", ".attn.out"),
        (".attn.rel_pos_h", ".attn.pos_h.weight"),
        (".attn.rel_pos_w", ".attn.pos_w.weight"),
        (".norm1", ".pre_ln"),
        (".norm2", ".post_ln"),
        ("mm.layers", "mm.model.fc"),
        ("mm.image_newline", "v.image_newline"),
        ("mm.view_seperator", "v.view_seperator"),
    )
    view.promote("v.patch_embd.weight", "v.sam.patch_embd.weight", "v.position_embd.weight")


# ---- steps that Qwen's towers share


def n_blocks(view: View, if_missing: int) -> int:
    """Return the number of layers."""
    n = view.integer("vision.block_count")
    return if_missing if n is None else min(n, MAX_LAYERS)


def merge_qkv(view: View, n_layer: int, as_f32: bool) -> None:
    """Join query, key and value of each layer to one matrix and one bias.

    as_f32   convert the parts to F32 first, as their types may differ; otherwise parts of unequal type stay apart
    """
    for il in range(n_layer):
        for part in ("weight", "bias"):
            names = [f"v.blk.{il}.attn_{name}.{part}" for name in "qkv"]
            whole, parts = f"v.blk.{il}.attn_qkv.{part}", view.computable(names)
            if parts is None or len({tensor.shape[1:] for tensor in parts}) > 1:
                continue
            if as_f32:
                view.put(whole, np.concatenate([tensor.dequantize() for tensor in parts]))
            elif len({tensor.format.name for tensor in parts}) == 1:
                blocks = np.concatenate([tensor.blocks for tensor in parts])
                view.put_blocks(whole, parts[0], (sum(t.shape[0] for t in parts), *parts[0].shape[1:]), blocks)
            else:
                continue
            for name in names:
                del view.tensors[name]


def split_frames(view: View) -> None:
    """Split the patch embedding of two video frames into one tensor for each, as F32."""
    tensor = view.f16("v.patch_embed.weight")
    n_in = view.integer("vision.num_channels") or 3
    if tensor is None or n_in < 1 or len(tensor.shape) != 4 or tensor.shape[1] != 2 or tensor.shape[0] % n_in:
        return
    n, _, h, w = tensor.shape
    frames = tensor.dequantize().reshape(n, 2, h, w)
    for frame, name in enumerate(("v.patch_embd.weight", "v.patch_embd.weight.1")):
        view.put(name, frames[:, frame].reshape(n // n_in, n_in, h, w))
    del view.tensors["v.patch_embed.weight"]


PROJECTOR_RULES: dict[str, Rule] = {
    "gemma3": gemma3_tower,
    "qwen35moe": qwen35_tower,
    "qwen35": qwen35_tower,
    "mistral3": mistral3_tower,
    "deepseekocr": deepseekocr_tower,
    "llama4": llama4_tower,
    "gemma4": gemma4_tower,
    "qwen25vl": qwen25vl_tower,
    "qwen3vl": qwen3vl_tower,
    "qwen3vlmoe": qwen3vl_tower,
}
