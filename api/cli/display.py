"""Answers on the terminal: thinking, text, and timings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...engine.go.duration import SECOND, format_duration
from ...engine.run.piece import Piece, Timings
from .spinner import Spinner
from .wrap import WrappedOutput, text_width

if TYPE_CHECKING:
    from ...engine.serve.answer import Answer
    from .client import Reply


@dataclass
class AnswerDisplay:
    """Prints the pieces of an answer, and keeps their text.

    text, thinking   everything received so far, including hidden thinking
    """

    wordwrap: bool = True
    hide_thinking: bool = False
    text: str = ""
    thinking: str = ""
    screen: WrappedOutput = field(init=False)

    def __post_init__(self) -> None:
        self.screen = WrappedOutput(sys.stdout, text_width(sys.stdout, self.wordwrap))

    def put(self, piece: Piece) -> None:
        """Print `piece`; thinking goes between the lines `Thinking...` and `...done thinking.`"""
        if piece.thinking and not self.hide_thinking:
            self.screen.put("" if self.thinking else "Thinking...\n")
            self.screen.put(piece.thinking)
        self.thinking += piece.thinking
        if piece.text:
            if self.thinking and not self.text and not self.hide_thinking:
                self.screen.put("\n" * (not self.screen.text.endswith("\n")) + "...done thinking.\n\n")
            self.screen.put(piece.text)
            self.text += piece.text


def print_answer(ask: Callable[[], Answer | Reply], display: AnswerDisplay, verbose: bool = False) -> None:
    """Call `ask` and print its answer as it arrives, then a newline and, if `verbose`, the timings.

    KeyboardInterrupt ends the answer.
    """
    timings = None
    with Spinner(sys.stderr) as spinner:
        answer = ask()
        if answer.is_over:
            return
        with closing(iter(answer)) as pieces, display.screen:  # type: ignore[type-var]
            for piece in pieces:
                if piece.text or piece.thinking:
                    spinner.stop()
                    display.put(piece)
                timings = piece.timings
    if verbose and timings:
        print("\n" + timings_text(answer.total_duration, answer.load_duration, timings), end="", file=sys.stderr)


def timings_text(total_duration: int, load_duration: int, t: Timings) -> str:
    """Format counts, durations and rates, one per line, without zeros.  Durations are in nanoseconds."""
    lines = [
        ("total duration", total_duration and format_duration(total_duration)),
        ("load duration", load_duration and format_duration(load_duration)),
    ]
    for name, n, duration in (
        ("prompt eval", t.prompt_eval_count, t.prompt_eval_duration),
        ("eval", t.eval_count, t.eval_duration),
    ):
        lines += [
            (f"{name} count", n and f"{n} token(s)"),
            (f"{name} duration", duration and format_duration(duration)),
            (f"{name} rate", duration and f"{n / duration * SECOND:.2f} tokens/s"),
        ]
    return "".join(f"{name + ':':<22}{value}\n" for name, value in lines if value)
