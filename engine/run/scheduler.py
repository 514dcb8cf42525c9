"""Many sequences, one forward pass: continuous batching.

    waiting   E F                       first come, first served
    slot 0    A   decoding               1 token    .
         1    B   decoding               1 token     > one Batch -> forward -> a row of logits for A, B, C
         2    C   prompt, last chunk    40 tokens    |
         3    D   prompt, a chunk       22 tokens   '

A step is admit, plan, compute, advance.  Every decoding sequence adds one token per step.  Prompts share the rest of
the batch, oldest first except for a short one; it is small while any sequence decodes.  A step without prompts has room
for guesses at the next tokens (draft.py).  Each sequence generates what complete() would, bit for bit.  A text to
embed is a prompt after which nothing is decoded.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from dataclasses import replace
from itertools import count, islice
from time import perf_counter_ns

import numpy as np

from ...kernels import NUMBA, Kernels
from ..errors import BadOptions, CacheLost, ContextFull
from ..look.collector import LookTap
from ..look.held import HeldRun, HeldRuns
from ..look.timeline import Timeline
from ..model.batch import Batch, Span
from ..model.cache import KVCache
from ..model.decoder import forward, logits
from ..model.model import Model, require_decoder
from ..model.trace import Tap, Watch
from .draft import PassTimes, Speculation
from .draft_model import DraftModel
from .echo import Echo
from .embed import Pooled
from .job import Job
from .kept import KeptPrefixes
from .piece import Piece
from .prefix import Prefixes
from .running import Running, with_guesses
from .sequence import Sequence, SequenceState, resolve_num_keep, shift_window, truncated

log = logging.getLogger(__name__)

# Prompt tokens in a step with decoding sequences.  A 1.1B model on two cores takes 0.3 s for them, a tenth of it for
# reading weights; with 512 tokens every decoding sequence would pause for 2 s.
PREFILL_WHILE_DECODING = 64


class Scheduler:
    """The jobs of one model: waiting, or running in one of the cache's slots.

    num_batch   prompt tokens in one forward pass, at most
    draft       a model that guesses the next tokens
    kept        beginnings that lost their slot
    guard       end answers that repeat themselves, which complete() does not
    """

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        kernels: Kernels = NUMBA,
        num_batch: int = 512,
        guard: bool = True,
        draft: DraftModel | None = None,
        kept: KeptPrefixes | None = None,
    ):
        self.model, self.cache, self.kernels, self.num_batch, self.guard = model, cache, kernels, num_batch, guard
        self.draft, self.times = draft, PassTimes()
        self.kept = kept or KeptPrefixes(cache)
        self.prefixes = Prefixes(cache.n_slot, self.kept.keep, cache.resumes)
        self.waiting: deque[Job] = deque()
        self.running: list[Running] = []  # in order of arrival
        self.timeline = Timeline()
        self.held = HeldRuns()
        self._numbers = count(1)
        self.stopped: Exception | None = None  # set by any thread: every job ends with it

    @property
    def takes_whole(self) -> bool:
        """Whether a text is one chunk: nothing is cached (an encoder), or tokens attend to later ones."""
        return not self.cache.k or not self.model.hparams.causal

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def step(self) -> None:
        """Run one forward pass for the sequences whose turn it is, and deliver what they generate."""
        self._dismiss()
        self._admit()
        turns = list[tuple[Running, Batch]]()
        began = perf_counter_ns()
        try:
            if not (turns := self._plan()):
                return
            results = self._compute(turns)
        except CacheLost as error:
            self._lose(error)
            return
        except Exception as error:
            if not turns:
                raise
            for one, _ in turns:
                self._leave(one, error)
            return
        shares: list[int] = []
        for one, part in turns:
            shares += one.number, one.seq.slot, part.tokens.size, one.seq.state is SequenceState.PREFILL
        for (one, part), rows in zip(turns, results, strict=True):
            try:
                self._advance(one, part, rows)
            except Exception as error:
                self._leave(one, error)
        self.timeline.append((began, perf_counter_ns() - began, *shares))

    def _lose(self, error: CacheLost) -> None:
        """End all running jobs: what was cached for them is gone."""
        for one in list(self.running):
            self._leave(one, error)
        self.prefixes.forget()

    def _dismiss(self) -> None:
        """Remove cancelled jobs, running or waiting; all of them if the scheduler was stopped."""
        for one in [one for one in self.running if self.stopped or one.job.handle.cancelled]:
            self._leave(one, self.stopped or one.job.handle.why())
        for job in [job for job in self.waiting if self.stopped or job.handle.cancelled]:
            self.waiting.remove(job)
            conclude(job, self.stopped or job.handle.why())

    def _admit(self) -> None:
        """Give free slots to the jobs that waited longest."""
        while self.waiting and self.prefixes.free:
            job = self.waiting.popleft()
            try:
                self.running.append(self._begin(job))
            except CacheLost as error:
                conclude(job, error)
                self._lose(error)
            except Exception as error:
                conclude(job, error)

    def _begin(self, job: Job) -> Running:
        """Start `job` in a slot.  Raises: ContextFull; RequestError if an encoder is to generate"""
        if not job.pooling:
            require_decoder(self.model)
        if job.options.speculate == "draft" and not self.draft:
            raise BadOptions("speculate", 'option "speculate" is "draft", and the model has no DRAFT')
        began, tokenizer, n_ctx = perf_counter_ns(), self.model.tokenizer, self.cache.n_ctx
        options = replace(job.options, num_ctx=n_ctx)
        if len(job.prompt) > n_ctx:
            if not job.truncate:
                raise ContextFull(len(job.prompt), n_ctx)
            facts = {"num_ctx": n_ctx, "prompt": len(job.prompt), "num_keep": options.num_keep}
            log.warning("truncating input prompt", extra={"fields": facts})
        prompt = truncated(job.prompt, n_ctx, resolve_num_keep(options.num_keep, len(job.prompt), tokenizer.add_bos))
        seq = Sequence(
            tokenizer,
            prompt,
            options,
            shift=job.shift and self.model.hparams.can_shift(n_ctx),
            n_logprobs=job.n_logprobs,
            embeds=job.embeds,
            shown=job.shown,
            grammar=job.grammar,
        )
        number, look = next(self._numbers), job.look
        needs_all = bool(job.echo or job.pooling or (look and look.look.wants_rows))
        needs_all = needs_all or bool(look and look.look.keep and self.cache.window)  # what was dropped, too
        held = [len(tokens) for tokens in self.prefixes.held]
        reusable = self.prefixes.longest(prompt)[1] if look else 0
        branch = self.prefixes.shared(prompt) if self.cache.window and not needs_all else 0
        seq.slot, seq.n_cached = self.prefixes.acquire([] if needs_all else prompt)
        if not needs_all:
            self._restore(seq)
        if look:
            try:
                found: dict[str, int | list[int]] = {"slot": seq.slot, "held": held}
                found |= {"reused": 0 if needs_all else reusable, "reusable": reusable}
                look.begin(
                    prompt,
                    self.cache,
                    self.kernels,
                    num_predict=options.num_predict,
                    cached=found,
                    seed=seq.sampler.rng.seed,
                    job=number,
                )
            except BaseException:
                self.prefixes.release(seq.slot)
                raise
        seq.state = SequenceState.PREFILL
        facts = {"slot": seq.slot, "prompt": seq.n_prompt, "known": seq.n_cached, "waiting": len(self.waiting)}
        log.debug("begins", extra={"fields": facts})
        echo = Echo(tokenizer, seq) if job.echo else None
        pooled = Pooled(job.pooling, seq.n_prompt, self.model.dense, self.kernels) if job.pooling else None
        speculation = Speculation("off" if look else options.speculate or "auto")
        running = Running(job, seq, seq.n_cached, began, speculation, number, 0, needs_all, branch, echo, pooled)
        if look and look.look.keep:
            assert look.prompt
            running.held = HeldRun(self.model, self.kernels, look.look, look.sources, seq.n_prompt)
            look.prompt.run = self.held.add(running.held)
        return running

    def _restore(self, seq: Sequence) -> None:
        """Bring back what was kept of the prompt, if that is more than any slot knows."""
        known = max(seq.n_cached, self.prefixes.longest(seq.tokens)[1])
        n = self.kept.restore(seq.slot, seq.tokens, seq.n_cached, known)
        self.prefixes.record(seq.slot, seq.n_cached, seq.tokens[seq.n_cached : n])
        seq.n_cached = n

    def save(self) -> None:
        """Write what is cached to disk, if beginnings are kept there."""
        self.kept.save(enumerate(self.prefixes.held))

    def _plan(self) -> list[tuple[Running, Batch]]:
        """Choose the next forward pass's sequences and their tokens; texts to embed come last."""
        decoding = [one for one in self.running if one.seq.state is SequenceState.DECODE]
        turns = [(one, self._next_token(one)) for one in decoding]
        room = max(1, min(self.num_batch, PREFILL_WHILE_DECODING) - len(decoding)) if decoding else self.num_batch
        for one in self._prefilling(room):
            if room > 0:
                if self.takes_whole and one.seq.n_prompt > room and turns:
                    break
                turns.append((one, part := self._next_chunk(one, room)))
                room -= len(part.tokens)
        if len(turns) == len(decoding):
            turns = with_guesses(turns, room, self.times, self.draft)
        return sorted(turns, key=lambda turn: turn[0].pooled is not None)

    def _prefilling(self, room: int) -> list[Running]:
        """Order the prompts to prefill: oldest first, but before it one whose rest takes at most half the room.

        So a question need not wait for a book, and the book still gets half the room in every step.
        """
        prefilling = [one for one in self.running if one.seq.state is SequenceState.PREFILL]
        if self.takes_whole:
            return prefilling
        short = next((one for one in prefilling[1:] if one.seq.n_prompt - one.seq.n_cached <= room // 2), None)
        return prefilling if short is None else [short, *(one for one in prefilling if one is not short)]

    def _next_token(self, one: Running) -> Batch:
        seq = one.seq
        self.prefixes.truncate(
            seq.slot, shift_window(seq, self.cache, self.kernels, self.model.hparams.ropes(self.cache.n_ctx))
        )
        return Batch.of(seq.tokens[-1:], seq.slot, seq.n_cached)

    def _next_chunk(self, one: Running, room: int) -> Batch:
        """Take at most `room` tokens of the prompt, after copying what other slots have cached of it by now."""
        seq = one.seq
        if not one.needs_all:
            source, n = self.prefixes.longest(seq.tokens)
            if n > seq.n_cached:
                self.cache.copy(source, seq.slot, seq.n_cached, n)
                self.prefixes.record(seq.slot, seq.n_cached, seq.tokens[seq.n_cached : n])
                one.n_reused += n - seq.n_cached
                seq.n_cached = n
        n = seq.n_prompt - seq.n_cached
        if not self.takes_whole:
            n = min(n, room, one.echo.n_rows if one.echo else room)
        if seq.n_cached < one.branch:
            n = min(n, one.branch - seq.n_cached)
        is_last = seq.n_cached + n == seq.n_prompt
        outputs = range(n) if one.echo else range(n - is_last, n)
        if one.pooled:
            outputs = one.pooled.outputs(seq.n_cached, n)
        return Batch.of(seq.tokens[seq.n_cached : seq.n_cached + n], seq.slot, seq.n_cached, outputs, seq.embeds)

    def _compute(self, turns: list[tuple[Running, Batch]]) -> list[list[np.ndarray]]:
        """Run one forward pass.  -> for each turn the logits of its outputs, or the hidden states to embed"""
        batch = Batch.join([part for _, part in turns])
        tap = self._tap(turns)
        began, all_decode = perf_counter_ns(), all(one.seq.state is SequenceState.DECODE for one, _ in turns)
        n = sum(len(part.outputs) for one, part in turns if not one.pooled)
        if n == len(batch.outputs) and self.model.family.causal:
            rows = iter(forward(self.model, batch, self.cache, self.kernels, tap))
        else:
            hidden = self.model.family.hidden(self.model, batch, self.cache, self.kernels, tap)  # [n_out, n_embd]
            rows = iter([*(logits(self.model, hidden[:n], self.kernels, tap) if n else ()), *hidden[n:]])
        if all_decode:
            self.times.add(len(batch.tokens), perf_counter_ns() - began)
        return [list(islice(rows, len(part.outputs))) for _, part in turns]

    def _advance(self, one: Running, part: Batch, rows: list[np.ndarray]) -> None:
        """Sample and deliver after `part` is in the cache; `rows` are the results of its outputs, see `_compute`."""
        one.job.handle.check()
        if one.seq.state is SequenceState.DECODE:
            self._decode(one, part, rows)
        else:
            self._prefill(one, part, rows)
        if one.seq.is_done:
            self._leave(one, one.last_piece())

    def _prefill(self, one: Running, part: Batch, rows: list[np.ndarray]) -> None:
        """Record a part of a prompt, deliver what of it is echoed, and after the last one sample."""
        seq, look, start = one.seq, one.job.look, one.seq.n_cached
        self._record(one, part.tokens.tolist())
        if seq.n_cached == one.branch:  # where texts parted once, they will again
            self.kept.keep(seq.slot, seq.tokens[: one.branch], stays=True)
        for piece in one.echo.pieces(start, rows) if one.echo else ():
            one.job.deliver(piece)
        if one.pooled:
            one.pooled.add(rows)
        if seq.n_cached < seq.n_prompt:
            if look:
                look.end(seq.tokens, start, part.spans[0])
            return
        seq.state, one.prefilled = SequenceState.DECODE, perf_counter_ns()
        if one.pooled:
            seq.end("stop")
        elif one.echo and seq.options.num_predict == 0:
            seq.end("length")
        else:
            self._sample(one, rows[-1], start, part.spans[0])
            if look:  # what it shows of the prompt took time, too
                one.prefilled = perf_counter_ns()

    def _decode(self, one: Running, part: Batch, rows: list[np.ndarray]) -> None:
        """Sample after the newest token, and after each guess that follows it as long as they are right."""
        seq, tokens, n_right = one.seq, part.tokens.tolist(), 0
        for i, (row, span) in enumerate(zip(rows, part.spans, strict=True)):
            self._record(one, tokens[i : i + 1])
            one.job.handle.check()
            self._sample(one, row, len(seq.tokens) - 1, span)
            if i + 1 == len(rows) or seq.tokens[-1] != tokens[i + 1]:
                break
            n_right += 1
            if seq.is_done:
                break
        one.speculation.judge(len(rows) - 1, n_right)

    def _record(self, one: Running, tokens: list[int]) -> None:
        """Record that `tokens` are cached.  Other sequences may reuse only what the model itself computed."""
        if not (one.job.look and one.job.look.changes):
            self.prefixes.record(one.seq.slot, one.seq.n_cached, tokens)
        one.seq.n_cached += len(tokens)
        if one.held:
            one.held.follow(self.cache, one.seq.slot, one.seq.n_cached)

    def _sample(self, one: Running, row: np.ndarray, at: int, span: Span) -> None:
        """Sample the next token and deliver its piece.

        row f32 [n_vocab]: logits; at: index of the first token of `span`, whose last one they are of
        """
        look = one.job.look
        piece = one.seq.sample(row, look.sampling) if look else one.seq.sample(row)
        if look:
            look.end(one.seq.tokens, at, span, row)
            piece = replace(piece, look=look.take())
        one.job.deliver(piece)
        if self.guard and not one.seq.is_done and one.runs_away(piece.text):
            one.seq.end("length")

    def _tap(self, turns: list[tuple[Running, Batch]]) -> Tap:
        """Return a tap that ends a forward pass once every request in it is cancelled, and shows values to looks.

        One cancelled request among others does not end it: the others would have to start the pass again.
        """
        handles = [one.job.handle for one, _ in turns]

        def check(il: int) -> None:
            if self.stopped:
                raise self.stopped
            if handles[0].cancelled and all(handle.cancelled for handle in handles):
                handles[0].check()

        looks, row = [], 0
        for one, part in turns:
            if one.job.look:
                looks.append((one.job.look, slice(row, row + len(part.tokens)), part.spans[0]))
            row += len(part.tokens)
        return LookTap(looks, row, check) if looks else Watch(check)

    def _leave(self, one: Running, last: Piece | Exception) -> None:
        """Free the slot and deliver the last piece."""
        seq = one.seq
        facts = {"slot": seq.slot, "sampled": seq.n_sampled, "known": one.n_reused, "reason": seq.done_reason}
        log.debug("leaves", extra={"fields": facts | ({"error": last} if isinstance(last, Exception) else {})})
        self.running.remove(one)
        if one.held and seq.n_cached == len(seq.tokens) - 1:  # the window has not shifted
            one.held.finish(seq.tokens)
        self.prefixes.release(seq.slot)
        conclude(one.job, last)


def conclude(job: Job, last: Piece | Exception) -> None:
    """End `job`: call `finished`, then deliver the last piece, or the error that delivering it raises."""
    job.finished()
    try:
        job.deliver(last)
    except Exception as error:
        log.debug("the last piece of an answer could not be made", exc_info=error)
        with suppress(Exception):  # this client's callback failed; do not let it affect the other sequences
            job.deliver(error)
