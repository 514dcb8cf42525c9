"""The generator of docs/families.md, from the table of families and tests/golden/errors.json; a test holds the page.

python scripts/families.py
"""

import json
import runpy
import sys
import tempfile
from pathlib import Path

import numpy as np

from numllama.engine.gguf.dialect import projector_view
from numllama.engine.gguf.dialect.projector import PROJECTOR_RULES, projector_type
from numllama.engine.gguf.dialect.text import TEXT_ROWS
from numllama.engine.gguf.read import GGUF
from numllama.engine.gguf.write import write_gguf
from numllama.engine.model.families import FAMILIES
from numllama.kernels.quants import FORMATS_BY_NAME

ROOT = Path(__file__).parents[1]

ABOUT = {  # the models of each family, and how it differs from llama
    "llama": (
        "Llama 2, 3, 3.1 to 3.3; Mistral 7B, Nemo; Mixtral; SmolLM 1 and 2; TinyLlama",
        "not at all: `engine/model/decoder.py` is written for it; experts if the file has them",
    ),
    "mistral3": (
        "Ministral 3; Mistral Small 3.1 and later",
        "with YaRN, queries are scaled beyond the trained window",
    ),
    "qwen2": (
        "Qwen 1.5, 2, 2.5; DeepSeek-R1 distilled into them",
        "biases; RoPE rotates pairs of halves, not of neighbours",
    ),
    "qwen3": ("Qwen 3", "as qwen2 without biases; each head's query and key are normalized before RoPE"),
    "qwen3moe": ("Qwen 3 30B-A3B, 235B-A22B", "as qwen3 with experts"),
    "phi3": (
        "Phi 3, 3.5, 4, 4-mini",
        "fused matrices; RoPE as in qwen2, with LongRoPE's factors for short and long windows",
    ),
    "smollm3": ("SmolLM 3", "every fourth layer has no RoPE"),
    "granite": ("Granite 3, 3.1 to 3.3", "scale factors for embeddings, attention scores, residuals and logits"),
    "gemma": ("Gemma 1", "embeddings times sqrt(n_embd); GELU in the gate; RoPE as in qwen2"),
    "gemma2": (
        "Gemma 2",
        "as gemma; norms after each block too; soft-caps on scores and logits; a window in every other layer",
    ),
    "gemma3": (
        "Gemma 3, the text",
        "as gemma2 without soft-caps; qwen3's norms; a window in five of six layers, with another RoPE base",
    ),
    "gemma-embedding": (
        "EmbeddingGemma",
        "gemma3 that attends both ways, in windows that reach half to each side; two matrices after pooling",
    ),
    "glm4": (
        "GLM 4 0414, Z1",
        "norms after each block too; RoPE on half of a head; biases; gate and up fused",
    ),
    "gpt-oss": (
        "gpt-oss 20B and 120B",
        "experts with biases and a bounded SwiGLU; sinks in attention; a window in every other layer; RoPE as in "
        "qwen2, stretched by YaRN",
    ),
    "bert": ("BERT, bge, MiniLM, mxbai", "an encoder (`engine/model/encoder.py`); learned positions"),
    "nomic-bert": ("nomic-embed-text 1 and 1.5", "as bert with RoPE and SwiGLU"),
    "jina-bert-v2": ("jina-embeddings-v2", "as bert with ALiBi and GeGLU"),
}

HEAD = """# Families of models

Written by `scripts/families.py` from `engine/model/families.py` and `tests/golden/errors.json`. A family is a GGUF's
`general.architecture`; [add-a-family.md](add-a-family.md) says how to add one. A file of any family may have biases,
tied embeddings, experts, or a RoPE scaled by a factor, by `rope_freqs`, or by YaRN.

| family | models | differs from llama |
|---|---|---|
"""

DIALECT = """
## Files that Ollama converted

Between March 2025 and May 2026 Ollama converted many models itself. Their files have names and keys of their own; they
are read as if llama.cpp had written them (`engine/gguf/dialect`), as Ollama does today. `numllama show` prints the file
as it is; `--verbose` adds the line "read as". A file without a row's marks is read as it is; of several marks, each is
enough. A row without "yes" is translated, and then refused by its family's name until that family is supported.

| architecture in the file | recognized by | read as | runs | vision tower inside |
|---|---|---|---|---|
"""

MARKS = {  # how each row of the dialect is recognized
    "llama": "Llama 3's tokens without `tokenizer.ggml.pre`, or with the end of text as the end of a turn",
    "gemma-embedding": "a tensor `dense.0.weight`",
    "gemma3": "`rope.global.freq_base` or another key of Ollama's; no `attention.layer_norm_rms_epsilon`; a tower",
    "mistral3": "`rope.scaling.beta_fast`, `rope.scaling.mscale_all_dim` or `rope.scaling_beta`; a tower",
    "gpt-oss": "its name",
    "lfm2": "`output_norm.weight` without `token_embd_norm.weight`",
    "olmo2": "its name",
    "qwen35": "`rope.mrope_interleaved` or another key of Ollama's; tensors `mtp.`; a tower",
    "qwen35moe": "as qwen35, or `feed_forward_length`",
    "qwen3next": "tensors that end in `.ssm_dt`",
    "qwen2vl": "its name",
    "qwen3vl": "no `rope.dimension_sections`",
    "qwen3vlmoe": "no `rope.dimension_sections`",
    "gemma3n": "two embeddings of unequal length",
    "gemma4": '`tokenizer.ggml.model` "llama"; tensors `a.`; a tower',
    "deepseek2": "its name",
    "bert": 'tokenizer "t5" with a character map of letters (snowflake-arctic-embed2)',
    "nemotron_h_moe": "tensors `ffn_latent_in` or `mtp.`",
    "llama4": "a tower",
    "deepseek2-ocr": "its name",
}
UNSUPPORTED_PARTS = {"bert": "not its tokenizer"}  # where the family runs, but not these files of it

REPAIRS = """
A `clip` file without a projector type, as the first LLaVAs have it, is read as type `mlp`. A tower of an unsupported
type does not keep the text model from running; images are refused then. Layers of Qwen 3.5 and Nemotron that guess the
token after next are not read: they do not change the text.

Some defects Ollama does not repair, and neither does numllama. A text of Gemma gets a leading blank where the file
lacks `tokenizer.ggml.add_space_prefix`. Early files of Gemma 3 1B have a soft-cap that the model was not trained
with. Files of Gemma 3 from 10 to 13 March 2025 say a context of 8192, and get no scale for longer ones. In files of
gpt-oss from before 6 October 2025 gates and ups are interleaved. Ours: an empty `rope.scaling.type` counts as
missing, where llama.cpp stops; and Gemma gets no built-in chat template, since prompts follow the model's own
TEMPLATE.

"""

FOLLOWS = """
Where a file leaves something open, numllama follows llama.cpp 0c1e57098. That version ignores the sliding window of
Mistral 7B 0.1 (a "llama") and of Phi 3, and so does numllama; within the window nothing differs.
"""

ERRORS = """## Checked against others

Tiny models with random weights, made by `tests/tiny.py`, run in each implementation. A number is the largest difference
of a logit at four positions of a text of 24 tokens, or of a component of an encoder's rows for 17 tokens; `std` is the
standard deviation of the logits or components. `python tests/golden/make_errors.py` measures again, and tests hold the
numbers.

- **llama.cpp**, a native build in its plainest configuration: float32 weights against the definition in float64, Q8_0
  weights against the `ggml` set. llama.cpp looks GELU up in a float16 table, and for these two columns and the next two
  our side does too. The table alone moves the logits of a float32 Gemma by 4e-3; a single rounding the other way, as in
  gemma3 and bert, moves them by 2e-4.
- **xllamacpp**, llama.cpp in a wheel, by its log-probabilities. If one activation is rounded the other way, a
  difference of 0.05 is usual.
- **transformers**, Hugging Face's own code in float64, against the definition in float64.

| model | family | std | llama.cpp F32 | llama.cpp Q8_0 | xllamacpp F32 | xllamacpp Q8_0 | transformers |
|---|---|--:|--:|--:|--:|--:|--:|
"""


def row(name, family, error):
    wheel = error.get("xllamacpp", {})
    numbers = [*(error["llama.cpp"][f] for f in FORMATS), *(wheel.get(f) for f in FORMATS), error.get("transformers")]
    return f"| {name} | {family} | {error['std']} | {' | '.join('' if n is None else f'{n:.0e}' for n in numbers)} |\n"


FORMATS = ("F32", "Q8_0")


def dialect_row(row):
    """Return the row of the table for `row`."""
    runs = UNSUPPORTED_PARTS.get(row.becomes, "yes") if row.becomes in FAMILIES else ""
    name = row.architecture
    tower = projector_name(name) if name in PROJECTOR_RULES and row.becomes != "gemma-embedding" else ""
    return f"| {name} | {MARKS[row.becomes]} | {row.becomes} | {runs} | {tower} |\n"


def projector_name(architecture):
    """Return the projector type that the rule of `architecture` gives to a file with nothing but a tower's tensor."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tower.gguf"
        write_gguf(
            path, {"general.architecture": architecture}, [("v.x", FORMATS_BY_NAME["F32"], (1,), np.zeros(1, "<f4"))]
        )
        return projector_type(projector_view(GGUF.open(path)))


def document():
    sys.path.insert(0, str(ROOT / "tests"))  # the tables of models import from there
    models = runpy.run_path(str(ROOT / "tests/golden/make_logits.py"))["MODELS"]
    models = models | runpy.run_path(str(ROOT / "tests/tiny_encoder.py"))["ENCODERS"]
    errors = json.loads((ROOT / "tests/golden/errors.json").read_text())
    families = [f"| {name} | {' | '.join(ABOUT[name])} |\n" for name in FAMILIES]
    encoders = [name for name in errors if "xllamacpp" not in errors[name]]
    rows = [
        row(name, models[name].get("family", "bert" if name in encoders else "llama"), error)
        for name, error in errors.items()
    ]
    dialect = DIALECT + "".join(map(dialect_row, TEXT_ROWS)) + REPAIRS
    return HEAD + "".join(families) + FOLLOWS + dialect + ERRORS + "".join(rows)


if __name__ == "__main__":
    (ROOT / "docs/families.md").write_text(document())
