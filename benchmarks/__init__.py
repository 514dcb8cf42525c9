"""Measurements: each checks before it times, and runs beside a peer in the same minutes where it compares.

kernels     every kernel and format beside what this machine can do at most
decode      a model's prefill and decode, interleaved with llama.cpp's
server      servers under load, over HTTP, as their clients see them
models      files of real shapes with random weights
"""
