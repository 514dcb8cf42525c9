"""From logits to the next token: sampler.py is the chain, steps.py has its steps, grammar.py constrains it."""

from .logprobs import Logprob, logprobs_of
from .sampler import Sampler
from .steps import Candidates

__all__ = ["Candidates", "Logprob", "Sampler", "logprobs_of"]
