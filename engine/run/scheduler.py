"""Many sequences, one forward pass: continuous batching.

    waiting   E F                       first come, first served
    slot 0    A   speaks                 1 token    .
         1    B   speaks                 1 token     > one Batch -> forward -> a row of logits for A, B, C
         2    C   its prompt's end      40 tokens    |
         3    D   its prompt's middle   22 tokens   '

A step is admit, plan, compute, advance.  Everyone who speaks takes part in every step; prompts, the oldest first but
for a short one, get what room is left, which is little while somebody speaks.  Each sequence says what generate() would
say, bit for bit.  Texts that are only read, for their embeddings, are prompts after which nobody speaks.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from time import perf_counter_ns

import numpy as np

from ...kernels import NUMBA, Kernels
from ..errors import ContextFull
from ..handle import RequestHandle
from ..model.batch import Batch
from ..model.cache import KVCache
from ..model.decoder import logits
from ..model.model import Model
from ..model.trace import Tap, Watch
from .echo import Echo
from .embed import Pooled
from .generate import require_decoder, shift_window
from .job import Job
from .piece import Piece, Timings
from .prefix import Prefixes
from .sequence import Sequence, SequenceState, kept, truncated

log = logging.getLogger(__name__)

# Tokens of prompts in a step in which somebody speaks.  A 1.1B model on two cores takes 0.3 s for them, of which the
# waiting for weights is a tenth; with 512 the speakers would stand still for 2 s.
CHUNK = 64
RUNAWAY = 30  # so many times the same text in a row is not an answer any more: as in Ollama's llm/server.go


@dataclass(eq=False)
class Running:
    """A job in a slot.

    n_reused   tokens of its prompt that the cache knew
    began, prefilled   on the clock of perf_counter_ns, the latter 0 until its prompt is done
    repeated   pieces with the text of the last one before them
    echo, pooled   for a prompt that is given out, and for one that is only read: they want all of it computed
    """

    job: Job
    seq: Sequence
    n_reused: int
    began: int
    prefilled: int = 0
    echo: Echo | None = None
    pooled: Pooled | None = None
    text: str = ""
    repeated: int = 0

    def runs_away(self, text: str) -> bool:
        """Whether the answer has come to say the same over and over; `text` is what it says now."""
        if text:
            self.repeated, self.text = self.repeated + 1 if text.strip() == self.text else 0, text.strip()
        return self.repeated > RUNAWAY

    def last_piece(self) -> Piece:
        """What ends its stream: why it ended, what was counted, how long it took."""
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
                n_whole=n_whole if n_whole > seq.n_prompt else 0,
            ),
        )


class Scheduler:
    """The jobs of one model: those that wait, and those that have one of the cache's slots.

    num_batch   tokens of prompts in one forward pass, at most
    guard       ends answers that repeat themselves, which generate() does not
    """

    def __init__(
        self, model: Model, cache: KVCache, kernels: Kernels = NUMBA, num_batch: int = 512, guard: bool = True
    ):
        self.model, self.cache, self.kernels, self.num_batch, self.guard = model, cache, kernels, num_batch, guard
        self.prefixes = Prefixes(cache.n_slot)
        self.waiting: deque[Job] = deque()
        self.running: list[Running] = []  # in the order in which they came
        self.stopped: Exception | None = None  # set by any thread: everything ends with it

    @property
    def takes_whole(self) -> bool:
        """Whether nothing is cached, as in an encoder: then a text cannot be read in parts."""
        return not self.cache.k

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def step(self) -> None:
        """One forward pass for everyone whose turn it is, and what comes of it."""
        self._dismiss()
        self._admit()
        turns = self._plan()
        if not turns:
            return
        try:
            results = self._compute(turns)
        except Exception as error:
            for one, _ in turns:
                self._leave(one, error)
            return
        for (one, part), rows in zip(turns, results, strict=True):
            try:
                self._advance(one, part, rows)
            except Exception as error:
                self._leave(one, error)

    def _dismiss(self) -> None:
        """Those that nobody waits for any more go, wherever they are."""
        for one in [one for one in self.running if self.stopped or one.job.handle.cancelled]:
            self._leave(one, self.stopped or one.job.handle.why())
        for job in [job for job in self.waiting if self.stopped or job.handle.cancelled]:
            self.waiting.remove(job)
            conclude(job, self.stopped or job.handle.why())

    def _admit(self) -> None:
        """Those who waited longest get the free slots."""
        while self.waiting and self.prefixes.free:
            job = self.waiting.popleft()
            try:
                self.running.append(self._begin(job))
            except Exception as error:
                conclude(job, error)

    def _begin(self, job: Job) -> Running:
        """The job in a slot of its own.  Raises: ContextFull, RequestError where an encoder is to speak"""
        if not job.pooling:
            require_decoder(self.model)
        began, tokenizer, n_ctx = perf_counter_ns(), self.model.tokenizer, self.cache.n_ctx
        options = replace(job.options, num_ctx=n_ctx)
        if len(job.prompt) > n_ctx:
            if not job.truncate:
                raise ContextFull(len(job.prompt), n_ctx)
            facts = {"num_ctx": n_ctx, "prompt": len(job.prompt), "num_keep": options.num_keep}
            log.warning("truncating input prompt", extra={"fields": facts})
        prompt = truncated(job.prompt, n_ctx, kept(options.num_keep, len(job.prompt), tokenizer.add_bos))
        seq = Sequence(
            tokenizer,
            prompt,
            options,
            shift=job.shift,
            n_logprobs=job.n_logprobs,
            embeds=job.embeds,
            shown=job.shown,
            grammar=job.grammar,
        )
        seq.slot, seq.n_cached = self.prefixes.take([] if job.echo or job.pooling else prompt)
        seq.state = SequenceState.PREFILL
        facts = {"slot": seq.slot, "prompt": seq.n_prompt, "known": seq.n_cached, "waiting": len(self.waiting)}
        log.debug("begins", extra={"fields": facts})
        echo = Echo(tokenizer, seq) if job.echo else None
        pooled = Pooled(job.pooling, seq.n_prompt) if job.pooling else None
        return Running(job, seq, seq.n_cached, began, echo=echo, pooled=pooled)

    def _plan(self) -> list[tuple[Running, Batch]]:
        """Who takes part in the next forward pass, and with what: those who are only read come last."""
        speaking = [one for one in self.running if one.seq.state is SequenceState.DECODE]
        turns = [(one, self._next_token(one)) for one in speaking]
        room = max(1, min(self.num_batch, CHUNK) - len(speaking)) if speaking else self.num_batch
        for one in self._reading(room):
            if room > 0:
                if self.takes_whole and one.seq.n_prompt > room and turns:
                    break
                turns.append((one, part := self._next_chunk(one, room)))
                room -= len(part.tokens)
        return sorted(turns, key=lambda turn: turn[0].pooled is not None)

    def _reading(self, room: int) -> list[Running]:
        """Whose prompts are to be read: the oldest first, but before it one whose rest takes half the room at most.

        So a question need not wait for a book, and the book goes on by half the room in every step.
        """
        reading = [one for one in self.running if one.seq.state is SequenceState.PREFILL]
        if self.takes_whole:
            return reading
        short = next((one for one in reading[1:] if one.seq.n_prompt - one.seq.n_cached <= room // 2), None)
        return reading if short is None else [short, *(one for one in reading if one is not short)]

    def _next_token(self, one: Running) -> Batch:
        seq = one.seq
        self.prefixes.forget(
            seq.slot, shift_window(seq, self.cache, self.kernels, self.model.hparams.ropes(self.cache.n_ctx))
        )
        return Batch.of(seq.tokens[-1:], seq.slot, seq.n_cached)

    def _next_chunk(self, one: Running, room: int) -> Batch:
        """At most `room` tokens of its prompt, after all that any slot has learned of it meanwhile."""
        seq = one.seq
        if not (one.echo or one.pooled):
            source, n = self.prefixes.longest(seq.tokens)
            if n > seq.n_cached:
                self.cache.copy(source, seq.slot, seq.n_cached, n)
                self.prefixes.wrote(seq.slot, seq.n_cached, seq.tokens[seq.n_cached : n])
                one.n_reused += n - seq.n_cached
                seq.n_cached = n
        n = seq.n_prompt - seq.n_cached
        if not self.takes_whole:
            n = min(n, room, one.echo.n_rows if one.echo else room)
        is_last = seq.n_cached + n == seq.n_prompt
        outputs = range(n) if one.echo else range(n - is_last, n)
        if one.pooled:
            outputs = one.pooled.outputs(seq.n_cached, n)
        return Batch.of(seq.tokens[seq.n_cached : seq.n_cached + n], seq.slot, seq.n_cached, outputs, seq.embeds)

    def _compute(self, turns: list[tuple[Running, Batch]]) -> list[list[np.ndarray]]:
        """One forward pass.  -> for each turn the logits of its outputs, or what is hidden there if it is only read"""
        batch = Batch.join([part for _, part in turns])
        tap = self._tap([one.job.handle for one, _ in turns])
        hidden = self.model.family.hidden(self.model, batch, self.cache, self.kernels, tap)  # [n_out, n_embd]
        n = sum(len(part.outputs) for one, part in turns if not one.pooled)
        rows = iter([*(logits(self.model, hidden[:n], self.kernels, tap) if n else ()), *hidden[n:]])
        return [list(islice(rows, len(part.outputs))) for _, part in turns]

    def _advance(self, one: Running, part: Batch, rows: list[np.ndarray]) -> None:
        """What a sequence says after the cache has `part`, of whose outputs the model made `rows`: see `_compute`."""
        seq, job, start = one.seq, one.job, one.seq.n_cached
        job.handle.check()
        self.prefixes.wrote(seq.slot, start, part.tokens.tolist())
        seq.n_cached += len(part.tokens)
        if seq.state is SequenceState.PREFILL:
            for piece in one.echo.pieces(start, rows) if one.echo else ():
                job.deliver(piece)
            if one.pooled:
                one.pooled.add(rows)
            if seq.n_cached < seq.n_prompt:
                return
            seq.state, one.prefilled = SequenceState.DECODE, perf_counter_ns()
        if one.pooled:
            seq.end("stop")
        elif one.echo and seq.options.num_predict == 0:
            seq.end("length")
        else:
            piece = seq.sample(rows[-1])
            job.deliver(piece)
            if self.guard and seq.state is not SequenceState.DONE and one.runs_away(piece.text):
                seq.end("length")
        if seq.state is SequenceState.DONE:
            self._leave(one, one.last_piece())

    def _tap(self, calls: list[RequestHandle]) -> Tap:
        """The tap that ends a forward pass once nobody waits for any of it.

        One who leaves among others does not: the pass is soon over, and theirs would have to begin again.
        """

        def look(il: int) -> None:
            if self.stopped:
                raise self.stopped
            if calls[0].cancelled and all(handle.cancelled for handle in calls):
                calls[0].check()

        return Watch(look)

    def _leave(self, one: Running, last: Piece | Exception) -> None:
        """The slot is free; the last piece goes out."""
        seq = one.seq
        facts = {"slot": seq.slot, "sampled": seq.n_sampled, "known": one.n_reused, "reason": seq.done_reason}
        log.debug("leaves", extra={"fields": facts | ({"error": last} if isinstance(last, Exception) else {})})
        self.running.remove(one)
        self.prefixes.give_back(seq.slot)
        conclude(one.job, last)


def conclude(job: Job, last: Piece | Exception) -> None:
    """The job is over: its lease goes back, then its last piece goes out, and what goes wrong there is its error."""
    job.finished()
    try:
        job.deliver(last)
    except Exception as error:
        log.debug("the last piece of an answer could not be made", exc_info=error)
        with suppress(Exception):  # whoever takes pieces is beyond help, and the others must not suffer
            job.deliver(error)
