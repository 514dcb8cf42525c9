"""Loading a model from its files: weights, adapters, projector."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter_ns

from ...kernels.llvm_pages import release_llvm
from ..errors import ModelError, UnsupportedArchitecture
from ..gguf.dialect import has_tower, text_view
from ..gguf.read import GGUF
from ..vision.tower import Vision, load_vision
from .families import family_of
from .hparams import read_hparams
from .lora import adapted, low_rank_terms
from .model import Model

log = logging.getLogger(__name__)


def load_model(
    source: str | os.PathLike[str] | GGUF,
    adapters: Mapping[str | os.PathLike[str], float] | None = None,
    projector: str | os.PathLike[str] | None = None,
    vision_order: str = "llama.cpp",
) -> Model:
    """Load the model in a GGUF file.  Weights stay in the mapped file until a kernel needs another layout.

    adapters       LoRA files and the strength of each; 1 is as trained
    projector      the GGUF of the vision tower and projector (an "mmproj"); None: the tower in the file, if it has one
    vision_order   its `order`, see load_vision
    Raises: BadGGUF, UnsupportedArchitecture; ModelError if `source` is an adapter
    """
    began = perf_counter_ns()
    release_llvm()  # of which importing Numba read 38 MiB
    original = source if isinstance(source, GGUF) else GGUF.open(source)
    if original.text("general.type") == "adapter":
        raise ModelError(
            f"{original.path}: an adapter, expected a model; apply it by ADAPTER in a Modelfile or --adapter"
        )
    gguf = adapted(text_view(original), adapters or {})
    family = family_of(gguf.kv.get("general.architecture"))
    hparams = read_hparams(gguf, family)
    weights = family.weights(gguf, hparams, family)
    if projector:
        vision: Vision | None = load_vision(projector, hparams.n_embd, vision_order)
    else:
        vision = own_tower(original, hparams.n_embd, vision_order)
    return Model(Path(gguf.path), family, hparams, weights, gguf, perf_counter_ns() - began, vision)


def check_loads(gguf: GGUF) -> None:
    """Check that `gguf` is a model that can be loaded and has a usable vocabulary.  Its weights are not read.

    Raises: BadGGUF, UnsupportedArchitecture, ModelError
    """
    _ = load_model(gguf).tokenizer


def own_tower(gguf: GGUF, n_embd: int, order: str) -> Vision | None:
    """Load the vision tower in a text model's file.  Return None if it has none or one of an unsupported type."""
    if not has_tower(gguf):
        return None
    try:
        return load_vision(gguf, n_embd, order)
    except UnsupportedArchitecture as error:
        log.warning("the model reads text only: %s", error)
        return None


def check_fits(part: GGUF, model: GGUF) -> None:
    """Check from the metadata that `part` (an adapter, projector or draft model) fits `model`.

    A projector of an unsupported type is accepted unchecked.  Raises: BadGGUF, ModelError
    """
    is_adapter, architecture = part.text("general.type") == "adapter", part.text("general.architecture")
    if not is_adapter and architecture != "clip":
        check_draft(load_model(part), load_model(model))
        return
    model = text_view(model)
    if is_adapter:
        for _ in low_rank_terms(part, model, 1.0):
            pass
        return
    try:
        load_vision(part, model.kv.get(f"{model.kv.get('general.architecture')}.embedding_length"))
    except UnsupportedArchitecture:
        pass


def check_draft(draft: Model, model: Model) -> None:
    """Check that a draft model has the model's vocabulary and generates text.  Raises: ModelError"""
    if not draft.family.causal:
        raise ModelError(f"{draft.path}: an encoder cannot be a draft model, as it generates no text")
    ours, others = (one.tokenizer for one in (model, draft))
    if others.n_vocab != ours.n_vocab:
        found = f"a draft model with a vocabulary of {others.n_vocab} tokens"
        raise ModelError(f"{draft.path}: {found}, expected the model's {ours.n_vocab}")
    for id in range(ours.n_vocab):
        theirs, expected = others.piece(id, special=True), ours.piece(id, special=True)
        if theirs != expected:
            raise ModelError(f"{draft.path}: token {id} of the draft model is {theirs!r}, expected {expected!r}")
