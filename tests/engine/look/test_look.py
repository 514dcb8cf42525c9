"""Looks: the values are those of a trace, the text is the text without, and changes change what they name."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numllama
from numllama.engine.errors import RequestError
from numllama.engine.look import collector
from numllama.engine.look.collector import attention_weights
from numllama.engine.look.request import LookRequest
from numllama.engine.look.timeline import Timeline
from numllama.engine.model.trace import Trace
from numllama.engine.sampling.steps import softmax
from numllama.kernels import Attention
from tiny import CHAT_TEMPLATE, tiny_gguf

PROMPT = "once upon a time there was a cat"
FAMILIES = ("llama", "qwen3moe", "gemma2", "granite", "mistral3", "smollm3", "gpt-oss")
GREEDY = {"temperature": 0, "num_predict": 5, "raw": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("look")


@pytest.fixture(scope="module")
def model(folder):
    with numllama.load(tiny_gguf(folder / "m.gguf", seed=3, chat_template=CHAT_TEMPLATE), num_ctx=64) as model:
        yield model


@pytest.fixture(scope="module", params=FAMILIES)
def exact(request, folder):
    """Models of several families by NumPy's kernels, which a trace can look into."""
    path = tiny_gguf(folder / f"{request.param}.gguf", request.param, seed=4)
    with numllama.load(path, num_ctx=64, kernels="numpy-float32") as model:
        yield model


def test_attention_weights_are_those_of_a_trace(exact):
    look = exact.look(PROMPT, **GREEDY)
    expected = exact.trace(look.ids[:-1], "kq_soft_max")
    for il in range(exact.model.hparams.n_layer):
        got = np.stack([look.attention[il, h] for h in range(exact.model.hparams.n_head)])
        # the cache holds f16 in a request and f32 in a trace
        np.testing.assert_allclose(got, expected["kq_soft_max", il], atol=4e-3)
        sums = got.sum(axis=-1)
        has_sinks = exact.model.hparams.attention[il].sinks is not None
        assert (sums < 1).all() if has_sinks else np.allclose(sums, 1, atol=1e-5)


@pytest.mark.parametrize("type", ["q8_0", "f32"])
def test_attention_is_that_of_the_cache_s_type(folder, monkeypatch, type):
    """Keys in blocks are rotated, and queries with them; the weights differ by the rounding of 8 bits alone."""
    path = tiny_gguf(folder / "wide.gguf", seed=5, n_head_dim=64)
    looks = []
    for used in ("f16", type):
        monkeypatch.setenv("OLLAMA_KV_CACHE_TYPE", used)
        with numllama.load(path, num_ctx=64) as model:
            looks.append(model.look(PROMPT, temperature=0, num_predict=1, raw=True))
            assert looks[-1].cache["type"] == used
    np.testing.assert_allclose(np.asarray(looks[1].attention), np.asarray(looks[0].attention), atol=0.03)


def test_a_head_alone_has_its_own_slope_and_sink():
    random = np.random.default_rng(0)
    q, k = (random.standard_normal((5, n, 16), np.float32) for n in (4, 2))
    rule = Attention(0.25, slopes=np.float32([0, 0.1, 0.2, 0.3]), sinks=np.float32([0, 1, 2, 3]))
    expected = attention_weights(q, k, 0, rule, [0, 1, 2, 3])
    for h in range(4):
        (got,) = attention_weights(q, k, 0, rule, [h])
        np.testing.assert_allclose(got, expected[h], rtol=1e-5, atol=1e-7)
        assert (got.sum(axis=1) < 1).all()  # the sink has the rest


def test_a_peak_is_the_largest_weight_of_its_head(exact):
    for step in exact.look(PROMPT, peaks=True, **GREEDY).steps:
        places, weights = (part.reshape(-1) for part in step.peaks)
        assert places.tolist() == step.attention.argmax(axis=1).tolist()
        np.testing.assert_array_equal(weights, step.attention.max(axis=1))


@pytest.mark.parametrize("n_token", [5, 110])
def test_a_map_has_the_weights_of_the_answer(folder, n_token):
    """Whole while the answer is short; else rows of some tokens, and in each cell the largest weight."""
    path = tiny_gguf(folder / "long.gguf", "gemma2", seed=6, n_ctx=1024)
    long = {"temperature": 0, "num_predict": n_token, "raw": True, "logit_bias": {"2": False}, "seed": 1}
    with numllama.load(path) as model:
        look = model.look(PROMPT, keep=True, **long)
        n = len(look.ids) - 1
        for head in (None, 2):
            found = model.engine.look_at_maps(look.prompt.run, 1, head)
            assert found.rows == list(range(0, n, found.every)) and found.heads == (
                [0, 1, 2, 3] if head is None else [2]
            )
            assert (found.every, found.width) == ((1, 1) if n <= 64 or head else (2, 2))
            for h, got in zip(found.heads, found.weights, strict=True):
                expected = look.attention[1, h][found.rows]
                cells = [expected[:, i : i + found.width].max(axis=1) for i in range(0, n, found.width)]
                np.testing.assert_allclose(got, np.transpose(cells), atol=1e-6)


def test_a_map_of_a_layer_or_head_that_does_not_exist_is_refused(model):
    look = model.look(PROMPT, keep=True, **GREEDY)
    for layer, head in ((9, None), (0, 4)):
        with pytest.raises(RequestError, match="does not exist, expected 0 to"):
            model.engine.look_at_maps(look.prompt.run, layer, head)


def test_a_position_looked_at_again_has_no_draw(model):
    """Not an empty one, which a page would read."""
    look = model.look(PROMPT, keep=True, **GREEDY)
    _, step = model.engine.look_again(look.prompt.run, 1, {"sampler": True, "logits": 3})
    assert step.sampler is None and len(step.logits.ids) == 3


def test_the_last_layer_s_lens_is_the_model_s_prediction(exact):
    look = exact.look(PROMPT, lens=exact.model.hparams.n_vocab, **GREEDY)
    expected = exact.logits(look.ids[:-1])
    for step, row in zip(look.steps, expected, strict=True):
        p = np.zeros(len(row))
        p[step.lens.ids[-1]] = step.lens.p[-1]
        np.testing.assert_allclose(p, softmax(row), atol=2e-3)  # f16 against f32 in the cache
        if step.sampled:
            assert step.lens.rank[-1] == 0 and step.lens.ids[-1, 0] == step.next  # greedy


def test_what_the_blocks_add_sums_to_the_logit(exact):
    """Up to the soft-cap, which gemma2 applies after the sum."""
    look, hp = exact.look(PROMPT, logits=-1, **GREEDY), exact.model.hparams
    for step in (step for step in look.steps if step.sampled):
        total = step.residual.adds.sum()
        if hp.logit_softcap:
            total = hp.logit_softcap * np.tanh(total / hp.logit_softcap)
        np.testing.assert_allclose(total, step.logits.values[step.next], rtol=1e-4, atol=1e-4)


def test_neurons_add_up_to_what_the_block_adds(exact):
    """All of them, in layer 1; experts have no neurons of their own here."""
    if exact.model.hparams.n_expert:
        assert exact.look(PROMPT, **GREEDY).steps[0].residual.neurons == []
        return
    for step in exact.look(PROMPT, neurons=1000, **GREEDY).steps[-2:]:
        ours = sum(adds for il, _, _, adds in step.residual.neurons if il == 1)
        np.testing.assert_allclose(ours, step.residual.adds[4], rtol=1e-3, atol=1e-3)  # embedding, 2 blocks a layer


def test_neurons_of_some_layers_are_those_of_all(model):
    whole, last = (model.look(PROMPT, neuron_layers=layers, **GREEDY).steps for layers in ([], [-1]))
    for one, other in zip(whole, last, strict=True):
        assert other.residual.neurons == [row for row in one.residual.neurons if row[0] == 1] != []


def test_columns_of_a_small_matrix_are_those_of_a_large_one(model, monkeypatch):
    looks = [model.look(PROMPT, neurons=3, **GREEDY)]
    monkeypatch.setattr(collector, "SMALL_MATRIX", 0)
    looks.append(model.look(PROMPT, neurons=3, **GREEDY))
    small, large = (np.array([step.residual.neurons for step in look.steps]) for look in looks)
    np.testing.assert_array_equal(small[..., :3], large[..., :3])
    np.testing.assert_allclose(small[..., 3], large[..., 3], rtol=1e-9, atol=1e-12)  # float64 sums in another order


def test_values_are_those_of_a_trace(model):
    look = model.look(PROMPT, values=["l_out-*", "ffn_swiglu-1"], **GREEDY)
    expected = Trace("l_out", "ffn_swiglu")
    expected.values = model.trace(look.ids[:-1], "l_out", "ffn_swiglu").values
    assert set(look.steps[0].values) == {"l_out-0", "l_out-1", "ffn_swiglu-1"}
    for name, il in (("l_out", 0), ("l_out", 1), ("ffn_swiglu", 1)):
        got = np.stack([step.values[f"{name}-{il}"] for step in look.steps])
        np.testing.assert_allclose(got, expected[name, il], atol=2e-2)  # f16 against f32 in the cache


looks = st.fixed_dictionaries(
    {},
    optional={
        "attention": st.sampled_from(["*", [[0, 1]], [[1, "*"], [0, 0]], []]),
        "peaks": st.booleans(),
        "lens": st.integers(0, 9),
        "logits": st.integers(-1, 9),
        "neurons": st.integers(0, 3),
        "neuron_layers": st.sampled_from([[], [0], [-1, 0]]),
        "values": st.sampled_from([[], ["*"], ["l_out-1", "Q*"]]),
        "rows": st.sampled_from(["all", "last"]),
        "keep": st.booleans(),
    },
)
answers = st.fixed_dictionaries(
    {"seed": st.integers(0, 99), "num_predict": st.integers(1, 8)},
    optional={"temperature": st.floats(0, 2), "top_k": st.integers(0, 50), "mirostat": st.integers(0, 2)},
)


@settings(max_examples=25)
@given(looks, answers, st.sampled_from([PROMPT, "a", "the dog and the big dog " * 4]))
def test_the_text_with_a_look_is_the_text_without(model, look, options, prompt):
    expected = model.generate(prompt, raw=True, **options)
    got = model.look(prompt, raw=True, **look, **options)
    assert (got.text, got.reply.ids) == (expected.text, expected.ids)


def test_every_position_has_its_token_and_the_one_that_follows(model):
    look = model.look(PROMPT, **GREEDY)
    assert [step.position for step in look.steps] == list(range(len(look.ids) - 1))
    assert [step.token for step in look.steps] == look.ids[:-1]
    assert [step.next for step in look.steps] == look.ids[1:]
    assert [step.sampled for step in look.steps] == [i >= look.n_prompt - 1 for i in range(len(look.steps))]
    last = model.look(PROMPT, rows="last", **GREEDY)
    assert [step.position for step in last.steps] == list(range(look.n_prompt - 1, len(look.ids) - 1))
    first = look.steps[look.n_prompt - 1].attention  # NumPy's sums depend on how many rows there are
    np.testing.assert_allclose(last.steps[0].attention, first, rtol=1e-5, atol=1e-7)


def values_of(look):
    return [(step.position, step.token, step.next, step.lens.ids.tolist()) for step in look.steps]


def test_a_prompt_in_chunks_shows_the_same(folder):
    with numllama.load(folder / "m.gguf", num_ctx=64) as model:
        whole, chunks = (model.look(PROMPT, num_batch=n, values=["l_out-*"], **GREEDY) for n in (512, 3))
        assert values_of(chunks) == values_of(whole)
        np.testing.assert_allclose(np.asarray(chunks.attention), np.asarray(whole.attention), rtol=1e-5, atol=1e-7)
        for mine, theirs in zip(chunks.steps, whole.steps, strict=True):
            assert all((mine.values[name] == value).all() for name, value in theirs.values.items())


def test_looks_that_share_steps_do_not_mix(model):
    """Four at once, of different lengths and with different changes; some of the steps have tokens of several."""
    prompts = ["once upon a time", "the dog", "a", PROMPT * 3]
    changes = [[], [{"layer": 0, "head": 2}], [], [{"layer": 1, "block": "ffn"}]]
    options = {"temperature": 1, "seed": 4, "num_predict": 12, "raw": True, "values": ["l_out-*"]}
    alone = [model.look(prompt, ablate=c, **options) for prompt, c in zip(prompts, changes, strict=True)]
    timeline = next(iter(model.engine.timelines().values()))
    for _ in range(20):
        with ThreadPoolExecutor() as threads:  # each waits for its own answer
            ask = [threads.submit(model.look, p, ablate=c, **options) for p, c in zip(prompts, changes, strict=True)]
            together = [one.result() for one in ask]
        for mine, theirs in zip(together, alone, strict=True):
            assert values_of(mine) == values_of(theirs)
            np.testing.assert_allclose(np.asarray(mine.attention), np.asarray(theirs.attention), rtol=1e-5, atol=1e-7)
            for a, b in zip(mine.steps, theirs.steps, strict=True):
                assert all((a.values[name] == value).all() for name, value in b.values.items())
        jobs = {look.prompt.job for look in together}
        if any(len({share.job for share in step.shares} & jobs) > 1 for step in timeline.snapshot()):
            return
    raise AssertionError("no step was shared in 20 tries")


def test_the_ledger_ends_with_the_token_and_keeps_what_it_says(model):
    look = model.look(PROMPT, raw=True, seed=2, num_predict=4, top_k=5, top_p=0.7)
    assert len(look.sampler) == 4
    for step, ledger in zip((s for s in look.steps if s.sampler), look.sampler, strict=True):
        assert [one.name for one in ledger][:3] == ["logits", "penalties", "top_k"] and ledger[2].n == 5
        assert ledger[-1].name == "dist" and ledger[-1].ids.tolist() == [step.next]
        np.testing.assert_allclose(ledger[2].kept, ledger[1].p[:5].sum(), rtol=1e-6)
        assert ledger[5].kept >= 0.7 and ledger[5].name == "top_p"


def test_a_held_answer_shows_the_same_at_any_position(model):
    look = model.look(PROMPT, keep=True, seed=3, **{**GREEDY, "temperature": 0.9})
    wanted = {"attention": "*", "lens": 3, "logits": -1, "values": ["l_out-1"]}
    for step in look.steps:
        _, again = model.engine.look_again(look.prompt.run, step.position, wanted)
        assert (again.token, again.next) == (step.token, step.next)
        np.testing.assert_allclose(again.attention, step.attention, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(again.lens.ids, step.lens.ids[:, :3])
        if step.logits:
            chosen = {int(id): value for id, value in enumerate(again.logits.values)}
            assert all(
                chosen[id] == value for id, value in zip(step.logits.ids.tolist(), step.logits.values, strict=True)
            )
    with pytest.raises(RequestError, match=f"position {len(look.ids) - 1} does not exist"):
        model.engine.look_again(look.prompt.run, len(look.ids) - 1, {})
    with pytest.raises(RequestError, match="no answer 'x' is held"):
        model.engine.look_again("x", 0, {})


def test_an_ablated_head_adds_nothing(model):
    look = model.look(PROMPT, ablate=[{"layer": 0, "head": 1}], values=["kqv_out-0"], **GREEDY)
    d = model.model.hparams.n_head_dim
    assert look.prompt.changed == ["without layer 0, head 1"]
    plain = model.look(PROMPT, values=["kqv_out-0"], **GREEDY)
    for step, was in zip(look.steps[: look.n_prompt], plain.steps, strict=False):
        mine, theirs = step.values["kqv_out-0"], was.values["kqv_out-0"]
        np.testing.assert_array_equal(mine[:d], theirs[:d])
        assert theirs[d : 2 * d].any() and step.residual.adds[1] != was.residual.adds[1]


@pytest.mark.parametrize("block", ["attn", "ffn", "layer"])
def test_an_ablated_block_adds_nothing(exact, block):
    look = exact.look(PROMPT, ablate=[{"layer": 1, "block": block}], **GREEDY)
    for step in look.steps:
        embedding, *blocks = step.residual.norms
        attn, ffn = blocks[2:4]
        assert (attn == 0) == (block != "ffn") and (ffn == 0) == (block != "attn") and embedding > 0


def test_changed_keys_are_not_reused(model):
    """The next request with this prompt finds nothing of the ablated one in the cache."""
    fresh = "the boy and the girl"
    changed = model.look(fresh, ablate=[{"layer": 0, "block": "layer"}], **GREEDY)
    plain = model.look(fresh, rows="last", **GREEDY)
    assert plain.cache["reused"] == plain.cache["reusable"] < 2  # the BOS of other prompts
    assert changed.text != plain.text
    assert model.look(fresh, rows="last", **GREEDY).cache["reused"] == plain.n_prompt - 1
    assert model.look(fresh, **GREEDY).cache["reused"] == 0


def test_patching_the_last_layer_s_output_gives_the_other_prompt_s_token(model):
    other = "the little dog"
    expected = model.look(other, **GREEDY)
    got = model.look(PROMPT, patch=[{"name": "l_out", "layer": 1, "row": -1, "from": other}], **GREEDY)
    assert got.reply.ids[0] == expected.reply.ids[0] != model.look(PROMPT, **GREEDY).reply.ids[0]


@pytest.mark.parametrize(
    ("look", "message"),
    [
        ([], "expected an object with some of attention, lens"),
        ({"lense": 5}, "look: unknown field 'lense'; known are attention"),
        ({"lens": -1}, "look.lens: expected a number from 0"),
        ({"attention": [[2, 0]]}, "look.attention: layer 2 does not exist, expected 0 to 1"),
        ({"attention": [[0, 4]]}, "head 4 does not exist, expected 0 to 3"),
        ({"attention": [0, 1]}, "expected \\[layer, head\\]"),
        ({"attention": "all"}, "expected a list of \\[layer, head\\]"),
        ({"values": ["kq-0"]}, "exists only inside attention"),
        ({"ablate": [{"layer": 0}]}, 'expected "head" or "block"'),
        ({"ablate": [{"layer": 0, "block": "mlp"}]}, "unknown block 'mlp'; choose from attn, ffn, layer"),
        ({"patch": [{"name": "l_out", "layer": 0}]}, "expected another prompt's text"),
        ({"prompt": "some"}, 'expected "all" or "last", got'),
        ({"encoding": "f8"}, 'expected "" or "f16"'),
        ({"sampler": 1}, "look.sampler: expected true or false, got 1"),
    ],
)
def test_a_wrong_field_is_named(model, look, message):
    with pytest.raises(RequestError, match=message):
        LookRequest.parse(look, model.model.hparams)


def test_a_missing_row_or_value_to_patch_is_named(model):
    for patch, message in (
        ({"name": "l_out", "layer": 0, "row": 99, "from": "a"}, "has no token 99"),
        ({"name": "nope", "layer": 0, "from": "a"}, "layer 0 has no value 'nope'"),
        ({"name": "l_out", "layer": 0, "row": 0, "from_row": 50, "from": "a"}, "other prompt has no token 50"),
    ):
        with pytest.raises(RequestError, match=message):
            _ = model.look(PROMPT, patch=[patch], **GREEDY).text


def test_a_look_too_large_says_which_part_is(folder, monkeypatch):
    monkeypatch.setenv("OLLAMA_LOOK_LIMIT", "1")
    with numllama.load(tiny_gguf(folder / "limit.gguf", n_ctx=512), num_ctx=512) as model:
        with pytest.raises(RequestError, match=r"look: attention \d+\.\d MiB, .* over the limit of 1.0 MiB"):
            _ = model.look(PROMPT, temperature=0, num_predict=400).text
        with pytest.raises(RequestError, match="over the limit"):  # as it grows, where no number of tokens is named
            _ = model.look(PROMPT, temperature=1, seed=1, ignore_eos=True).text
        assert model.look(PROMPT, temperature=0, num_predict=40, attention=[[0, 0]]).text


def test_what_a_look_shows_of_the_prompt_counts_as_its_time(model, monkeypatch):
    whole = collector.Collector.end

    def slow(self, tokens, at, span, row=None):
        time.sleep(0.1 if at == 0 else 0)
        whole(self, tokens, at, span, row)

    monkeypatch.setattr(collector.Collector, "end", slow)
    assert model.look(PROMPT, **GREEDY).reply.timings.prompt_eval_duration > 1e8


def test_the_timeline_names_who_shared_a_step():
    line = Timeline()
    line.append((1_000_000, 500_000, 1, 0, 9, True, 2, 1, 1, False))
    line.append((1_600_000, 100_000, 2, 1, 1, False))
    assert line.steps()[0] == {
        "at_us": 0,
        "us": 500,
        "shares": [
            {"job": 1, "slot": 0, "tokens": 9, "phase": "prefill"},
            {"job": 2, "slot": 1, "tokens": 1, "phase": "decode"},
        ],
    }
    events = line.trace_events("m")
    assert [event["ph"] for event in events] == ["M", "M", "M", "X", "X", "X"]
    first = events[3]
    assert (first["ts"], first["dur"], first["tid"], first["args"]["shared_with"]) == (1000.0, 500.0, 1, [2])


def test_the_ring_keeps_the_last_2000_steps():
    line = Timeline()
    line.extend((i, 1, []) for i in range(2500))
    assert len(line) == 2000 and line[0][0] == 500


def test_the_parts_have_pictures(model):
    look = model.look(PROMPT, **GREEDY)
    for part in (look, look.attention, look.lens, look.sampler, look.time, look.cache, look.merges):
        html = part._repr_html_()
        assert html.startswith(("<table", "<div", "<details")) and "<script" not in html
    hostile = model.look("<script>alert(1)</script>", **GREEDY)
    assert "<script" not in hostile.merges._repr_html_() + hostile._repr_html_() + hostile.lens._repr_html_()


def test_the_parts_are_plotted(model):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    look = model.look(PROMPT, **GREEDY)
    figures = [part.plot() for part in (look.attention, look.lens, look.sampler, look.time, look.cache, look.merges)]
    assert all(figure.get_axes() for figure in figures)
    np.testing.assert_array_equal(
        look.attention.plot((1, 2)).get_axes()[0].get_images()[0].get_array(), look.attention[1, 2]
    )
