"""Mistakes at both ends of a model: embeddings and logits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...model.weights import Weights
from ..setting import Setting
from .cause import INPUT, LOGITS, Cause, Change
from .change import bf16, hparams, norms, other_kernel


def tied(s: Setting) -> Setting | None:
    w = s.model.weights
    if not isinstance(w, Weights) or w.output is w.token_embd or w.output.shape != w.token_embd.shape:
        return None
    return Setting(s.kernels, replace(s.model, weights=replace(w, output=w.token_embd)))


def no_learned_positions(s: Setting) -> Setting | None:
    if getattr(s.model.weights, "position_embd", None) is None:
        return None
    weights = replace(s.model.encoder, position_embd=None)
    return Setting(s.kernels, replace(s.model, weights=weights))


def no_token_types(s: Setting) -> Setting | None:
    if getattr(s.model.weights, "token_types", None) is None:
        return None
    weights = replace(s.model.encoder, token_types=None)
    return Setting(s.kernels, replace(s.model, weights=weights))


def untied(s: Setting) -> Setting | None:
    """Look up embeddings in the output matrix."""
    w = s.model.weights
    if not isinstance(w, Weights) or w.output is w.token_embd or w.output.shape != w.token_embd.shape:
        return None
    return Setting(s.kernels, replace(s.model, weights=replace(w, token_embd=w.output)))


def other_positions(by: int) -> Change:
    """Look up the embeddings of other positions."""

    def changed(s: Setting) -> Setting | None:
        table = getattr(s.model.weights, "position_embd", None)
        if table is None:
            return None
        rows = s.kernels.rows
        return Setting(
            replace(s.kernels, rows=lambda w, ids: rows(w, (ids + by) % w.shape[0] if w is table else ids)), s.model
        )

    return changed


def other_ids(by: int) -> Change:
    """Look up the embeddings of other tokens."""
    return other_kernel("rows", lambda k: lambda w, ids: k.rows(w, (ids + by) % w.shape[0]))


EMBEDDING: tuple[Cause, ...] = (
    Cause("the scale of embeddings were missing", INPUT | {"inp_scaled"}, hparams(embed_scale=lambda hp: 1.0)),
    Cause("embeddings were scaled by sqrt(n_embd)", INPUT, hparams(embed_scale=lambda hp: hp.n_embd**0.5)),
    Cause("the scale of embeddings were squared", INPUT, hparams(embed_scale=lambda hp: hp.embed_scale**2)),
    Cause(
        "the scale of embeddings were rounded to bfloat16",
        INPUT,
        hparams(embed_scale=lambda hp: float(bf16(np.array([hp.embed_scale], np.float32))[0])),
        arithmetic=True,
    ),
    Cause("embeddings of positions were missing", INPUT, no_learned_positions),
    Cause("embeddings of token types were missing", INPUT, no_token_types),
    *(Cause(f"embeddings of positions were {n} later", INPUT, other_positions(n)) for n in (1, 2)),
    Cause("the embedding were the output matrix", INPUT, untied),
    Cause("token ids were one higher", INPUT, other_ids(1)),
    Cause("token ids were one lower", INPUT, other_ids(-1)),
    Cause("the output matrix were the embedding", LOGITS, tied),
    Cause("the soft-cap of logits were missing", LOGITS, hparams(logit_softcap=lambda hp: 0.0)),
    Cause("logits had a soft-cap of 30", LOGITS, hparams(logit_softcap=lambda hp: 30.0)),
    Cause("logits had a soft-cap of 50", LOGITS, hparams(logit_softcap=lambda hp: 50.0)),
    Cause("logits were divided by sqrt(n_embd)", LOGITS, hparams(logit_scale=lambda hp: hp.n_embd**0.5)),
    Cause("the scale of logits were missing", LOGITS, hparams(logit_scale=lambda hp: 1.0)),
    Cause(
        "logits were multiplied by their scale, not divided", LOGITS, hparams(logit_scale=lambda hp: 1 / hp.logit_scale)
    ),
    Cause("the final norm were missing", LOGITS | {"result_norm"}, norms(lambda k, x, w, eps: x)),
)
