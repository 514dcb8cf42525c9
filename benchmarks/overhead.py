"""The server's overhead per token: time between tokens as measured by a client, minus that in process.

    python -m numllama.benchmarks.overhead http://127.0.0.1:11434 --model primer
        [--prompt TEXT] [--answer 128] [--rounds 20] [--jsonl FILE]

in process      generate(): forward pass, sampling and decoding to text
/api/generate   the same prompt and options, streamed to one client that takes the time of each line; also /api/chat
ms a text       time from the first text to the last, divided by the number of texts after the first; median of the
                rounds.  A text is one token, or a few tokens whose bytes form one character
more            that minus the same round's time in process: median and 95th percentile of the rounds
gap p95         95th percentile between two texts.  Texts may arrive in groups, so the median is not meaningful

The server runs on this machine and serves the model from the same store.  The paths take turns.  Every round checks
that they generate the same texts; a difference is an error.
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
from . import machine, table

PROMPT = "Tell me a long story about a cat, a dog and the sea."
TimedTexts = list[tuple[str, float]]
"""Pieces of text, each with its time of arrival."""


def generate_in_process(model: Model, prompt: str, options: Options, cache: KVCache) -> TimedTexts:
    """Generate an answer without a server."""
    return [(piece.text, perf_counter()) for piece in complete(model, prompt, options, cache=cache) if piece.text]


def lines(url: str, path: str, body: dict[str, Any]) -> list[tuple[dict[str, Any], float]]:
    """Return each line of a streamed answer with the time it was read.  Raises: RuntimeError for an error response"""
    client = http.client.HTTPConnection(urlsplit(url).netloc)
    client.request("POST", path, json.dumps(body))
    answer = client.getresponse()
    read = [(line, perf_counter()) for line in answer]
    client.close()
    objects = [(json.loads(line), when) for line, when in read]
    if answer.status != 200 or "error" in objects[-1][0]:
        raise RuntimeError(f"{path}: {answer.status} {objects[-1][0]}")
    return objects


def streamed(url: str, path: str, body: dict[str, Any]) -> TimedTexts:
    """Return the texts of an answer with the time each arrived."""
    timed = [
        (got.get("response") or got.get("message", {}).get("content"), when) for got, when in lines(url, path, body)
    ]
    return [(text, when) for text, when in timed if text]


def measure_overhead(paths: dict[str, Callable[[], TimedTexts]], rounds: int) -> list[dict[str, Any]]:
    """Measure each of `paths` in turn, and compare with the first.  -> a row for each

    Raises: RuntimeError if their texts differ
    """
    gaps: dict[str, list[np.ndarray]] = {name: [] for name in paths}  # ms [texts - 1] of each round
    expected: list[str] = []
    for n in range(-1, rounds):  # round -1 is a warm-up
        for name, generate_texts in paths.items():
            timed = generate_texts()
            texts, moments = [text for text, _ in timed], [when for _, when in timed]
            expected = expected or texts
            if texts != expected or len(texts) < 2:
                raise RuntimeError(f"{name} generated {texts}, expected {expected}, at least two texts")
            if n >= 0:
                gaps[name].append(np.diff(moments) * 1e3)
    tokens = {name: np.mean(each, axis=1) for name, each in gaps.items()}
    baseline = next(iter(tokens.values()))
    rows = []
    for name, ms in tokens.items():
        row = {"path": name, "texts": len(gaps[name][0]) + 1, "rounds": rounds, "ms a text": float(np.median(ms))}
        row |= {f"more p{p}": float(np.percentile(ms - baseline, p)) for p in (50, 95) if ms is not baseline}
        rows.append(row | {"gap p95": float(np.percentile(gaps[name], 95))})
    return rows


COLUMNS = ["path", "texts", "rounds", "ms a text", "more p50", "more p95", "gap p95"]


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print the table, and append its rows to the --jsonl file.  Raises: RuntimeError"""
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
    asked = {"model": o.model, "options": options, "think": False}  # a raw prompt has no thinking either
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
    print(table.markdown(rows, COLUMNS))
    if o.jsonl:
        table.append_jsonl(o.jsonl, (about | row for row in rows))


if __name__ == "__main__":
    main()
