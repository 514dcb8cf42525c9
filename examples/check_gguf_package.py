"""A program for `numllama pack --check`: it answers from the gguf package, llama.cpp's own reader in Python.

    numllama pack golden
    numllama pack --check golden -- python examples/check_gguf_package.py

Formats that the package does not dequantize, and all operations, are skipped.
"""

import json
import struct
import sys

import numpy as np

SKIPPED = 77  # the exit status for an operation that a program does not have
TYPES = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "u1"}


def read_item(path: str) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Read the parameters and arrays of an item; none of them if it is JSON."""
    with open(path, "rb") as file:
        data = file.read()
    if data[:1] == b"{":
        return {}, {}
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    parameters = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        arrays[name] = np.frombuffer(data[end + first : end + last], TYPES[entry["dtype"]]).reshape(entry["shape"])
    return parameters, arrays


def write_array(path: str, name: str, x: np.ndarray) -> None:
    """Write one array of float32 as safetensors."""
    entry = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [0, x.nbytes]}
    header = json.dumps({name: entry}).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + x.astype("<f4").tobytes())


def main(given: str, out: str) -> int:
    """Answer one item.  -> exit status"""
    parameters, arrays = read_item(given)
    if parameters.get("operation") not in ("dequantize", "dot"):
        return SKIPPED
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    stored = arrays["blocks" if parameters["operation"] == "dequantize" else "w"]
    try:
        weights = dequantize(stored, GGMLQuantizationType[parameters["type"]])
    except (KeyError, NotImplementedError):
        return SKIPPED
    if parameters["operation"] == "dot":
        weights = arrays["x"] @ weights.reshape(len(stored), -1).T
    write_array(out, "y", np.ascontiguousarray(weights, np.float32))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
