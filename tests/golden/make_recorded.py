"""Cuts tests/golden/recorded from a folder with all recordings, which README.md beside this file describes.

    PYTHONPATH=tests python tests/golden/make_recorded.py RECORDINGS

Where a recording is large, or not free to be passed on, a part is kept, always the same one:

    logits        every 8th column of stories260K, every 64th of the larger vocabularies; all 32 positions
    templates     those of Ollama's and llama.cpp's repositories, and of models under Apache-2.0 or MIT (FREE)
    guide         the steps before the 178th
    store         what is no GGUF: tests/recorded_models.py makes these
"""

import gzip
import io
import json
import runpy
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import recorded_models
from recordings import KEPT

from numllama.engine.gguf.read import read_gguf

GO = (
    "chat_truncation model_names modelfile modelfile_show named_templates ollama_conversations ollama_renders "
    "ollama_templates template_choice text_template think_filter thinking_parser tool_parser"
).split()
TRANSCRIPTS = ("greedy", "options", "seeds", "real-smollm2", "real-seeds", "real-gemma3", "real-minilm")
N_COMPONENTS = 24  # of an embedding, in transcripts
N_GUIDE = 177
LOGITS = {
    "stories260K-F32": 8,
    "stories260K-Q8_0": 8,
    "stories260K-Q4_0": 8,
    "tiny-spm-Q4_0": 64,
    "tiny-spm-Q8_0": 64,
    "tiny256-Q6_K": 64,
}
EMBEDDINGS = ("stories260K-F32", "stories260K-Q8_0", "tiny-spm-Q4_0", "tiny-spm-Q8_0", "tiny256-Q4_K")
MADE = ("stories260K-Q8_0", "stories260K-Q4_0", "stories260K-mean-F32", "tiny-llava-mmproj-F32", "tiny-spm-Q4_0",
        "tiny-spm-Q8_0", "tiny256-F16", "tiny256-Q4_K", "tiny256-Q6_K")  # fmt: skip
FREE = {  # the chat templates that may be passed on
    "Apertus-8B-Instruct": "Apache-2.0",
    "ByteDance-Seed-OSS": "Apache-2.0",
    "GLM-4.6": "MIT",
    "HuggingFaceTB-SmolLM3-3B": "Apache-2.0",
    "MiMo-VL": "MIT",
    "MiniMax-M1": "Apache-2.0",
    "Qwen-QwQ-32B": "Apache-2.0",
    "Qwen-Qwen2.5-7B-Instruct": "Apache-2.0",
    "Qwen-Qwen3-0.6B": "Apache-2.0",
    "deepseek-ai-DeepSeek-V3.1": "MIT",
    "ibm-granite-granite-3.3-2B-Instruct": "Apache-2.0",
    "llama-cpp-deepseek-r1": "MIT",
    "llama-cpp-rwkv-world": "MIT",
    "meetkai-functionary-medium-v3.1": "MIT",
    "microsoft-Phi-3.5-mini-instruct": "MIT",
    "mistralai-Ministral-3-14B-Reasoning-2512": "Apache-2.0",
    "mistralai-Mistral-Nemo-Instruct-2407": "Apache-2.0",
    "openai-gpt-oss-120b": "Apache-2.0",
}


def read(path):
    return json.loads(path.read_bytes())


def keep(name, value):
    """Write the same bytes for the same value: one case a line, compressed without a date."""
    if isinstance(value, list):
        text = "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n]\n"
    else:
        text = json.dumps(value, ensure_ascii=False) + "\n"
    path = KEPT / f"{name}.json.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def copy(source, name):
    (KEPT / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, KEPT / name)


def go_templates(whole):
    """Keep what Go and Ollama's packages gave out, without the templates that only models are published with."""
    for name in GO:
        cases = read(whole / f"golden/go/{name}.json")
        if name in ("ollama_templates", "ollama_renders"):
            key = "id" if name == "ollama_templates" else "template"
            cases = [case for case in cases if not case[key].startswith("published/")]
        keep(f"go/{name}", cases)


def jinja_templates(whole):
    cases = read(whole / "golden/jinja/cases.json")
    folder = whole / "golden/jinja/templates"
    cases["templates"] = {name: (folder / f"{name}.jinja").read_bytes().decode() for name in FREE}
    cases["special_tokens"] = {name: cases["special_tokens"][name] for name in FREE}
    cases["cases"] = [case for case in cases["cases"] if case["template"] in FREE]
    keep("jinja/cases", cases)
    keep("jinja/hostile", read(whole / "golden/jinja/hostile.json"))


def named_formats(whole):
    """Keep what Ollama's parsers read and its renderers write, whole."""
    for kind in ("parsers", "renderers"):
        for path in sorted((whole / f"golden/{kind}").glob("*.json")):
            keep(f"{kind}/{path.stem}", read(path))


def cut_vectors(value):
    """Cut embeddings to their first components."""
    if isinstance(value, dict):
        return {key: cut_vectors(item) for key, item in value.items()}
    if isinstance(value, list) and len(value) > 300 and all(isinstance(x, float) for x in value):
        return value[:N_COMPONENTS]
    return [cut_vectors(item) for item in value] if isinstance(value, list) else value


def transcripts(whole):
    for name in TRANSCRIPTS:
        keep(f"transcripts/{name}", cut_vectors(read(whole / f"transcripts/{name}.json")))
    guide = read(whole / "transcripts/seedguide.json")
    about = {"name": "guide", "about": "the requests of Ollama's API guide, in its order"}
    keep("transcripts/guide", guide | about | {"steps": guide["steps"][:N_GUIDE]})


def arrays(whole):
    for name, step in LOGITS.items():
        recorded = dict(np.load(whole / f"golden/logits_{name}.npz"))
        columns = np.arange(0, recorded["logits"].shape[1], step)
        kept = {key: recorded[key] for key in ("tokens", "greedy_tokens", "greedy_margin")}
        logits = {key: recorded[key][:, columns] for key in ("logits", "logits_exact_f64") if key in recorded}
        np.savez_compressed(KEPT / f"logits_{name}.npz", columns=columns.astype(np.int32), **kept, **logits)
    for name in EMBEDDINGS:
        copy(whole / f"golden/embed_{name}.npz", f"embed_{name}.npz")


def images(whole):
    told, recorded = read(whole / "golden/llava_tiny.json"), dict(np.load(whole / "golden/llava_tiny.npz"))
    tokens = read_gguf(whole / "vocab/ggml-vocab-llama-spm.gguf").kv["tokenizer.ggml.tokens"]
    told = {key: told[key] for key in ("prompt", "marker", "images")}
    ids = {id for image in told["images"].values() for part in image["layout"] for id in part.get("text_ids", ())}
    told["pieces"] = {id: tokens[id] for id in sorted(ids) if id > 258}  # of the prompt
    keep("llava_tiny", told)
    columns = np.arange(0, 32000, 64)
    recorded |= {key: x[columns] for key, x in recorded.items() if key.endswith("_last_logits")}
    np.savez_compressed(KEPT / "llava_tiny.npz", columns=columns.astype(np.int32), **recorded)
    for image in told["images"].values():
        copy(whole / "golden/images" / image["file"], f"images/{image['file']}")


def quantization(whole):
    keep("quantize_types", read(whole / "golden/quantize_types.json"))
    keep("quantize_tiny256", read(whole / "golden/quantize_tiny256.json"))
    copy(whole / "golden/quantize_edge.gguf", "quantize_edge.gguf")


def models(whole):
    copy(whole / "models/stories260K-F32.gguf", "models/stories260K-F32.gguf")
    copy(whole / "tinystories-656k/TinyStories-656K-Q8_0.gguf", "models/TinyStories-656K-Q8_0.gguf")
    copy(whole / "stories260K/tok512.model", "stories260K/tok512.model")
    copy(whole / "stories260K/expected_stdout_t0_n200.txt", "stories260K/expected_stdout_t0_n200.txt")
    keep(
        "tinystories-656k/published_llama_cpp_greedy", read(whole / "tinystories-656k/published_llama_cpp_greedy.json")
    )
    keep("tokens_tok512", read(whole / "golden/tokens_tok512.json"))
    digests = {name: recorded_models.digest(whole / f"models/{name}.gguf") for name in MADE}
    with tempfile.TemporaryDirectory() as scratch:  # too large for the folder, which has what made it
        make, path = runpy.run_path(str(whole / "make_models.py")), Path(scratch) / "tiny-spm-F32.gguf"
        vocabulary = make["read_vocab"](whole / "vocab/ggml-vocab-llama-spm.gguf")
        make["make"](path, "tiny-spm", make["TINY"], vocabulary, "F32", seed=11)
        digests[path.stem] = recorded_models.digest(path)
    (KEPT / "models/digests.json").write_text(json.dumps(digests, indent=1) + "\n")


def store(whole):
    keep("store/expected", read(whole / "store/expected.json"))
    small = io.BytesIO()
    with tarfile.open(whole / "store/ollama-store.tar") as all, tarfile.open(fileobj=small, mode="w") as some:
        for member in all:
            content = all.extractfile(member).read() if member.isfile() else b""
            if content[:4] != b"GGUF":
                some.addfile(member, io.BytesIO(content))
    (KEPT / "store/ollama-store.tar.gz").write_bytes(gzip.compress(small.getvalue(), 9, mtime=0))


def main():
    whole = Path(sys.argv[1])
    shutil.rmtree(KEPT, ignore_errors=True)
    KEPT.mkdir()
    for part in (
        models,
        go_templates,
        jinja_templates,
        named_formats,
        transcripts,
        arrays,
        images,
        quantization,
        store,
    ):
        part(whole)
    with tempfile.TemporaryDirectory() as scratch:  # what the tests will make is what was recorded
        for name in MADE:
            recorded_models.make(Path(scratch) / f"{name}.gguf", KEPT)


if __name__ == "__main__":
    main()
