"""The default computation of llama.cpp on a CPU with AVX-512, in its order of float32 sums.

sums    products with weights, SiLU: as ggml-cpu's vector code adds up, lane by lane
flash   attention: flash attention over a cache in f16, f32 or blocks

The set `ggml` has the same rounding of activations, exact sums and plain attention; this one repeats the order of each
sum too, since a last bit that differs rounds some activation to another 8-bit code, which changes a logit by 1e-3 to
0.1.  Source: llama.cpp 0c1e57098, built natively.
"""
