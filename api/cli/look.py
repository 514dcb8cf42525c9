"""`numllama look`: an answer and what it computed, as tables and heat maps, as JSON lines, or as a page in one file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ...engine.errors import LookTooLarge, RequestError
from ...engine.go.duration import FOREVER
from ...engine.go.json import dumps
from ...engine.look.step import cached_bytes
from ...engine.options import RequestOptions
from ...engine.run.piece import Piece, Timings
from ...engine.serve.answer import Answer
from ...engine.serve.engine import Engine
from ...engine.settings import expand_home
from ..learn.page import file_html
from ..wire.look import LookWriter
from .backend import is_file
from .parameters import parse_parameters
from .spinner import Spinner

SHADES = " \u2591\u2592\u2593\u2588"  # of a heat map, from 0 to 1
NUM_PREDICT = 80  # tokens of the answer, unless -o num_predict says otherwise
EVERYTHING: dict[str, Any] = {
    "lens": 5,
    "residual": True,
    "neurons": 8,
    "sampler": True,
    "logits": 64,
}
EVERYTHING |= {"time": True, "cache": True, "merges": True}


def look_at(
    model: str, prompt: str, *, html: Path | None, as_json: bool, raw: bool, head: str, options: Sequence[str]
) -> None:
    """Answer `prompt` in this process and show what was computed.  Raises: EngineError"""
    from ...engine.store.file import FileModel

    engine = Engine(file=FileModel.of(expand_home(model))) if is_file(model) else Engine()
    given = {"num_predict": NUM_PREDICT} | parse_parameters(options)
    try:
        facts = engine.model_facts(model)
        if is_file(model):
            facts["name"] = Path(model).name
        if "completion" not in facts["capabilities"]:
            raise RequestError(f"'{model}' is an encoder: it embeds texts and generates no answer to look at")
        layer, n = chosen_head(head, facts)

        def lines_of(attention: Any, encoding: str = "") -> Iterator[dict[str, Any]]:
            look = EVERYTHING | {"attention": attention, "encoding": encoding}
            request = RequestOptions(given, keep_alive=FOREVER, look=look)
            if raw:
                answer = engine.generate(model, prompt, request, raw=True)
            else:
                answer = engine.chat(model, [{"role": "user", "content": prompt}], request)
            for piece in answer:
                yield answer_line(answer, piece, encoding)

        if as_json:
            for line in lines_of("*"):
                sys.stdout.write(dumps(line).decode() + "\n")
                sys.stdout.flush()
        elif html:
            with Spinner(sys.stderr):
                lines, note = lines_that_fit(partial(lines_of, encoding="f16"), layer, n)
            tensor = next((t["name"] for t in facts["tensors"] if ".attn_q." in t["name"]), facts["tensors"][0]["name"])
            state = {"model": model, "prompt": prompt, "mode": "raw" if raw else "chat"}
            data = {"model": facts, "lines": lines, "state": state, "block": engine.tensor_block(model, tensor, 0)}
            save_page(html, file_html(data), note)
        else:
            with Spinner(sys.stderr):
                lines = list(lines_of([[layer, n]]))
            print_look(lines, layer, n)
    finally:
        engine.close()


def lines_that_fit(
    lines_of: Callable[[Any], Iterable[dict[str, Any]]], layer: int, n: int
) -> tuple[list[dict[str, Any]], str]:
    """Look at all heads, or at those of `layer` or at head `n` of it alone if more exceed OLLAMA_LOOK_LIMIT.

    -> the lines of the answer, and what is left out
    Raises: LookTooLarge
    """
    try:
        return list(lines_of("*")), ""
    except LookTooLarge as error:
        about = f"(--head LAYER.HEAD chooses another); OLLAMA_LOOK_LIMIT={error.needed} keeps that of all heads"
    try:
        return list(lines_of([[layer, "*"]])), f"attention of layer {layer} alone {about}"
    except LookTooLarge:
        return list(lines_of([[layer, n]])), f"attention of layer {layer}, head {n} alone {about}"


def answer_line(answer: Answer, piece: Piece, encoding: str) -> dict[str, Any]:
    """Return a piece as /api/generate sends it."""
    assert answer.model
    line: dict[str, Any] = {"response": piece.text, "done": piece.done_reason is not None}
    if piece.thinking:
        line["thinking"] = piece.thinking
    if piece.look:
        line["look"] = LookWriter(answer.model.tokenizer, encoding).part([piece.look])
    if piece.done_reason:
        t = piece.timings or Timings()
        names = ("prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration")
        line |= {"done_reason": piece.done_reason, "total_duration": answer.total_duration}
        line |= {"load_duration": answer.load_duration} | {name: getattr(t, name) for name in names}
    return line


def chosen_head(head: str, facts: dict[str, Any]) -> tuple[int, int]:
    """Parse "LAYER.HEAD".  Raises: RequestError"""
    layer, _, h = head.partition(".")
    if not (layer.isdecimal() and h.isdecimal() and int(layer) < facts["n_layer"] and int(h) < facts["n_head"]):
        last = f"{facts['n_layer'] - 1}.{facts['n_head'] - 1}"
        raise RequestError(f"--head {head}: expected LAYER.HEAD from 0.0 to {last}")
    return int(layer), int(h)


def save_page(path: Path, html: str, note: str) -> None:
    """Write the page, say where it is, and what `note` says.  Raises: RequestError"""
    try:
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}") from None
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, opens in any browser, without a network")
    if note:
        print(note)


def print_look(lines: Sequence[dict[str, Any]], layer: int, head: int) -> None:
    """Print tables: tokens, each layer's guess, the sampler, the attention of a head, time, the cache."""
    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    parts = [line["look"] for line in lines if "look" in line]
    prompt, steps = parts[0]["prompt"], [step for part in parts for step in part["steps"]]
    console.print("".join(line["response"] for line in lines).strip(), markup=False)
    for title, table in (
        ("After each layer the likeliest token, and the rank of the token that follows", lens_table(steps)),
        ("The sampler: candidates left after each step", sampler_table(steps)),
    ):
        console.print(f"\n{title}", style="bold")
        console.print(table)
    console.print(
        attention_map(steps, prompt["heads"].index((layer, head)), f"layer {layer}, head {head}"), soft_wrap=True
    )
    console.print("Microseconds by operation, all layers together", style="bold")
    console.print(time_table(steps))
    if cache := prompt.get("cache"):
        n = len(steps)
        size = cached_bytes(cache, n)
        print_line = (
            f"KV cache: {n} positions, {size / 1024:.1f} KiB of {cache['bytes'] / 2**20:.1f} MiB, {cache['type']}"
        )
        console.print(print_line, markup=False)


def token_label(text: str) -> str:
    """Show a token's blanks and line ends."""
    return repr(text)[1:-1].replace(" ", "\u2423") or "\u2205"


def shaded(text: str, p: float) -> Text:
    """Return `text` on a ground as dark as `p` is large."""
    t = min(max(p, 0.0), 1.0) ** 0.6
    red, green, blue = (round(255 + (end - 255) * t) for end in (11, 83, 148))
    ink = "white" if t > 0.5 else "black"
    return Text(text, Style(color=ink, bgcolor=f"rgb({red},{green},{blue})"))


def lens_table(steps: Sequence[dict[str, Any]]) -> Table:
    """Build a table with the likeliest token after each layer, for each token of the answer."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("token", no_wrap=True)
    sampled = [step for step in steps if step["sampled"]]
    for il in range(len(sampled[0]["lens"]["top"]) if sampled else 0):
        table.add_column(f"layer {il}", no_wrap=True)
    table.add_column("rank", justify="right")
    for step in sampled:
        guesses = [shaded(f"{token_label(top[0][1])} {top[0][2]:.0%}", top[0][2]) for top in step["lens"]["top"]]
        table.add_row(Text(token_label(step["next"][1])), *guesses, str(step["lens"]["rank"][-1] + 1))
    return table


def sampler_table(steps: Sequence[dict[str, Any]]) -> Table:
    """Build a table with a row for each token of the answer: how many candidates each step left, and the draw."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    sampled = [step for step in steps if step.get("sampler")]
    names = [one["name"] for one in sampled[0]["sampler"]] if sampled else []
    table.add_column("token", no_wrap=True)
    for name in names[:-1]:
        table.add_column(name, justify="right")
    table.add_column("draw", justify="right")
    table.add_column("probability", justify="right")
    for step in sampled:
        *ledger, drawn = step["sampler"]
        p = next((p for id, _, _, p in ledger[0]["top"] if id == step["next"][0]), 0.0)
        counts = [str(one["n"]) for one in ledger]
        table.add_row(Text(token_label(step["next"][1])), *counts, f"{drawn['parameter']:.3f}", f"{p:.1%}")
    return table


def attention_map(steps: Sequence[dict[str, Any]], i: int, name: str) -> Text:
    """Draw the attention of head `i` of the look in characters: a row for each token, a column for each it looks at."""
    drawn = Text(f"Attention of {name}: a row for each token, a column for each before it\n", "bold")
    width = max(len(token_label(step["token"][1])) for step in steps)
    for step in steps:
        row = step["attention"][i]
        cells = "".join(SHADES[min(len(SHADES) - 1, int(len(SHADES) * w**0.6))] for w in row)
        drawn.append(f"{token_label(step['token'][1]):>{width}} {cells}\n", "default")
    return drawn


def time_table(steps: Sequence[dict[str, Any]]) -> Table:
    """Build a table of the mean microseconds of each operation, for prefill and for a token of the answer."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("value computed", "prefill", "a token of the answer"):
        table.add_column(title, justify="left" if title == "value computed" else "right")
    passes = [step["time"] for step in steps if step.get("time")]
    sums: dict[str, list[list[float]]] = {}
    for one in passes:
        found: dict[str, float] = {}
        for name, _, us in one["us"]:
            found[name] = found.get(name, 0.0) + us
        for name, us in found.items():
            sums.setdefault(name, [[], []])[one["n_tok"] == 1].append(us)
    for name, kinds in sums.items():
        table.add_row(name, *(f"{sum(kind) / len(kind):.1f}" if kind else "" for kind in kinds))
    return table
