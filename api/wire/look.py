"""Looks as JSON: numbers with four digits, or arrays as base64 of f16 where the request's `encoding` says so.

A line carries {"look": {"prompt": {...}, "steps": [...]}}: the prompt comes with the first line, and a token whose text
is held back comes with the next one.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ...engine.look.maps import AttentionMap
from ...engine.look.step import LensAt, LogitsAt, LookPart, LookPrompt, LookStep, ResidualAt, SamplerStep
from ...engine.tokenizer import Attr, Tokenizer
from .schema import AnswerRequest
from .stream import Chunk


class LookWriter:
    """Writes looks for a model's tokenizer in one encoding."""

    def __init__(self, tokenizer: Tokenizer, encoding: str = ""):
        self.tokenizer, self.encoding = tokenizer, encoding

    def part(self, parts: Iterable[LookPart]) -> dict[str, Any]:
        """Return the prompt, if it is among `parts`, and all their steps."""
        found: dict[str, Any] = {"steps": []}
        for part in parts:
            if part.prompt:
                found["prompt"] = self.prompt(part.prompt)
            found["steps"] += [self.step(step, heads=False) for step in part.steps]
        return found

    def prompt(self, prompt: LookPrompt) -> dict[str, Any]:
        """Return the prompt: its text, tokens, messages and merges, and how it ran."""
        words = prompt.words
        found: dict[str, Any] = {
            "text": prompt.text,
            "tokens": [[*self.token(id), self.kind(id)] for id in prompt.ids],
            "spans": [list(span) for span in prompt.spans],
            "changed": prompt.changed,
            "sizes": prompt.sizes,
            "heads": prompt.heads,
            "job": prompt.job,
            "seed": prompt.seed,
        }
        if words is not None:
            found["merges"] = [
                {
                    "text": w.text,
                    "merges": [[m.left, m.right, m.value] for m in w.merges],
                    "symbols": w.symbols,
                    "ids": w.ids,
                }
                for w in words
            ]
        if prompt.cache is not None:
            found["cache"] = prompt.cache
        return found | ({"run": prompt.run} if prompt.run else {})

    def step(self, step: LookStep, heads: bool = True) -> dict[str, Any]:
        """Return what was found at one position; an answer names the `heads` of all its steps with its prompt."""
        found: dict[str, Any] = {"position": step.position, "token": self.token(step.token)}
        if step.next is not None:
            found["next"] = self.token(step.next)
        found["sampled"] = step.sampled
        if step.attention is not None:
            found |= {"attention": self.array(step.attention)} | ({"heads": step.heads} if heads else {})
        if step.peaks is not None:
            places, weights = step.peaks
            found["peaks"] = {"place": places.tolist(), "weight": four_digits(weights)}
        if step.lens:
            found["lens"] = self.lens(step.lens)
        if step.residual:
            found["residual"] = self.residual(step.residual)
        if step.sampler is not None:
            found["sampler"] = [self.sampler_step(one) for one in step.sampler]
        if step.logits:
            found["logits"] = self.logits(step.logits)
        if step.values:
            found["values"] = {name: self.array(value) for name, value in step.values.items()}
        if step.time:
            times = [[name, il, round(ns / 1000, 1)] for (name, il), ns in step.time.by_layer.items()]
            found["time"] = {"n_tok": step.time.n_tok, "us": times}
        return found

    def lens(self, lens: LensAt) -> dict[str, Any]:
        tops = [
            [[*self.token(int(id)), round(float(p), 4)] for id, p in zip(ids, ps, strict=True)]
            for ids, ps in zip(lens.ids, lens.p, strict=True)
        ]
        return {"top": tops, "p_next": four_digits(lens.p_next), "rank": lens.rank.tolist()}

    def residual(self, residual: ResidualAt) -> dict[str, Any]:
        found = {name: four_digits(getattr(residual, name)) for name in ("norms", "adds", "stream")}
        return found | {"neurons": [[il, j, round(a, 4), round(adds, 4)] for il, j, a, adds in residual.neurons]}

    def sampler_step(self, step: SamplerStep) -> dict[str, Any]:
        tops = [
            [*self.token(int(id)), round(float(logit), 4), round(float(p), 4)]
            for id, logit, p in zip(step.ids, step.logits, step.p, strict=True)
        ]
        parameter = step.parameter if step.name == "dist" else round(step.parameter, 6)
        return {"name": step.name, "parameter": parameter, "n": step.n, "kept": round(step.kept, 4), "top": tops}

    def logits(self, logits: LogitsAt) -> dict[str, Any]:
        """Return the largest logits as [id, text, logit]; all of them as base64 of f32, in the order of ids."""
        if logits.n_rest == 0:
            return {"f32": b64encode(logits.values.astype("<f4").tobytes()).decode()}
        pairs = zip(logits.ids.tolist(), logits.values.tolist(), strict=True)
        top = [[*self.token(id), value] for id, value in pairs]
        return {"top": top, "n_rest": logits.n_rest, "log_sum_rest": round(logits.log_sum_rest, 4)}

    def token(self, id: int) -> list[Any]:
        """Return a token's id and text; bytes that are not UTF-8 show as \\xE2, an image's row as "[image]"."""
        piece = self.tokenizer.piece(id, special=True) if id >= 0 else b"[image]"
        return [id, piece.decode("utf-8", "backslashreplace")]

    def kind(self, id: int) -> str:
        """Return "control", "byte" or "" for a token of plain text."""
        attr = self.tokenizer.vocab.attr[id] if id >= 0 else 0
        return "image" if id < 0 else "control" if attr & Attr.CONTROL else "byte" if attr & Attr.BYTE else ""

    def array(self, x: np.ndarray) -> Any:
        if self.encoding == "f16":
            return {"shape": x.shape, "f16": b64encode(x.astype("<f2").tobytes()).decode()}
        return four_digits(x)


def four_digits(x: np.ndarray) -> Any:
    """Return an array as lists of numbers with four digits after the point."""
    return np.round(x.astype(np.float64), 4).tolist()


def attention_map_json(found: AttentionMap) -> dict[str, Any]:
    """Return a map; its weights w as bytes, round(255 sqrt(w)), so that small ones keep their first digit."""
    packed = np.rint(255 * np.sqrt(found.weights)).astype(np.uint8)
    about = {"layer": found.layer, "heads": found.heads, "rows": found.rows, "every": found.every, "width": found.width}
    return about | {"shape": packed.shape, "u8": b64encode(packed.tobytes()).decode()}


def encoding_of(look: Any) -> str:
    """Return the request's encoding of arrays."""
    return str(look.get("encoding") or "") if isinstance(look, Mapping) else ""


def look_field(request: AnswerRequest, tokenizer: Tokenizer, chunk: Chunk) -> dict[str, Any]:
    """Return `look`, or nothing if the chunk has none."""
    if not chunk.looks:
        return {}
    parts: Sequence[LookPart] = chunk.looks
    return {"look": LookWriter(tokenizer, encoding_of(request.look)).part(parts)}
