"""Models: from a GGUF to something that can be run.

families    what differs between architectures, as values
hparams     sizes, from the key-values
weights     tensors under their GGUF names
lora        what adapters add to them
linear      products with a weight, adapters included
decoder     forward(): tokens in, logits out
whole       its layers as one call each, for decoding
moe         the feed-forward block as a mixture of experts
encoder     hidden(): a whole text in, a vector for each token out
vision      images in, rows for the text model out
projector   the last step of that
affine      products with a bias and layer norms, as the two above have them
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter_ns

from ..cache import KVCache
from ..errors import ModelError, UnsupportedArchitecture
from ..gguf import GGUF
from ..grammar import Grammars
from ..template import Template
from ..tokenizer import Tokenizer, from_gguf
from .decoder import forward, logits
from .encoder import EncoderWeights
from .families import Family, family_of
from .hparams import Hparams, read_hparams
from .lora import adapted, low_rank_terms
from .vision import Vision, load_vision
from .weights import Weights

__all__ = [
    "Family",
    "Hparams",
    "Model",
    "Vision",
    "Weights",
    "check_fits",
    "forward",
    "load_model",
    "load_vision",
    "logits",
]


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model: immutable, shared by all sequences."""

    path: Path
    family: Family
    hparams: Hparams
    weights: Weights | EncoderWeights
    gguf: GGUF
    load_duration: int = 0  # nanoseconds that load_model took
    vision: Vision | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """What it is mapped from, adapters and projector included."""
        return (*self.gguf.parts, *([self.vision.path] if self.vision else []))

    @property
    def nbytes(self) -> int:
        """Bytes of its weights, those of adapters and projector included."""
        tensors = self.gguf.tensors.values()
        weights = sum(tensor.nbytes + sum(term.nbytes for term in tensor.low_rank) for tensor in tensors)
        return weights + (self.vision.path.stat().st_size if self.vision else 0)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return from_gguf(self.gguf.kv)

    @cached_property
    def grammars(self) -> Grammars:
        """What its answers can be held to."""
        return Grammars(self.tokenizer)

    @cached_property
    def template(self) -> Template:
        """The GGUF's own Jinja chat template, or ChatML where it has none."""
        return Template.from_gguf(self.gguf)

    def new_cache(self, n_ctx: int, n_slot: int = 1, type: str = "f16") -> KVCache:
        """An empty cache for this model.  `type` is one of CACHE_TYPES (kernels/cached.py)."""
        hp = self.hparams
        n_layer = hp.n_layer if self.family.causal else 0  # an encoder remembers nothing
        return KVCache(n_layer, hp.n_head_kv, hp.n_head_dim, n_ctx, n_slot, type)


def load_model(
    source: str | os.PathLike[str] | GGUF,
    adapters: Mapping[str | os.PathLike[str], float] | None = None,
    projector: str | os.PathLike[str] | None = None,
    vision_order: str = "llama.cpp",
) -> Model:
    """The model in a GGUF file.  Nothing is copied: weights stay in the mapped file until a kernel wants another form.

    adapters   LoRA files, and how strongly each is to be applied: 1 is as it was trained
    projector, vision_order   the GGUF by which it sees (an "mmproj"), and its `order`: see load_vision
    Raises BadGGUF, UnsupportedArchitecture; ModelError for an adapter alone.
    """
    began = perf_counter_ns()
    gguf = source if isinstance(source, GGUF) else GGUF.open(source)
    if gguf.kv.get("general.type") == "adapter":
        raise ModelError(f"{gguf.path}: an adapter, expected a model: ADAPTER in a Modelfile, or --adapter, applies it")
    gguf = adapted(gguf, adapters or {})
    family = family_of(gguf.kv.get("general.architecture"))
    hparams = read_hparams(gguf, family)
    weights = family.weights(gguf, hparams, family)
    vision = load_vision(projector, hparams.n_embd, vision_order) if projector else None
    return Model(Path(gguf.path), family, hparams, weights, gguf, perf_counter_ns() - began, vision)


def check_fits(part: GGUF, model: GGUF) -> None:
    """Does nothing if `part`, an adapter or a projector, goes with `model`, by what their heads say.

    A projector of a kind that is not computed here is not judged.  Raises: BadGGUF, ModelError
    """
    if part.kv.get("general.type") == "adapter":
        for _ in low_rank_terms(part, model, 1.0):
            pass
        return
    try:
        load_vision(part, model.kv.get(f"{model.kv.get('general.architecture')}.embedding_length"))
    except UnsupportedArchitecture:
        pass
