"""The anthropic package, unmodified."""

from __future__ import annotations

import pytest
from scripted import HELLO, WEATHER
from serving import until

pytestmark = pytest.mark.clients
anthropic = pytest.importorskip("anthropic")

CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
TOOL = {"name": "get_weather", "description": "d", "input_schema": WEATHER["function"]["parameters"]}


@pytest.fixture
def client(model):
    with anthropic.Anthropic(base_url=model.url, api_key="unused", max_retries=0) as client:
        yield client


def test_messages(client):
    ask = {"model": "m", "max_tokens": 8, "messages": HELLO, "system": "S", "extra_body": {"temperature": 0}}
    whole = client.messages.create(**ask)
    assert whole.content[0].text and whole.stop_reason == "max_tokens" and whole.usage.output_tokens == 8
    with client.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    assert (final.usage, final.stop_reason) == (whole.usage, whole.stop_reason)


def test_tokens_are_counted(client):
    counted = client.messages.count_tokens(model="m", messages=HELLO, system="S")
    whole = client.messages.create(model="m", max_tokens=1, messages=HELLO, system="S")
    assert counted.input_tokens == whole.usage.input_tokens > 0


def test_thinking_comes_first(client, script):
    script("<think>hm</think>", "yes")
    whole = client.messages.create(
        model="t", max_tokens=2000, messages=HELLO, thinking={"type": "enabled", "budget_tokens": 1024}
    )
    assert [block.type for block in whole.content] == ["thinking", "text"] and whole.content[0].thinking == "hm"


def test_tools_round_trip(client, script):
    script("See: ", CALL)
    history = list(HELLO)
    asked = client.messages.create(model="t", max_tokens=50, messages=history, tools=[TOOL])
    _, call = asked.content
    assert asked.stop_reason == "tool_use" and call.input == {"city": "Paris"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    history += [{"role": "assistant", "content": asked.content}, {"role": "user", "content": [result]}]
    script("It is sunny.")
    with client.messages.stream(model="t", max_tokens=50, messages=history, tools=[TOOL]) as stream:
        assert stream.get_final_text() == "It is sunny."
    assert "sunny from get_weather" in script.prompt


def test_tool_calls_stream(client, script):
    script("See: ", CALL)
    with client.messages.stream(model="t", max_tokens=50, messages=HELLO, tools=[TOOL]) as stream:
        final = stream.get_final_message()
    assert final.content[1].input == {"city": "Paris"} and final.stop_reason == "tool_use"


def test_the_tool_runner_calls_a_python_function(client, script):
    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Weather of a city."""
        script("It is sunny.")
        return f"{city}: sunny"

    script(CALL)
    runner = client.beta.messages.tool_runner(model="t", max_tokens=50, messages=HELLO, tools=[get_weather])
    assert runner.until_done().content[0].text == "It is sunny."
    assert "Paris: sunny from get_weather" in script.prompt


def test_a_stream_left_early_ends_the_answer(client, model):
    with client.messages.stream(model="bare", max_tokens=100_000, messages=HELLO) as stream:
        next(iter(stream))
    until(lambda: all(not loaded.n_using for loaded in model.engine.pool.loaded()))


def test_errors_have_their_classes(client, script):
    with pytest.raises(anthropic.NotFoundError, match="model 'nope' not found"):
        client.messages.create(model="nope", max_tokens=5, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError, match="messages is required"):
        client.messages.create(model="m", max_tokens=5, messages=[])
    script("a", error=RuntimeError("x"))
    with pytest.raises(anthropic.APIStatusError, match="internal error"):
        list(client.messages.create(model="t", max_tokens=5, messages=HELLO, stream=True))
