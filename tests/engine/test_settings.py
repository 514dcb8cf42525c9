"""Settings, read from the environment as Ollama's envconfig does."""

from __future__ import annotations

from pathlib import Path

import pytest

from numllama.engine.go.duration import FOREVER, SECOND
from numllama.engine.settings import Host, Settings

HOSTS = {  # from Ollama's envconfig tests
    "": "http://127.0.0.1:11434",
    "1.2.3.4": "http://1.2.3.4:11434",
    ":1234": "http://:1234",
    "1.2.3.4:1234": "http://1.2.3.4:1234",
    "example.com": "http://example.com:11434",
    "example.com:": "http://example.com:11434",
    ":0": "http://:0",
    ":66000": "http://:11434",
    ":-1": "http://:11434",
    "[::1]": "http://[::1]:11434",
    "::1": "http://[::1]:11434",
    "[::1]:1337": "http://[::1]:1337",
    " 1.2.3.4 ": "http://1.2.3.4:11434",
    '"1.2.3.4"': "http://1.2.3.4:11434",
    "' 1.2.3.4 '": "http://1.2.3.4:11434",
    "http://1.2.3.4": "http://1.2.3.4:80",
    "https://1.2.3.4": "https://1.2.3.4:443",
    "https://1.2.3.4:1234": "https://1.2.3.4:1234",
    "https://example.com/ollama": "https://example.com:443/ollama",
}


def test_a_variable_is_trimmed_of_what_go_calls_white_space():
    assert Settings.from_env({"OLLAMA_EDITOR": "\u2003vim\x85"}).editor == "vim"
    assert Settings.from_env({"OLLAMA_EDITOR": "\x1cvim"}).editor == "\x1cvim"  # str.strip would remove it


@pytest.mark.parametrize("text", HOSTS)
def test_ollama_host_is_an_address(text):
    assert Settings.from_env({"OLLAMA_HOST": text}).host.url == HOSTS[text]


@pytest.mark.parametrize(
    ("name", "loopback"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("", False)]
)
def test_only_loopback_hosts_are_loopback(name, loopback):
    assert Host(name=name).is_loopback == loopback


def test_a_client_connects_to_an_unspecified_address_on_this_machine():
    assert Host.parse("0.0.0.0").reachable.url == "http://127.0.0.1:11434"
    assert Host.parse("[::]:5").reachable.url == "http://[::1]:5"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", 300), ("1s", 1), ("90", 90), ("0", 0), ("-1", None), ("-5m", None), ("nonsense", 300), (' "2m" ', 120)],
)
def test_keep_alive_is_a_duration_or_seconds(text, expected):
    got = Settings.from_env({"OLLAMA_KEEP_ALIVE": text}).keep_alive
    assert got == (FOREVER if expected is None else expected * SECOND)


def test_a_load_timeout_of_zero_means_unlimited():
    assert Settings.from_env({"OLLAMA_LOAD_TIMEOUT": "0"}).load_timeout == FOREVER


@pytest.mark.parametrize(("text", "expected"), [("", False), ("0", False), ("f", False), ("1", True), ("yes", True)])
def test_an_invalid_boolean_counts_as_true(text, expected):
    assert Settings.from_env({"OLLAMA_NOPRUNE": text}).noprune == expected


@pytest.mark.parametrize("text", ["", "-1", "x", "1.5"])
def test_an_invalid_number_is_replaced_by_the_default(text):
    assert Settings.from_env({"OLLAMA_MAX_QUEUE": text}).max_queue == 512


def test_each_setting_is_read_from_its_own_variable():
    env = {
        "OLLAMA_MODELS": "/m",
        "OLLAMA_CONTEXT_LENGTH": "8192",
        "OLLAMA_MAX_LOADED_MODELS": "2",
        "OLLAMA_ORIGINS": "http://a, *",
        "OLLAMA_KV_CACHE_TYPE": "F32",
        "OLLAMA_GO_TEMPLATE": "0",
        "OLLAMA_DEBUG": "2",
        "NUMLLAMA_BUILTIN": "0",
    }
    s = Settings.from_env(env)
    assert (s.models, s.context_length, s.max_loaded_models) == (Path("/m"), 8192, 2)
    assert s.origins[:2] == ("http://a", "*") and "http://localhost:*" in s.origins
    assert (s.kv_cache_type, s.go_template, s.debug, s.builtin) == ("f32", False, 2, False)
