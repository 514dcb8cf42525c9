"""What a server adds to a token: the time between tokens as a client sees it, less what they take in process.

    python -m numllama.benchmarks.overhead http://127.0.0.1:11434 --model primer
        [--prompt TEXT] [--answer 128] [--rounds 20] [--jsonl FILE]

in process      generate(): a forward pass, sampling, text, and nothing else
/api/generate   the same prompt and options, streamed to one client, whose clock is read at each line; and /api/chat
ms a text       from an answer's first to its last, by how many came after the first; the median of the rounds.  A text
                is a token, or a few whose bytes are one character
more            that less the same round's in process: median and 95th percentile of the rounds
gap p95         between two texts.  They may come several at once, so their median would say nothing

The server is one on this machine that has the model from the same store.  Paths take turns.  That they say the same,
text by text, is checked in every round: else it is an error, not a figure.
"""

from __future__ import annotations

import argparse
import http.client
import json
from collections.abc import Callable
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from ..engine.model.cache import KVCache
from ..engine.model.load import load_model
from ..engine.model.model import Model
from ..engine.options import Options
from ..engine.run.request import complete
from ..engine.store import default_store
from . import machine, report

PROMPT = "Tell me a long story about a cat, a dog and the sea."
Said = list[tuple[str, float]]
"""Pieces of text, and when each came."""


def generate_in_process(model: Model, prompt: str, options: Options, cache: KVCache) -> Said:
    """An answer without a server."""
    return [(piece.text, perf_counter()) for piece in complete(model, prompt, options, cache=cache) if piece.text]


def lines(url: str, path: str, body: dict[str, Any]) -> list[tuple[dict[str, Any], float]]:
    """Each line of an answer, and when a client had read it.  Raises: RuntimeError for one that is none"""
    client = http.client.HTTPConnection(urlsplit(url).netloc)
    client.request("POST", path, json.dumps(body))
    answer = client.getresponse()
    read = [(line, perf_counter()) for line in answer]
    client.close()
    objects = [(json.loads(line), when) for line, when in read]
    if answer.status != 200 or "error" in objects[-1][0]:
        raise RuntimeError(f"{path}: {answer.status} {objects[-1][0]}")
    return objects


def streamed(url: str, path: str, body: dict[str, Any]) -> Said:
    """An answer as a client gets it."""
    said = [
        (got.get("response") or got.get("message", {}).get("content"), when) for got, when in lines(url, path, body)
    ]
    return [(text, when) for text, when in said if text]


def measure_overhead(paths: dict[str, Callable[[], Said]], rounds: int) -> list[dict[str, Any]]:
    """A row for each of `paths`, the first being what the others are compared with.  Raises: RuntimeError"""
    gaps: dict[str, list[np.ndarray]] = {name: [] for name in paths}  # ms [texts - 1] of each round
    expected: list[str] = []
    for n in range(-1, rounds):  # the first one loads and compiles, and is not counted
        for name, say in paths.items():
            said = say()
            texts, moments = [text for text, _ in said], [when for _, when in said]
            expected = expected or texts
            if texts != expected or len(texts) < 2:
                raise RuntimeError(f"{name} says {texts}, expected {expected}, two texts at least")
            if n >= 0:
                gaps[name].append(np.diff(moments) * 1e3)
    tokens = {name: np.mean(each, axis=1) for name, each in gaps.items()}
    least = next(iter(tokens.values()))
    rows = []
    for name, ms in tokens.items():
        row = {"path": name, "texts": len(gaps[name][0]) + 1, "rounds": rounds, "ms a text": float(np.median(ms))}
        row |= {f"more p{p}": float(np.percentile(ms - least, p)) for p in (50, 95) if ms is not least}
        rows.append(row | {"gap p95": float(np.percentile(gaps[name], 95))})
    return rows


COLUMNS = ["path", "texts", "rounds", "ms a text", "more p50", "more p95", "gap p95"]


def main(argv: list[str] | None = None) -> None:
    """Prints the table, and appends its rows to what --jsonl names.  Raises: RuntimeError"""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--answer", type=int, default=128, help="tokens")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--jsonl", help="append the rows to this file")
    o = parser.parse_args(argv)

    files = default_store().resolve(o.model)
    model = load_model(files.weights)
    never_ends = {str(id): False for id in model.tokenizer.eog}
    options = {"num_predict": o.answer, "seed": 1, "temperature": 0.8, "stop": [], "logit_bias": never_ends}
    as_parsed = Options.parse(files.params, options).clamped(model.hparams.n_ctx_train)
    cache = model.new_cache(as_parsed.num_ctx)
    asked = {"model": o.model, "options": options}
    chat = asked | {"messages": [{"role": "user", "content": o.prompt}]}
    (shown, _), *_ = lines(o.url, "/api/chat", chat | {"_debug_render_only": True})
    prompt = shown["_debug_info"]["rendered_template"]
    about = machine.describe() | {"model": o.model}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    rows = measure_overhead(
        {
            "in process": lambda: generate_in_process(model, prompt, as_parsed, cache),
            "/api/generate": lambda: streamed(o.url, "/api/generate", asked | {"prompt": prompt, "raw": True}),
            "/api/chat": lambda: streamed(o.url, "/api/chat", chat),
        },
        o.rounds,
    )
    print(report.markdown(rows, COLUMNS))
    if o.jsonl:
        report.append_jsonl(o.jsonl, (about | row for row in rows))


if __name__ == "__main__":
    main()
