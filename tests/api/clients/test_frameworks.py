"""Unmodified frameworks on Ollama's or OpenAI's API: chat, stream, tools, structured output, errors."""

from __future__ import annotations

import gc
import json
import warnings

import pytest
from pydantic import BaseModel
from scripted import HELLO, WEATHER

# These libraries emit warnings about their own code.
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
PERSON = '{"name": "Ada", "age": 36}'


@pytest.fixture(autouse=True)
def sockets_are_left_to_the_collector():
    yield
    with warnings.catch_warnings(action="ignore"):
        gc.collect()


class Person(BaseModel):
    """A person."""

    name: str
    age: int


# --- langchain-ollama ---


@pytest.fixture
def langchain(model):
    return pytest.importorskip("langchain_ollama").ChatOllama(model="t", base_url=model.url)


def test_langchain_chats_and_streams(langchain, script):
    script("<think>hm</think>", "Hel", "lo")
    assert langchain.invoke("hello").content == "Hello"
    assert "".join(chunk.content for chunk in langchain.stream("hello")) == "Hello"


def test_langchain_calls_tools(langchain, script):
    from langchain_core.messages import HumanMessage, ToolMessage

    script(CALL)
    history = [HumanMessage("hello")]
    asked = langchain.bind_tools([WEATHER]).invoke(history)
    [call] = asked.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    history += [asked, ToolMessage("sunny", tool_call_id=call["id"])]
    script("It is sunny.")
    assert langchain.bind_tools([WEATHER]).invoke(history).content == "It is sunny." and "sunny" in script.prompt


def test_langchain_parses_structured_output(langchain, script):
    script(PERSON)
    assert langchain.with_structured_output(Person).invoke("hello") == Person(name="Ada", age=36)


def test_langchain_sees_errors(model):
    missing = pytest.importorskip("langchain_ollama").ChatOllama(model="nope", base_url=model.url)
    with pytest.raises(Exception, match="model 'nope' not found"):
        missing.invoke("hello")


# --- llama-index-llms-ollama ---


@pytest.fixture
def llama_index(model):
    return pytest.importorskip("llama_index.llms.ollama").Ollama(model="t", base_url=model.url, context_window=256)


def test_llama_index_chats_and_streams(llama_index, script):
    script("Hel", "lo")
    assert llama_index.complete("hello").text == "Hello"
    assert [chunk.delta for chunk in llama_index.stream_complete("hello")][:2] == ["Hel", "lo"]


def test_llama_index_calls_tools_and_parses_structured_output(llama_index, script):
    from llama_index.core.tools import FunctionTool

    def get_weather(city: str) -> str:
        """Weather of a city."""
        return "sunny"

    script(CALL)
    asked = llama_index.chat_with_tools([FunctionTool.from_defaults(get_weather)], user_msg="hello")
    [call] = llama_index.get_tool_calls_from_response(asked)
    assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": "Paris"})
    script(PERSON)
    assert llama_index.as_structured_llm(Person).complete("hello").raw == Person(name="Ada", age=36)


# --- litellm, through either API ---


@pytest.fixture(params=["ollama_chat/t", "ollama/t", "openai/t"])
def litellm(request, model, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # without it, the library downloads a price list
    module = pytest.importorskip("litellm")

    def completion(name=request.param, **more):
        base = f"{model.url}/v1" if name.startswith("openai") else model.url
        return module.completion(model=name, messages=HELLO, api_base=base, api_key="unused", max_retries=0, **more)

    completion.name = request.param
    return completion


def test_litellm_chats_and_streams(litellm, script):
    script("Hel", "lo")
    assert litellm().choices[0].message.content == "Hello"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in litellm(stream=True)) == "Hello"


def test_litellm_calls_tools(litellm, script):
    if litellm.name.startswith("ollama/"):
        pytest.skip("litellm asks /api/generate for JSON here, in a way of its own")
    script(CALL)
    [call] = litellm(tools=[WEATHER]).choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_litellm_sees_errors(litellm):
    with pytest.raises(Exception, match="not found"):
        litellm(name=litellm.name.replace("/t", "/nope"))


# --- pydantic-ai ---


@pytest.fixture
def pydantic_ai_model(model):
    pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.ollama import OllamaProvider

    return OpenAIChatModel("t", provider=OllamaProvider(base_url=f"{model.url}/v1"))


def test_pydantic_ai_calls_a_function_and_answers(pydantic_ai_model, script):
    from pydantic_ai import Agent

    agent = Agent(pydantic_ai_model)

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Weather of a city."""
        script("It is sunny.")
        return f"{city}: sunny"

    script(CALL)
    assert agent.run_sync("hello").output == "It is sunny."
    assert "Paris: sunny from get_weather" in script.prompt


def test_pydantic_ai_requires_structured_output(pydantic_ai_model, script):
    """The library requires a call to a tool named final_result, with tool_choice "required"."""
    from pydantic_ai import Agent

    script('<tool_call>{"name": "final_result", "arguments": ' + PERSON + "}</tool_call>")
    assert Agent(pydantic_ai_model, output_type=Person).run_sync("hello").output == Person(name="Ada", age=36)


def test_pydantic_ai_streams(pydantic_ai_model, script):
    import asyncio

    from pydantic_ai import Agent

    async def stream():
        async with Agent(pydantic_ai_model).run_stream("hello") as result:
            return [text async for text in result.stream_text(delta=True, debounce_by=None)]

    script("Hel", "lo")
    assert "".join(asyncio.run(stream())) == "Hello"


# --- instructor ---


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("TOOLS", '<tool_call>{"name": "Person", "arguments": ' + PERSON + "}</tool_call>"),  # by tool_choice
        ("JSON", PERSON),
        ("JSON_SCHEMA", PERSON),
    ],
)
def test_instructor_parses_structured_output(model, script, mode, said):
    instructor, openai = pytest.importorskip("instructor"), pytest.importorskip("openai")
    script(said)
    client = instructor.from_openai(
        openai.OpenAI(base_url=f"{model.url}/v1", api_key="unused"), mode=instructor.Mode[mode]
    )
    got = client.chat.completions.create(model="t", messages=HELLO, response_model=Person, max_retries=0)
    assert (got.name, got.age) == ("Ada", 36)  # an instance of a subclass of Person


# --- llm with llm-ollama ---


def test_llm_chats_and_streams(model, script, monkeypatch, tmp_path):
    monkeypatch.setenv("OLLAMA_HOST", model.url)
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    llm = pytest.importorskip("llm")
    pytest.importorskip("llm_ollama")
    script("Hel", "lo")
    t = llm.get_model("t:latest")
    assert t.prompt("hello", stream=False).text() == "Hello"
    assert list(t.prompt("hello", stream=True))[:2] == ["Hel", "lo"]
    script(PERSON)
    assert json.loads(t.prompt("hello", schema=Person, stream=False).text()) == {"name": "Ada", "age": 36}
