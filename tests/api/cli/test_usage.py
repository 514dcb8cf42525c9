"""The command line itself: usage errors, help, start-up."""

import os
import signal
import subprocess
import sys

import pytest

from numllama.api.cli import usage
from numllama.api.cli.client import Client, ServerError, ServerNotRunning
from numllama.api.cli.commands import app
from numllama.engine.settings import Host
from numllama.kernels.simd import choose_level

DOWN = "could not connect to ollama server, run 'numllama serve' to start it"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["bogus"], 'unknown command "bogus" for "numllama"'),
        (["--bogus"], "unknown flag: --bogus"),
        (["run", "--bogus", "x"], "unknown flag: --bogus"),
        (["show", "-z", "x"], "unknown shorthand flag: 'z' in -z"),
        (["run", "--keepalive"], "flag needs an argument: --keepalive"),
        (["show"], "accepts 1 arg(s), received 0"),
        (["show", "a", "b"], "accepts 1 arg(s), received 2"),
        (["stop"], "accepts 1 arg(s), received 0"),
        (["trace", "a"], "accepts 2 arg(s), received 1"),
        (["run"], "requires at least 1 arg(s), only received 0"),
        (["serve", "x"], "accepts 0 arg(s), received 1"),
        (["list", "a", "b"], "accepts at most 1 arg(s), received 2"),
        (
            ["show", "--system", "--license", "x"],
            "only one of '--license', '--modelfile', '--parameters', '--system', or '--template' can be specified",
        ),
    ],
)
def test_usage_errors_have_ollamas_text(numllama, args, message):
    assert numllama(*args) == (1, "", f"Error: {message}\n")


@pytest.mark.parametrize("args", [[], ["-h"], ["--help"], ["help"]])
def test_help_lists_every_command(numllama, args):
    outcome = numllama(*args)
    names = {command.name for command in app.registered_commands}
    assert outcome.status == 0 and not outcome.err
    assert names == {
        *"serve run show create list ps stop cp rm pull push".split(),
        *"learn look course trace diff pack score compare batch template warmup bench help".split(),
    }
    assert all(f"\n  {name} " in outcome.out for name in names)


def test_help_on_a_command_lists_its_flags(numllama):
    outcome = numllama("help", "run")
    assert outcome.out == numllama("run", "--help").out
    assert {"--keepalive", "--nowordwrap", "--verbose", "--option", "--raw", "--kernels"} <= set(outcome.out.split())


@pytest.mark.parametrize(
    ("command", "arguments"), [("run", " MODEL|FILE.gguf [PROMPT]"), ("cp", " SOURCE DESTINATION"), ("serve", "")]
)
def test_help_on_a_command_begins_with_its_arguments(numllama, command, arguments):
    out = numllama(command, "--help").out
    assert out.startswith(f"Usage: numllama {command} [OPTIONS]{arguments}\n\n") and "Arguments:" not in out


def test_help_on_bench_lists_its_parts_and_their_flags(numllama):
    out = numllama("help", "bench").out
    parts = "model serve formats embed vision kernels compare report self".split()
    assert out == numllama("bench", "--help").out == numllama("bench").out and set(parts) <= set(out.split())
    assert {"--peer", "--rounds", "--cpu"} <= set(numllama("bench", "model", "--help").out.split())
    assert numllama("bench", "model").err == "Error: the following arguments are required: MODEL|FILE.gguf\n"


def test_an_unexpected_error_is_one_line(numllama, monkeypatch):
    def fail():
        raise ZeroDivisionError("by\nnothing")

    monkeypatch.setattr("numllama.api.cli.version.version_text", fail)
    monkeypatch.delenv("OLLAMA_DEBUG", raising=False)
    outcome = numllama("--version")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err == "Error: internal error: ZeroDivisionError: by nothing; set OLLAMA_DEBUG=1 for a traceback\n"


def test_system_errors_name_the_file():
    assert usage.error_line(PermissionError(13, "Permission denied", "x.gguf")) == "x.gguf: permission denied"
    assert usage.error_line(OSError(28, "No space left on device")) == "no space left on device"
    assert usage.error_line(MemoryError()) == "out of memory"
    assert usage.error_line(RecursionError()) == "nested too deeply for this program"


def test_an_unknown_simd_level_is_reported_without_a_traceback():
    with pytest.raises(ValueError) as caught:
        choose_level("mmx", set())
    assert usage.error_line(caught.value).startswith("NUMLLAMA_SIMD is 'mmx', expected one of ")


@pytest.mark.parametrize("args", [["ps"], ["stop", "x"]])
def test_ps_and_stop_need_a_server(alone, numllama, args):
    assert numllama(*args) == (1, "", f"Error: {DOWN}\n")


@pytest.mark.parametrize("args", [["list"], ["ls"], ["show", "m"]])
def test_a_server_that_ollama_host_names_must_be_there(alone, numllama, monkeypatch, args):
    """The models of this machine would be the wrong answer."""
    assert numllama(*args).status == 0
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.9")
    assert numllama(*args) == (1, "", f"Error: {DOWN}\n")


def test_version_without_a_server_is_this_programs(alone, numllama):
    outcome = numllama("-v")
    assert outcome.status == 0
    assert outcome.out.startswith(
        "Warning: could not connect to a running Ollama instance\nWarning: client version is "
    )


def test_an_unknown_host_is_named(numllama, monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", "nohost.invalid:1")
    status, out, err = numllama("list")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith('Error: Head "http://nohost.invalid:1/": ')


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-8"])
def test_output_is_utf_8_in_every_locale(encoding):
    """As in Ollama; Windows has cp1252 in a pipe."""
    code = (
        "from numllama.api.cli.usage import prepare_streams; prepare_streams(); print('Gr\\xfc\\xdfe \\u4f60 \\ud800')"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert (done.stdout.strip(), done.stderr) == ("Grüße 你 ?".encode(), b"")


def test_run_without_standard_input_only_loads_the_model(store):
    environment = os.environ | {"OLLAMA_MODELS": str(store), "OLLAMA_HOST": "127.0.0.1:1", "NUMLLAMA_BUILTIN": "0"}
    command = f"'{sys.executable}' -m numllama run m <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_python_m_numllama_is_the_command():
    done = subprocess.run([sys.executable, "-m", "numllama", "help", "run"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("Usage: numllama run [OPTIONS]")


def test_ctrl_c_in_an_import_is_no_error_of_the_import(numllama, monkeypatch):
    """Extension modules turn KeyboardInterrupt into an ImportError."""

    def fail():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("numba._devicearray failed to import") from None

    monkeypatch.setattr("numllama.api.cli.version.version_text", fail)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores the signal
    try:
        assert numllama("--version") == (130, "", "")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_loopback_interface_that_is_down_has_no_server(monkeypatch):
    """As in a network namespace of its own: `unshare -n`."""

    def fail(*_, **__):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("socket.create_connection", fail)
    for url, error in (("http://127.0.0.1:11434", ServerNotRunning), ("http://192.0.2.1:11434", ServerError)):
        with pytest.raises(ServerError) as caught:
            Client(Host.parse(url)).check()
        assert type(caught.value) is error


def run_without_home(*args, **environ):
    """Run the command as a user without HOME and without an entry in the list of users."""
    code = "import pwd, sys; pwd.getpwuid = lambda uid: {}[uid]; from numllama.api.cli import main; sys.exit(main())"
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "PYTHONSAFEPATH")}
    cache = {"NUMBA_CACHE_DIR": os.environ["NUMBA_CACHE_DIR"]} if "NUMBA_CACHE_DIR" in os.environ else {}
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(command, capture_output=True, text=True, env=kept | cache | environ, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(os.name != "posix", reason="users of POSIX")
@pytest.mark.parametrize("home", [{}, {"HOME": ""}], ids=["none", "empty"])
def test_a_user_without_a_home_folder_is_told_what_to_set(store, home):
    expected = (
        "Error: the home folder is unknown, and with it ~/.ollama: set HOME, or OLLAMA_MODELS to a folder for models\n"
    )
    assert run_without_home("list", **home) == (1, "", expected)
    assert run_without_home("serve", **home) == (1, "", expected)
    status, out, err = run_without_home("list", OLLAMA_MODELS=str(store), **home)
    assert (status, err) == (0, "") and "bare:latest" in out
    assert run_without_home("run", "~/x.gguf", **home)[2] == "Error: ~/x.gguf: no such file\n"


def test_closed_standard_streams_are_not_an_error(store):
    environment = {"OLLAMA_MODELS": str(store), "HOME": "/nowhere"}
    command = f"'{sys.executable}' -c 'from numllama.api.cli import main; raise SystemExit(main())' list"
    for closed in ("", ">&-", "2>&-", "<&-"):
        done = subprocess.run(["sh", "-c", f"{command} {closed}"], capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stderr) == (0, ""), closed
        assert done.stdout.startswith("NAME") == (closed != ">&-")


def test_list_imports_no_heavy_library(store):
    script = """if True:
        import sys
        from numllama.api.cli import main
        main(["list"])
        print(sorted({"numpy", "numba", "tokenizers", "sentencepiece", "fastapi"} & set(sys.modules)))
    """
    environment = {"OLLAMA_MODELS": str(store), "HOME": "/nowhere", "NUMLLAMA_BUILTIN": "0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    "args, expected",
    [
        (["serve", "--ray"], ["serve", "--ray=local"]),
        (["serve", "--ray", "--replicas", "2"], ["serve", "--ray=local", "--replicas", "2"]),
        (["serve", "--ray", "head:6379"], ["serve", "--ray", "head:6379"]),
        (["serve", "--ray=head:6379"], ["serve", "--ray=head:6379"]),
        ([], []),
    ],
)
def test_ray_without_an_address_is_a_cluster_on_this_machine(args, expected):
    assert usage.fill_flag_values(args) == expected
