"""`bench formats MODEL`: one model in several formats: speed, size, memory and distance from the source, in one table.

Each format is made as llama-quantize makes it.  The distance is the mean Kullback-Leibler divergence of the next
token's distribution from the source's, and how often both have the same likeliest token, over a text: a file, or a
text that the source generates itself.  A format is on the Pareto front if no other is both faster and nearer to the
source.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.distributed.spread import spread
from ..engine.errors import EngineError, RequestError
from ..engine.gguf.read import GGUF
from ..engine.gguf.write import write_gguf
from ..engine.model.load import load_model
from ..engine.model.model import Model, require_decoder
from ..engine.options import Options
from ..engine.oracle.score import Divergence, cut_chunks, log_softmax, scored_logits, text_ids
from ..engine.run.generate import generate
from ..engine.store import LocalModel
from ..engine.store.file import FileModel
from ..engine.store.make.convert import convert_model
from ..engine.store.make.mixture import file_type_of
from ..engine.store.make.quantize import quantize_model
from ..kernels import NUMBA, threads
from . import machine, start
from .decode import STEPS, Bench
from .invocation import Invocation
from .results import ResultsFile
from .rounds import RoundResult, Subject, finish_run, warm_and_run

SOURCE = "source"
PREFILL, DEPTH = 128, 0
MAX_CHUNK = 512  # tokens that are scored together
PREFILL_CELL, DECODE_CELL = f"prefill {PREFILL}", "decode"


@dataclass(frozen=True)
class FormatFile:
    """A file in one format."""

    name: str
    path: Path

    @property
    def size_mib(self) -> float:
        return os.path.getsize(self.path) / 2**20


def bench_formats(call: Invocation) -> ResultsFile:
    """Run `bench formats`.  Raises: EngineError"""
    options, plan, progress = call.options, call.plan, call.progress
    names = list(dict.fromkeys(file_type_of(name.strip()) for name in options.formats.split(",") if name.strip()))
    if not names:
        raise RequestError("--formats names no format, expected for example Q8_0,Q4_K_M")
    with folder_for(options.keep) as folder:
        source = source_file(options.model, folder, call.find)
        files = [FormatFile(SOURCE, source)]
        for i, name in enumerate(names):
            progress(i / len(names), f"quantizing to {name}")
            files.append(FormatFile(name, quantized_file(source, name, folder)))
        memory = {file.name: peak_mib(file.path) for file in files}
        models = {file.name: load_model(file.path, {}) for file in files}
        require_decoder(models[SOURCE])
        progress(0.0, "distance from the source")
        chunks = text_chunks(models[SOURCE], options)
        sides = {file.name: {"size_mib": file.size_mib, "memory_mib": memory[file.name]} for file in files}
        for name, distance in distances_of(files, models, chunks, options.ray).items():
            sides[name] |= distance
        header = header_of_formats(options, names, source, models[SOURCE], chunks)
        results = call.open_results(header | {"contenders": sides})
        results.say(f"distance over {chunks.size} tokens of {text_name(options)}")
        benches = {file.name: Bench(FileModel.of(file.path), None, PREFILL + STEPS, 1) for file in files}
        reason = warm_and_run(subjects_of(benches, options), [PREFILL_CELL, DECODE_CELL], plan, results, progress)
        finish_run(results, reason, plan)
    return results


def subjects_of(benches: dict[str, Bench], options: argparse.Namespace) -> list[Subject]:
    """Return the formats as the rounds measure them."""
    n_thread = options.threads or threads.N_CORE

    def subject(name: str, bench: Bench) -> Subject:
        tasks = {PREFILL_CELL: bench.prefill(PREFILL), DECODE_CELL: bench.decode(DEPTH)}
        return Subject(name, lambda cell, number: RoundResult({"tok_s": tasks[cell].ours(n_thread)}))

    return [subject(name, bench) for name, bench in benches.items()]


def header_of_formats(
    options: argparse.Namespace, names: Sequence[str], source: Path, model: Model, chunks: np.ndarray
) -> dict[str, Any]:
    """Return the header of a run, without its contenders."""
    settings = {
        "model": Path(options.model).name,
        "formats": names,
        "text": text_name(options),
        "tokens": int(chunks.size),
    }
    settings |= {"threads": options.threads or threads.N_CORE, "prefill": PREFILL}
    weights = sum(tensor.n_elements for tensor in GGUF.open(source).tensors.values())
    about = {"parameters": weights, "n_layer": model.hparams.n_layer} | machine.own_version()
    return {"part": "formats", "settings": settings, "machine": machine.describe(), "model": about}


# --- files


@contextmanager
def folder_for(keep: Path | None) -> Iterator[Path]:
    """Provide the folder of the files: the one to keep, or a temporary one.  Raises: RequestError"""
    if keep is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--keep {keep} cannot be created: {error.strerror}") from None
    yield keep


def source_file(model: str, folder: Path, find: Callable[[str], LocalModel]) -> Path:
    """Return the GGUF of the source, converted from a folder of safetensors if it is one.  Raises: EngineError"""
    if not Path(model).is_dir():
        files = find(model)
        if files.adapters:
            raise RequestError(f"'{model}' has an adapter, which cannot be quantized with it")
        return Path(files.weights)
    inside = {path.name: path for path in Path(model).iterdir() if path.is_file()}
    if not any(name.endswith(".safetensors") for name in inside):
        raise RequestError(f"{model}: a folder without .safetensors, expected a GGUF file or a Hugging Face model")
    kv, tensors = convert_model(inside)
    path = folder / "source.gguf"
    write_gguf(path, kv, tensors)
    return path


def quantized_file(source: Path, name: str, folder: Path) -> Path:
    """Write the source in another format, unless the folder has it.  Raises: EngineError"""
    path = folder / f"{source.stem}-{name}.gguf"
    if not path.exists():
        try:
            write_gguf(path, *quantize_model(GGUF.open(source), name))
        except EngineError as error:
            raise RequestError(f"{source.name} to {name}: {error}") from None
    return path


def peak_mib(path: Path) -> float | None:
    """Return the peak memory of a process that loads the file and generates 20 tokens."""
    return start.peak_memory_ours(FileModel.of(path)) / 2**20 if hasattr(os, "wait4") else None


# --- distance


def text_name(options: argparse.Namespace) -> str:
    return options.text.name if options.text else "a text that the source generated"


def text_chunks(model: Model, options: argparse.Namespace) -> np.ndarray:
    """Return the tokens to compare on, i32 [n, n_ctx].  Raises: RequestError"""
    n_ctx = min(MAX_CHUNK, options.tokens, model.hparams.n_ctx_train)
    if options.text:
        try:
            text = options.text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise RequestError(f"--text {options.text} cannot be read: {reason}") from None
        return cut_chunks(text_ids(model, text), n_ctx, max(1, options.tokens // n_ctx))
    return np.array([own_text(model, n_ctx, seed) for seed in range(max(1, options.tokens // n_ctx))], np.int32)


def own_text(model: Model, n: int, seed: int) -> list[int]:
    """Return `n` tokens that the model generates at temperature 1 after the start token."""
    bos = model.tokenizer.bos
    ids = [1 if bos is None else bos]
    never_ends = tuple((id, -1e30) for id in model.tokenizer.eog)
    chosen = Options(
        num_ctx=n + 1, num_predict=n, temperature=1.0, top_k=0, top_p=1.0, seed=seed, logit_bias=never_ends
    )
    ids += generate(model, ids, chosen)
    return ids[:n]


def distances_of(
    files: Sequence[FormatFile], models: dict[str, Model], chunks: np.ndarray, ray: str | None
) -> dict[str, dict[str, float]]:
    """Return what `distances` does, computed on a Ray cluster if it is named: a format at a time, on any node."""
    if ray is None:
        return distances(models, chunks)
    make = partial(partial, distance_of, files[0].path, chunks)
    found = spread("" if ray == "local" else ray, make, files)
    return dict(zip((file.name for file in files), found, strict=True))


def distance_of(source: Path, chunks: np.ndarray, file: FormatFile) -> dict[str, float]:
    """Return a format's distance from the source, in a process of a cluster."""
    return distances({SOURCE: load_model(source, {}), file.name: load_model(file.path, {})}, chunks)[file.name]


def distances(models: dict[str, Model], chunks: np.ndarray) -> dict[str, dict[str, float]]:
    """Return each model's distance from the source's: mean KL divergence in nats, same likeliest token, perplexity."""
    found = {name: Divergence() for name in models}
    for chunk in chunks:
        n_ctx = len(chunk)
        base = [
            (log_softmax(rows), ids)
            for rows, ids in scored_logits(models[SOURCE], chunk, models[SOURCE].new_cache(n_ctx), NUMBA)
        ]
        for name, model in models.items():
            scored = scored_logits(model, chunk, model.new_cache(n_ctx), NUMBA)
            for (rows, ids), (ln, _) in zip(scored, base, strict=True):
                found[name].add_beside(rows, ids, ln)
    return {
        name: {
            "kl": float(d.kld.mean()),
            "kl_error": float(d.kld.std() / max(1, len(d.kld) - 1) ** 0.5),
            "same_top": d.same_top_share[0],
            "perplexity": d.perplexity[0],
        }
        for name, d in found.items()
    }
