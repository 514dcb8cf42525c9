"""SmolLM2 through the packages of Ollama and OpenAI: chat, a tool call and its result, JSON by a schema."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore::ResourceWarning")]

# The form in which SmolLM2 was taught to call tools
TEMPLATE = """{{- if .Tools }}<|im_start|>system
You are an expert in composing functions. You have access to the following tools:
<tools>{{ range .Tools }}{{ json .Function }}{{ end }}</tools>
The output MUST strictly adhere to the following format, and NO other text MUST be included.
<tool_call>{"name": "func_name", "arguments": {"argument": "value"}}</tool_call><|im_end|>
{{ end }}{{- range .Messages }}<|im_start|>{{ .Role }}
{{ if .ToolCalls }}{{ range .ToolCalls }}<tool_call>{"name": "{{ .Function.Name }}", "arguments": {{ json \
.Function.Arguments }}}</tool_call>{{ end }}{{ else }}{{ .Content }}{{ end }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
CITY = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather of a city", "parameters": CITY},
}
PERSON = {
    "type": "object",
    "required": ["name", "age"],
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
}


def asked(city):
    return {"role": "user", "content": f"What is the weather in {city}?"}


def called(city):
    call = {"type": "function", "id": f"call_{city}", "function": {"name": "get_weather", "arguments": {"city": city}}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def told(city, weather):
    result = {"role": "tool", "content": weather, "tool_call_id": f"call_{city}"}
    return [called(city), result, {"role": "assistant", "content": f"The weather in {city}: {weather}."}]


EARLIER = [asked("Oslo"), *told("Oslo", "rain"), asked("Madrid"), *told("Madrid", "sun")]


@pytest.fixture(scope="module")
def url(smollm2, serve):
    server = serve()
    server.client.timeout = 300
    server.add("plain", smollm2, parameters={"temperature": 0})
    server.add("tools", smollm2, template=TEMPLATE, parameters={"temperature": 0, "stop": ["<|im_end|>"]})
    return server.url


def test_the_ollama_package_chats(url):
    ollama = pytest.importorskip("ollama")
    question = [{"role": "user", "content": "What is the capital of Italy?"}]
    answer = ollama.Client(url).chat("plain", question)
    assert answer.message.content == "The capital of Italy is Rome." and answer.done_reason == "stop"
    chunks = list(ollama.Client(url).chat("plain", question, stream=True))
    assert "".join(chunk.message.content for chunk in chunks) == answer.message.content
    assert (answer.prompt_eval_count, answer.eval_count) == (16, 8)  # as recorded from Ollama


def test_the_ollama_package_receives_a_tool_call_and_sends_its_result(url):
    """135 million weights follow earlier calls of the conversation, without which they answer at random."""
    client = pytest.importorskip("ollama").Client(url)
    messages = [*EARLIER, asked("Paris")]
    answer = client.chat("tools", messages, tools=[WEATHER], options={"num_predict": 60})
    [call] = answer.message.tool_calls
    assert (call.function.name, dict(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    messages += [answer.message, {"role": "tool", "content": "snow"}]
    assert "snow" in client.chat("tools", messages, tools=[WEATHER], options={"num_predict": 60}).message.content


def test_the_openai_package_receives_a_required_tool_call(url):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        answer = client.chat.completions.create(
            model="tools",
            messages=[asked("Berlin")],
            tools=[WEATHER],
            tool_choice="required",
            max_tokens=60,
            temperature=0,
        )
    [call] = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Berlin"})
    assert answer.choices[0].finish_reason == "tool_calls"


def test_both_packages_receive_json_of_a_schema(url):
    ollama, openai = pytest.importorskip("ollama"), pytest.importorskip("openai")
    question = [{"role": "user", "content": "Ada is 36 years old. Give her name and age as JSON."}]
    first = json.loads(ollama.Client(url).chat("plain", question, format=PERSON).message.content)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
        answer = client.chat.completions.create(model="plain", messages=question, response_format=schema, temperature=0)
    second = json.loads(answer.choices[0].message.content)
    assert first == second == {"name": "Ada", "age": 36}
