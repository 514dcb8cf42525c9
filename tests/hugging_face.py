"""Files in Hugging Face's layout."""

import json
import struct

from numllama.kernels.half import f32_to_bf16


def safetensors(tensors, dtype="F32"):
    """The bytes of a safetensors file."""
    pack = {
        "F32": lambda x: x.astype("<f4"),
        "F16": lambda x: x.astype("<f2"),
        "BF16": lambda x: f32_to_bf16(x).astype("<u2"),
    }
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, x in tensors.items():
        raw = pack[dtype](x).tobytes()
        header[name] = {"dtype": dtype, "shape": list(x.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data
