"""Records tests/golden/images.npz: what a native llama.cpp's libmtmd makes of an image by files of tests/tiny_llava.py.

NUMLLAMA_LLAMA_CPP=llama.cpp/build/bin PYTHONPATH=tests python tests/golden/make_images.py

pixels      u8 [30, 50, 3]      the image
<name>      f32 [n_rows, n_embd]    its rows by the file that FILES has under that name
made_by     str                 llama.cpp's commit, and how it computed
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from numllama.benchmarks.libmtmd import LibMtmd
from tiny_llava import picture, tiny_mmproj

PATH = Path(__file__).with_name("images.npz")
MADE_BY = "llama.cpp 0c1e57098, x86-64: one thread, no flash attention"
MOBILE = {"image_size": 48, "patch_size": 2, "n_out": 16}  # llama.cpp's has 24 x 24 patches and no other number
FILES = {
    "mlp": {},
    "mlp F16": {"quant": "F16"},
    "mlp Q8_0": {"quant": "Q8_0"},
    "gelu": {"clip__use_gelu": True},
    "silu": {"clip__use_silu": True},
    "swapped": {"swapped": True},
    "no class token": {"class_embd": False},
    "mlp_norm": {"projector": "mlp_norm"},
    "ldp": {"projector": "ldp", **MOBILE},
    "ldpv2": {"projector": "ldpv2", **MOBILE},
    "tiles": {"clip__vision__image_grid_pinpoints": np.array([32, 64, 64, 32, 64, 64], np.int32)},
}


def make(folder, name):
    """The file, made in `folder`."""
    return tiny_mmproj(Path(folder) / f"{name}.gguf", **FILES[name])


def record(mtmd, pixels):
    """What goes into images.npz."""
    with tempfile.TemporaryDirectory() as folder:
        rows = {name: mtmd.rows(make(folder, name), pixels, FILES[name].get("n_out", 64)) for name in FILES}
    return {"pixels": pixels, **rows, "made_by": MADE_BY}


def main():
    mtmd = LibMtmd.from_environment() or sys.exit("NUMLLAMA_LLAMA_CPP names no folder with libmtmd.so")
    np.savez_compressed(PATH, **record(mtmd, picture(50, 30)))


if __name__ == "__main__":
    main()
