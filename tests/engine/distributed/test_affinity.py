"""Which replica gets a request: the one that knows its beginning, unless others have much less to do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.distributed.affinity import CHUNK_CHARS, MAX_CHUNKS, Beginning, SentBeginnings, preferred
from numllama.engine.distributed.replicas import Scale
from numllama.engine.errors import RequestError

texts = st.text(max_size=20).map(lambda text: text * 40)


@given(texts, texts, texts)
def test_keys_are_equal_as_far_as_whole_chunks_of_the_texts_are(common, one, other):
    a, b = Beginning.of("m", common + one), Beginning.of("m", common + other)
    chunks = [
        [text[at : at + CHUNK_CHARS] for at in range(0, len(text), CHUNK_CHARS)]
        for text in (common + one, common + other)
    ]
    whole = [[chunk for chunk in each if len(chunk) == CHUNK_CHARS] for each in chunks]
    n_equal = next((i for i, (x, y) in enumerate(zip(*whole, strict=False)) if x != y), min(map(len, whole)))
    assert a.keys[: n_equal + 1] == b.keys[: n_equal + 1]
    assert not set(a.keys[n_equal + 1 :]) & set(b.keys[n_equal + 1 :])


def test_another_model_has_other_keys_and_a_long_text_a_limited_number():
    text = "x" * CHUNK_CHARS * (MAX_CHUNKS + 9)
    a, b = Beginning.of("a", text), Beginning.of("b", text)
    assert len(a.keys) == MAX_CHUNKS + 1
    assert not set(a.keys) & set(b.keys)


def test_a_replica_knows_what_it_was_sent_up_to_the_first_gap():
    sent, text = SentBeginnings(), "".join(chr(97 + i) * CHUNK_CHARS for i in range(4))
    sent.record(Beginning.of("m", text[: 2 * CHUNK_CHARS]), "A")
    sent.record(Beginning.of("m", text), "B")
    sent.record(Beginning.of("m"), "C")
    assert sent.n_known(Beginning.of("m", text), "ABCD") == {"A": 3, "B": 5, "C": 1, "D": 0}
    sent.forget_all_but("A")
    assert sent.n_known(Beginning.of("m", text), "ABC") == {"A": 3, "B": 0, "C": 0}


def test_the_least_recently_used_keys_are_dropped_first():
    sent = SentBeginnings(max_keys=2)
    for model in "abac":
        sent.record(Beginning.of(model), "A")
    assert [sent.n_known(Beginning.of(model), "A")["A"] for model in "abc"] == [1, 0, 1]


def test_what_is_known_counts_while_the_queue_is_at_most_slack_longer():
    known = {"A": 5, "B": 1}
    assert preferred({"A": 4, "B": 0, "C": 0}, known, slack=4)[0] == "A"
    assert preferred({"A": 5, "B": 1, "C": 0}, known, slack=4)[:2] == ["B", "C"]
    assert preferred({"A": 9, "B": 9, "C": 0}, known, slack=4)[0] == "C"


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 9), min_size=1), st.integers(0, 9), st.text(max_size=3))
def test_every_replica_is_in_the_order_once_and_without_knowledge_the_shortest_queue_is_first(queues, slack, model):
    order = preferred(queues, {}, slack, model)
    assert sorted(order) == sorted(queues)
    assert queues[order[0]] == min(queues.values())


def test_models_are_spread_over_equal_replicas_and_always_in_the_same_way():
    queues = dict.fromkeys("ABCD", 0)
    first = {model: preferred(queues, {}, 4, model)[0] for model in map(str, range(64))}
    assert set(first.values()) == set("ABCD")
    again = {model: preferred(dict.fromkeys("DCBA", 0), {}, 4, model)[0] for model in first}
    assert again == first


def test_a_number_of_replicas_is_one_or_a_range():
    assert Scale.parse("2") == Scale(2, 2)
    assert Scale.parse(" 1:8 ") == Scale(1, 8)
    assert Scale.parse("0") == Scale(0, 0)


@pytest.mark.parametrize("text", ["", "two", "-1", "8:1", "0:3", "1:", "1:2:3", "1.5", "99999999"])
def test_a_wrong_number_of_replicas_is_refused_in_one_line(text):
    with pytest.raises(
        RequestError, match=f"^--replicas '{text}', expected a number such as 2 or a range such as 1:8$"
    ):
        Scale.parse(text)
