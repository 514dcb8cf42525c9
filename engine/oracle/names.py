"""The names of another engine's values as ours: those of transformers' modules, and a map of one's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from pathlib import Path

from ..errors import RequestError

MAX_MAP_BYTES = 1 << 24

MODULES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "Qcur_projected",
    "self_attn.k_proj": "Kcur_projected",
    "self_attn.qkv_proj": "wqkv",
    "self_attn.v_proj": "Vcur",
    "self_attn.q_norm": "Qcur_normed",
    "self_attn.k_norm": "Kcur_normed",
    "self_attn.o_proj": "attn_out",
    "self_attn": "attn_out",
    "post_attention_layernorm": "ffn_norm",
    "post_self_attn_layernorm": "attn_post_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_mlp_layernorm": "ffn_post_norm",
    "post_feedforward_layernorm": "ffn_post_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.gate_up_proj": "ffn_gate_up",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_out",
    "mlp": "ffn_out",
    "mlp.gate": "ffn_moe_logits",
    "block_sparse_moe.gate": "ffn_moe_logits",
    "block_sparse_moe": "ffn_moe_out",
    "": "l_out",
}
OUTSIDE = {
    "model.embed_tokens": "embd",
    "model.norm": "result_norm",
    "lm_head": "lm_head",  # before the scale and the soft-cap of some families
    "logits": "result_output",
    "last_hidden_state": "result_norm",
}


def hugging_face_label(name: str, n_hidden: int = 0, names: Collection[str] = ()) -> str | None:
    """Return our label for the name of a module or hidden state in transformers; None for an unknown one.

    n_hidden   number of hidden states; the last one is after the final norm
    names      all names of the dump: with Gemma's fourth norm, the one after attention is not that of feed-forward

    >>> hugging_face_label("model.layers.3.self_attn.o_proj"), hugging_face_label("hidden_states.2", 5)
    ('attn_out-3', 'l_out-1')
    """
    name = name.removesuffix(".output").removesuffix(".0") if not name.startswith("hidden_states") else name
    if found := re.fullmatch(r"hidden_states[._\[-](\d+)\]?", name):
        i = int(found[1])
        return "result_norm" if i == n_hidden - 1 else "embd" if i == 0 else f"l_out-{i - 1}"
    if found := re.fullmatch(r"(?:model\.)?layers\.(\d+)\.?(.*)", name):
        value = MODULES.get(found[2])
        if found[2] == "post_attention_layernorm" and any("pre_feedforward_layernorm" in other for other in names):
            value = "attn_post_norm"
        return value and f"{value}-{found[1]}"
    return OUTSIDE.get(name, OUTSIDE.get(f"model.{name}"))


def read_map(path: Path) -> Callable[[str], str | None]:
    """Read a JSON object of own names to labels, "{il}" in both for the layer.  Raises: RequestError"""
    try:
        if path.stat().st_size > MAX_MAP_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise RequestError(f'{path}: expected a JSON object such as {{"layers.{{il}}.q": "Qcur-{{il}}"}}')
    patterns = [(re.compile(re.escape(key).replace(r"\{il\}", r"(\d+)", 1)), label) for key, label in table.items()]

    def rename(name: str) -> str | None:
        for pattern, label in patterns:
            if found := pattern.fullmatch(name):
                return str(label).replace("{il}", found[1] if found.groups() else "{il}")
        return None

    return rename
