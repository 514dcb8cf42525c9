"""The built-in model gives its trained answers, through the real engine.

The questions are those of examples/train_primer/text.  `held_out.txt` has two rewordings of each, not used in training.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

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


def recipe_module(name):
    spec = importlib.util.spec_from_file_location(f"train_primer_{name}", RECIPE / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


conversations = recipe_module("conversations")
TEXT = conversations.Text()
TOPICS = {**TEXT.topics, **TEXT.stories}
ASKABLE = [TEXT.topics[id] for id in TEXT.askable]
FIRST = [(topic.questions[0], topic.answer) for topic in ASKABLE]
HELD_OUT = [(q, TOPICS[id].answer) for id, questions in TEXT.held_out.items() if id in TOPICS for q in questions]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"), BUILTIN).resolve("primer")


@pytest.fixture(scope="module")
def model(stored):
    return load_model(stored.weights)


@pytest.fixture(scope="module")
def shipped(stored):
    """Return the shipped parameters, with a seed so that failures are reproducible."""
    return Options.parse(stored.params, {"seed": 1})


def chat(*texts):
    """Return messages with alternating roles, the user's first."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def generate_text(model, messages, options, kernels=NUMBA):
    prompt = model.template.render(messages)
    return "".join(piece.text for piece in complete(model, prompt, options, kernels=kernels))


def is_greedy_answer(model, messages, answer):
    """Check whether temperature 0 would give `answer` word for word.

    One forward pass is enough: each token must be the arg-max after those before it.
    """
    asked = model.tokenizer.encode(model.template.render(messages))
    wanted = [*model.tokenizer.encode(answer, add_special=False), model.tokenizer.eos]
    ids = [*asked, *wanted[:-1]]
    cache = model.new_cache(len(ids))
    logits = forward(model, Batch.of(ids, outputs=range(len(asked) - 1, len(ids))), cache, NUMBA)
    return bool((np.argmax(logits, axis=-1) == wanted).all())


def begins(model, messages, answer, options):
    """Check whether the generated text begins like `answer`, which is enough to identify the topic."""
    text = generate_text(model, messages, replace(options, num_predict=10))
    return len(text) > 10 and answer.startswith(text)


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


def test_held_out_wordings_are_not_in_the_training_data():
    written = [q for topic in [*ASKABLE, *TEXT.followups.values()] for q in topic.questions]
    rng = Random(1)
    asked = [TEXT.question(id, rng) for id in [*TEXT.held_out] * 20]
    assert TEXT.never.isdisjoint(conversations.normalized(q) for q in [*written, *asked])
    assert {len(questions) for questions in TEXT.held_out.values()} == {2}
    assert set(TEXT.held_out) >= set(TEXT.askable) | set(TEXT.stories) | set(conversations.FOLLOWUPS)


def test_the_error_for_a_line_without_a_mark_names_its_number(tmp_path):
    (tmp_path / "a.txt").write_text("[one]\n? What?\nThis.\n")
    with pytest.raises(ValueError, match=r"a\.txt:3: .* found 'This\.'"):
        conversations.read_topics(tmp_path / "a.txt")


def test_every_question_is_answered_word_for_word_at_temperature_0(model):
    assert share(is_greedy_answer(model, chat(q), answer) for q, answer in FIRST) >= 0.95


def test_every_question_is_answered_at_the_shipped_parameters(model, shipped):
    assert share(generate_text(model, chat(q), shipped) == answer for q, answer in FIRST) >= 0.95


def test_rewordings_are_answered_at_temperature_0(model):
    assert share(is_greedy_answer(model, chat(q), answer) for q, answer in HELD_OUT) >= 0.7


def test_rewordings_are_answered_at_the_shipped_parameters(model, shipped):
    assert share(begins(model, chat(q), answer, shipped) for q, answer in HELD_OUT) >= 0.7


def test_lower_case_questions_without_punctuation_are_answered(model):
    asked = [(conversations.normalized(q), answer) for q, answer in FIRST[::4]]
    assert share(is_greedy_answer(model, chat(q), answer) for q, answer in asked) >= 0.7


@pytest.mark.parametrize("kind", conversations.FOLLOWUPS)
def test_a_second_turn_refers_to_the_first(model, kind):
    mark = conversations.FOLLOWUPS[kind]
    followups = [*TEXT.followups[kind].questions[:2], *TEXT.held_out[kind]]
    answers = []
    for i, topic in enumerate(ASKABLE[::2]):
        turns = chat(topic.questions[0], topic.answer, followups[i % len(followups)])
        answers.append(is_greedy_answer(model, turns, topic.lines[mark]))
    assert share(answers) >= 0.9


def test_stories_are_generated_and_another_one_follows(model):
    stories = list(TEXT.stories.values())
    results = [is_greedy_answer(model, chat("Tell me a story"), stories[0].answer)]
    for story, after in zip(stories, [*stories[1:], stories[0]], strict=True):
        ask = f"Tell me a story about a {story.names[0]}"
        results.append(is_greedy_answer(model, chat(ask), story.answer))
        results.append(is_greedy_answer(model, chat(ask, story.answer, "Another one"), after.answer))
    assert share(results) >= 0.9


def test_unknown_questions_get_the_unknown_answer(model):
    asked = [*TEXT.held_out["unknown"], "What is 6 times 9?", "What is a frumple?", "How do I repair a bicycle?"]
    asked += ["Who was Galileo?", "Write a poem about winter", "Where is Iceland?"]
    assert share(is_greedy_answer(model, chat(q), TEXT.topics["unknown"].answer) for q in asked) >= 0.7


def test_the_exact_kernels_give_the_same_answer(model):
    question, answer = FIRST[TEXT.askable.index("grass")]
    assert generate_text(model, chat(question), Options(temperature=0.0, num_predict=80), EXACT) == answer


@pytest.mark.slow
def test_every_written_question_is_answered_word_for_word(model):
    written = [(q, topic.answer) for topic in ASKABLE for q in topic.questions]
    assert share(is_greedy_answer(model, chat(q), answer) for q, answer in written) >= 0.95


@pytest.mark.slow
def test_every_second_turn_refers_to_the_first(model):
    asked = [
        (chat(topic.questions[0], topic.answer, q), topic.lines[mark])
        for topic in ASKABLE
        for kind, mark in conversations.FOLLOWUPS.items()
        for q in TEXT.held_out[kind]
    ]
    assert share(is_greedy_answer(model, turns, answer) for turns, answer in asked) >= 0.9
