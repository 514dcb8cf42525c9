"""Benchmarks: each checks its results before it measures, and runs in turns with a peer if it compares with one.

kernels     every kernel and format, compared with the machine's limits
decode      a model's prefill and decode, interleaved with llama.cpp's
server      servers under load over HTTP, as measured by their clients
models      files of real shapes with random weights
"""
