"""Published clients, unmodified, against a running server (pip install '.[clients]'; pytest -m clients)."""

from __future__ import annotations

import asyncio

import pytest
from registries import Registry

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def ollama():
    return pytest.importorskip("ollama")


@pytest.fixture
def client(ollama, served):
    with ollama.Client(host=served.url) as client:
        yield client


def test_ollama_generates(client):
    whole = client.generate("m", "once upon")
    assert whole.done and whole.done_reason == "length" and whole.eval_count == 8 and whole.context
    chunks = list(client.generate("m", "once upon", stream=True))
    assert "".join(chunk.response for chunk in chunks) == whole.response
    assert chunks[-1].total_duration > chunks[-1].eval_duration > 0


def test_ollama_continues_from_a_context(client):
    first = client.generate("bare", "once", options={"num_predict": 4})
    assert client.generate("bare", " upon", context=first.context).prompt_eval_count > first.prompt_eval_count


def test_ollama_chats(client):
    history = [{"role": "user", "content": "hello"}]
    whole = client.chat("m", history)
    assert whole.message.role == "assistant" and whole.message.content
    chunks = list(client.chat("m", history, stream=True, logprobs=True))
    assert "".join(chunk.message.content for chunk in chunks) == whole.message.content
    history += [whole.message, {"role": "user", "content": "and then?"}]
    assert client.chat("m", history).prompt_eval_count > whole.prompt_eval_count


def test_ollama_lists_shows_and_reports_loaded_models(client):
    assert {"m:latest", "bare:latest"} <= {model.model for model in client.list().models}
    shown = client.show("m")
    assert shown.capabilities == ["completion"] and shown.modelinfo["general.architecture"] == "llama"
    client.generate("m", keep_alive="10m")
    [loaded] = [model for model in client.ps().models if model.model == "m:latest"]
    assert loaded.size > 0 and loaded.size_vram == 0 and loaded.context_length == 256
    assert client.generate("m", keep_alive=0).done_reason == "unload"


def test_ollama_copies_creates_and_deletes(client):
    client.copy("m", "c")
    assert [status.status for status in client.create("d", from_="c", system="S", stream=True)][-1] == "success"
    assert client.show("d").modelfile.count("SYSTEM S") == 1
    assert client.delete("c").status == client.delete("d").status == "success"


def test_ollama_sees_errors_with_their_status(client, ollama):
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as refusal:
        client.generate("nope", "a")
    assert refusal.value.status_code == 404


def test_ollamas_asynchronous_client_streams(ollama, served):
    async def chat():
        client = ollama.AsyncClient(host=served.url)
        chunks = await client.chat("m", [{"role": "user", "content": "hello"}], stream=True)
        text = [chunk.message.content async for chunk in chunks]
        await client.close()
        return text

    assert "".join(asyncio.run(chat()))


# --- a scripted model (scripted.json, recorded models): "<tool>" makes it call get_weather ---

GO_TEMPLATE = (
    "{{ if .Tools }}{{ .Tools }}\n{{ end }}{{ range .Messages }}{{ if .ToolCalls }}<tool_call>\n{{ range .ToolCalls }}"
    '{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}\n</tool_call>'
    "{{ else }}{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}{{ end }}{{ end }}"
)


@pytest.fixture(scope="module")
def scripted(served, kept):
    """Create the scripted model, with thinking and tools; return its name."""
    served.add("scripted", kept.model("scripted-F16"), template=GO_TEMPLATE)
    return "scripted"


def test_ollama_calls_a_python_function_and_returns_its_result(client, scripted):
    def get_weather(city: str, days: int) -> str:
        """Weather of a city.

        Args:
          city: name of the city
          days: how many
        """
        return f"{city}, {days} days of sun. <hello>"

    history = [{"role": "user", "content": "<tool>"}]
    asked = client.chat(scripted, history, tools=[get_weather])
    assert asked.message.content == "" and asked.done_reason == "stop"
    [call] = asked.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Paris", "days": 2})
    result = get_weather(**call.function.arguments)
    history += [asked.message, {"role": "tool", "tool_name": call.function.name, "content": result}]
    told = client.chat(scripted, history, tools=[get_weather])
    assert told.message.content == "Hello there. How are you today?"
    assert told.message.tool_calls is None


def test_ollama_streams_calls_as_they_are_made(client, scripted):
    def get_weather(city: str) -> str:
        """Weather of a city."""

    def get_time() -> str:
        """Time now."""

    chunks = list(
        client.chat(scripted, [{"role": "user", "content": "<tools2>"}], tools=[get_weather, get_time], stream=True)
    )
    calls = [call.function for chunk in chunks for call in chunk.message.tool_calls or []]
    assert [(call.name, call.arguments) for call in calls] == [("get_weather", {"city": "Rome"}), ("get_time", {})]
    assert "".join(chunk.message.content for chunk in chunks) == ""


def test_ollama_streams_a_thinking_chat(client, scripted):
    chunks = list(client.chat(scripted, [{"role": "user", "content": "<muse>"}], think=True, stream=True))
    assert "".join(chunk.message.thinking or "" for chunk in chunks) == "Six times seven makes forty-two. \n"
    assert "".join(chunk.message.content for chunk in chunks) == "Forty-two, I say."
    said = [bool(chunk.message.thinking) for chunk in chunks if chunk.message.thinking or chunk.message.content]
    assert said == sorted(said, reverse=True)  # thinking first, then content
    plain = client.chat(scripted, [{"role": "user", "content": "<muse>"}], think=False)
    assert plain.message.thinking is None and plain.message.content.startswith("<think>")


def test_ollama_creates_a_quantized_model_from_a_file(client, models):
    digest = client.create_blob(models / "chat.gguf")
    statuses = list(client.create("q", files={"chat.gguf": digest}, quantize="q8_0", stream=True))
    assert [statuses[0].status, statuses[-1].status] == ["parsing GGUF", "success"]
    assert client.show("q").details.quantization_level == "Q8_0"
    assert client.generate("q", "once", options={"num_predict": 2}).eval_count > 0
    client.delete("q")


def test_ollama_pushes_and_pulls(client, ollama, served):
    registry = Registry()
    name = f"{registry.host}/lab/m"
    client.copy("m", name)
    pushed = list(client.push(name, insecure=True, stream=True))
    assert [pushed[0].status, pushed[-2].status, pushed[-1].status] == [
        "retrieving manifest",
        "pushing manifest",
        "success",
    ]
    client.delete(name)
    pulled = list(client.pull(name, insecure=True, stream=True))
    assert [pulled[0].status, pulled[-1].status] == ["pulling manifest", "success"]
    blobs = {status.digest: (status.total, status.completed) for status in pulled if status.digest}
    assert len(blobs) == 3 and all(total == completed > 0 for total, completed in blobs.values())
    assert client.push(name, insecure=True).status == client.pull(name, insecure=True).status == "success"
    assert client.generate(name, "once").response == client.generate("m", "once").response
    with pytest.raises(ollama.ResponseError, match="pull model manifest: file does not exist"):
        client.pull(f"{registry.host}/lab/none", insecure=True)

    async def pull():
        asynchronous = ollama.AsyncClient(host=served.url)
        said = [status.status async for status in await asynchronous.pull(name, insecure=True, stream=True)]
        await asynchronous.close()
        return said

    assert asyncio.run(pull())[-1] == "success"
    client.delete(name)
    registry.close()
