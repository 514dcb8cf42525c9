"""Prefill in PyTorch through transformers, in bfloat16: a Llama of the same shape with random weights."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from ..engine.errors import RequestError
from ..engine.model.hparams import Hparams


def prefill_with_torch(hp: Hparams, clock: Callable[[], float] = perf_counter) -> Callable[[int, int], float]:
    """Return a function (tokens, threads) -> tokens per second of prefill, logits of the last only.

    Raises: RequestError if torch or transformers is missing
    """
    try:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise RequestError(f"--torch needs torch and transformers, pip install 'numllama[oracle]': {error}") from None

    config = LlamaConfig(
        vocab_size=hp.n_vocab,
        hidden_size=hp.n_embd,
        intermediate_size=hp.n_ff,
        num_hidden_layers=hp.n_layer,
        num_attention_heads=hp.n_head,
        num_key_value_heads=hp.n_head_kv,
        head_dim=hp.n_head_dim,
        rms_norm_eps=hp.norm_eps,
        max_position_embeddings=hp.n_ctx_train,
        dtype=torch.bfloat16,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)

    def prefill(n: int, n_thread: int) -> float:
        torch.set_num_threads(n_thread)
        tokens = torch.randint(3, hp.n_vocab, (1, n))
        with torch.inference_mode():
            began = clock()
            model(tokens, logits_to_keep=1)
            return n / (clock() - began)

    return prefill
