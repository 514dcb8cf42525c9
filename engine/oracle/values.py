"""The values of a forward pass: the kind of operation that makes each, the weights it multiplies, its inputs.

A value that a dump lacks passes its kind on: the next value that the dump has is judged over all operations between.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

KINDS = ("elementwise", "attention", "product")  # from the most to the least precise in usual engines
LAYER_INPUT = "layer input"
INPUT_NAMES = ("embd", "inp_scaled", "inp_embd", "inp_norm")  # the last of them that a model has enters layer 0
SPAN_BY_SPAN = ("kq", "kq_soft_max")  # passed to taps once for each span of a batch


@dataclass(frozen=True)
class Value:
    """A named value.

    kind      one of KINDS
    inputs    alternatives for each input: the first that the model has
    weights   fields of a block that its operation multiplies by
    """

    kind: str
    inputs: tuple[tuple[str, ...], ...] = ()
    weights: tuple[str, ...] = ()


def elementwise(*inputs: str) -> Value:
    return Value("elementwise", tuple((name,) for name in inputs))


ATTN_IN, FFN_IN = ("attn_norm", LAYER_INPUT), ("ffn_norm", "ffn_inp")
VALUES = {
    "embd": Value("elementwise"),
    "inp_scaled": elementwise("embd"),
    "inp_embd": Value("elementwise"),
    "inp_norm": elementwise("inp_embd"),
    "attn_norm": elementwise(LAYER_INPUT),
    "Qcur_unnormed": Value("product", (ATTN_IN,), ("attn_q",)),
    "Kcur_unnormed": Value("product", (ATTN_IN,), ("attn_k",)),
    "Qcur_normed": Value("product", (("Qcur_unnormed", *ATTN_IN),), ("attn_q",)),
    "Kcur_normed": Value("product", (("Kcur_unnormed", *ATTN_IN),), ("attn_k",)),
    "Qcur_pre_rope": Value("product", (("Qcur_normed", *ATTN_IN),), ("attn_q",)),
    "Kcur_pre_rope": Value("product", (("Kcur_normed", *ATTN_IN),), ("attn_k",)),
    "Qcur": Value("product", (("Qcur_pre_rope", "Qcur_normed", *ATTN_IN),), ("attn_q",)),
    "Kcur": Value("product", (("Kcur_pre_rope", "Kcur_normed", *ATTN_IN),), ("attn_k",)),
    "Vcur": Value("product", (ATTN_IN,), ("attn_v",)),
    "Qcur_attn_temp_scaled": elementwise("Qcur"),
    "kq": Value("attention", (("Qcur_attn_temp_scaled", "Qcur"), ("Kcur",))),
    "kq_soft_max": Value("attention", (("kq",),)),
    "kqv_out": Value("attention", (("kq_soft_max",), ("Vcur",))),
    "attn_out": Value("product", (("kqv_out",),), ("attn_output",)),
    "attn_post_norm": elementwise("attn_out"),
    "sa_out": Value("elementwise", (("attn_post_norm", "attn_out"), (LAYER_INPUT,))),
    "ffn_inp": Value("elementwise", (("attn_post_norm", "attn_out"), (LAYER_INPUT,))),
    "ffn_norm": Value("elementwise", (("ffn_inp", "sa_out"),)),
    "ffn_gate": Value("product", (FFN_IN,), ("ffn_gate",)),
    "ffn_up": Value("product", (FFN_IN,), ("ffn_up",)),
    "ffn_swiglu": elementwise("ffn_gate", "ffn_up"),
    "ffn_geglu": elementwise("ffn_gate", "ffn_up"),
    "ffn_gelu": elementwise("ffn_up"),
    "ffn_out": Value("product", (("ffn_swiglu", "ffn_geglu", "ffn_gelu"),), ("ffn_down",)),
    "ffn_moe_logits": Value("product", (FFN_IN,), ("ffn_gate_inp",)),
    "ffn_moe_probs": elementwise("ffn_moe_logits"),
    "ffn_moe_topk": elementwise("ffn_moe_probs"),
    "ffn_moe_weights": elementwise("ffn_moe_probs", "ffn_moe_topk"),
    "ffn_moe_weights_norm": elementwise("ffn_moe_weights"),
    "ffn_moe_gate": Value("product", (FFN_IN, ("ffn_moe_topk",)), ("ffn_gate_exps",)),
    "ffn_moe_up": Value("product", (FFN_IN, ("ffn_moe_topk",)), ("ffn_up_exps",)),
    "ffn_moe_swiglu": elementwise("ffn_moe_gate", "ffn_moe_up"),
    "ffn_moe_swiglu_oai": elementwise("ffn_moe_gate", "ffn_moe_up"),
    "ffn_moe_down": Value("product", (("ffn_moe_swiglu", "ffn_moe_swiglu_oai"), ("ffn_moe_topk",)), ("ffn_down_exps",)),
    "ffn_moe_weighted": elementwise("ffn_moe_down", "ffn_moe_weights_norm"),
    "ffn_moe_out": elementwise("ffn_moe_weighted"),
    "ffn_post_norm": Value("elementwise", (("ffn_out", "ffn_moe_out"),)),
    "l_out": Value("elementwise", (("ffn_post_norm", "ffn_out", "ffn_moe_out"), ("ffn_inp", "sa_out"))),
    "result_norm": elementwise(LAYER_INPUT),
    "result_embd": elementwise(LAYER_INPUT),
    "result_output": Value("product", (("result_norm",),), ("output",)),
}


Q_OR_K = {name + rest for name in ("Qcur", "Kcur") for rest in ("", "_pre_rope", "_normed")}


def split_label(label: str) -> tuple[str, int]:
    """Split a value's label into its name and layer, -1 outside the layers.

    >>> split_label("Qcur-3"), split_label("result_norm")
    (('Qcur', 3), ('result_norm', -1))
    """
    name, _, il = label.rpartition("-")
    return (name, int(il)) if name and il.isdigit() else (label, -1)


def inputs_of(label: str, known: Collection[str], n_layer: int) -> list[str]:
    """Return the labels of the inputs of `label`, out of the values `known` of a model."""
    name, il = split_label(label)
    found = []
    for choices in VALUES[name].inputs if name in VALUES else ():
        for choice in choices:
            if choice == LAYER_INPUT:
                before = (il if il >= 0 else n_layer) - 1
                names = [f"l_out-{before}"] if before >= 0 else list(reversed(INPUT_NAMES))
            else:
                names = [choice if il < 0 else f"{choice}-{il}"]
            if here := next((candidate for candidate in names if candidate in known), None):
                found.append(here)
                break
    return found


def kind_of(label: str, known: Collection[str], dumped: Collection[str], n_layer: int) -> str:
    """Return the kind of `label`: the least precise of the operations since the values that the dump has."""
    name, _ = split_label(label)
    own = VALUES[name].kind if name in VALUES else "product"
    if name in Q_OR_K:  # a product, unless the dump has what follows it
        normed = any(
            source in dumped and split_label(source)[0].startswith(name[:4])
            for source in inputs_of(label, known, n_layer)
        )
        own = "elementwise" if normed else own
    kinds = [own]
    for source in inputs_of(label, known, n_layer):
        if source not in dumped:
            kinds.append(kind_of(source, known, dumped, n_layer))
    return max(kinds, key=KINDS.index)


def accumulated_kinds(order: Sequence[str], n_layer: int) -> dict[str, str]:
    """Return the least precise kind on the whole way to each value, for values that contain all errors before them."""
    kinds: dict[str, str] = {}
    for label in order:
        own = kind_of(label, order, order, n_layer)
        kinds[label] = max([own, *(kinds[source] for source in inputs_of(label, kinds, n_layer))], key=KINDS.index)
    return kinds


def dependents(label: str, known: Collection[str], n_layer: int) -> list[str]:
    """Return the values of `known` that the operation `label` enters directly."""
    return [other for other in known if label in inputs_of(other, known, n_layer)]
