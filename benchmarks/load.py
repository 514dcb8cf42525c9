"""One run of a load on one server: a closed loop, an open loop, or conversations.

In a closed loop each client sends its next request when it has its answer.  In an open loop requests are sent when
they are due, whether or not the server keeps up.  A client that is late itself shows in `late_p99`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter

import httpx

from .client import new_client, send_request
from .figures import TimedAnswer
from .wires import Contender, Prompted
from .workload import Load, as_prompted


async def run_load(
    contender: Contender,
    load: Load,
    questions: Sequence[tuple[str, int]],
    moments: Sequence[float] | None,
    like: Prompted,
    transport: httpx.AsyncBaseTransport | None = None,
) -> list[TimedAnswer]:
    """Send all requests of a load.  -> the answers, in the order of the questions for an open loop"""
    async with new_client(contender, transport) as http:

        async def converse(question: tuple[str, int], due: float = 0.0) -> list[TimedAnswer]:
            return await send_turns(http, contender, as_prompted(question, like), load.turns, due)

        if moments is None:
            return await closed_loop(converse, questions, load.clients)
        began = perf_counter()

        async def later(moment: float, question: tuple[str, int]) -> list[TimedAnswer]:
            await asyncio.sleep(began + moment - perf_counter())
            return await converse(question, began + moment)

        found = await asyncio.gather(*(later(m, q) for m, q in zip(moments, questions, strict=True)))
        return [answer for answers in found for answer in answers]


async def closed_loop(converse: Callable, questions: Sequence[tuple[str, int]], n: int) -> list[TimedAnswer]:
    """Answer `questions` with `n` concurrent clients."""
    waiting, answers = iter(questions), list[TimedAnswer]()

    async def client() -> None:
        for question in waiting:
            answers.extend(await converse(question))

    await asyncio.gather(*(client() for _ in range(n)))
    return answers


async def send_turns(
    http: httpx.AsyncClient, contender: Contender, asked: Prompted, n_turn: int, due: float
) -> list[TimedAnswer]:
    """Send a question, and then ask for more, with the conversation so far."""
    answers: list[TimedAnswer] = []
    for _ in range(n_turn):
        answers.append(await send_request(http, contender, asked, due=due))
        if answers[-1].outcome != "answered":
            break
        turns = (*asked.turns, ("user", asked.prompt), ("assistant", answers[-1].text))
        asked, due = replace(asked, turns=turns, prompt="Tell me more."), 0.0
    return answers
