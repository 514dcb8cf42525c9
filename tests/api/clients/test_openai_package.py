"""The openai package, unmodified."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel
from scripted import HELLO, WEATHER
from serving import until

pytestmark = pytest.mark.clients
openai = pytest.importorskip("openai")

CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'


class Person(BaseModel):
    name: str
    age: int


PERSON = '{"name": "Ada", "age": 36}'


@pytest.fixture
def client(model):
    with openai.OpenAI(base_url=f"{model.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_chat(client):
    whole = client.chat.completions.create(model="m", messages=HELLO, temperature=0, max_completion_tokens=8)
    [choice] = whole.choices
    assert choice.message.content and choice.finish_reason == "length" and whole.usage.completion_tokens == 8
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            model="m", messages=HELLO, temperature=0, max_tokens=8, stream=True, stream_options=options
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == choice.message.content and chunks[-1].usage == whole.usage


def test_log_probabilities(client):
    whole = client.chat.completions.create(
        model="m", messages=HELLO, temperature=0, max_tokens=3, logprobs=True, top_logprobs=2
    )
    entries = whole.choices[0].logprobs.content
    assert [len(entry.top_logprobs) for entry in entries] == [2, 2, 2]
    assert entries[0].logprob == entries[0].top_logprobs[0].logprob


def test_tools_round_trip(client, script):
    script("See: ", CALL)
    history = list(HELLO)
    asked = client.chat.completions.create(model="t", messages=history, tools=[WEATHER])
    [call] = asked.choices[0].message.tool_calls
    assert asked.choices[0].finish_reason == "tool_calls" and json.loads(call.function.arguments) == {"city": "Paris"}
    history += [asked.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    script("It is sunny.")
    told = client.chat.completions.create(model="t", messages=history, tools=[WEATHER])
    assert told.choices[0].message.content == "It is sunny." and "sunny from get_weather" in script.prompt


def test_tool_calls_stream(client, script):
    script("See: ", CALL)
    with client.chat.completions.stream(model="t", messages=HELLO, tools=[WEATHER]) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == '{"city":"Paris"}'
    assert final.choices[0].message.content == "See: "


def test_structured_output_is_parsed(client, script):
    script(PERSON)
    parsed = client.chat.completions.parse(model="t", messages=HELLO, response_format=Person)
    assert parsed.choices[0].message.parsed == Person(name="Ada", age=36)


def test_structured_output_of_an_untrained_model(client):
    schema = {"type": "object", "properties": {"n": {"const": 7}}, "required": ["n"], "additionalProperties": False}
    format = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    whole = client.chat.completions.create(model="m", messages=HELLO, response_format=format, max_tokens=80)
    assert json.loads(whole.choices[0].message.content) == {"n": 7}


def test_a_stream_left_early_ends_the_answer(client, model):
    stream = client.chat.completions.create(model="bare", messages=HELLO, max_tokens=100_000, stream=True)
    next(iter(stream))
    stream.close()
    until(lambda: all(not loaded.n_using for loaded in model.engine.pool.loaded()))


def test_errors_have_their_classes(client):
    with pytest.raises(openai.NotFoundError, match="model 'nope' not found") as refusal:
        client.chat.completions.create(model="nope", messages=HELLO)
    assert refusal.value.type == "not_found_error"
    with pytest.raises(openai.BadRequestError, match="is too short"):
        client.chat.completions.create(model="m", messages=[])


def test_an_error_within_a_stream_is_raised(client, script):
    script("a", error=RuntimeError("x"))
    with pytest.raises(openai.APIError, match="internal error"):
        list(client.chat.completions.create(model="t", messages=HELLO, stream=True))


def test_completions_and_their_echo(client):
    whole = client.completions.create(model="bare", prompt="once", max_tokens=4, temperature=0)
    chunks = client.completions.create(model="bare", prompt="once", max_tokens=4, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    scored = client.completions.create(model="bare", prompt=["once upon"], echo=True, logprobs=1, max_tokens=0)
    assert scored.choices[0].text == "once upon" and len(scored.choices[0].logprobs.token_logprobs) == 2


def test_several_choices(client):
    ask = {"model": "m", "messages": HELLO, "temperature": 1.5, "seed": 5, "max_tokens": 6, "n": 3}
    whole = client.chat.completions.create(**ask)
    texts = [choice.message.content for choice in whole.choices]
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts and len(set(texts)) == 3
    many = client.completions.create(model="bare", prompt=["once", "upon a"], max_tokens=4, temperature=0)
    assert [choice.index for choice in many.choices] == [0, 1] and all(choice.text for choice in many.choices)


def test_models(client):
    assert "m:latest" in {listed.id for listed in client.models.list()}
    assert client.models.retrieve("m").owned_by == "library"


def test_responses(client, script):
    script("<think>hm</think>", "Hel", "lo")
    whole = client.responses.create(model="t", input="hello")
    assert whole.output_text == "Hello" and whole.output[0].summary[0].text == "hm"
    with client.responses.stream(model="t", input="hello") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == "Hello" and final.usage.total_tokens == 5


def test_a_response_that_is_cut_is_incomplete(client):
    *_, last = client.responses.create(model="m", input="hello", max_output_tokens=3, stream=True)
    assert last.type == "response.incomplete" and last.response.incomplete_details.reason == "max_output_tokens"


def test_responses_call_tools(client, script):
    tool = {"type": "function"} | WEATHER["function"]
    script(CALL)
    items = [{"role": "user", "content": "hello"}]
    asked = client.responses.create(model="t", input=items, tools=[tool])
    [call] = asked.output
    items += [*asked.output, {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
    script("It is sunny.")
    assert client.responses.create(model="t", input=items, tools=[tool]).output_text == "It is sunny."
    assert "sunny from get_weather" in script.prompt


def test_responses_are_parsed(client, script):
    script(PERSON)
    parsed = client.responses.parse(model="t", input="hello", text_format=Person)
    assert parsed.output_parsed == Person(name="Ada", age=36)
