"""The interactive conversation: input, output, history."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from numllama.api.cli.backend import backend_for
from numllama.api.cli.history import MAX_LINES, LineHistory
from numllama.api.cli.repl import converse
from numllama.api.cli.session import Session
from numllama.engine.errors import StoreError
from numllama.engine.options import RequestOptions

CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


@pytest.fixture
def session(alone, tmp_path, monkeypatch):
    """Return a session with the model m."""
    monkeypatch.setenv("HOME", str(tmp_path))
    session = Session(backend_for("m"), "m")
    yield session
    session.close()


@pytest.fixture
def talk(session, capsys):
    """Return a function that types lines, each with Enter, then Ctrl-D, and returns the output."""

    def talk(*typed):
        with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
            keys.send_text("".join(text if text == CTRL_C else f"{text}\r" for text in typed) + CTRL_D)
            converse(session)
        return capsys.readouterr().out

    return talk


def answer(session, *messages):
    """Return the model's answer to `messages`, alternately of the user and the assistant."""
    roles = ("user", "assistant") * len(messages)
    asked = [{"role": role, "content": text} for role, text in zip(roles, messages, strict=False)]
    return "".join(piece.text for piece in session.backend.chat("m", asked, RequestOptions()))


def test_each_message_is_sent_with_the_history(session, talk):
    first = answer(session, "hello")
    second = answer(session, "hello", first, "once")
    assert talk("hello", "once") == f"{first}\n\n{second}\n\n"
    assert [message["content"] for message in session.messages] == ["hello", first, "once", second]


def test_clear_starts_over(session, talk):
    first = answer(session, "hello")
    assert talk("hello", "/clear", "hello") == f"{first}\n\nCleared session context\n{first}\n\n"


def test_triple_quotes_enclose_multi_line_messages(session, talk):
    talk('"""one', "/bye", 'two"""', '"""/bye"""')
    assert [message["content"] for message in session.messages[::2]] == ["one\n/bye\ntwo", "/bye"]


def test_a_system_message_replaces_the_models(session, talk):
    assert talk("/set system You are X.", "/show system") == "Set system message.\nYou are X.\n\n"
    assert session.messages == [{"role": "system", "content": "You are X."}]
    talk('/set system """Long', 'text."""')
    assert session.system == "Long\ntext."


def test_parameters_are_set_and_shown(session, talk):
    shown = talk("/set parameter num_predict 2", "/set parameter stop a b", "/show parameters", "hello")
    assert "Set parameter 'num_predict' to '2'\nSet parameter 'stop' to 'a, b'\n" in shown
    assert (
        "User defined parameters:\n  num_predict                    2\n  stop                           [a b]\n"
        in shown
    )
    assert session.request.options == {"num_predict": 2, "stop": ["a", "b"]}


def test_errors_are_printed_and_the_conversation_continues(session, talk):
    shown = talk(
        "/set parameter bogus 1",
        "/set parameter top_p x",
        "/set bogus",
        "/show bogus",
        "/bogus",
        "/load nope",
        "/load",
        "/save a:b:c",
        "/save a b",
    )
    assert shown.splitlines() == [
        "Couldn't set parameter: \"unknown parameter 'bogus'\"",
        'Couldn\'t set parameter: "invalid float value [x]"',
        "Unknown command '/set bogus'. Type /? for help",
        "Unknown command '/show bogus'. Type /? for help",
        "Unknown command '/bogus'. Type /? for help",
        "Loading model 'nope'",
        "Couldn't find model 'nope'",
        *("Usage:", "  /load <modelname>"),
        "error: The model name 'a:b:c' is invalid",
        *("Usage:", "  /save <modelname>"),
    ]


def test_a_command_that_fails_does_not_end_the_conversation(session, talk, monkeypatch):
    def fail(*_, **__):
        raise StoreError("the folder is gone")

    monkeypatch.setattr("numllama.api.cli.slash.list_models", fail)
    assert talk("/list", "/clear") == "Cleared session context\n"


def test_a_refused_message_is_not_added_to_the_history(session, talk, capsys):
    assert talk("/set parameter mirostat 9", "hello") == "Set parameter 'mirostat' to '9'\n"
    assert not session.messages


def test_a_saved_conversation_can_be_loaded(session, talk):
    first = answer(session, "hello")
    shown = talk("hello", "/save kept", "/load kept", "/list kept")
    assert f"Created new model 'kept'\nLoading model 'kept'\n>>> hello\n{first}\n\nNAME" in shown
    assert session.model == "kept" and not session.messages
    session.backend.delete("kept")


def test_parts_of_the_model_are_shown(talk, numllama):
    for part in ("license", "modelfile", "template", "system"):
        assert talk(f"/show {part}") == numllama("show", "m", f"--{part}").out + "\n"
    assert talk("/show info") == numllama("show", "m").out


def test_a_system_message_is_saved_as_system_and_message(session, talk, numllama):
    talk("/set system You are X.", "/save kept")
    modelfile = numllama("show", "kept", "--modelfile").out
    assert "SYSTEM You are X.\n" in modelfile and modelfile.count("MESSAGE system You are X.\n") == 1
    session.backend.delete("kept")


def test_format_and_think_can_be_set(session, talk):
    shown = talk("/set format json", "/set think high", "/set format xml")
    assert (session.request.format, session.request.think) == ("json", "high")
    assert shown.splitlines() == [
        "Set format to 'json' mode.",
        'warning: model "m" does not support thinking output',
        "Set 'think' mode to 'high'.",
        "Invalid or missing format. For 'json' mode use '/set format json'",
    ]
    talk("/set noformat", "/set nothink")
    assert (session.request.format, session.request.think) == (None, False)


def test_help_names_every_command(talk):
    shown = talk("/?", "/? set", "/? show", "/? shortcuts", "/set", "/show", "/set parameter")
    for word in ("/load", "/save", "/clear", "/bye", "/set parameter", "/set nohistory", "/show modelfile", "Ctrl + g"):
        assert word in shown


def test_ctrl_c_prints_how_to_exit_only_on_an_empty_line(session, talk):
    assert talk(CTRL_C) == "Use Ctrl + d or /bye to exit.\n"
    assert talk(f"abc{CTRL_C}/show system") == "S.\n\n"
    assert not session.messages


@pytest.mark.skipif(os.name != "posix", reason="Windows has no job control")
def test_ctrl_z_suspends_the_conversation(session, talk, monkeypatch):
    suspended = []
    monkeypatch.setattr("prompt_toolkit.application.Application.suspend_to_background", lambda *_: suspended.append(1))
    talk("/set quiet\x1a")
    assert suspended == [1]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_the_history_file_is_private(tmp_path):
    """Ollama writes it with mode 0600."""
    path = tmp_path / ".ollama/history"
    path.parent.mkdir()
    path.write_text("left by a version that wrote it readable for all\n")
    path.with_name("history.tmp").write_text("left by a crash")
    before = os.umask(0)
    try:
        LineHistory(path).remember("my password is hunter2")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().splitlines()[1:] == ["my password is hunter2"]


def test_input_lines_are_saved_to_the_history_file(session, talk, tmp_path):
    path = tmp_path / ".ollama" / "history"
    helped = talk("/? set")
    assert talk("/? set", "/set nohistory", "/? show").startswith(helped)
    assert path.read_text() == "/? set\n/? set\n/set nohistory\n"
    session.history = LineHistory(path)
    assert talk(f"{UP}{UP}") == helped


def test_the_history_keeps_the_newest_lines(tmp_path):
    history = LineHistory(tmp_path / "history")
    for n in range(MAX_LINES + 5):
        history.remember(f"{n}")
    assert list(history.load_history_strings())[:: MAX_LINES - 1] == [f"{MAX_LINES + 4}", "5"]
    history = LineHistory(tmp_path / "history" / "cannot")
    history.remember("x")
    assert not history.enabled


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_on_a_terminal(alone, file, tmp_path):
    """Run the whole command: stop an answer with Ctrl-C, delete a line, exit with Ctrl-D."""
    import fcntl
    import pty
    import termios

    terminal, theirs = pty.openpty()
    program = "import sys; from numllama.api.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "run", file, "-o", "num_predict=-1", "--kernels", "numpy-float32"]
    environment = {**os.environ, "HOME": str(tmp_path), "TERM": "xterm", "OLLAMA_HOST": "127.0.0.1:1"}
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)

    def until(pattern):
        shown = ""
        while not re.search(pattern, shown):
            assert select.select([terminal], [], [], 60)[0], shown
            data = os.read(terminal, 4096)
            if b"\x1b[6n" in data:  # a request for the cursor position
                os.write(terminal, b"\x1b[1;1R")
            shown += data.decode("utf-8", "replace")
        return shown

    until("Send a message")
    os.write(terminal, b"hello\r")
    until(r"[a-z]+ [a-z]+")
    os.write(terminal, b"\x03")
    until("Send a message")
    os.write(terminal, b"zzz\x15/show info\r")
    assert "architecture        llama" in until("completion[^>]*>>> ")
    os.write(terminal, b"\x04")
    assert process.wait(60) == 0
    os.close(terminal)
    assert (tmp_path / ".ollama" / "history").read_text() == "hello\n/show info\n"
