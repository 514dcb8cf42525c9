"""What a runner is asked for, and by whom."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

from .errors import Cancelled, EngineError
from .grammar import Grammar
from .options import Options
from .piece import Piece


class Call:
    """Somebody who waits for an answer, and may stop waiting at any moment, from any thread."""

    def __init__(self) -> None:
        self.began = perf_counter_ns()
        self.cancelled = False
        self.why: Callable[[], EngineError] = Cancelled  # made anew each time: one that was raised holds its frames
        self.on_cancel: Callable[[], None] = lambda: None  # whatever it waits for now

    def cancel(self, why: Callable[[], EngineError] | None = None) -> None:
        """It ends with what `why` makes, unless it was over before."""
        self.why = why or self.why
        self.cancelled = True
        self.on_cancel()

    def check(self) -> None:
        """Raises Cancelled if nobody waits any more, or what else ended it."""
        if self.cancelled:
            raise self.why()


@dataclass(eq=False)
class Job:
    """One prompt for a runner, and where its pieces go.

    shown      control tokens whose text counts
    echo       the prompt is given out before the answer
    grammar    what the answer is held to
    embeds     the row of each token of the prompt below 0: an image's
    pooling    the prompt is only read, and this is how it becomes one vector; "" for one that is answered
    encoding   nanoseconds that its images took
    n_whole    tokens of the prompt before messages were left out; 0 where none were
    deliver    is called in the runner's thread with each piece, the last one being an error if there is one
    finished   is called once, before the last of them is delivered
    """

    call: Call
    prompt: list[int]
    options: Options
    truncate: bool
    shift: bool
    n_logprobs: int | None
    echo: bool
    deliver: Callable[[Piece | Exception], None]
    finished: Callable[[], None]
    shown: Collection[int] = ()
    grammar: Grammar | None = None
    n_whole: int = 0
    embeds: Mapping[int, np.ndarray] | None = None
    encoding: int = 0
    pooling: str = ""
