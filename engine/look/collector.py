"""The collector of one answer: a tap that reads, and on request changes, the rows of its own sequence.

The kernels run as ever, in steps rather than whole layers, which gives the same bits.  Values that they do not show are
computed beside them: attention weights from the same queries and cached keys, by the NumPy reference; the logit lens
from each layer's output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from time import perf_counter_ns

import numpy as np

from ...kernels import Attention, Kernels
from ...kernels.attention import attention_weights_numpy
from ...kernels.hadamard import rotate_groups
from ...kernels.select import descending
from ...kernels.tensor import Tensor
from ..errors import RequestError
from ..model.batch import Batch, Span
from ..model.cache import KVCache
from ..model.decoder import hidden_states, logits
from ..model.model import Model
from ..model.trace import INSIDE_ATTENTION, Trace, label
from ..sampling import Candidates
from .request import LookRequest, check_sizes
from .step import LensAt, LogitsAt, LookPart, LookPrompt, LookStep, ResidualAt, SamplerStep, StepTime, cache_facts

LEDGER_ROWS = 8  # candidates of a sampler's step that are shown
ROWS_AT_ONCE = 64  # of all layers in a lens: the logits of each are n_vocab numbers
SMALL_MATRIX = 1 << 20  # weights; a few MB as f32
ROWS_OF_MATRIX = 512  # of a large one whose columns are dequantized at once
CHECK_EVERY = 16  # tokens between two checks of an answer's size
QUERIES = ("Qcur", "Qcur_attn_temp_scaled")  # the later one replaces the earlier
EMBEDDINGS = ("embd", "inp_scaled", "inp_embd")
ACTIVATIONS = ("ffn_swiglu", "ffn_geglu")


class Collector:
    """The values that a look collects of one sequence; one position after the other.

    text, spans   the rendered prompt, and the messages in it (see LookPrompt)
    sources       the values that `look.patch` puts in, see patch_values()
    limit         bytes of all parts together
    """

    def __init__(
        self,
        look: LookRequest,
        model: Model,
        text: str = "",
        spans: Sequence[tuple[int, int, str]] = (),
        sources: Sequence[np.ndarray] = (),
        limit: int = 1 << 62,
    ):
        self.look, self.model, self.text, self.spans = look, model, text, list(spans)
        self.sources, self.limit = sources, limit
        self.n_prompt = 0
        self.prompt: LookPrompt | None = None
        self.cache: KVCache | None = None
        self.kernels: Kernels | None = None
        self.rows: list[int] = []
        self.heads: dict[int, list[int]] = {}
        for il, h in look.attention:
            self.heads.setdefault(il, []).append(h)
        self.zeroed: set[tuple[str, int]] = set()
        for part in look.ablate:
            if part.block in ("attn", "layer"):
                self.zeroed.add(("attn_out", part.layer))
            if part.block in ("ffn", "layer"):
                self.zeroed |= {("ffn_out", part.layer), ("ffn_moe_out", part.layer)}
        self.muted = [(part.layer, part.head) for part in look.ablate if part.head is not None]
        self.time: dict[tuple[str, int], int] = {}
        self._embedding: np.ndarray | None = None
        self._steps: list[LookStep] = []
        self._ledger: list[SamplerStep] = []
        self._before: Candidates | None = None
        self._transposed: dict[int, np.ndarray] = {}
        self._forget()

    @property
    def changes(self) -> bool:
        """Whether the answer is changed, so that its keys and values are not those of its tokens."""
        return bool(self.look.ablate or self.look.patch)

    def begin(
        self,
        ids: Sequence[int],
        cache: KVCache,
        kernels: Kernels,
        *,
        num_predict: int = 0,
        cached: Mapping[str, int | list[int]] | None = None,
        seed: int = 0,
        job: int = 0,
    ) -> None:
        """Prepare for the prompt `ids` in `cache`.

        cached   what the scheduler found in the cache: slot, reused, reusable, held (tokens in each slot)
        Raises: RequestError if the parts are too large, or a patch has no such row
        """
        look, hp = self.look, self.model.hparams
        self.n_prompt, self.cache, self.kernels = len(ids), cache, kernels
        sizes = look.sizes(len(ids), max(0, num_predict), hp)
        check_sizes(sizes, self.limit)
        self.rows = []
        for patch in look.patch:
            row = patch.row + (len(ids) if patch.row < 0 else 0)
            if not 0 <= row < len(ids):
                raise RequestError(f"look.patch: the prompt has no token {patch.row}; it has {len(ids)}")
            self.rows.append(row)
        self.prompt = LookPrompt(
            text=self.text,
            ids=list(ids),
            spans=self.spans,
            words=self.model.tokenizer.explain(self.text) if look.merges else None,
            cache={**cache_facts(self.model, cache), **(cached or {})} if look.cache else None,
            changed=[*(f"without {part}" for part in look.ablate), *(f"with {patch}" for patch in look.patch)],
            sizes=sizes,
            heads=look.attention,
            job=job,
            seed=seed,
        )

    # --- the tap

    def see(self, name: str, il: int, value: np.ndarray, rows: slice, span: Span) -> np.ndarray:
        """Read the rows of `value` that belong to `span`; return `value`, or a copy with changed rows."""
        if self.changes:
            value = self._changed(name, il, value, rows, span)
        first = self._first(span)
        if first >= span.length:
            return value
        mine = value[rows][first:]
        if name in QUERIES and (self.look.peaks or il in self.heads):
            self._queries = mine
        elif name == "kqv_out" and (self.look.peaks or il in self.heads):
            assert self.cache is not None
            heads = range(self.model.hparams.n_head) if self.look.peaks else self.heads[il]
            span = Span(span.slot, span.start + first, span.length - first)
            weights = cached_weights(self.model, self.cache, il, span, self._queries, heads)
            self._weights |= {(il, h): weights[heads.index(h)] for h in self.heads.get(il, ())}
            if self.look.peaks:
                self._peaks.append((weights.argmax(axis=2), weights.max(axis=2)))
        elif name == "l_out":
            self._stream.append(mine)
        elif name == self.model.family.attn_sum:
            self._middle.append(mine)
        elif name in EMBEDDINGS:
            self._embedding = mine
        elif name in ACTIVATIONS:
            self._activation[il] = mine
        elif name == "ffn_out":
            self._ffn_out[il] = mine
        if self.look.values and any(fnmatchcase(label(name, il), pattern) for pattern in self.look.values):
            self._values[label(name, il)] = mine.copy()
        return value

    def _changed(self, name: str, il: int, value: np.ndarray, rows: slice, span: Span) -> np.ndarray:
        """Return `value` with what is switched off set to 0 and what is patched replaced."""
        zero = (name, il) in self.zeroed
        heads = [h for layer, h in self.muted if name == "kqv_out" and layer == il]
        patches = [
            (row - span.start, source)
            for patch, row, source in zip(self.look.patch, self.rows, self.sources, strict=True)
            if (patch.name, patch.layer) == (name, il) and span.start <= row < span.start + span.length
        ]
        if not (zero or heads or patches):
            return value
        value = value.copy()
        mine, d = value[rows], self.model.hparams.n_head_dim
        if zero:
            mine[:] = 0
        for h in heads:
            mine[:, h * d : (h + 1) * d] = 0
        for row, source in patches:
            mine[row] = source
        return value

    def _first(self, span: Span) -> int:
        """Return the first row of `span` that is looked at."""
        return max(0, self.n_prompt - 1 - span.start) if self.look.prompt == "last" else 0

    def _forget(self) -> None:
        """Drop the values of the last forward pass."""
        self._stream: list[np.ndarray] = []
        self._middle: list[np.ndarray] = []
        self._embedding = None
        self._activation: dict[int, np.ndarray] = {}
        self._ffn_out: dict[int, np.ndarray] = {}
        self._weights: dict[tuple[int, int], np.ndarray] = {}
        self._peaks: list[tuple[np.ndarray, np.ndarray]] = []
        self._values: dict[str, np.ndarray] = {}
        self.time = {}

    # --- the sampler

    def sampling(self, name: str, parameter: float, c: Candidates) -> None:
        """Record a step of the sampler.  Where a grammar refuses the first draw, the second one is kept."""
        if not self.look.sampler:
            return
        if name == "logits":
            self._ledger, self._before = [], None
        p = probabilities(c.logits)
        best = descending(c.logits, min(LEDGER_ROWS, len(c.ids)))
        kept, before = 1.0, self._before
        if before is not None and len(c.ids) < len(before.ids):
            kept = float(probabilities(before.logits)[np.isin(before.ids, c.ids)].sum())
        self._before = c
        self._ledger.append(SamplerStep(name, float(parameter), len(c.ids), c.ids[best], c.logits[best], p[best], kept))

    # --- steps

    def end(self, tokens: Sequence[int], at: int, span: Span, row: np.ndarray | None = None) -> None:
        """Make the steps of `span`, which is in the cache now.

        tokens   the prompt and all sampled tokens, with the one that follows `span`
        at       the index in `tokens` of the span's first token
        row      the logits from which the last token was sampled, f32 [n_vocab]; None if none was
        """
        look, first = self.look, self._first(span)
        n, at = max(0, span.length - first), at + first
        following = [tokens[i + 1] for i in range(at, at + n)]
        words = [max(id, 0) for id in following]  # an image's row is predicted by nothing
        lenses = self._lenses(words) if look.lens and n else None
        residuals = self._residuals(words) if (look.residual or look.neurons) and n else None
        peaks = np.moveaxis(np.array(self._peaks), 1, 0) if self._peaks else None  # [2, n_layer, n_head, n]
        for i in range(n):
            position = span.start + first + i
            step = LookStep(position, tokens[at + i], following[i], sampled=at + i + 1 >= self.n_prompt)
            if self._weights:
                step.heads = look.attention
                step.attention = np.stack([self._weights[head][i, : position + 1] for head in look.attention])
            if peaks is not None:
                step.peaks = peaks[0, ..., i].astype(np.int32), peaks[1, ..., i].astype(np.float32)
            step.lens = lenses[i] if lenses and following[i] >= 0 else None
            step.residual = residuals[i] if residuals and following[i] >= 0 else None
            step.values = {name: value[i] for name, value in self._values.items()}
            self._steps.append(step)
        if n and row is not None:
            step.sampler = self._ledger or None  # a held position is looked at without a draw
            step.logits = largest_logits(row, look.logits) if look.logits else None
            self._ledger, self._before = [], None
        if n and look.time:
            step.time = StepTime(span.length, dict(self.time))
        self._forget()
        if (n_token := len(tokens) - self.n_prompt) % CHECK_EVERY == 0:
            check_sizes(look.sizes(self.n_prompt, n_token, self.model.hparams), self.limit)

    def take(self) -> LookPart:
        """Return the steps since the last call, and with the first ones the prompt."""
        part = LookPart(self._steps, self.prompt)
        self._steps, self.prompt = [], None
        return part

    def _lenses(self, following: Sequence[int]) -> list[LensAt]:
        """Apply the lens to each row, to all layers of some rows at once.  -> one for each of `following`"""
        n, found = max(1, ROWS_AT_ONCE // len(self._stream)), list[LensAt]()
        for start in range(0, len(following), n):
            rows = np.stack([x[start : start + n] for x in self._stream], axis=1)  # [n, n_layer, n_embd]
            found += self._lens(rows, following[start : start + n])
        return found

    def _lens(self, x: np.ndarray, following: Sequence[int]) -> list[LensAt]:
        """Predict from the layers' outputs x f32 [n, n_layer, n_embd]."""
        assert self.kernels is not None
        n, n_layer, n_embd = x.shape
        hp = self.model.hparams
        h = self.kernels.rms_norm(x.reshape(-1, n_embd), self.model.decoder.output_norm, hp.norm_eps)
        y, top = logits(self.model, h, self.kernels), min(self.look.lens, hp.n_vocab)
        chosen = np.repeat(following, n_layer)[:, None]
        level = np.take_along_axis(y, chosen, axis=1)
        ids = np.stack([descending(row, top) for row in y]).astype(np.int32)
        most = y.max(axis=1, keepdims=True)
        total = np.exp(y - most).sum(axis=1, keepdims=True, dtype=np.float64)
        p, p_next = (
            np.exp((part - most).astype(np.float64)) / total for part in (np.take_along_axis(y, ids, 1), level)
        )
        rank = (y > level).sum(axis=1).astype(np.int32)
        shape = n, n_layer
        parts = ids.reshape(*shape, top), p.reshape(*shape, top), p_next.reshape(shape), rank.reshape(shape)
        return [LensAt(*(part[i] for part in parts)) for i in range(n)]

    def _residuals(self, following: Sequence[int]) -> list[ResidualAt]:
        """Split the residual stream of each row into what each block added.

        logit = sum over blocks of  added . (output_norm * row of the output matrix) / rms(stream) / logit_scale
        """
        hp, w = self.model.hparams, self.model.decoder
        assert self._embedding is not None
        stream = [self._embedding, *self._stream]
        added = [self._embedding]
        for before, middle, after in zip(stream, self._middle, self._stream, strict=False):
            added += [middle - before, after - middle]
        stacked = np.stack(added, axis=1).astype(np.float64)  # [n, 2 n_layer + 1, n_embd]
        rms = np.sqrt(np.mean(np.square(stream[-1], dtype=np.float64), axis=1) + hp.norm_eps)
        towards = w.output.dequantize(list(following)) * w.output_norm / hp.logit_scale / rms[:, None]  # [n, n_embd]
        adds = np.einsum("nbe,ne->nb", stacked, towards)
        norms = np.linalg.norm(stacked, axis=2)
        streams = np.stack([np.linalg.norm(x, axis=1) for x in stream], axis=1)
        strongest = self._neurons(towards) if self.look.neurons else [[] for _ in following]
        return [ResidualAt(norms[i], adds[i], streams[i], strongest[i]) for i in range(len(following))]

    def _neurons(self, towards: np.ndarray) -> list[list[tuple[int, int, float, float]]]:
        """Find each row's neurons with the largest activations, and what each adds along `towards` f64 [n, n_embd]."""
        hp = self.model.hparams
        found: list[list[tuple[int, int, float, float]]] = [[] for _ in towards]
        for il in self.look.neuron_layers or self._activation:
            if (act := self._activation.get(il)) is None:
                continue
            blk, out = self.model.decoder.blk[il], self._ffn_out[il].astype(np.float64)
            assert blk.ffn_down is not None
            best = [descending(np.abs(row), min(self.look.neurons, len(row))) for row in act]
            which = np.unique(best)  # rows of a prompt share columns, which are dequantized once
            columns = self._columns(il, blk.ffn_down, which)
            for i, js in enumerate(best):
                along = towards[i] * hp.residual_scale
                if blk.post_ffw_norm is not None:
                    along = along * blk.post_ffw_norm / np.sqrt(np.mean(out[i] * out[i]) + hp.norm_eps)
                adds = act[i][js] * (columns[np.searchsorted(which, js)] @ along)
                found[i] += [(il, int(j), float(act[i][j]), float(a)) for j, a in zip(js, adds, strict=True)]
        return found

    def _columns(self, il: int, matrix: Tensor, which: np.ndarray) -> np.ndarray:
        """Return columns of a layer's matrix; a small one is dequantized once.  -> f32 [n_which, n_row]"""
        if matrix.n_elements <= SMALL_MATRIX:
            if il not in self._transposed:
                self._transposed[il] = np.ascontiguousarray(matrix.dequantize().T)
            found: np.ndarray = self._transposed[il][which]
            return found
        size, n_row = matrix.format.block_size, len(matrix.blocks)
        own, at = np.unique(which // size, return_inverse=True)  # blocks of a row
        chosen = np.empty((len(which), n_row), np.float32)
        for start in range(0, n_row, ROWS_OF_MATRIX):
            blocks = np.ascontiguousarray(matrix.blocks[start : start + ROWS_OF_MATRIX, own])
            numbers = matrix.format.dequantize(blocks.reshape(-1)).reshape(len(blocks), -1)
            chosen[:, start : start + len(blocks)] = numbers[:, at * size + which % size].T
        return chosen


class LookTap:
    """The tap of a forward pass in which some sequences are looked at; it measures the time between two values.

    spans   for each of them its collector, its rows of the batch and its span
    n_tok   tokens of the batch; a value with other rows (of the outputs alone, of experts) is not shown
    check   called at each value, as Watch's; may end the pass by raising
    """

    def __init__(self, spans: Sequence[tuple[Collector, slice, Span]], n_tok: int, check: Callable[[int], None]):
        self.spans, self.check, self.n_tok = spans, check, n_tok
        self.left = perf_counter_ns()

    def __call__(self, name: str, il: int, value: np.ndarray) -> np.ndarray:
        took = perf_counter_ns() - self.left
        self.check(il)
        for collector, rows, span in self.spans:
            collector.time[name, il] = collector.time.get((name, il), 0) + took
            if len(value) == self.n_tok and name not in INSIDE_ATTENTION:
                value = collector.see(name, il, value, rows, span)
        self.left = perf_counter_ns()
        return value


def cached_weights(
    model: Model, cache: KVCache, il: int, span: Span, queries: np.ndarray, heads: Sequence[int]
) -> np.ndarray:
    """Compute the attention weights of `span` over what is cached.  queries f32 [span.length, n_head, n_head_dim]

    -> f32 [n_heads, span.length, span.start + span.length]
    """
    keys = with_dropped(cache.read(il, span)[0], span.start + span.length)
    if cache.k_group:  # as the cached keys are
        queries = rotate_groups(queries, cache.k_group)
    return attention_weights(queries, keys, span.start, model.hparams.attention[il], heads)


def with_dropped(rows: np.ndarray, n: int) -> np.ndarray:
    """Put zeros in place of dropped positions, which are hidden.  [<= n, n_head_kv, ...] -> [n, n_head_kv, ...]"""
    if len(rows) == n:
        return rows
    return np.concatenate([np.zeros((n - len(rows), *rows.shape[1:]), rows.dtype), rows])


def attention_weights(q: np.ndarray, k: np.ndarray, first: int, rule: Attention, heads: Sequence[int]) -> np.ndarray:
    """Compute the attention weights of some heads by the NumPy reference.  -> f32 [n_heads, n_tok, n_pos]

    q f32 [n_tok, n_head, n_head_dim] at positions from `first`; k [n_pos, n_head_kv, ...] as cached
    """
    if list(heads) == list(range(q.shape[1])):
        whole: np.ndarray = attention_weights_numpy(q, k, first, rule)
        return whole
    found, group = [], q.shape[1] // k.shape[1]
    for h in heads:
        g = h // group
        slopes, sinks = (None if x is None else x[h : h + 1] for x in (rule.slopes, rule.sinks))
        own = replace(rule, slopes=slopes, sinks=sinks)
        found.append(attention_weights_numpy(q[:, h : h + 1], k[:, g : g + 1], first, own)[0])
    return np.stack(found)


def probabilities(y: np.ndarray) -> np.ndarray:
    """Compute softmax along the last axis in float64.  float [..., n] -> f64 [..., n]"""
    e = np.exp(y.astype(np.float64) - y.max(axis=-1, keepdims=True))
    p: np.ndarray = e / e.sum(axis=-1, keepdims=True)
    return p


def largest_logits(row: np.ndarray, n: int) -> LogitsAt:
    """Return the `n` largest logits of `row`, all in the order of ids if n is negative.  row f32 [n_vocab]"""
    if n < 0 or n >= len(row):
        return LogitsAt(np.arange(len(row), dtype=np.int32), row.astype(np.float32), 0, -np.inf)
    best = descending(row, n)
    rest = np.delete(row, best).astype(np.float64)
    top = rest.max()
    return LogitsAt(best.astype(np.int32), row[best], len(rest), float(top + np.log(np.exp(rest - top).sum())))


def patch_values(
    model: Model, kernels: Kernels, look: LookRequest, encode: Callable[[str], list[int]], n_ctx: int
) -> list[np.ndarray]:
    """Run the other prompts of `look.patch` and return the value of each.

    encode   renders and tokenizes a prompt as the request's own
    Raises: RequestError for a name that never comes, or a row that the other prompt lacks
    """
    found = []
    for patch in look.patch:
        ids = encode(patch.text)
        if not 0 < len(ids) <= n_ctx:
            raise RequestError(f"look.patch: the other prompt has {len(ids)} tokens, the window {n_ctx}")
        trace = Trace(patch.name)
        hidden_states(model, Batch.of(ids), model.new_cache(n_ctx), kernels, trace)
        value = trace.values.get((patch.name, patch.layer))
        if value is None or len(value) != len(ids):
            raise RequestError(f"look.patch: layer {patch.layer} has no value '{patch.name}' with a row for each token")
        row = patch.from_row + (len(ids) if patch.from_row < 0 else 0)
        if not 0 <= row < len(ids):
            raise RequestError(f"look.patch: the other prompt has no token {patch.from_row}; it has {len(ids)}")
        found.append(value[row])
    return found
