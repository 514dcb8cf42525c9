"""Many requests at once, what they share, and how they end."""

from __future__ import annotations

GREEDY = {"temperature": 0, "num_predict": 4}


def ask(served, prompt, **options):
    return served.ok("/api/generate", model="bare", prompt=prompt, stream=False, options=GREEDY | options)


# figures


def test_what_the_cache_knew_is_said_and_changes_nothing(served):
    first, second = ask(served, "the little cat was in the world"), ask(served, "the little cat was in the world")
    assert first["response"] == second["response"]
    assert first["prompt_eval_count"] == second["prompt_eval_count"]
    assert second["prompt_eval_cached_count"] == second["prompt_eval_count"] - 1


def test_a_cut_prompt_is_said_to_be_cut(served):
    long = "the cat and the dog " * 20
    whole = ask(served, long)
    assert "truncated" not in whole
    cut = ask(served, long, num_ctx=32)
    assert cut["truncated"] == {"prompt_tokens": whole["prompt_eval_count"], "kept": 32}


def test_a_conversation_without_its_oldest_messages_is_said_to_be_cut(served):
    messages = [{"role": "user", "content": f"the cat {n}"} for n in range(20)]
    body = {"model": "m", "messages": messages, "stream": False, "options": GREEDY | {"num_ctx": 200}}
    cut = served.ok("/api/chat", **body)
    assert cut["truncated"]["kept"] == cut["prompt_eval_count"] <= 200 < cut["truncated"]["prompt_tokens"]
