"""A loaded model: its architecture, hyperparameters and weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...kernels import Tensor
from ...kernels.packed.arena import trim
from ..errors import RequestError
from ..gguf.file_type import parameter_size
from ..gguf.read import GGUF, MappedFile
from ..template import Template
from ..tokenizer import Tokenizer, from_gguf
from ..vision.tower import Vision
from .architecture import Family
from .cache import KVCache
from .encoder_weights import EncoderWeights
from .hparams import Hparams
from .weights import Weights


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

    def __repr__(self) -> str:
        hp, n = self.hparams, sum(tensor.n_elements for tensor in self.gguf.tensors.values())
        sizes = f"{hp.n_layer} layers, n_embd {hp.n_embd}, n_vocab {hp.n_vocab}"
        return f"<Model {self.family.name}: {parameter_size(n)} parameters, {sizes}, {self.nbytes / 2**20:.1f} MiB>"

    @property
    def decoder(self) -> Weights:
        """The weights of a decoder: a model that generates text."""
        assert isinstance(self.weights, Weights)
        return self.weights

    @property
    def encoder(self) -> EncoderWeights:
        """The weights of an encoder: a model that only embeds text."""
        assert isinstance(self.weights, EncoderWeights)
        return self.weights

    @property
    def dense(self) -> tuple[Tensor, ...]:
        """The matrices that multiply a pooled vector; most models have none."""
        return self.weights.dense if isinstance(self.weights, Weights) else ()

    @property
    def files(self) -> tuple[MappedFile, ...]:
        """The files it is mapped from, including adapters and projector."""
        return (*self.gguf.mapped, *([self.vision.file] if self.vision else []))

    @property
    def nbytes(self) -> int:
        """Bytes of its weights, including adapters and projector."""
        tensors = self.gguf.tensors.values()
        weights = sum(tensor.nbytes + sum(term.nbytes for term in tensor.low_rank) for tensor in tensors)
        return weights + (self.vision.nbytes if self.vision else 0)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        tokenizer = from_gguf(self.gguf.kv)
        trim()  # what building it took, before the weights are packed
        return tokenizer

    @cached_property
    def template(self) -> Template:
        """The GGUF's own Jinja chat template, or ChatML if it has none."""
        return Template.from_gguf(self.gguf)

    def new_cache(self, n_ctx: int, n_slot: int = 1, type: str = "f16", n_batch: int = 0) -> KVCache:
        """Create an empty cache for this model.  `type` is one of CACHE_TYPES (kernels/kv.py), or two.

        n_batch   tokens of one slot in a pass at most, so that layers with a window keep only that; 0: they keep all
        """
        hp = self.hparams
        n_layer = hp.n_layer if self.family.causal else 0  # an encoder caches nothing
        return KVCache(n_layer, hp.n_head_kv, hp.n_head_dim, n_ctx, n_slot, type, hp.windows[:n_layer], n_batch)


def require_decoder(model: Model) -> None:
    """Check that `model` generates text.  Raises: RequestError"""
    if not model.family.causal:
        raise RequestError(f"'{model.family.name}' is an encoder: it embeds texts and does not generate any")
    if not model.hparams.causal:
        key = f"{model.family.name}.attention.causal"
        raise RequestError(f"the model embeds texts and does not generate any: its key '{key}' is false")
