"""Images given by path: in a prompt and in a conversation, with and without a server."""

from __future__ import annotations

import pytest
from adapters import tiny_lora
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from numllama.api.cli.backend import backend_for
from numllama.api.cli.images import extract_images
from numllama.api.cli.repl import converse
from numllama.api.cli.session import Session
from numllama.engine.errors import RequestError
from numllama.engine.options import RequestOptions
from numllama.engine.serve.engine import Engine
from numllama.engine.store import default_store
from numllama.engine.store.file import FileModel
from tiny import CHAT_TEMPLATE, tiny_gguf
from tiny_llava import encoded, picture, tiny_mmproj

ONE, TWO = (encoded(picture(seed=seed)) for seed in (0, 1))
GREEDY = {"temperature": 0, "num_predict": 6}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Change to a folder with images."""
    monkeypatch.chdir(tmp_path)
    for name, data in (("one.png", ONE), ("two.PNG", TWO), ("a b.jpg", ONE), ("fake.webp", b"no image")):
        (tmp_path / name).write_bytes(data)
    return tmp_path


CASES = {
    "what is ./one.png?": ("what is ?", [ONE]),
    "./one.png": ("", [ONE]),
    "'./one.png' and \"./two.PNG\": which?": ("and : which?", [ONE, TWO]),
    r"see ./a\ b.jpg, or ./a b.jpg": ("see , or", [ONE, ONE]),
    "./one.png\n\nand\n./two.PNG": ("and", [ONE, TWO]),
    "(./one.png)": ("()", [ONE]),
    "what is ./none.png?": ("what is ./none.png?", []),
    "one.png and http://x/one.png and x./one.png": ("one.png and http://x/one.png and x./one.png", []),
    " ./one.txt / and ~/ ": (" ./one.txt / and ~/ ", []),
    "./none.png and ./one.png": ("./none.png and", [ONE]),
}


@pytest.mark.parametrize(("text", "expected"), CASES.items(), ids=CASES)
def test_paths_of_images_are_removed_from_the_text(here, text, expected):
    assert extract_images(text) == expected


def test_absolute_home_and_parent_paths_are_found(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert extract_images(f"{here}/one.png ~/two.PNG ../{here.name}/one.png") == ("", [ONE, TWO, ONE])


def test_added_files_are_reported(here, capsys):
    extract_images("./one.png or ./two.PNG")
    assert capsys.readouterr().err == "Added image './one.png'\nAdded image './two.PNG'\n"


def test_a_file_that_is_not_an_image_is_refused(here):
    with pytest.raises(
        RequestError, match=r"Couldn't process file './fake.webp': image .*expected a JPEG, PNG or WebP"
    ):
        extract_images("what is ./fake.webp?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Create a store with `seer`, a tiny LLaVA, and `blind`, the same without its projector."""
    folder = tmp_path_factory.mktemp("seeing")
    model = tiny_gguf(folder / "model.gguf", seed=1, chat_template=CHAT_TEMPLATE, n_ctx=2048)
    mmproj = tiny_mmproj(folder / "mmproj.gguf")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OLLAMA_MODELS", str(folder / "store"))
        engine = Engine(store=default_store())
    digests = {path.name: engine.store.put_blob([path.read_bytes()])[0] for path in (model, mmproj)}
    list(engine.create("seer", files=digests, parameters=GREEDY))
    list(engine.create("blind", files={model.name: digests[model.name]}, parameters=GREEDY))
    engine.close()
    return folder


@pytest.fixture
def seeing(alone, here, folder, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(folder / "store"))


def expected(prompt, *images):
    engine = Engine()
    try:
        return "".join(piece.text for piece in engine.generate("seer", prompt, images=images)) + "\n"
    finally:
        engine.close()


def test_run_sends_the_image_to_a_vision_model(seeing, numllama):
    assert numllama("run", "seer", "what is ./one.png?") == (0, expected("what is ?", ONE), "Added image './one.png'\n")
    assert expected("what is ?", ONE) != expected("what is ?", TWO)


def test_a_path_is_text_for_a_model_without_vision(seeing, numllama):
    assert numllama("run", "blind", "./one.png").err == ""


def test_an_invalid_image_ends_the_command(seeing, numllama):
    status, out, err = numllama("run", "seer", "what is ./fake.webp?")
    assert (status, out) == (1, "") and err.startswith("Error: Couldn't process file './fake.webp'")


def test_a_conversation_remembers_images_and_saves_them(seeing, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    session = Session(backend_for("seer"), "seer")
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("what is ./one.png?\rand this: ./fake.webp\rreally?\r/save kept\r\x04")
        converse(session)
    out, err = capsys.readouterr()
    assert "Added image './one.png'" in err and "error: Couldn't process file './fake.webp'" in err
    assert [message.get("images") for message in session.messages] == [[ONE], None, [], None]
    assert "Created new model 'kept'" in out
    answer = session.backend.chat("kept", [{"role": "user", "content": "why?"}])
    assert answer.n_images == 1 and list(answer)[-1].done_reason
    session.backend.delete("kept")
    session.close()


def test_an_image_may_begin_the_line(seeing, here, capsys):
    """As one that is dragged into the terminal; a line that begins with / and names no image is a command."""
    session = Session(backend_for("seer"), "seer", has_vision=True)
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text(f"{here}/one.png what is this?\r/nothing.png\r/show {here}/one.png\r/bye\r")
        converse(session)
    out = capsys.readouterr().out
    assert [message.get("images") for message in session.messages] == [[ONE], None]
    assert "Unknown command '/nothing.png'" in out and "Unknown command '/show" in out
    session.close()


def test_images_are_sent_to_a_server(served, here, folder, numllama, monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", served.url)
    digests = {
        name: served.engine.store.put_blob([(folder / name).read_bytes()])[0] for name in ("model.gguf", "mmproj.gguf")
    }
    list(served.engine.create("seer", files=digests, parameters=GREEDY))
    out = numllama("run", "seer", "what is ./one.png?").out
    assert (
        out
        == served.ok("/api/generate", model="seer", prompt="what is ?", images=[b64(ONE)], stream=False)["response"]
        + "\n"
    )
    session = Session(backend_for("seer"), "seer", has_vision=True)
    session.ask("./two.PNG")
    session.ask("again")
    assert len(session.messages) == 4 and session.messages[0]["images"] == [TWO]
    session.backend.unload("seer")
    session.close()
    served.engine.delete("seer")


def b64(data):
    import base64

    return base64.b64encode(data).decode()


def test_a_models_file_takes_a_projector_and_adapters(alone, here, folder, numllama):
    model, mmproj = str(folder / "model.gguf"), str(folder / "mmproj.gguf")
    brief = ["-o", "temperature=0", "-o", "num_predict=6"]
    engine = Engine(file=FileModel.of(model, projectors=[mmproj]))
    answer = engine.generate("", "what is ?", RequestOptions(options=GREEDY), images=[ONE])
    said = "".join(piece.text for piece in answer)
    engine.close()
    sees = ["run", model, "what is ./one.png?", *brief, "--projector", mmproj]
    assert numllama(*sees) == (0, said + "\n", "Added image './one.png'\n")
    adapter = str(tiny_lora(here / "lora.gguf", model))
    plain, adapted = (
        numllama("run", model, "hello", *brief).out,
        numllama("run", model, "hello", *brief, "--adapter", adapter).out,
    )
    assert plain != adapted
    twice = numllama("run", model, "hello", *brief, "--adapter", adapter, "--adapter", adapter).out
    assert twice == adapted  # the same adapter is applied once


def test_adapters_are_refused_for_a_model_name(alone, numllama):
    outcome = numllama("run", "m", "hello", "--adapter", "x.gguf")
    assert (
        outcome.err == "Error: --adapter and --projector require a GGUF file, and 'm' is a model name; see `create`\n"
    )
