"""Several answers to one prompt (`n`), generated side by side.

Their seeds differ: choice i of a request with seed s is the only choice of a request with seed s + i.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

from ...engine.errors import RequestError
from ...engine.run.piece import Piece
from ...engine.serve.answer import Answer
from .request import RequestContext
from .stream import Chunk, merge_pieces

MAX_CHOICES = 128  # as in OpenAI's API

Merged = AsyncGenerator[tuple[int, Chunk], None]
Start = Callable[[RequestContext, int], Awaitable[Answer]]
"""Starts the answer of a choice: its context and its index."""


def n_choices(n: int | None) -> int:
    """Return how many answers a request asks for.  Raises: RequestError"""
    if n is not None and not 1 <= n <= MAX_CHOICES:
        raise RequestError(f"n must be between 1 and {MAX_CHOICES}, got {n}")
    return n or 1


async def start_choices(context: RequestContext, n: int, start: Start) -> tuple[Answer, list[RequestContext]]:
    """Start `n` answers; return the first one, and the context of each.  An error ends those that have started."""
    contexts = [context, *(context.fork() for _ in range(n - 1))]
    try:
        first, *_ = [await start(one, i) for i, one in enumerate(contexts)]
    except BaseException:
        for one in contexts:
            one.end()
        raise
    return first, contexts


async def collect_choices(merged: Merged, n: int) -> list[Chunk]:
    """Return each of the `n` whole answers as one chunk."""
    totals = [Chunk() for _ in range(n)]
    async with aclosing(merged):
        async for i, chunk in merged:
            totals[i] += chunk
    return totals


async def merge_choices(contexts: Sequence[RequestContext]) -> Merged:
    """Yield the chunks of all answers as they come, with the answer's index.  Closing it or an error ends them all."""
    sources = [context.pieces() for context in contexts]
    arrived: asyncio.Queue[tuple[int, Chunk] | Exception] = asyncio.Queue(1)  # so that unread chunks stay in `sources`

    async def forward(i: int, source: AsyncGenerator[Piece, None]) -> None:
        try:
            async with aclosing(merge_pieces(source)) as chunks:
                async for chunk in chunks:
                    await arrived.put((i, chunk))
        except Exception as error:
            await arrived.put(error)

    tasks = [asyncio.create_task(forward(i, source)) for i, source in enumerate(sources)]
    n_open = len(tasks)
    try:
        while n_open:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            yield item
            n_open -= item[1].done_reason is not None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
