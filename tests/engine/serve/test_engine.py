"""The engine's verbs without HTTP."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from adapters import tiny_lora
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.errors import Cancelled, ContextFull, ModelNotFound, RequestError
from numllama.engine.handle import RequestHandle
from numllama.engine.options import RequestOptions
from numllama.engine.run.piece import Piece
from numllama.engine.serve.answer import grammar_for
from numllama.engine.serve.engine import Engine
from numllama.engine.serve.prompting import Measured, first_that_fits, trim_to_context
from numllama.engine.serve.runner import Runner
from numllama.engine.settings import Settings
from numllama.engine.store import ModelName
from numllama.engine.template import Template, mark_images
from numllama.engine.tokenizer import Tokenizer
from tiny import CHAT_TEMPLATE, tiny_gguf
from tiny_llava import tiny_mmproj

GREEDY = RequestOptions(options={"temperature": 0, "num_predict": 6})


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    engine = Engine(Settings(models=folder / "store", builtin=False))
    path = tiny_gguf(folder / "m.gguf", chat_template=CHAT_TEMPLATE)
    digest, _ = engine.store.put_blob([path.read_bytes()])
    list(engine.create("m", files={"m.gguf": digest}, parameters={"num_predict": 3}))
    yield engine
    engine.close()


def user(*contents):
    return [{"role": "user", "content": content} for content in contents]


def test_an_answer_yields_its_pieces(engine):
    pieces = list(engine.generate("m", "once", GREEDY))
    assert pieces[-1].done_reason == "length" and pieces[-1].timings.eval_count == 6
    assert pieces[-1].timings.eval_duration > 0


def test_a_prompt_far_too_long_is_refused_before_it_is_tokenized(engine, monkeypatch):
    expected = len(list(engine.generate("m", "once", GREEDY)))
    tokenizer = engine.pool.loaded()[0].runner.model.tokenizer
    whole = replace(GREEDY, truncate=False)
    text = "x" * (256 * tokenizer.vocab.longest)
    refused = "the input length exceeds the context length"
    with pytest.raises(ContextFull, match=refused):  # 256 tokens at least, and more in fact
        list(engine.generate("m", text, whole, raw=True))
    monkeypatch.setattr(Tokenizer, "encode", None)
    for answer in (engine.generate, engine.embed):
        with pytest.raises(ContextFull, match=refused):
            answer("m", [text + "x"] if answer == engine.embed else text + "x", whole)
    monkeypatch.undo()
    assert len(list(engine.generate("m", "once", GREEDY))) == expected and engine.pool.loaded()[0].n_using == 0


def test_a_disconnect_ends_the_tokenizing_of_a_long_prompt(engine):
    handle, calls = RequestHandle(), []

    def check():
        calls.append(None)
        if len(calls) > 2:
            handle.cancel()
        RequestHandle.check(handle)

    handle.check = check
    for verb, prompt in (
        (engine.generate, "the cat " * 100_000),
        (engine.chat, user("the cat " * 100_000)),
        (engine.embed, ["the cat " * 100_000]),
    ):
        handle.cancelled = False
        calls.clear()
        with pytest.raises(Cancelled):
            verb("m", prompt, GREEDY, handle=handle)
        assert len(calls) == 3


def test_a_request_uses_the_model_s_options(engine):
    assert list(engine.generate("m", "once"))[-1].timings.eval_count == 3


def test_the_environment_sets_num_ctx(engine):
    small = Engine(Settings(models=engine.settings.models, builtin=False, context_length=32))
    assert small.chat("m", request=GREEDY).is_over
    assert [entry["context_length"] for entry in small.ps()] == [32]
    small.close()


def test_a_chat_equals_a_raw_prompt_of_its_rendered_text(engine):
    answer = engine.chat("m", user("hello"), GREEDY)
    text = "".join(piece.text for piece in answer)
    assert answer.prompt == "<|user|>hello\n<|assistant|>"
    raw = engine.generate("m", answer.prompt, GREEDY, raw=True)
    assert "".join(piece.text for piece in raw) == text


def test_context_is_prompt_and_text_as_tokens_without_bos(engine):
    answer = engine.generate("m", "once", GREEDY)
    text = "".join(piece.text for piece in answer)
    tokenizer = answer.model.tokenizer
    assert answer.context() == tokenizer.encode(answer.prompt + text, add_special=False)
    assert answer.context()[0] != tokenizer.bos


def test_bos_is_not_doubled_if_the_template_writes_it(engine, tmp_path):
    path = tiny_gguf(tmp_path / "b.gguf", chat_template="{{ bos_token }}" + CHAT_TEMPLATE)
    digest, _ = engine.store.put_blob([path.read_bytes()])
    list(engine.create("b", files={"b.gguf": digest}))
    rendered = engine.chat("b", user("hello"), RequestOptions(render_only=True)).prompt
    assert rendered.startswith("<s><|user|>")
    once = list(engine.chat("b", user("hello"), GREEDY))[-1].timings.prompt_eval_count
    assert list(engine.generate("b", rendered, GREEDY, raw=True))[-1].timings.prompt_eval_count == once + 1
    engine.generate("b", request=RequestOptions(keep_alive=0))


def test_an_empty_prompt_loads_and_keep_alive_zero_unloads(engine):
    loaded = engine.generate("m")
    assert (loaded.done_reason, loaded.is_over) == ("load", True)
    assert [entry["name"] for entry in engine.ps()] == ["m:latest"]
    assert engine.chat("m", request=RequestOptions(keep_alive=0)).done_reason == "unload"
    assert engine.ps() == []


def test_two_names_of_one_file_share_a_loaded_model(engine):
    engine.copy("m", "twin")
    engine.generate("m")
    engine.generate("twin")
    assert [entry["name"] for entry in engine.ps()] == ["m:latest"]
    engine.delete("twin")


def test_cancelling_raises_in_the_reader_of_the_pieces(engine):
    handle = RequestHandle()
    answer = engine.generate(
        "m",
        "once",
        RequestOptions(options={"num_predict": -1, "temperature": 3, "logit_bias": {"2": False}}),
        handle=handle,
    )
    pieces = iter(answer)
    next(pieces)
    handle.cancel()
    with pytest.raises(Cancelled):
        list(pieces)


def test_an_adapter_changes_the_answer(engine, tmp_path):
    path = tiny_lora(tmp_path / "a.gguf", engine.store.resolve(ModelName.parse("m")).weights)
    digest, _ = engine.store.put_blob([path.read_bytes()])
    list(engine.create("adapted", "m", adapters={"a.gguf": digest}))

    def tokens(name):
        return [piece.token for piece in engine.generate(name, "once", GREEDY)]

    plain = tokens("m")
    assert tokens("adapted") != plain
    assert [entry["name"] for entry in engine.ps()] == ["adapted:latest"]  # the same weights, loaded again
    assert tokens("m") == plain
    engine.delete("adapted")


def a_part(kind, path, engine):
    """Write an adapter or a projector that does not fit model "m" of `engine`."""
    model = engine.store.resolve("m").weights
    match kind:
        case "other kind":
            return tiny_lora(path, model, general__architecture="qwen2")
        case "wider":
            return tiny_lora(path, tiny_gguf(path.with_name("wide.gguf"), n_embd=128))
        case "deeper":
            return tiny_lora(path, tiny_gguf(path.with_name("deep.gguf"), n_layer=5))
        case "projector":
            return tiny_mmproj(path, n_out=32)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("other kind", "general.architecture is 'qwen2', expected 'llama'"),
        ("wider", r"'blk.0.attn_q.weight.lora_a' has shape \[4, 128\], expected \[4, 64\] for this model"),
        ("deeper", r"'blk.\d.attn_q.weight.lora_a' adapts a matrix that the model does not have"),
        ("projector", "rows are 32 wide, expected the text model's 64"),
    ],
)
def test_an_unsuitable_part_is_refused_when_the_model_is_created(engine, tmp_path, kind, message):
    digest, _ = engine.store.put_blob([a_part(kind, tmp_path / "part.gguf", engine).read_bytes()])
    weights = engine.store.resolve("m").weights_digest
    if kind == "projector":
        statuses = engine.create("bad", files={"m.gguf": weights, "part.gguf": digest})
    else:
        statuses = engine.create("bad", "m", adapters={"part.gguf": digest})
    with pytest.raises(RequestError, match=f"^part.gguf: .*{message}"):
        list(statuses)
    assert "bad" not in {model.name.model for model in engine.store.list()}


def test_an_unknown_name_is_quoted_as_requested(engine):
    with pytest.raises(ModelNotFound, match=r"^model 'Nope' not found$"):
        engine.generate("Nope", "a")
    with pytest.raises(ModelNotFound, match=r"^model 'Nope:latest' not found$"):
        engine.show("Nope")


# conversations longer than the window


def measured(n_token):
    return Measured("", [], n_token)


def shortened(messages, size):
    """Trim with one token per character.  -> the remaining contents"""
    return [
        m["content"]
        for m in trim_to_context(messages, lambda kept: measured(len("".join(m["content"] for m in kept))), size)[0]
    ]


def test_the_oldest_messages_are_dropped_first():
    assert shortened(user("aa", "bb", "cc"), 6) == ["aa", "bb", "cc"]
    assert shortened(user("aa", "bb", "cc"), 5) == ["bb", "cc"]


def test_the_last_message_is_kept_even_if_it_is_too_long():
    assert shortened(user("aa", "bbbbbb"), 3) == ["bbbbbb"]


def test_system_messages_are_kept():
    messages = [*user("aa"), {"role": "system", "content": "S"}, *user("bb", "cc")]
    assert shortened(messages, 3) == ["S", "cc"]


def test_a_conversation_that_just_fits_stays_whole():
    assert shortened(user("aa", "bb", "cc"), 6) == ["aa", "bb", "cc"]
    assert shortened(user("aa", "bb", "cc"), 5) == ["bb", "cc"]
    assert shortened(user("aa", "bb", "cc"), 4) == ["bb", "cc"]
    assert shortened(user("aa", "bb", "cc"), 3) == ["cc"]


def turn(*results, said="question"):
    """Return a conversation of system, user, and a call with each of the results."""
    asked = [{"role": "system", "content": "S"}, *user("old"), *user(said)]
    for i, result in enumerate(results):
        call = {"function": {"name": "f", "arguments": {"i": i}}}
        asked += [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": result}]
    return asked


def test_a_long_tool_result_does_not_push_out_the_question():
    """Its middle is cut, as little as needed within 2 %; start and end are what a reader looks at first."""
    text = "".join(chr(ord("a") + i % 26) for i in range(5000))
    system, question, call, result = shortened(turn(text), 1000)
    assert (system, question, call) == ("S", "question", "")
    start, note, end = re.split(r"\n(.*)\n", result)
    assert text.startswith(start) and text.endswith(end) and abs(len(start) - len(end)) <= 1
    assert note == f"[... {5000 - len(start) - len(end)} characters left out ...]"
    assert 950 < len(system + question + call + result) <= 1000


def test_short_results_stay_whole_beside_a_long_one():
    *_, first, _, second, _, third = shortened(turn("a" * 50, "b" * 5000, "c" * 50), 1000)
    assert (first, third) == ("a" * 50, "c" * 50) and len(second) < 900


def test_of_many_calls_the_oldest_are_dropped_after_the_question():
    results = [f"{i:03}" * 50 for i in range(20)]
    system, question, *rest = shortened(turn(*results), 1000)
    assert (system, question) == ("S", "question")
    assert rest[1::2] == results[-len(rest[1::2]) :] and 4 <= len(rest[1::2]) <= 6


def test_a_result_is_cut_to_nothing_for_a_long_question():
    got = shortened(turn("a" * 500, said="q" * 950), 1000)
    assert got[:3] == ["S", "q" * 950, ""] and re.fullmatch(r"a{0,7}\n\[.*\]\na{0,7}", got[3])


def test_a_question_that_cannot_be_kept_is_dropped_as_before():
    assert shortened(turn("a" * 500, said="q" * 1200), 1000) == ["S", "", "a" * 500]


def test_results_of_earlier_turns_are_dropped_first():
    assert shortened([*turn("a" * 5000), *user("next")], 1000) == ["S", "next"]


def test_a_long_result_is_measured_a_few_times():
    n = 0

    def measure(messages):
        nonlocal n
        n += 1
        return measured(sum(len(m["content"]) // (2 + (m["role"] != "tool")) + 9 for m in messages))

    kept, found, _ = trim_to_context(turn("a" * 1_000_000, "b" * 300), measure, 4096)
    assert n <= 24 and 3900 < found.n_token <= 4096 and kept[1]["content"] == "question"


@given(st.integers(2, 300), st.data())
def test_the_first_that_fits_is_found_from_any_guess(last, data):
    expected, calls = data.draw(st.integers(1, last)), []

    def fits(n):
        calls.append(n)
        return n >= expected

    assert first_that_fits(fits, last, data.draw(st.integers(-5, 400))) == expected
    assert all(0 < n < last for n in calls) and len(calls) == len(set(calls)) <= 2 * last.bit_length() + 2


@pytest.fixture
def counted(engine, monkeypatch):
    """Count how often a template is rendered and a text tokenized."""
    n = {"rendered": 0, "tokenized": 0}

    def count(cls, name, key):
        method = getattr(cls, name)

        def counting(*args, **kwargs):
            n[key] += 1
            return method(*args, **kwargs)

        monkeypatch.setattr(cls, name, counting)

    list(engine.chat("m", user("load")))
    count(Template, "render", "rendered")
    count(Tokenizer, "encode", "tokenized")
    return n


def test_a_prompt_is_rendered_and_tokenized_once(engine, counted):
    list(engine.chat("m", user("once upon a time", "there was", "a girl"), GREEDY))
    assert counted == {"rendered": 1, "tokenized": 1}
    list(engine.generate("m", "once upon a time", GREEDY))
    assert counted == {"rendered": 2, "tokenized": 2}


def test_a_long_conversation_is_measured_at_most_five_times(engine, counted):
    turns = user(*(f"once upon a time there was number {i}" for i in range(121)))
    answer = engine.chat("m", turns, GREEDY)
    list(answer)
    assert counted["rendered"] == counted["tokenized"] <= 5
    assert 200 < answer.n_prompt <= 256


def test_conversations_are_trimmed_as_in_ollama(kept):
    """Recorded with one token per word, and 768 per image for vision models."""
    for case in kept.json("go/chat_truncation"):
        template = Template(case["template"], "go")

        def size(messages, template=template, case=case):
            n_images = sum(len(message.get("images", ())) for message in messages)
            return measured(len(template.render(messages).split()) + 768 * n_images * case["vision"])

        kept, _, _ = trim_to_context(case["messages"], size, case["num_ctx"])
        assert template.render(mark_images(kept)) == case["out"], case["id"]
        assert sum(len(message.get("images", ())) for message in kept) == case["n_images"], case["id"]


# formats


@pytest.mark.parametrize("format", [None, ""])
def test_without_a_format_there_is_no_grammar(format):
    assert grammar_for(None, format) is None


@pytest.mark.parametrize(("format", "shown"), [("xml", r'"\"xml\""'), (1, '"1"'), ([], '"[]"'), (True, '"true"')])
def test_an_invalid_format_is_quoted_as_in_go(format, shown):
    with pytest.raises(RequestError) as refusal:
        grammar_for(None, format)
    assert str(refusal.value) == f'invalid format: {shown}; expected "json" or a valid JSON Schema object'


def test_control_tokens_have_text_if_tool_calls_begin_with_them(engine, tmp_path, monkeypatch):
    text = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}</s>{{ c.function | tojson }}{% endfor %}"
    path = tiny_gguf(tmp_path / "t.gguf", chat_template=text + "{% endfor %}")
    digest, _ = engine.store.put_blob([path.read_bytes()])
    list(engine.create("t", files={"t.gguf": digest}))
    seen = []

    def answer(_, job):
        seen.append(set(job.shown))
        job.deliver(Piece("</s>", token=2))
        job.finished()
        job.deliver(Piece('{"name": "f", "arguments": {}}', done_reason="stop"))

    monkeypatch.setattr(Runner, "submit", answer)
    tools = [{"type": "function", "function": {"name": "f"}}]
    pieces = list(engine.chat("t", user("hello"), tools=tools))
    assert [call.name for piece in pieces for call in piece.tool_calls] == ["f"]
    first, *_ = engine.chat("t", user("hello"))
    assert first.text == "</s>"
    assert seen == [{2}, set()]
