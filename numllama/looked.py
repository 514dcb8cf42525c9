"""An answer that was looked at, as arrays; each part has a picture in a notebook, and plot() with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .engine.look.pictures import bar_table, heat_map, image, table
from .engine.look.step import LookPrompt, LookStep, SamplerStep, StepTime, cached_bytes
from .engine.tokenizer.explain import Word

if TYPE_CHECKING:
    from .language_model import LanguageModel, Reply


class Looked:
    """An answer with what it computed.

    text       the answer; `reply` has everything else about it
    prompt     the rendered text, its tokens, where each message is in it
    steps      one for each position: the token there, the token that follows, and the values between them
    ids        prompt and answer;  pieces: the text of each
    n_prompt   tokens of the prompt
    """

    def __init__(self, model: LanguageModel, reply: Reply):
        self.model, self.reply = model, reply
        parts = [piece.look for piece in reply.pieces() if piece.look]
        self.prompt: LookPrompt = next(part.prompt for part in parts if part.prompt)
        self.steps: list[LookStep] = [step for part in parts for step in part.steps]
        self.ids = [*self.prompt.ids, *reply.ids]
        self.n_prompt = len(self.prompt.ids)

    def __repr__(self) -> str:
        n = len(self.ids) - self.n_prompt
        return f"<Looked {self.text[:57]!r}: {self.n_prompt} tokens of prompt, {n} of answer>"

    def _repr_html_(self) -> str:
        rows = [
            [step.position, piece, following]
            for step, piece, following in zip(self.steps, self.shown, self.following, strict=True)
        ]
        return table(["position", "token", "next"], rows)

    @property
    def text(self) -> str:
        return self.reply.text

    @cached_property
    def pieces(self) -> list[str]:
        return self.model.pieces(self.ids)

    @property
    def shown(self) -> list[str]:
        """The text of the token at each step."""
        return self.model.pieces([step.token for step in self.steps])

    @property
    def following(self) -> list[str]:
        """The text of the token that follows each step."""
        return self.model.pieces([step.next for step in self.steps if step.next is not None])

    @cached_property
    def attention(self) -> AttentionMaps:
        """The attention weights: look.attention[layer, head] is f32 [n_tok, n_pos], a row for each step."""
        return AttentionMaps(self.steps, self.shown)

    @cached_property
    def lens(self) -> LogitLens:
        """The next token as each layer's output predicts it."""
        return LogitLens(self.model, self.steps, self.shown)

    @cached_property
    def sampler(self) -> Ledgers:
        """The sampler's steps for each sampled token."""
        return Ledgers(self.model, [step for step in self.steps if step.sampler])

    @cached_property
    def time(self) -> OperationTimes:
        """Where the time of each forward pass went."""
        return OperationTimes([step.time for step in self.steps if step.time])

    @cached_property
    def cache(self) -> CacheUse:
        """The KV cache: bytes, and what was reused."""
        return CacheUse(self.prompt.cache or {}, len(self.ids), self.n_prompt)

    @cached_property
    def merges(self) -> Merges:
        """The words of the prompt with the merges that made their tokens."""
        return Merges(self.prompt.words or [])


class AttentionMaps:
    """Attention weights of some heads.

    heads     pairs (layer, head)
    weights   f32 [n_map, n_tok, n_pos], in the order of `heads`; np.asarray(maps) is the same
    """

    def __init__(self, steps: Sequence[LookStep], pieces: Sequence[str]):
        self.heads = next((step.heads for step in steps if step.heads), ())
        self.pieces = list(pieces)
        n_pos = max((step.position + 1 for step in steps), default=0)
        self.weights = np.zeros((len(self.heads), len(steps), n_pos), np.float32)
        for i, step in enumerate(steps):
            if step.attention is not None:
                self.weights[:, i, : step.position + 1] = step.attention

    def __getitem__(self, head: tuple[int, int]) -> np.ndarray:
        weights: np.ndarray = self.weights[self.heads.index(head)]
        return weights

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.weights, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        return f"<AttentionMaps: {len(self.heads)} heads, {self.weights.shape[1]} x {self.weights.shape[2]}>"

    def _repr_html_(self) -> str:
        scale = max(1, 160 // max(1, self.weights.shape[1]))
        maps = [
            f"<div><small>layer {il}, head {h}</small><br>{image(weights, scale)}</div>"
            for (il, h), weights in zip(self.heads, self.weights, strict=True)
        ]
        return f"<div style='display:flex;flex-wrap:wrap;gap:8px'>{''.join(maps)}</div>"

    def plot(self, *heads: tuple[int, int]) -> Any:
        """Draw the maps of `heads`, all by default, and return the figure.  Needs matplotlib (pip install notebook)."""
        from .engine.look.pictures import plot_maps

        chosen = heads or self.heads
        return plot_maps([self[head] for head in chosen], [f"layer {il}, head {h}" for il, h in chosen], self.pieces)


class LogitLens:
    """The prediction that each layer's output would give, by the output norm and matrix alone.

    ids, p         [n_step, n_layer, top], the likeliest first
    p_next, rank   [n_step, n_layer], of the token that follows

    Early layers' streams are not yet in the coordinates of the output matrix: their predictions drift.
    """

    def __init__(self, model: LanguageModel, steps: Sequence[LookStep], pieces: Sequence[str]):
        found = [step.lens for step in steps if step.lens]
        self.model, self.pieces = model, list(pieces)
        self.ids, self.p, self.p_next, self.rank = (
            np.stack([getattr(lens, name) for lens in found]) if found else np.zeros((0, 0, 0))
            for name in ("ids", "p", "p_next", "rank")
        )

    def __repr__(self) -> str:
        return f"<LogitLens: {len(self.ids)} steps, {self.p_next.shape[1] if len(self.ids) else 0} layers>"

    @property
    def words(self) -> list[list[str]]:
        """The likeliest token of each step and layer, as text."""
        return [self.model.pieces(row) for row in self.ids[:, :, 0].tolist()]

    def _repr_html_(self) -> str:
        layers = [f"layer {il}" for il in range(self.p_next.shape[1])]
        return heat_map(self.p[:, :, 0], self.pieces, layers, self.words)

    def plot(self) -> Any:
        """Draw the likeliest token of each step and layer, and return the figure.  Needs matplotlib."""
        from .engine.look.pictures import plot_words

        return plot_words(self.p[:, :, 0], self.words, self.pieces)


class Ledgers:
    """The sampler's ledger of each sampled token: ledgers[i] is a list of SamplerStep."""

    def __init__(self, model: LanguageModel, steps: Sequence[LookStep]):
        self.model = model
        self._ledgers: list[list[SamplerStep]] = [step.sampler or [] for step in steps]

    def __len__(self) -> int:
        return len(self._ledgers)

    def __getitem__(self, i: int) -> list[SamplerStep]:
        return self._ledgers[i]

    def __repr__(self) -> str:
        return f"<Ledgers: {len(self)} sampled tokens>"

    def rows(self, i: int) -> list[list[Any]]:
        """Return the ledger of sampled token `i` as rows: step, parameter, candidates, the likeliest of them."""
        rows = []
        for step in self[i]:
            texts = zip(self.model.pieces(step.ids.tolist()), step.p, strict=True)
            rows.append([step.name, f"{step.parameter:g}", step.n, "  ".join(f"{t!r} {p:.1%}" for t, p in texts)])
        return rows

    def _repr_html_(self) -> str:
        head = ["step", "parameter", "candidates", "likeliest"]
        return "".join(
            f"<details{' open' if i == 0 else ''}><summary>token {i}</summary>{table(head, self.rows(i))}</details>"
            for i in range(len(self))
        )

    def plot(self, i: int = 0) -> Any:
        """Draw the probabilities after each step for sampled token `i`, and return the figure.  Needs matplotlib."""
        from .engine.look.pictures import plot_bars

        steps = self[i]
        return plot_bars(
            [(step.name, self.model.pieces(step.ids.tolist()), step.p) for step in steps if step.name != "dist"]
        )


class OperationTimes:
    """Nanoseconds of each forward pass by operation.

    names     of the values that the operations compute, in order
    ns        i64 [n_pass, n_name];  n_tok: tokens of each pass
    """

    def __init__(self, times: Sequence[StepTime]):
        self.names = list(dict.fromkeys(name for time in times for name, _ in time.by_layer))
        self.n_tok = [time.n_tok for time in times]
        self.ns = np.zeros((len(times), len(self.names)), np.int64)
        for i, time in enumerate(times):
            for (name, _), ns in time.by_layer.items():
                self.ns[i, self.names.index(name)] += ns

    def __repr__(self) -> str:
        return f"<OperationTimes: {len(self.ns)} passes, {self.ns.sum() / 1e6:.1f} ms>"

    def _repr_html_(self) -> str:
        prefill = [n > 1 for n in self.n_tok]
        decode = self.ns[[i for i, is_prefill in enumerate(prefill) if not is_prefill]]
        mean = decode.mean(axis=0) / 1000 if len(decode) else np.zeros(len(self.names))
        return bar_table(self.names, mean.tolist(), "µs")

    def plot(self) -> Any:
        """Draw the time of each pass by operation, and return the figure.  Needs matplotlib."""
        from .engine.look.pictures import plot_stack

        return plot_stack(self.names, self.ns / 1e6, "ms")


class CacheUse(dict[str, Any]):
    """The KV cache of an answer: type, slots, bytes, what was reused, and the work with and without it.

    columns_with, columns_without   token positions that went through the layers, with the cache and without
    """

    def __init__(self, facts: dict[str, Any], n_token: int, n_prompt: int):
        n_answer = n_token - n_prompt
        work: dict[str, Any] = {}
        if facts:
            used = max(n_token - 1, 0)
            work = {
                "positions": used,
                "bytes_used": cached_bytes(facts, used),
                "columns_with": used - facts.get("reused", 0),
                "columns_without": sum(n_prompt + i for i in range(n_answer)),
            }
        super().__init__(facts | work)

    def _repr_html_(self) -> str:
        return table(["", ""], [[key, value] for key, value in self.items()])

    def plot(self) -> Any:
        """Draw the work with and without the cache, and return the figure.  Needs matplotlib."""
        from .engine.look.pictures import plot_bars

        names = ["with the cache", "without"]
        values = np.array([self.get("columns_with", 0), self.get("columns_without", 0)])
        return plot_bars([("token positions computed", names, values)])


class Merges(list[Word]):
    """The words of the prompt, each with its merges in order."""

    def _repr_html_(self) -> str:
        rows = [
            [word.text, " ".join(word.symbols), ", ".join(map(str, word.ids)), "; ".join(map(str, word.merges))]
            for word in self
        ]
        return table(["word", "tokens", "ids", "merges (score or rank)"], rows)

    def plot(self) -> Any:
        """Draw how many symbols each word has before and after its merges, and return the figure.  Needs matplotlib."""
        from .engine.look.pictures import plot_bars

        words = [word for word in self if word.merges]
        before = np.array([len(word.merges) + len(word.symbols) for word in words])
        after = np.array([len(word.symbols) for word in words])
        names = [word.text for word in words]
        return plot_bars([("symbols before merging", names, before), ("tokens after", names, after)])
