"""A job in a slot, and its turns: the tokens that it has in a forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter_ns

from ..look.held import HeldRun
from ..model.batch import Batch
from .draft import PassTimes, Speculation
from .draft_model import DraftModel
from .echo import Echo
from .embed import Pooled
from .job import Job
from .piece import Piece, Timings
from .sequence import Sequence

MAX_REPEATS = 30  # pieces of the same text in a row that end an answer, as in Ollama's llm/server.go


@dataclass(eq=False)
class Running:
    """A job in a slot.

    n_reused           prompt tokens found in the cache
    began, prefilled   times by perf_counter_ns; prefilled is 0 until the whole prompt is in the cache
    repeated           pieces in a row with the text of the one before
    number             of the request, in the order of arrival
    needs_all          each token of the prompt is computed, cached or not
    branch             prompt tokens after which another text parted, if layers have dropped the window there; else 0
    echo, pooled       for a prompt that is echoed or embedded
    held               where keys and values go, if a look keeps them
    """

    job: Job
    seq: Sequence
    n_reused: int
    began: int
    speculation: Speculation
    number: int = 0
    prefilled: int = 0
    needs_all: bool = False
    branch: int = 0
    echo: Echo | None = None
    pooled: Pooled | None = None
    held: HeldRun | None = None
    text: str = ""
    repeated: int = 0

    def runs_away(self, text: str) -> bool:
        """Count `text`, the next piece, and return whether the answer repeats itself without end."""
        if text:
            self.repeated, self.text = self.repeated + 1 if text.strip() == self.text else 0, text.strip()
        return self.repeated > MAX_REPEATS

    def last_piece(self) -> Piece:
        """Make the last piece: done_reason, counts and durations."""
        seq, n_whole = self.seq, max(len(self.job.prompt), self.job.n_whole)
        return Piece(
            seq.rest(),
            done_reason=seq.done_reason,
            met=seq.met,
            embeddings=(self.pooled.vector(),) if self.pooled else (),
            timings=Timings(
                prompt_eval_count=seq.n_prompt,
                prompt_eval_duration=self.prefilled - self.began + self.job.encoding,
                eval_count=seq.n_sampled,
                eval_duration=perf_counter_ns() - self.prefilled,
                prompt_eval_cached_count=self.n_reused,
                draft_tokens=self.speculation.n_guessed,
                draft_accepted_tokens=self.speculation.n_right,
                tells_drafts=seq.options.speculate is not None,
                n_whole=n_whole if n_whole > seq.n_prompt else 0,
            ),
        )


def with_guesses(
    turns: list[tuple[Running, Batch]], room: int, times: PassTimes, draft: DraftModel | None
) -> list[tuple[Running, Batch]]:
    """Append guesses at the tokens to come to each sequence's next token; all together at most `room`."""
    guesses, asked, n_row = list[list[int]](), list[tuple[int, Sequence, int]](), len(turns)
    for i, (one, _) in enumerate(turns):
        n, speculation = min(room, one.seq.n_ahead()), one.speculation
        if draft and speculation.mode in ("auto", "draft"):
            n, each = min(n, draft.n_most), draft.times.of(len(turns))
            asked.append((i, one.seq, n := speculation.ask(n, times, n_row, len(turns), each)))
            guesses.append([])
        else:
            guesses.append(speculation.guess(one.seq.tokens, n, times, n_row, len(turns)))
            n = len(guesses[i])
        n_row, room = n_row + n, room - n
    if draft and asked:
        for (i, _, _), drawn in zip(asked, draft.guess([(seq, n) for _, seq, n in asked]), strict=True):
            guesses[i] = drawn
    for i, (one, part) in enumerate(turns):
        if guesses[i]:
            ahead = (Batch.of([token], one.seq.slot, one.seq.n_cached + j) for j, token in enumerate(guesses[i], 1))
            turns[i] = one, Batch.join([part, *ahead])
    return turns
