"""Requests that are sent before the rounds and not timed for them, which a stream that is not what it seems cannot
all serve alike; `doubts.py` compares the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .client import new_client, send_request
from .doubts import ProbeAnswers, is_clearly_less
from .wires import Contender, Prompted

N_PROBE = 2  # of each kind
MAX_TOKENS, MAX_PROSE_TOKENS = 32, 16
PROSE = (
    "The old harbour was empty when the ferry came in, and only one lamp burned above the door of the customs shed.",
    "She wrote that the repairs would cost more than the boat was worth, but that she meant to keep it all the same.",
    "Bread rises faster in summer; in winter we leave the dough beside the stove and cover it with a wet cloth.",
    "Not even the mayor remembered who had planted the chestnut trees, although everyone sat under them.",
    "If the river freezes before December, the mail is carried across on foot and the bridge stays closed.",
    "My grandfather kept three clocks, none of which agreed, and he trusted the one that was slowest.",
    "The committee met twice a year to discuss the colour of the railings and never reached a conclusion.",
    "After the storm we found shells in the garden, half a mile from the beach, and sand in every drawer.",
    "A good violin sounds better in a cold church than a bad one does in the finest hall of the capital.",
    "They measured the field with a rope of forty knots and marked its corners with stones painted white.",
)


def prose_of(rng: np.random.Generator, n_word: int) -> str:
    """Return about `n_word` words of ordinary sentences, in an order drawn by lot."""
    words: list[str] = []
    while len(words) < n_word:
        for i in rng.permutation(len(PROSE)):
            words += PROSE[i].split()
    return " ".join(words[:n_word])


async def probe_server(
    contender: Contender, prompts: Sequence[str], like: Prompted, rng: np.random.Generator
) -> ProbeAnswers:
    """Send the probes.  `prompts` are new ones, two for each of `plain` and `single`."""
    found = ProbeAnswers(contender.name)
    n_word = len(prompts[0].split())
    async with new_client(contender) as http:
        for plain, single in zip(prompts[:N_PROBE], prompts[N_PROBE:], strict=True):
            asked = replace(like, prompt=plain, n=min(like.n, MAX_TOKENS))
            found.plain.append(await send_request(http, contender, asked))
            found.single.append(await send_request(http, contender, replace(like, prompt=single, n=1)))
        for single in prompts[N_PROBE:]:
            found.seen.append(await send_request(http, contender, replace(like, prompt=single, n=1)))
        ordinary = replace(like, n=min(like.n, MAX_PROSE_TOKENS), forced="", is_ordinary=True)
        for _ in range(N_PROBE):
            prose = replace(ordinary, prompt=prose_of(rng, n_word))
            found.prose.append(await send_request(http, contender, prose))
    return found


async def share_a_cache(
    first: Contender, second: Contender, prompts: Sequence[str], like: Prompted, new_s: float
) -> bool:
    """Return whether `second` answers prompts at once that only `first` has seen.

    new_s   seconds in which `second` answers one token to a new prompt
    """
    async with new_client(first) as one, new_client(second) as other:
        for prompt in prompts:  # a second look only where the first is suspicious
            asked = replace(like, prompt=prompt, n=1)
            await send_request(one, first, asked)
            answer = await send_request(other, second, asked)
            if answer.outcome != "answered" or not is_clearly_less(answer.e2e, new_s):
                return False
    return True
