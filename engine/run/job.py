"""A job: one prompt for a runner, and where its pieces go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from ..handle import RequestHandle
from ..look.collector import Collector
from ..options import Options
from ..sampling.grammar import Grammar
from .piece import Piece


@dataclass(eq=False, kw_only=True)
class Job:
    """One prompt for a runner, and where its pieces go.

    handle     the request's: cancels the job from any thread
    prompt     ids; those below 0 stand for rows in `embeds`
    deliver    called in the runner's thread with each piece; the last one is an exception if the job failed
    finished   called once, before the last piece is delivered
    options, truncate, shift, n_logprobs, echo, shown, grammar, embeds   as for request.complete()
    n_whole    tokens of the prompt before messages were dropped; 0 if none were
    encoding   nanoseconds spent on encoding the prompt's images
    pooling    the pooling of a prompt to embed; "" for a prompt to answer
    look       collects what the request wants to see; None: nothing
    """

    handle: RequestHandle
    prompt: list[int]
    options: Options
    deliver: Callable[[Piece | Exception], None]
    finished: Callable[[], None] = lambda: None
    truncate: bool = True
    shift: bool = True
    n_logprobs: int | None = None
    echo: bool = False
    shown: Collection[int] = ()
    grammar: Grammar | None = None
    embeds: Mapping[int, np.ndarray] | None = None
    n_whole: int = 0
    encoding: int = 0
    pooling: str = ""
    look: Collector | None = None
