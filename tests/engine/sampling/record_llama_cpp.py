"""Record the tokens of llama.cpp's sampler chain:  python record_llama_cpp.py PATH/TO/libllama.so > llama_cpp.json

Recorded with llama.cpp 0c1e57098 (gcc 12, Release, native).  The chain is the one that llama-server builds for Ollama:
penalties, top_k, typical_p, top_p, min_p, temperature, dist; with mirostat the one that Ollama 0.3 had.
"""

import ctypes
import json
import sys

import numpy as np

N_VOCAB, N_STEP = 3000, 24
CASES = [
    {},
    {"seed": 1},
    {"seed": 4294967294},
    {"temperature": 0},
    {"temperature": 1.5},
    {"temperature": 0.1},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 200},
    {"top_k": 100000},
    {"top_k": 0},
    {"top_k": 0, "top_p": 1},
    {"top_k": 0, "top_p": 1, "temperature": 2},
    {"top_k": 0, "top_p": 0.999, "temperature": 3},
    {"top_k": 0, "top_p": 0.5},
    {"top_p": 1},
    {"top_p": 0},
    {"top_p": 0.3},
    {"min_p": 0.05},
    {"min_p": 0.2, "top_p": 1, "top_k": 0},
    {"min_p": 1},
    {"typical_p": 0.4},
    {"typical_p": 0.4, "top_k": 0},
    {"typical_p": 0.9, "top_p": 1, "temperature": 1.3},
    {"typical_p": 0.6, "top_p": 0.7, "min_p": 0.01},
    {"repeat_penalty": 1.4},
    {"repeat_penalty": 0.7, "temperature": 0},
    {"repeat_penalty": 1.1, "repeat_last_n": 3, "top_k": 0},
    {"repeat_penalty": 2, "repeat_last_n": 0},
    {"frequency_penalty": 1.0, "presence_penalty": 0.5},
    {"frequency_penalty": -0.5, "temperature": 0.5},
    {"presence_penalty": 2, "repeat_last_n": 8, "top_p": 0.95, "min_p": 0.02, "top_k": 100, "temperature": 0.3},
    {"mirostat": 1},
    {"mirostat": 1, "mirostat_tau": 2.0, "mirostat_eta": 0.3, "temperature": 1.2},
    {"mirostat": 2},
    {"mirostat": 2, "mirostat_tau": 2.0, "mirostat_eta": 0.3, "temperature": 1.2},
]
DEFAULTS = {
    "seed": 7,
    "repeat_last_n": 64,
    "repeat_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "top_k": 40,
    "typical_p": 1.0,
    "top_p": 0.9,
    "min_p": 0.0,
    "temperature": 0.8,
    "mirostat": 0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
}


class TokenData(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int32), ("logit", ctypes.c_float), ("p", ctypes.c_float))


class TokenDataArray(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.POINTER(TokenData)),
        ("size", ctypes.c_size_t),
        ("selected", ctypes.c_int64),
        ("sorted", ctypes.c_bool),
    )


def sampler(lib, name, *args):
    """Call llama_sampler_init_`name`; ints are passed as int32 unless wrapped, floats as float."""
    make = getattr(lib, f"llama_sampler_init_{name}")
    make.restype = ctypes.c_void_p
    return ctypes.c_void_p(make(*(ctypes.c_float(a) if isinstance(a, float) else a for a in args)))


def chain(lib, o):
    seed, keep = ctypes.c_uint32(o["seed"]), ctypes.c_size_t(0)
    penalties = map(float, (o["repeat_penalty"], o["frequency_penalty"], o["presence_penalty"]))
    steps = [sampler(lib, "penalties", N_VOCAB, o["repeat_last_n"], *penalties)]
    temperature = sampler(lib, "temp", float(o["temperature"]))
    tau, eta = float(o["mirostat_tau"]), float(o["mirostat_eta"])
    if o["mirostat"] == 1:
        steps += [temperature, sampler(lib, "mirostat", N_VOCAB, seed, tau, eta, 100)]
    elif o["mirostat"] == 2:
        steps += [temperature, sampler(lib, "mirostat_v2", seed, tau, eta)]
    else:
        steps.append(sampler(lib, "top_k", o["top_k"]))
        steps.append(sampler(lib, "typical", float(o["typical_p"]), keep))
        steps += [sampler(lib, name, float(o[name]), keep) for name in ("top_p", "min_p")]
        steps += [temperature, sampler(lib, "dist", seed)]
    lib.llama_sampler_chain_init.restype = ctypes.c_void_p
    whole = ctypes.c_void_p(lib.llama_sampler_chain_init(ctypes.c_bool(True)))
    for step in steps:
        lib.llama_sampler_chain_add(whole, step)
    return whole


def picks(lib, o):
    whole, chosen = chain(lib, o), []
    for step in range(N_STEP):
        logits = (np.random.RandomState(1000 + step).standard_normal(N_VOCAB) * 2.5).astype(np.float32)
        logits[:8] += 6  # a few likely tokens, so that penalties have an effect
        data = (TokenData * N_VOCAB)(*((id, logit, 0) for id, logit in enumerate(logits)))
        array = TokenDataArray(data, N_VOCAB, -1, False)
        lib.llama_sampler_apply(whole, ctypes.byref(array))
        chosen.append(data[array.selected].id)
        lib.llama_sampler_accept(whole, chosen[-1])
    return chosen


if __name__ == "__main__":
    lib = ctypes.CDLL(sys.argv[1])
    rows = [json.dumps({"options": DEFAULTS | case, "picks": picks(lib, DEFAULTS | case)}) for case in CASES]
    print("[\n" + ",\n".join(rows) + "\n]")
