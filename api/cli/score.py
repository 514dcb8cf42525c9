"""`numllama score`: perplexity of a text as llama-perplexity prints it, and the divergence from a base file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...engine.distributed.spread import spread
from ...engine.errors import RequestError
from ...engine.model.load import load_model
from ...engine.model.model import Model, require_decoder
from ...engine.oracle.base_file import BaseReader, BaseWriter
from ...engine.oracle.score import N_UBATCH, Divergence, Scores, cut_chunks, n_tokens_at_once, scored_logits, text_ids
from ...kernels.kv import CACHE_TYPES, types_of_keys_and_values
from .backend import kernel_set, local_model

KLD_QUANTILES = (1, 0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001, 0)
P_DIFF_QUANTILES = (1, 0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001, 0)
MIN_FOR_STATISTICS = 100  # llama-perplexity's


def score_model(
    model: str,
    *,
    text: str | None,
    n_ctx: int = 512,
    n_chunk: int | None = None,
    kernels: str = "numba",
    cache_type: str | None = None,
    base: Path | None = None,
    beside_base: bool = False,
    as_json: bool = False,
    ray: str | None = None,
) -> int:
    """Print the perplexity of a text, or a table beside a base file.  -> exit status, 130 if Ctrl-C ended it early

    ray   address of a Ray cluster that scores the chunks; "" starts one on this machine
    """
    kernel_set(kernels)
    kept = cache_of(kernels, cache_type)
    if ray is not None and base and not beside_base:
        raise RequestError("--ray only compares with a base file; write one without it")
    if beside_base and base is None:
        raise RequestError("--kl-divergence needs --kl-divergence-base FILE, the base's log-probabilities")
    if text is None and not beside_base:
        raise RequestError("no text: give a file by --text FILE, or - for standard input")
    reader = BaseReader(base) if base and beside_base else None
    written = text_of_file(text) if text is not None and reader is None else ""
    files = local_model(model)
    loaded = load_model(files.weights, dict.fromkeys(files.adapters, 1.0))
    require_decoder(loaded)
    n_vocab = loaded.hparams.n_vocab
    if reader is not None:
        if reader.n_vocab != n_vocab:
            raise RequestError(f"{base}: for a vocabulary of {reader.n_vocab}, and the model's has {n_vocab}")
        chunks = reader.chunks[:n_chunk]
    else:
        chunks = cut_chunks(text_ids(loaded, written), n_ctx, n_chunk)
    scores, done, interrupted = Divergence() if reader else Scores(), list[Scores](), False
    with ExitStack() as stack:
        writer = stack.enter_context(BaseWriter(base, chunks, n_vocab)) if base and reader is None else None
        advance = stack.enter_context(chunk_bar(len(chunks)))
        try:
            settings = kernels, kept, (len(chunks), chunks.shape[1]), base if reader else None
            if ray is None:
                write = writer.write if writer else None
                parts: Iterator[Scores] = map(partial(ChunkScorer(loaded, *settings), write=write), enumerate(chunks))
            else:
                parts = spread(ray, partial(load_scorer, files.weights, files.adapters, settings), enumerate(chunks))
            for part in parts:
                scores.extend(part)
                done.append(snapshot(scores))
                advance(scores)
        except KeyboardInterrupt:
            interrupted = True
    if not done:
        return 130
    report = {"chunks": len(done), "of": len(chunks), "n_ctx": chunks.shape[1], "kernels": kernels, "cache": kept}
    if as_json:
        print(json.dumps(report | score_json(done), indent=2))
    else:
        print_scores(done)
        if interrupted:
            print(f"interrupted after {len(done)} of {len(chunks)} chunks")
    return 130 if interrupted else 0


def cache_of(kernels: str, cache_type: str | None) -> str:
    """Return the cache type: the one asked for, or f16 as llama-perplexity, f32 and f64 for reference sets.

    Raises: RequestError
    """
    if cache_type is None:
        return {"numpy-float64": "f64", "numpy-float32": "f32", "exact": "f32"}.get(kernels, "f16")
    try:
        types_of_keys_and_values(cache_type)
    except KeyError:
        known = ", ".join(CACHE_TYPES)
        raise RequestError(f"unknown cache type '{cache_type}'; choose from {known}, or keys/values") from None
    return cache_type


def text_of_file(path: str) -> str:
    """Read a text file, or standard input for "-"; bytes that are not UTF-8 stay.  Raises: RequestError"""
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).expanduser().read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None
    return data.decode("utf-8", "surrogateescape")


class ChunkScorer:
    """A model that scores chunks of a text.

    shape   how many chunks of how many tokens
    base    a base file to compare with
    Raises: RequestError for a cache type that the model's heads do not fit
    """

    def __init__(self, model: Model, kernels: str, cache_type: str, shape: tuple[int, int], base: Path | None = None):
        self.n_chunk, n_ctx = shape
        self.model, self.kernels = model, kernel_set(kernels)
        self.reader = BaseReader(base) if base else None
        try:
            self.cache = self.model.new_cache(n_ctx, type=cache_type)
        except ValueError as error:
            raise RequestError(f"{error}; choose another --cache-type") from None

    def __call__(self, item: tuple[int, np.ndarray], write: Callable[[np.ndarray], None] | None = None) -> Scores:
        """Score a chunk, given with its number; `write` gets its logits."""
        (i, chunk), row = item, 0
        scores = Divergence() if self.reader else Scores()
        is_llamacpp = self.kernels.name.startswith("llamacpp")
        n_at_once = n_tokens_at_once(len(chunk), self.n_chunk, i) if is_llamacpp else N_UBATCH
        for logits, ids in scored_logits(self.model, chunk, self.cache, self.kernels, n_at_once):
            if isinstance(scores, Divergence) and self.reader is not None:
                scores.add_beside(logits, ids, self.reader.log_probs(i, row, row + len(ids)))
            else:
                scores.add(logits, ids)
            if write is not None:
                write(logits)
            row += len(ids)
        return scores


def load_scorer(weights: Path, adapters: Sequence[Path], settings: tuple[Any, ...]) -> ChunkScorer:
    """Load a model and return its scorer, in a process of a cluster."""
    return ChunkScorer(load_model(weights, dict.fromkeys(adapters, 1.0)), *settings)


def snapshot(scores: Scores) -> Scores:
    """Return the scores so far; later additions do not change them."""
    return type(scores)(**vars(scores))


@contextmanager
def chunk_bar(n_chunk: int) -> Iterator[Any]:
    """Show a bar on standard error, if that is a terminal; yields a function that advances it by a chunk."""
    if not sys.stderr.isatty():
        yield lambda scores: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=n_chunk)
        yield lambda scores: bar.update(task, advance=1, description=f"PPL {scores.perplexity[0]:.4f}")


def print_scores(done: list[Scores]) -> None:
    """Print what llama-perplexity does: the estimate after each chunk, then the final one or the table."""
    last = done[-1]
    if not isinstance(last, Divergence):
        print("".join(f"[{i}]{scores.perplexity[0]:.4f}," for i, scores in enumerate(done, 1)))
        value, error = last.perplexity
        print(f"Final estimate: PPL = {value:.4f} +/- {error:.5f}")
        return
    print("chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              ", end="")
    print("Δp RMS            Same top p")
    for i, scores in enumerate(done, 1):
        assert isinstance(scores, Divergence)
        (ppl, d_ppl), (ratio, d_ratio), (kld, d_kld) = scores.perplexity, scores.ln_ratio, mean_of(scores.kld)
        (rms, d_rms), (same, d_same) = scores.rms_p_diff, scores.same_top_share
        print(
            f"{i:4}    {ppl:9.4f} ± {d_ppl:9.4f}    {ratio:10.5f} ± {d_ratio:10.5f}    {kld:10.5f} ± {d_kld:10.5f}"
            f"    {100 * rms:6.3f} ± {100 * d_rms:6.3f} %    {100 * same:6.3f} ± {100 * d_same:6.3f} %"
        )
    print()
    if len(last.nll) < MIN_FOR_STATISTICS:
        print(f"{len(last.nll)} tokens: too few for statistics, which need {MIN_FOR_STATISTICS}")
    else:
        print_statistics(last)


def mean_of(x: np.ndarray) -> tuple[float, float]:
    """Return the mean and standard error of `x`; 0 for the error of ten numbers or fewer, as llama-perplexity."""
    return float(x.mean()), float(x.std() / np.sqrt(len(x) - 1)) if len(x) > 10 else 0.0


def print_statistics(d: Divergence) -> None:
    """Print the three tables that llama-perplexity prints after the last chunk."""
    (ppl, d_ppl), (base, d_base), (ratio, d_ratio) = d.perplexity, d.perplexity_base, d.ln_ratio
    variance = d_ppl**2 + d_base**2 - 2 * d.correlation * d_ppl * d_base
    print("====== Perplexity statistics ======")
    print(f"Mean PPL(Q)                   : {ppl:10.6f} ± {d_ppl:10.6f}")
    print(f"Mean PPL(base)                : {base:10.6f} ± {d_base:10.6f}")
    print(f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * d.correlation:6.2f}%")
    print(f"Mean ln(PPL(Q)/PPL(base))     : {ratio:10.6f} ± {d_ratio:10.6f}")
    print(f"Mean PPL(Q)/PPL(base)         : {np.exp(ratio):10.6f} ± {np.exp(ratio) * d_ratio:10.6f}")
    print(f"Mean PPL(Q)-PPL(base)         : {ppl - base:10.6f} ± {max(0.0, variance) ** 0.5:10.6f}\n")
    kld, d_kld = mean_of(d.kld)
    print("====== KL divergence statistics ======")
    print(f"Mean    KLD: {kld:10.6f} ± {d_kld:10.6f}")
    for q, value in zip(KLD_QUANTILES, np.quantile(d.kld, KLD_QUANTILES), strict=True):
        print(f"{quantile_name(q)} KLD: {value:10.6f}")
    mean, error = mean_of(d.p_diff)
    print("\n====== Token probability statistics ======")
    print(f"Mean    Δp: {100 * mean:6.3f} ± {100 * error:5.3f} %")
    for q, value in zip(P_DIFF_QUANTILES, np.quantile(d.p_diff, P_DIFF_QUANTILES), strict=True):
        print(f"{quantile_name(q)} Δp: {100 * value:6.3f}%")
    (rms, d_rms), (same, d_same) = d.rms_p_diff, d.same_top_share
    print(f"RMS Δp    : {100 * rms:6.3f} ± {100 * d_rms:5.3f} %")
    print(f"Same top p: {100 * same:6.3f} ± {100 * d_same:5.3f} %")


def quantile_name(q: float) -> str:
    """Return llama-perplexity's name of a quantile.

    >>> quantile_name(1), quantile_name(0.999), quantile_name(0.05), quantile_name(0.5)
    ('Maximum', '99.9%  ', ' 5.0%  ', 'Median ')
    """
    return {1: "Maximum", 0.5: "Median ", 0: "Minimum"}.get(q, f"{100 * q:4.1f}%  ")


def score_json(done: list[Scores]) -> dict[str, Any]:
    """Return the final numbers, and the perplexity after each chunk, as JSON values."""
    last = done[-1]
    report: dict[str, Any] = {
        "tokens": len(last.nll),
        "perplexity": pair(last.perplexity),
        "perplexity_after_chunk": [scores.perplexity[0] for scores in done],
    }
    if isinstance(last, Divergence):
        report |= {
            "perplexity_base": pair(last.perplexity_base),
            "ln_ratio": pair(last.ln_ratio),
            "correlation": last.correlation,
            "kld": pair(mean_of(last.kld)) | quantiles(last.kld, KLD_QUANTILES),
            "p_diff": pair(mean_of(last.p_diff)) | quantiles(last.p_diff, P_DIFF_QUANTILES),
            "rms_p_diff": pair(last.rms_p_diff),
            "same_top": pair(last.same_top_share),
        }
    return report


def pair(mean_and_error: tuple[float, float]) -> dict[str, Any]:
    """Return a number and its standard error by name."""
    return {"value": mean_and_error[0], "error": mean_and_error[1]}


def quantiles(x: np.ndarray, at: tuple[float, ...]) -> dict[str, Any]:
    """Return the quantiles of `x` by their fraction."""
    return {"quantiles": {str(q): float(value) for q, value in zip(at, np.quantile(x, at), strict=True)}}
