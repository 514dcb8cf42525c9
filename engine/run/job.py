"""What a runner is asked for, and by whom."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from ..handle import RequestHandle
from ..options import Options
from ..sampling.grammar import Grammar
from .piece import Piece


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

    handle: RequestHandle
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
