"""The generator of docs/formats.md, from the table of formats, the drawings in its files and the recorded errors.

Tests hold it up to date:

python scripts/formats.py
"""

import json
import re
from pathlib import Path

from numllama.kernels.quants import FORMATS, FORMATS_BY_NAME, GGMLType

ROOT = Path(__file__).parents[1]
FILES = ("floats", "block32", "k", "iq", "ternary", "fp4")
DRAWING = re.compile(r"^# (?!-)([\w ]+): (.*\n(?:#   .*\n)*)(?=\w[\w, ]* = np\.dtype)", re.MULTILINE)

HEAD = """# Quantization formats

Written by `scripts/formats.py` from `kernels/quants`, where each format has its bytes, its decoder and its encoder in
one section.

A tensor's row is a run of blocks. A block holds a fixed number of weights in a fixed number of bytes. "With" is the
format to which ggml's CPU code rounds activations before multiplying. "Made" says whether numllama can quantize to the
format; it reads all formats. Fields follow each other without gaps; numbers of several bytes are little-endian, or
big-endian in a big-endian file. `d` is the scale of all weights in the block. Where codes point into a
codebook, a `point` stands for several neighbouring weights; `kernels/quants/iq_grids.py` has the codebooks.

| format | id | bits per weight | weights a block | bytes a block | with | made |
|---|--:|--:|--:|--:|---|---|
"""


def row(format):
    bits = 8 * format.block_bytes / format.block_size
    made = "yes" if format.can_quantize else "no"
    sizes = f"{format.block_size} | {format.block_bytes}"
    return f"| {format.name} | {int(format.type)} | {bits:.5g} | {sizes} | {format.dot_with} | {made} |\n"


def drawings():
    """Yield the comment above each layout, as it stands there."""
    for file in FILES:
        for names, text in DRAWING.findall((ROOT / f"kernels/quants/{file}.py").read_text()):
            lines = [line.removeprefix("#   ") for line in text.rstrip().split("\n")]
            yield f"\n## {names}\n\n```\n" + "\n".join(lines) + "\n```\n"


ERRORS = """
## Checked against llama.cpp

SmolLM2-135M, its first four layers, with all matrices in the format whose rows are whole blocks, the others in Q8_0
(`tensors`: how many are in the format; the embedding stays in Q8_0); 24 tokens, by the `ggml` set and by llama.cpp's
plain path: one thread, weights not repacked, no flash attention. `python tests/golden/make_format_errors.py` measures
again.

- **operation**: each operation on llama.cpp's own inputs; the largest error of all values on the way, relative to the
  largest magnitude of its value. 1e-5 is the limit that `pytest -m peer` holds.
- **positions**: of the 24, those where both sides by themselves round every activation the same way, and **logits**,
  the largest error there; the logits' standard deviation is 5.
- **other**: the largest error of a logit at the other positions. The last bit of a float32 sum depends on its order,
  and now and then moves an activation over the boundary between two codes.

| format | with | tensors | operation | positions | logits | other |
|---|---|--:|--:|--:|--:|--:|
"""


def errors():
    """Yield the table of errors, line by line."""
    yield ERRORS
    for name, error in json.loads((ROOT / "tests/golden/format_errors.json").read_text()).items():
        logits = f"{error['logits']:.0e}" if error["positions"] else ""
        other = f"{error['other']:.0e}" if error["other"] else ""
        sides = f"{error['operation']:.0e} | {error['positions']} | {logits} | {other}"
        yield f"| {name} | {FORMATS_BY_NAME[name].dot_with} | {error['tensors']} | {sides} |\n"


def document():
    retired = [f"{type.name} ({int(type)})" for type in GGMLType if type not in FORMATS]
    tail = f"\n## Retired\n\nggml no longer reads these formats, and neither does numllama: {', '.join(retired)}.\n"
    return HEAD + "".join(map(row, FORMATS.values())) + "".join(drawings()) + tail + "".join(errors())


if __name__ == "__main__":
    (ROOT / "docs/formats.md").write_text(document())
