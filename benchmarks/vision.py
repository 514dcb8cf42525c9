"""`bench vision`: the time to encode an image for a text model, in turns with llama.cpp's libmtmd in this process.

    numllama bench vision [MMPROJ.gguf] [--peer DIR with libmtmd.so] [--threads 1 2]

Without a file, one is created with random weights in the shape of LLaVA 1.5's tower: CLIP ViT-L/14-336, 24 layers of
1024 (23 are used), 577 positions, F16 (600 MB in the temporary folder, kept for later runs).

Both get the pixels of one tile, so decoding and resizing are not measured.  Results are compared before anything is
timed.  On a busy machine, --cpu counts CPU seconds: fair for one thread; with several, waiting counts too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ..engine.gguf.write import write_gguf
from ..engine.vision.tower import Vision, VisionHparams, load_vision
from ..kernels import NUMBA, threads
from ..kernels.quants import FORMATS_BY_NAME, quantize
from . import disturbance, llama_cpp, machine
from .invocation import Invocation
from .libmtmd import LibMtmd
from .results import ResultsFile
from .rounds import RoundResult, Subject, finish_run, warm_and_run


def random_mmproj(path: Path, n_layer: int = 24, n_embd: int = 1024, n_out: int = 4096, image_size: int = 336) -> Path:
    """Write a tower of CLIP's shape with LLaVA's projector: F16 matrices, scaled so that activations stay around 1."""
    rng = np.random.default_rng(0)
    f16, f32 = FORMATS_BY_NAME["F16"], FORMATS_BY_NAME["F32"]
    n_pos, patch = (image_size // 14) ** 2 + 1, (n_embd, 3, 14, 14)
    tensors = []

    def put(name, shape, std, format=f32, mean=0.0):
        values = rng.standard_normal(shape, np.float32) * np.float32(std) + np.float32(mean)
        tensors.append((name, format, shape, quantize(format, values)))

    def linear(name, n_out, n_in):
        put(f"{name}.weight", (n_out, n_in), n_in**-0.5, f16)
        put(f"{name}.bias", (n_out,), 0.1)

    def norm(name):
        put(f"{name}.weight", (n_embd,), 0.1, mean=1.0)
        put(f"{name}.bias", (n_embd,), 0.1)

    put("v.class_embd", (n_embd,), 1)
    put("v.patch_embd.weight", patch, 588**-0.5, f16)
    put("v.position_embd.weight", (n_pos, n_embd), 0.5)
    norm("v.pre_ln")
    for blk in (f"v.blk.{il}" for il in range(n_layer)):
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            linear(f"{blk}.{name}", n_embd, n_embd)
        norm(f"{blk}.ln1")
        norm(f"{blk}.ln2")
        linear(f"{blk}.ffn_up", 4 * n_embd, n_embd)
        linear(f"{blk}.ffn_down", n_embd, 4 * n_embd)
    linear("mm.0", n_out, n_embd)
    linear("mm.2", n_out, n_out)
    values = {
        "general.architecture": "clip",
        "clip.projector_type": "mlp",
        "clip.has_vision_encoder": True,
        "clip.vision.image_size": image_size,
        "clip.vision.patch_size": 14,
        "clip.vision.embedding_length": n_embd,
        "clip.vision.feed_forward_length": 4 * n_embd,
        "clip.vision.projection_dim": n_out,
        "clip.vision.block_count": n_layer,
        "clip.vision.attention.head_count": n_embd // 64,
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.image_mean": np.array([0.48145466, 0.4578275, 0.40821073], np.float32),
        "clip.vision.image_std": np.array([0.26862954, 0.26130258, 0.27577711], np.float32),
    }
    write_gguf(path, values, tensors)
    return path


def multiply_adds(hp: VisionHparams, vision: Vision) -> float:
    """Count the multiply-adds in matrix products and attention for one tile."""
    n_patch = (hp.image_size // hp.patch_size) ** 2
    n_pos = n_patch + 1
    layer = n_pos * (4 * hp.n_embd**2 + 2 * hp.n_embd * hp.n_ff) + 2 * n_pos**2 * hp.n_embd
    return hp.n_layer * layer + n_patch * (vision.patch_embd.n_elements + vision.n_embd * (hp.n_embd + vision.n_embd))


def check_vision(got: np.ndarray, expected: np.ndarray) -> None:
    """Check that the rows have the same directions: llama.cpp keeps keys and values, and sometimes sums, in f16."""
    cosine = np.sum(got * expected, axis=1) / (np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1))
    assert cosine.min() > 0.999, f"rows differ from llama.cpp's: the smallest cosine is {cosine.min()}"


def bench_vision(call: Invocation) -> ResultsFile:
    """Run `bench vision`.  Raises: EngineError"""
    options, plan, progress = call.options, call.plan, call.progress
    path = options.mmproj or Path(tempfile.gettempdir()) / "numllama-clip-vit-l-336-f16.gguf"
    if not path.exists() and options.mmproj is None:
        random_mmproj(path)
    clock = disturbance.own_cpu_seconds if options.cpu else perf_counter
    mtmd = LibMtmd(options.peer) if options.peer else None
    n_threads = options.threads or list(dict.fromkeys([1, threads.N_CORE]))
    vision = load_vision(path)
    tile = random_tile(vision.hparams)
    got = vision.rows(tile, NUMBA)  # warm-up: compiles, and packs the weights
    settings = {"model": path.name, "threads": n_threads, "seconds": "CPU" if options.cpu else "wall"}
    sides: dict[str, Any] = {"llama.cpp": llama_cpp.about(options.peer)} if options.peer else {}
    sides |= {"numllama": machine.own_version()}
    results = call.open_results(
        {"part": "vision", "settings": settings, "contenders": sides, "machine": machine.describe()}
    )
    results.say(f"an image: {2e-9 * multiply_adds(vision.hparams, vision):.3g} GFLOP")
    n_of = {f"{n} thread{'s' * (n > 1)}": n for n in n_threads}

    def timed(encode: Callable[[int], Any]) -> Callable[[str, int], RoundResult]:
        def measure(cell: str, number: int) -> RoundResult:
            threads.limit(n_of[cell])
            began = clock()
            encode(n_of[cell])
            return RoundResult({"ms": 1e3 * (clock() - began)})

        return measure

    subjects = [Subject("numllama", timed(lambda n: vision.rows(tile, NUMBA)))]
    with ExitStack() as stack:
        if mtmd:
            contexts = {n: stack.enter_context(mtmd.loaded(path, n, flash_attention=-1)) for n in n_threads}
            (chunk,) = stack.enter_context(mtmd.cut(contexts[n_threads[0]], tile))
            check_vision(got, mtmd.encoded(contexts[n_threads[0]], chunk, vision.n_embd))
            theirs = timed(lambda n: mtmd.encoded(contexts[n], chunk, vision.n_embd))
            subjects.insert(0, Subject("llama.cpp", theirs))
        reason = warm_and_run(subjects, list(n_of), plan, results, progress)
    finish_run(results, reason, plan)
    return results


def random_tile(hp: VisionHparams) -> np.ndarray:
    """Return random pixels, u8 [image_size, image_size, 3]."""
    return np.random.default_rng(0).integers(0, 256, (hp.image_size, hp.image_size, 3), dtype=np.uint8)
