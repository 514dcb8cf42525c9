"""The built-in model gives its trained answers, through the real engine.

The questions are those of examples/train_primer: `held_out.txt` has two rewordings of each, not used in training.
"""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

import numllama
from numllama.engine import store as store_package
from numllama.engine.model.batch import Batch
from numllama.engine.model.decoder import forward
from numllama.engine.model.load import load_model
from numllama.engine.options import Options
from numllama.engine.run.request import complete
from numllama.engine.store import Store
from numllama.kernels import EXACT, NUMBA

BUILTIN = Path(store_package.__file__).parent / "builtin"
RECIPE = Path(__file__).parents[2] / "examples" / "train_primer"


def recipe_modules(*names):
    """Import modules of the recipe, which is a folder of scripts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPE))
        return [importlib.import_module(name) for name in names]


arithmetic, conversations, examinations, questions, topics = recipe_modules(
    "arithmetic", "conversations", "examinations", "questions", "topics"
)
TEXT = conversations.Text()
ASKABLE = [TEXT.topics[id] for id in TEXT.askable]
EXAMINATIONS = dict(examinations.examinations(TEXT))
CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Compute an arithmetic expression",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "such as 12 * 7"}},
            "required": ["expression"],
        },
    },
}
LEAST = {  # the share of right answers: at least this
    "first questions": 0.95,
    "written questions": 0.95,
    "held-out questions": 0.88,
    "follow-ups": 0.9,
    "first questions, thinking": 0.95,
    "held-out questions, thinking": 0.88,
    "system prompt: one_word": 0.9,
    "system prompt: briefly": 0.9,
    "system prompt: examples": 0.9,
    "system prompt: pirate": 0.9,
    "system prompt: a new name": 0.5,
    "calculator called": 0.9,
    "calculator's result told": 0.9,
    "calculator called, thinking": 0.9,
    "calculator's result told, thinking": 0.9,
    "tools offered, another question": 0.9,
    "sums worked out, thinking": 0.9,
    "sums refused": 0.9,
    "texts repeated": 0.8,
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"), BUILTIN).resolve("primer")


@pytest.fixture(scope="module")
def model(stored):
    return load_model(stored.weights)


@pytest.fixture(scope="module")
def primer(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_MODELS", str(tmp_path_factory.mktemp("empty")))
        patch.delenv("NUMLLAMA_BUILTIN", raising=False)
        with numllama.load("primer") as model:
            yield model


@pytest.fixture(scope="module")
def shipped(stored):
    """Return the shipped parameters, with a seed so that failures are reproducible."""
    return Options.parse(stored.params, {"seed": 1})


def chat(*texts):
    """Return messages with alternating roles, the user's first."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def messages_of(question):
    """Return the messages and tools of a question from examinations.py, as a client sends them."""
    messages, tools = [], []
    for system in question.system:
        if system.startswith(arithmetic.TOOLS):
            tools = [CALCULATOR]
        else:
            messages.append({"role": "system", "content": system})
    for turn in [*question.earlier, replace(question.turn, answer="")]:
        messages.append({"role": turn.role, "content": turn.asked})
        if turn.answer.startswith("<tool_call>"):
            call = {"name": "calculator", "arguments": {"expression": turn.answer.split('"')[-2]}}
            thought = {"thinking": turn.thought} if turn.thought else {}
            messages.append({"role": "assistant", "content": "", "tool_calls": [{"function": call}], **thought})
        elif turn.answer:
            messages.append({"role": "assistant", "content": turn.answer})
    return messages, tools


def is_answered(model, question):
    """Check whether temperature 0 would give one of the question's answers word for word, after its thought.

    One forward pass an answer is enough: each token must be the arg-max after those before it.
    """
    messages, tools = messages_of(question)
    prompt = model.template.render(messages, tools, enable_thinking=bool(question.turn.thought))
    asked = model.tokenizer.encode(prompt)
    thought = f"{question.turn.thought}</think>" if question.turn.thought else ""
    return any(is_likeliest(model, asked, thought + answer) for answer in question.answers)


def is_likeliest(model, asked, answer):
    """Check whether `answer` and the end of the turn are the likeliest continuation of the ids `asked`."""
    wanted = [*model.tokenizer.encode(answer, add_special=False), model.tokenizer.eos]
    ids = [*asked, *wanted[:-1]]
    cache = model.new_cache(len(ids))
    logits = forward(model, Batch.of(ids, outputs=range(len(asked) - 1, len(ids))), cache, NUMBA)
    return bool((np.argmax(logits, axis=-1) == wanted).all())


def generate_text(model, messages, options, kernels=NUMBA):
    prompt = model.template.render(messages)
    return "".join(piece.text for piece in complete(model, prompt, options, kernels=kernels))


def share(results):
    results = list(results)
    assert results
    return sum(results) / len(results)


def test_the_file_is_small_and_matches_its_manifest(stored):
    assert stored.is_builtin and stored.weights.stat().st_size <= 4_000_000
    for layer in stored.manifest.all_layers:
        data = stored.blobs.path(layer.digest).read_bytes()
        assert (len(data), f"sha256:{hashlib.sha256(data).hexdigest()}") == (layer.size, layer.digest)
    assert len(list(stored.blobs.folder.iterdir())) == len(stored.manifest.all_layers)
    assert "MIT License" in stored.licenses[0]


def test_the_config_agrees_with_the_weights(stored, model):
    assert stored.config.model_format == "gguf"
    assert stored.config.model_family == model.gguf.kv["general.architecture"]
    assert stored.config.model_type == model.gguf.kv["general.size_label"]


def test_the_template_marks_every_turn(model):
    text = model.template.render([{"role": "system", "content": "Be kind."}, *chat("Hi", "Hello!", "Why? ")])
    assert text == (
        "<|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>Hello!<|end|><|user|>Why?<|end|><|assistant|>"
    )
    ids = model.tokenizer.encode(text)
    assert ids[0] == model.tokenizer.bos and model.tokenizer.decode(ids).endswith(text)
    assert ids.count(model.tokenizer.eos) == 4 and model.tokenizer.eos in model.tokenizer.eog


def test_the_template_names_tools_and_keeps_the_thinking_of_this_turn_alone(model):
    call = {"function": {"name": "calculator", "arguments": {"expression": "2 * 3"}}}
    messages = [
        *chat("Hi", "Hello!", "2 * 3?"),
        {"role": "assistant", "content": "", "thinking": "I call it.", "tool_calls": [call]},
        {"role": "tool", "content": "6"},
    ]
    messages[1]["thinking"] = "I greet."
    assert model.template.render(messages, [CALCULATOR], enable_thinking=True) == (
        "<|system|>Tools: calculator(expression)<|end|><|user|>Hi<|end|><|assistant|>Hello!<|end|><|user|>2 * 3?<|end|>"
        '<|assistant|><think>I call it.</think><tool_call>{"name": "calculator", "arguments": {"expression": "2 * 3"}}'
        "</tool_call><|end|><|tool|>6<|end|><|assistant|><think>"
    )
    assert model.template.takes_results


def test_each_digit_is_a_token(model):
    ids = model.tokenizer.encode("12 and 2048", add_special=False)
    assert [model.tokenizer.piece(id).decode() for id in ids] == ["1", "2", " and", " ", "2", "0", "4", "8"]


def test_held_out_wordings_are_not_in_the_training_data():
    written = [
        q for topic in [*ASKABLE, *TEXT.followups.values(), *TEXT.instructions.values()] for q in topic.questions
    ]
    rng = Random(1)
    kinds = [id for id in TEXT.held_out if id not in TEXT.instructions]
    asked = [TEXT.question(id, rng) for id in kinds * 20]
    systems = [TEXT.conversation(rng, {kind: 1})[0][0] for kind in [*TEXT.instructions] * 40]
    assert TEXT.never.isdisjoint(questions.normalized(q) for q in [*written, *asked, *systems])
    assert {len(held_out) for held_out in TEXT.held_out.values()} == {2}
    others = set(TEXT.stories) | set(conversations.FOLLOWUPS) | set(TEXT.instructions)
    assert set(TEXT.held_out) >= set(TEXT.askable) | others
    known = " ".join(TEXT.texts())
    assert [name for name in examinations.NEW_NAMES if name in known] == []


def test_the_error_for_a_line_without_a_mark_names_its_number(tmp_path):
    (tmp_path / "a.txt").write_text("[one]\n? What?\nThis.\n")
    with pytest.raises(ValueError, match=r"a\.txt:3: .* found 'This\.'"):
        topics.read_topics(tmp_path / "a.txt")


def test_a_sum_is_worked_out_by_ones_and_tens():
    assert TEXT.arithmetic.steps((27, "plus", 45)) == "27 + 45: 7 + 5 = 12. 20 + 40 = 60. 60 + 12 = 72."
    assert TEXT.arithmetic.steps((27, "times", 45)) == TEXT.arithmetic.steps((100, "plus", 1)) == ""


@pytest.mark.parametrize("name", EXAMINATIONS)
def test_questions_are_answered_word_for_word_at_temperature_0(model, name):
    asked = EXAMINATIONS[name]
    assert share(is_answered(model, question) for question in asked[:: 1 + len(asked) // 200]) >= LEAST[name]


@pytest.mark.slow
def test_every_question_of_every_examination_is_asked(model):
    for name, asked in examinations.examinations(TEXT, whole=True):
        assert share(is_answered(model, question) for question in asked) >= LEAST[name], name


def test_every_question_is_answered_at_the_shipped_parameters(model, shipped):
    """In one of its wordings, although tokens are drawn by chance."""
    right = [generate_text(model, chat(t.questions[0]), shipped) in t.answers for t in ASKABLE]
    assert share(right) >= 0.9


def test_lower_case_questions_without_punctuation_are_answered(model):
    asked = EXAMINATIONS["first questions"][::4]
    asked = [replace(q, turn=replace(q.turn, asked=questions.normalized(q.turn.asked))) for q in asked]
    assert share(is_answered(model, question) for question in asked) >= 0.7


def test_the_first_token_is_a_matter_of_chance(model):
    """For most questions the likeliest first token has less than 9 chances in 10, and another one at least 1 in 10."""
    open_questions = []
    for topic in ASKABLE:
        ids = model.tokenizer.encode(model.template.render(chat(topic.questions[0])))
        logits = forward(model, Batch.of(ids), model.new_cache(len(ids)), NUMBA)[0].astype(np.float64)
        p = np.sort(np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum())
        open_questions.append(p[-1] < 0.9 and p[-2] > 0.1)
    assert share(open_questions) >= 0.8


def test_other_seeds_give_other_wordings(primer):
    topic = TEXT.topics["token"]
    replies = {str(primer.generate(topic.questions[0], think=False, temperature=1, seed=seed)) for seed in range(12)}
    assert len(replies & set(topic.answers)) >= 2


def test_a_story_follows_and_another_one_after_it(model):
    stories = list(TEXT.stories.values())
    results = []
    for story, after in zip(stories, [*stories[1:], stories[0]], strict=True):
        ask = topics.Turn(f"Tell me a story about a {story.names[0]}", story.answer)
        another = topics.Turn("Another one", after.answer)
        results.append(is_answered(model, examinations.Question(ask, [story.answer])))
        results.append(is_answered(model, examinations.Question(another, [after.answer], [ask])))
    assert share(results) >= 0.9


def test_unknown_questions_get_the_unknown_answer(model):
    asked = [*TEXT.held_out["unknown"], "What is a frumple?", "How do I repair a bicycle?"]
    asked += ["Who was Galileo?", "Write a poem about winter", "Where is Iceland?"]
    answers = TEXT.topics["unknown"].answers
    questions = [examinations.Question(topics.Turn(q, ""), answers) for q in asked]
    assert share(is_answered(model, question) for question in questions) >= 0.7


def test_the_exact_kernels_give_the_same_answer(model):
    options, messages = Options(temperature=0.0, num_predict=80), chat("Why is the grass green?")
    text = generate_text(model, messages, options, EXACT)
    assert text in TEXT.topics["grass"].answers and text == generate_text(model, messages, options)


def test_a_tool_is_called_and_its_result_becomes_an_answer(primer):
    messages = [{"role": "user", "content": "What is 12 times 7?"}]
    asked = primer.chat(messages, tools=[CALCULATOR], temperature=0)
    assert [call["function"] for call in asked.tool_calls] == [
        {"name": "calculator", "arguments": {"expression": "12 * 7"}}
    ]
    assert asked.text == "" and asked.thinking == "I leave 12 * 7 to the calculator."
    messages += [asked.message, {"role": "tool", "content": "84", "tool_name": "calculator"}]
    told = primer.chat(messages, tools=[CALCULATOR], temperature=0)
    assert told.text == "12 times 7 is 84." and told.tool_calls == []


def test_thinking_finds_a_sum_that_the_model_cannot_say_at_once(primer):
    thought = primer.chat("What is 27 plus 45?", think=True, temperature=0)
    assert thought.text == "27 plus 45 is 72." and thought.thinking.endswith("60 + 12 = 72.")
    at_once = primer.chat("What is 27 plus 45?", think=False, temperature=0)
    assert at_once.text in TEXT.topics["sums"].answers and at_once.thinking == ""


def test_a_system_prompt_is_obeyed(primer):
    def answer(system, question):
        return str(primer.generate(question, system=system, think=False, temperature=0))

    assert answer("Answer in one word.", "Why is the grass green?") == "Chlorophyll."
    assert answer("You are a pirate.", "What is a token?").startswith("Arr, matey!")
    assert "Wilma" in answer("Your name is Wilma.", "Hello")
