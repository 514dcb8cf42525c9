"""The scheduler: each sequence generates what it would alone, whatever the others do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numllama.engine.errors import Cancelled, ContextFull, ModelError, ShuttingDown
from numllama.engine.handle import RequestHandle
from numllama.engine.model.load import check_draft, load_model
from numllama.engine.options import Options
from numllama.engine.run import scheduler as module
from numllama.engine.run.draft_model import DraftModel
from numllama.engine.run.job import Job
from numllama.engine.run.piece import Piece
from numllama.engine.run.request import complete
from numllama.engine.run.running import MAX_REPEATS
from numllama.engine.run.scheduler import Scheduler
from numllama.engine.sampling.grammar import Grammars
from numllama.kernels import EXACT, GGML, NUMBA
from tiny import tiny_gguf

N_CTX = 24
GREEDY = Options(temperature=0.0, num_predict=8, num_ctx=N_CTX)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", quant="Q4_0", seed=3))


@cache
def grammars_of(model):
    return Grammars(model.tokenizer)


@dataclass(eq=False)
class Request:
    """A request in a test, and its pieces so far."""

    prompt: list[int]
    options: Options = GREEDY
    settings: dict = field(default_factory=dict)
    cancels_after: int | None = None  # pieces
    gap: int = 0  # steps before the next request
    format: str | dict | None = None  # enforced by a grammar
    pieces: list = field(default_factory=list, repr=False)
    n_finished: int = 0

    def __post_init__(self):
        self.handle = RequestHandle()

    def job(self, scheduler):
        settings = {"truncate": True, "shift": True, "n_logprobs": None, "echo": False} | self.settings
        callbacks = {"deliver": self.deliver, "finished": self.finish}
        return Job(
            handle=self.handle,
            prompt=self.prompt,
            options=self.options,
            **settings,
            **callbacks,
            grammar=self.grammar(scheduler.model),
        )

    def grammar(self, model):
        """Make the grammar of one answer."""
        return grammars_of(model).grammar(self.format) if self.format else None

    def deliver(self, piece):
        self.pieces.append(piece)
        if len(self.pieces) == self.cancels_after:
            self.handle.cancel()

    def finish(self):
        self.n_finished += 1

    @property
    def is_over(self):
        return self.n_finished > 0

    @property
    def answer(self):
        """Everything that must depend on the request alone."""
        return [seen(piece) for piece in self.pieces if isinstance(piece, Piece)]

    @property
    def error(self):
        return self.pieces[-1]

    @property
    def timings(self):
        return self.pieces[-1].timings

    def alone(self, model, kernels=NUMBA, type="f16"):
        """Generate the answer with complete()."""
        cache = model.new_cache(self.options.num_ctx, type=type)
        settings = self.settings | {"grammar": self.grammar(model)}
        pieces = complete(model, self.prompt, self.options, kernels=kernels, cache=cache, **settings)
        return [seen(piece) for piece in pieces]


def seen(piece):
    """Return a piece without its timings; logprobs as text, since the first one of an echo is nan."""
    return piece.text, piece.token, repr(piece.logprob), piece.done_reason, piece.met


def scheduler_of(model, n_slot=2, kernels=NUMBA, type="f16", **more):
    return Scheduler(model, model.new_cache(N_CTX, n_slot, type), kernels, **more)


def serve(scheduler, *requests):
    """Submit requests and run them to their end."""
    for one in requests:
        scheduler.submit(one.job(scheduler))
    finish(scheduler)
    return requests


def finish(scheduler):
    steps = 0
    while not scheduler.idle:
        scheduler.step()
        steps += 1
        assert steps < 2000


# the same answers as alone

ids = st.integers(259, 330)
options = st.builds(
    Options,
    num_ctx=st.just(N_CTX),
    num_predict=st.integers(1, 30),
    seed=st.integers(0, 5),
    temperature=st.sampled_from([0.0, 1.0, 3.0]),
    num_keep=st.sampled_from([-1, 0, 4, 30]),
    repeat_penalty=st.sampled_from([1.0, 1.3]),
    stop=st.sampled_from([(), ("e",)]),
)
settings_of = st.fixed_dictionaries(
    {"shift": st.booleans(), "n_logprobs": st.sampled_from([None, 2]), "echo": st.sampled_from([False, False, True])}
)


@cache
def common_prefixes():
    """Make prompts with common prefixes, some longer than the window."""
    random = np.random.default_rng(0)
    trunk = [1, *random.integers(259, 330, 40).tolist()]
    return [trunk[:n] for n in (1, 2, 7, 12, 20, 23, 24, 41)]


formats = st.sampled_from([None, None, "json", {"type": "array", "items": {"enum": ["the", "they", 7]}, "minItems": 1}])
prompts = st.builds(lambda head, tail: head + tail, st.sampled_from(common_prefixes()), st.lists(ids, max_size=4))
mixes = st.lists(
    st.builds(
        Request, prompts, options, settings_of, st.sampled_from([None, None, None, 1, 3]), st.integers(0, 6), formats
    ),
    min_size=1,
    max_size=6,
)


def test_every_request_is_answered_as_alone(model):
    @settings(max_examples=25)
    @given(mix=mixes, n_slot=st.integers(1, 3), num_batch=st.sampled_from([1, 3, 7, 512]))
    def check(mix, n_slot, num_batch):
        scheduler = scheduler_of(model, n_slot, num_batch=num_batch, guard=False)
        for one in mix:
            scheduler.submit(one.job(scheduler))
            for _ in range(one.gap):
                scheduler.step()
        finish(scheduler)
        for one in mix:
            expected = one.alone(model)
            if isinstance(one.pieces[-1], Cancelled):
                assert one.cancels_after and one.answer == expected[: len(one.answer)]
            else:
                assert one.answer == expected
            assert one.n_finished == 1
        assert len(scheduler.prefixes.free) == n_slot

    check()  # called so that hypothesis does not print the model


class Guessing(Scheduler):
    """A scheduler whose guesses at the next tokens are drawn: right ones, wrong ones, any number of either."""

    def __init__(self, model, n_slot, truths, random, **more):
        super().__init__(model, model.new_cache(N_CTX, n_slot), guard=False, **more)
        self.truths, self.random, self.n_guessed, self.n_right = truths, random, 0, 0

    def _begin(self, job):
        one = super()._begin(job)
        truth = self.truths[job.handle]

        def guess(tokens, n, times, n_row, n_sequence):
            right = truth[one.seq.n_sampled :][: max(n, 0)]
            wrong = self.random.integers(0, self.model.hparams.n_vocab, max(n, 0)).tolist()
            n_right = self.random.integers(0, len(right) + 1)
            return (right[:n_right] + wrong[n_right:])[: self.random.integers(0, n + 1) if n > 0 else 0]

        one.speculation.guess = guess
        return one

    def _leave(self, one, last):
        self.n_guessed += one.speculation.n_guessed
        self.n_right += one.speculation.n_right
        super()._leave(one, last)


def test_guesses_right_and_wrong_change_no_bit(model):
    def answered(mix, n_slot, num_batch, seed):
        alone = {one.handle: one.alone(model) for one in mix}
        truths = {handle: [token for _, token, *_ in pieces if token is not None] for handle, pieces in alone.items()}
        scheduler = Guessing(model, n_slot, truths, np.random.default_rng(seed), num_batch=num_batch)
        serve(scheduler, *mix)
        for one in mix:
            if not one.cancels_after:
                assert one.answer == alone[one.handle]
            assert one.answer == alone[one.handle][: len(one.answer)]
        return scheduler

    prompts_of = [Request(prompt, replace(GREEDY, num_predict=12, ignore_eos=True)) for prompt in common_prefixes()[:4]]
    scheduler = answered(prompts_of, 2, 512, 0)
    assert scheduler.n_guessed > scheduler.n_right > 5  # both kinds

    @settings(max_examples=25)
    @given(mix=mixes, n_slot=st.integers(1, 3), num_batch=st.sampled_from([1, 3, 512]), seed=st.integers(0, 2**31))
    def check(mix, n_slot, num_batch, seed):
        answered(mix, n_slot, num_batch, seed)

    check()


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """A model with the same vocabulary and other weights."""
    return load_model(tiny_gguf(tmp_path_factory.mktemp("models") / "other.gguf", quant="Q4_0", seed=4))


def drafting(model, draft, n_slot, n_ctx=N_CTX, num_batch=512, **more):
    draft_model = DraftModel(draft, draft.new_cache(n_ctx, n_slot), num_batch=num_batch, **more)
    return scheduler_of(model, n_slot, num_batch=num_batch, guard=False, draft=draft_model)


@pytest.mark.parametrize("draft_is_right", [False, True])
def test_a_draft_model_changes_no_bit(model, other_model, draft_is_right):
    @settings(max_examples=12)
    @given(
        mix=mixes,
        n_slot=st.integers(1, 3),
        num_batch=st.sampled_from([2, 512]),
        mode=st.sampled_from(["draft", "auto", "ngram"]),
        n_ctx=st.sampled_from([12, N_CTX]),
    )
    def check(mix, n_slot, num_batch, mode, n_ctx):
        for one in mix:
            one.options = replace(one.options, speculate=mode)
        serve(drafting(model, model if draft_is_right else other_model, n_slot, n_ctx, num_batch), *mix)
        for one in mix:
            expected = one.alone(model)
            assert one.answer == (expected if not one.cancels_after else expected[: len(one.answer)])

    check()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_a_draft_model_that_agrees_is_always_right_at_any_temperature(model, temperature):
    options = replace(GREEDY, temperature=temperature, num_predict=12, repeat_penalty=1.3, seed=5, ignore_eos=True)
    requests = [Request([1, 300 + i], replace(options, seed=i, speculate="draft")) for i in range(3)]
    for one in serve(drafting(model, model, 2, n_most=3), *requests):
        assert one.timings.draft_accepted_tokens == one.timings.draft_tokens >= 8
        assert one.answer == one.alone(model)


def test_a_draft_of_numbers_that_are_not_finite_is_no_draft(model, other_model):
    weights = other_model.decoder
    weights = replace(weights, output_norm=np.full_like(weights.output_norm, np.nan))
    broken = replace(other_model, weights=weights)
    one = Request([1, 310], replace(GREEDY, speculate="draft"))
    serve(drafting(model, broken, 1), one)
    assert one.answer == one.alone(model) and one.timings.draft_tokens == 0


def test_a_draft_is_asked_for_only_where_there_is_one(model):
    one = Request([1, 310], replace(GREEDY, speculate="draft"))
    serve(scheduler_of(model), one)
    assert str(one.error) == 'option "speculate" is "draft", and the model has no DRAFT'


def test_a_draft_model_must_have_the_models_vocabulary(model, tmp_path):
    few = load_model(tiny_gguf(tmp_path / "few.gguf", tokenizer="bpe"))
    with pytest.raises(ModelError, match=r"few.gguf: .*vocabulary of \d+ tokens, expected the model's 417|token \d+"):
        check_draft(few, model)
    check_draft(model, model)


def test_a_text_that_repeats_itself_takes_fewer_passes_and_tells_its_guesses(model):
    options = replace(GREEDY, num_predict=14, logit_bias=((300, 1000.0),))
    prompt, passes = [1, 310], {}
    for mode in ("off", "ngram"):
        one = Request(prompt, replace(options, speculate=mode))
        scheduler = scheduler_of(model, 1)
        scheduler.submit(one.job(scheduler))
        n = 0
        while not scheduler.idle:
            scheduler.step()
            n += 1
        passes[mode] = n, one
    (plain, slow), (fewer, quick) = passes["off"], passes["ngram"]
    assert quick.answer == slow.answer
    assert plain - fewer == quick.timings.draft_accepted_tokens <= quick.timings.draft_tokens
    assert slow.timings.draft_tokens == 0 < quick.timings.draft_accepted_tokens


@pytest.mark.parametrize("type", ["f16", "f32"])
@pytest.mark.parametrize("kernels", [EXACT, GGML, NUMBA], ids=lambda kernels: kernels.name)
def test_a_cached_prefix_changes_no_bit(model, kernels, type):
    """The prefix is in the request's slot, or copied from a free slot, or copied from one that decodes."""
    scheduler = scheduler_of(model, 2, kernels, type)
    first, second, third = (
        Request([1, 300, 301, 302, 303, *tail], settings={"n_logprobs": 3}) for tail in ([310], [311], [312, 313])
    )
    serve(scheduler, first)
    serve(scheduler, second, third)
    assert [one.timings.prompt_eval_cached_count for one in (first, second, third)] == [0, 5, 5]
    assert [one.answer for one in (first, second, third)] == [
        one.alone(model, kernels, type) for one in (first, second, third)
    ]


def test_a_common_prefix_of_two_requests_is_computed_once(model):
    trunk = [1, *range(300, 315)]
    first, second = serve(scheduler_of(model, num_batch=8), Request([*trunk, 320]), Request([*trunk, 330]))
    assert (first.timings.prompt_eval_cached_count, second.timings.prompt_eval_cached_count) == (0, len(trunk))
    assert second.answer == second.alone(model)


def test_only_tokens_that_were_not_cached_before_count_as_copied(model):
    """Both slots know 3 tokens when the requests come; 1 more is copied from the slot that has read on: 4, not 7."""
    scheduler, one_token = scheduler_of(model, n_slot=2, num_batch=2), replace(GREEDY, num_predict=1)
    serve(scheduler, Request([1, 300, 301, 340], one_token), Request([1, 300, 301, 350], one_token))
    ahead, behind = Request([1, 300, 301, 302, 310]), Request([1, 300, 301, 302, 320])
    serve(scheduler, ahead, behind)
    assert sorted(one.timings.prompt_eval_cached_count for one in (ahead, behind)) == [3, 4]
    assert [one.answer for one in (ahead, behind)] == [one.alone(model) for one in (ahead, behind)]


# cached prefixes


def test_the_next_turn_of_a_conversation_computes_only_new_tokens(model):
    scheduler = scheduler_of(model)
    [first] = serve(scheduler, Request([1, 300, 301]))
    generated = [p.token for p in first.pieces if p.token is not None]
    serve(scheduler, Request([1, 340]))  # another request takes the other slot
    [second] = serve(scheduler, Request([1, 300, 301, *generated, 302]))
    assert second.timings.prompt_eval_cached_count == 3 + len(generated) - 1  # its last token was never computed
    assert second.timings.prompt_eval_count == 3 + len(generated) + 1


def test_after_a_window_shift_only_the_kept_tokens_are_reused(model):
    scheduler = scheduler_of(model, n_slot=1)
    prompt = [1, *range(300, 310)]
    long = replace(GREEDY, num_predict=30, num_keep=3)
    [first] = serve(scheduler, Request(prompt, long))
    [again] = serve(scheduler, Request(prompt, long))
    assert again.timings.prompt_eval_cached_count == 4  # BOS and num_keep
    assert again.answer == first.answer == first.alone(model)


def test_the_prefix_of_a_cancelled_prompt_is_reused(model):
    scheduler = scheduler_of(model, n_slot=1, num_batch=4)
    cancelled = Request([1, *range(300, 315)])
    scheduler.submit(cancelled.job(scheduler))
    scheduler.step(), scheduler.step()
    cancelled.handle.cancel()
    [other] = serve(scheduler, Request([1, *range(300, 315)]))
    assert isinstance(cancelled.error, Cancelled) and other.timings.prompt_eval_cached_count == 8
    assert other.answer == other.alone(model)


def test_a_truncated_prompt_reports_its_whole_length(model):
    [cut] = serve(scheduler_of(model), Request([1] * 40))
    assert (cut.timings.n_whole, cut.timings.prompt_eval_count) == (40, N_CTX)
    [whole] = serve(scheduler_of(model), Request([1] * N_CTX))
    assert whole.timings.n_whole == 0


# order


def test_first_come_first_served(model):
    scheduler, order = scheduler_of(model, n_slot=2), []
    requests = [Request([1, 300 + i], replace(GREEDY, num_predict=1 + i)) for i in range(5)]
    for i, one in enumerate(requests):
        one.finish = lambda i=i: order.append(i)
    serve(scheduler, *requests)
    assert order == [0, 1, 2, 3, 4]


def test_a_long_prompt_does_not_delay_decoding_sequences(model, monkeypatch):
    monkeypatch.setattr(module, "PREFILL_WHILE_DECODING", 4)
    scheduler = scheduler_of(model, n_slot=2)
    decoding, prompt = Request([1, 300], replace(GREEDY, num_predict=20)), Request([1, *range(300, 320)])
    scheduler.submit(decoding.job(scheduler))
    scheduler.step()
    scheduler.submit(prompt.job(scheduler))
    for n in range(2, 9):  # 21 tokens, three per step
        assert not prompt.pieces
        scheduler.step()
        assert len(decoding.pieces) == n
    assert len(prompt.pieces) == 1


def test_the_oldest_prompt_gets_the_whole_batch(model):
    scheduler = scheduler_of(model, num_batch=8)
    first, second = Request([1, *range(300, 312)]), Request([1, *range(320, 332)])
    for one in (first, second):
        scheduler.submit(one.job(scheduler))
    scheduler.step()
    assert [one.seq.n_cached for one in scheduler.running] == [8, 0]
    scheduler.step()
    assert len(first.pieces) == 1 and not second.pieces


def test_a_short_prompt_does_not_wait_for_a_long_one(model):
    scheduler = scheduler_of(model, num_batch=8, n_slot=4)
    long, short = Request([1, *range(300, 320)]), Request([1, 330, 331])
    third = Request([1, 340, 341])
    for one in (long, short, third):
        scheduler.submit(one.job(scheduler))
    scheduler.step()
    assert [one.seq.n_cached for one in scheduler.running] == [5, 3, 0]  # the long one gets at least half the batch
    assert len(short.pieces) == 1 and not third.pieces
    scheduler.step()
    assert len(third.pieces) == 1 and not long.pieces


def test_a_prompt_is_read_by_a_token_a_step_where_decoding_takes_the_whole_batch(model, monkeypatch):
    monkeypatch.setattr(module, "PREFILL_WHILE_DECODING", 1)
    scheduler = scheduler_of(model)
    decoding, prompt = Request([1, 300], replace(GREEDY, num_predict=20)), Request([1, 310, 311, 312])
    scheduler.submit(decoding.job(scheduler))
    scheduler.step()
    scheduler.submit(prompt.job(scheduler))
    for n in (2, 3, 4):  # BOS is copied from the other slot
        scheduler.step()
        assert [one.seq.n_cached for one in scheduler.running if one.job.handle is prompt.handle] == [n]
    assert len(prompt.pieces) == 1


@pytest.mark.parametrize(("n_short", "cached"), [(4, [4, 4]), (5, [8, 0])])
def test_a_prompt_of_half_the_batch_is_short(model, n_short, cached):
    """In a batch of 8 tokens, a later prompt of 4 comes first and one of 5 waits."""
    scheduler = scheduler_of(model, num_batch=8)
    for one in (Request([1, *range(300, 320)]), Request([1, *range(330, 329 + n_short)])):
        scheduler.submit(one.job(scheduler))
    scheduler.step()
    assert [one.seq.n_cached for one in scheduler.running] == cached


# endings


def test_a_request_cancelled_within_a_shared_pass_ends_after_it(model):
    scheduler = scheduler_of(model)
    kept, cancelled = Request([1, 300]), Request([1, 301])
    for one in (kept, cancelled):
        scheduler.submit(one.job(scheduler))
    scheduler.step()
    cancelled.handle.cancel()
    finish(scheduler)
    assert isinstance(cancelled.error, Cancelled) and len(cancelled.pieces) == 2
    assert kept.answer == kept.alone(model)


def test_a_pass_goes_on_if_only_the_first_of_its_requests_is_cancelled(model, monkeypatch):
    scheduler = scheduler_of(model)
    cancelled, kept = Request([1, 300]), Request([1, 301])

    def tap(handles):
        inner = Scheduler._tap(scheduler, handles)
        return lambda name, il, value: cancelled.handle.cancel() or inner(name, il, value)

    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "_tap", tap)
        for one in (kept, cancelled):  # the later, short one is the first in the pass
            scheduler.submit(one.job(scheduler))
        scheduler.step()
    finish(scheduler)
    assert isinstance(cancelled.error, Cancelled) and kept.answer == kept.alone(model)


def test_a_pass_ends_early_if_all_its_requests_are_cancelled(model, monkeypatch):
    scheduler, seen = scheduler_of(model), []
    cancelled = Request([1] * 20)

    def tap(handles):
        inner = Scheduler._tap(scheduler, handles)
        return lambda name, il, value: seen.append(name) or cancelled.handle.cancel() or inner(name, il, value)

    monkeypatch.setattr(scheduler, "_tap", tap)
    serve(scheduler, cancelled)
    assert isinstance(cancelled.error, Cancelled) and seen == ["embd"]


def test_an_error_of_one_request_does_not_affect_another(model):
    scheduler = scheduler_of(model)
    good, bad, refused = Request([1, 300]), Request([1, 301]), Request([1] * 40, settings={"truncate": False})
    deliver = bad.deliver
    bad.deliver = lambda piece: deliver(piece) if isinstance(piece, Exception) else 1 / 0
    serve(scheduler, bad, good, refused)
    assert isinstance(bad.error, ZeroDivisionError) and isinstance(refused.error, ContextFull)
    assert good.answer == good.alone(model)


def test_a_callback_that_always_fails_does_not_affect_another_request(model):
    scheduler, good = scheduler_of(model), Request([1, 300])
    broken = Request([1, 301])
    broken.deliver = lambda piece: 1 / 0
    serve(scheduler, broken, good)
    assert good.answer == good.alone(model) and len(scheduler.prefixes.free) == 2


def test_stopping_ends_every_request(model):
    scheduler = scheduler_of(model, n_slot=1)
    requests = [Request([1, 300]), Request([1, 301])]
    for one in requests:
        scheduler.submit(one.job(scheduler))
    scheduler.step()
    scheduler.stopped = ShuttingDown()
    finish(scheduler)
    assert [str(one.error) for one in requests] == ["the server is shutting down"] * 2


def test_an_answer_that_repeats_itself_is_ended(model):
    def always_300(name, il, value):
        if name == "result_output":
            value = np.zeros_like(value)
            value[:, 300] = 1e3
        return value

    scheduler = scheduler_of(model)
    scheduler._tap = lambda handles: always_300
    [got] = serve(scheduler, Request([1, 301], replace(GREEDY, num_predict=100)))
    assert len(got.answer) == MAX_REPEATS + 3 and got.pieces[-1].done_reason == "length"
    assert got.timings.eval_count == MAX_REPEATS + 2 and got.timings.prompt_eval_count == 2
