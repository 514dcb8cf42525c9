"""Predictions of servers, over each wire that has log-probabilities.

LlamaServer   llama-server's own /tokenize and /completion: ids, and as many tokens as asked for
EchoServer    OpenAI's /v1/completions with `echo`: the text's own tokens, exactly, and a few likely ones at each
OllamaServer  Ollama's /api/generate with `top_logprobs`: the 20 likeliest tokens after each prefix of the text
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import httpx
import numpy as np

from ...engine.errors import RequestError
from ...engine.oracle.compare import Prediction, TextToken
from ...engine.store.registry.proxy import ProxyTransport

CONNECT_S, ANSWER_S = 10, 600  # a load of a large model may take minutes
MAX_LISTED = 2000  # tokens that llama-server is asked for, unless its whole vocabulary is smaller
UNKNOWN = "\ufffd"
FORCED = 1e3  # added to a logit after its probability is taken, so that the answer is a whole word


class Wire:
    """A server at `base`, with a model name."""

    def __init__(self, address: str):
        """Parse URL#MODEL.  Raises: RequestError"""
        url, _, self.model = address.partition("#")
        parsed = httpx.URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise RequestError(f"{address}: expected an address such as http://127.0.0.1:11434#MODEL")
        self.name = address
        self.base = url.rstrip("/").removesuffix("/v1").removesuffix("/api")
        self.http = httpx.Client(
            transport=ProxyTransport(), trust_env=False, timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S)
        )

    def close(self) -> None:
        self.http.close()

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """GET, or POST `body`.  -> the JSON answer, or the status of an error.  Raises: RequestError"""
        try:
            if body is None:
                answer = self.http.get(f"{self.base}{path}")
            else:
                answer = self.http.post(f"{self.base}{path}", json=body)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            reason = str(error).rpartition("] ")[2] or type(error).__name__
            raise RequestError(f"{self.base}: {reason[:1].lower()}{reason[1:]}") from None
        if answer.is_error:
            raise Refused(f"{self.base}{path}: {answer.status_code}: {refusal_text(answer)}")
        try:
            return answer.json()
        except ValueError:
            raise Refused(f"{self.base}{path}: the answer is not JSON") from None


class Refused(RequestError):
    """The server answered with an error, or not with JSON."""


def refusal_text(answer: httpx.Response) -> str:
    """Return the message in an error answer of any wire."""
    with suppress(ValueError):
        value = answer.json()
        error = value.get("error", value) if isinstance(value, dict) else value
        return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
    return answer.reason_phrase


def open_server(address: str, n_listed: int | None) -> LlamaServer | EchoServer | OllamaServer:
    """Return the server at URL#MODEL with the best wire that it has.

    n_listed   likely tokens to ask for
    Raises: RequestError if nothing answers there, or without log-probabilities
    """
    wire = Wire(address)
    try:
        return choose_wire(wire, n_listed)
    except BaseException:
        wire.close()
        raise


def choose_wire(wire: Wire, n_listed: int | None) -> LlamaServer | EchoServer | OllamaServer:
    """Return the first wire that works.  Raises: as open_server"""
    with suppress(Refused):
        if "default_generation_settings" in dict_of(wire.call("/props")):
            return LlamaServer(wire, n_listed)
    reasons = []
    for kind in (EchoServer, OllamaServer):
        try:
            return kind(wire, n_listed)
        except Refused as error:
            reasons.append(str(error))
    raise RequestError(f"{wire.name} gives no log-probabilities of a text: {'; '.join(dict.fromkeys(reasons))}")


def dict_of(value: Any) -> dict[str, Any]:
    """Return `value` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def prediction_of(
    entries: Sequence[tuple[bytes, int | None, float]], token: TextToken, n_vocab: int = 0, next_ln: float | None = None
) -> Prediction | None:
    """Return the prediction that a server listed as (bytes, id, log-probability); None for an empty list."""
    entries = [entry for entry in entries if math.isfinite(entry[2])]
    if not entries:
        return None
    texts, found, ln = zip(*entries, strict=True)
    ids = None if None in found else found
    places = [
        i for i, (text, id, _) in enumerate(entries) if (id == token.id if ids and token.id else text == token.text)
    ]
    if next_ln is None and places:
        next_ln = float(ln[places[0]])
    return Prediction(np.array(ln, np.float64), texts, ids, n_vocab == len(ln), next_ln)


class LlamaServer:
    """llama-server's own API: /tokenize and /completion with `n_probs`."""

    def __init__(self, wire: Wire, n_listed: int | None):
        self.wire, self.name = wire, wire.name
        if self._more and self._more["model"] not in self._models:
            raise RequestError(f"{self.name}: the server has no model '{wire.model}'; it has {', '.join(self._models)}")
        meta = next((dict_of(m.get("meta")) for m in self._models.values()), {})
        self.n_vocab = int(meta.get("n_vocab") or 0)
        self.n_listed = n_listed or (self.n_vocab if 0 < self.n_vocab <= MAX_LISTED else MAX_LISTED)
        self.kind = f"llama-server's /completion, {self.n_listed} of {self.n_vocab or 'all'} tokens"

    @cached_property
    def _models(self) -> dict[str, dict[str, Any]]:
        with suppress(Refused):
            return {str(m.get("id")): m for m in dict_of(self.wire.call("/v1/models")).get("data") or []}
        return {}

    @property
    def _more(self) -> dict[str, Any]:
        return {"model": self.wire.model} if self.wire.model and self._models else {}

    def _tokenize(self, text: str, **options: Any) -> list[TextToken]:
        answer = self.wire.call("/tokenize", {"content": text, "with_pieces": True} | options | self._more)
        pieces = [(dict_of(entry).get("piece", ""), dict_of(entry).get("id")) for entry in answer["tokens"]]
        return [TextToken(piece.encode() if isinstance(piece, str) else bytes(piece), id) for piece, id in pieces]

    def split(self, text: str) -> list[TextToken]:
        return self._tokenize(text, add_special=False, parse_special=False)

    @cached_property
    def _front(self) -> list[int | None]:
        """BOS, if the vocabulary adds one."""
        front, plain = (self._tokenize("a", add_special=add) for add in (True, False))
        return [front[0].id] if front[:1] != plain[:1] else []

    @cached_property
    def _word(self) -> int | None:
        """The id of a whole word: llama-server holds back probabilities of a token that is part of a character."""
        return self._tokenize(" the", add_special=False)[-1].id

    def predictions(self, text: str, tokens: Sequence[TextToken]) -> Iterator[Prediction | None]:
        """Yield the prediction of each token of the text, from a request each."""
        ids = [token.id for token in self.split(text)]
        for i, token in enumerate(tokens):
            prompt = [*self._front, *ids[:i]]
            if not prompt:
                yield None
                continue
            body = {
                "prompt": prompt,
                "n_predict": 1,
                "n_probs": self.n_listed,
                "temperature": 0,
                "cache_prompt": True,
                "logit_bias": [[self._word, FORCED]],
            }
            answer = dict_of(self.wire.call("/completion", body | self._more))
            found = answer.get("completion_probabilities") or [{}]
            entries = [
                (bytes(entry["bytes"]), entry["id"], entry["logprob"]) for entry in found[0].get("top_logprobs") or []
            ]
            yield prediction_of(entries, TextToken(token.text, ids[i]), self.n_vocab)


class EchoServer:
    """OpenAI's /v1/completions with `echo` and `logprobs`: a whole text in one request."""

    def __init__(self, wire: Wire, n_listed: int | None):
        """Ask for a first text.  Raises: Refused if the server does not echo log-probabilities"""
        self.wire, self.name = wire, wire.name
        self._known: tuple[str, dict[str, Any]] = "", {}
        refused = Refused(f"{wire.base}/v1/completions: no `logprobs` of the prompt in the answer")
        for self.n_listed, self.n_new in [(n_listed, 0)] if n_listed else [(20, 0), (5, 0), (5, 1)]:
            try:
                self._echo("a b")
                break
            except Refused as error:
                refused = error
        else:
            raise refused
        self.kind = f"OpenAI's /v1/completions, echo, {self.n_listed} likely tokens"

    def _echo(self, text: str) -> dict[str, Any]:
        """Return the log-probabilities of `text`, of the last call's text without asking again."""
        if self._known[0] != text:
            body = {
                "model": self.wire.model,
                "prompt": text,
                "echo": True,
                "logprobs": self.n_listed,
                "max_tokens": self.n_new,
                "temperature": 0,
            }
            choices = dict_of(self.wire.call("/v1/completions", body)).get("choices") or [{}]
            found = dict_of(dict_of(choices[0]).get("logprobs"))
            if len(found.get("tokens") or ()) < 2 or not found.get("token_logprobs"):
                raise Refused(f"{self.wire.base}/v1/completions: no `logprobs` of the prompt in the answer")
            self._known = text, found
        return self._known[1]

    def _entries(self, text: str) -> list[tuple[TextToken, float | None, dict[str, float]]]:
        found = self._echo(text)
        tops = found.get("top_logprobs") or [None] * len(found["tokens"])
        offsets = found.get("text_offset") or [0] * len(found["tokens"])
        entries = [
            (TextToken(token_bytes(token)), ln, top or {})
            for token, ln, top, at in zip(found["tokens"], found["token_logprobs"], tops, offsets, strict=True)
            if at < len(text)
        ]
        joined = b"".join(entry[0].text for entry in entries)
        return entries[1:] if len(joined.strip()) > len(text.strip().encode()) else entries  # BOS is not in the text

    def split(self, text: str) -> list[TextToken]:
        return [token for token, _, _ in self._entries(text)]

    def predictions(self, text: str, tokens: Sequence[TextToken]) -> Iterator[Prediction | None]:
        """Yield the prediction of each token of the text.

        A token written as U+FFFD, part of a character, is unknown; none is predicted where it is the likeliest.
        """
        for token, ln, top in self._entries(text):
            known = sorted(((value, name) for name, value in top.items() if value is not None), reverse=True)
            if known and UNKNOWN in known[0][1]:
                ln = None
            listed: list[tuple[bytes, int | None, float]] = [
                (token_bytes(name), None, float(value)) for value, name in known if UNKNOWN not in name
            ]
            if ln is not None and all(text != token.text for text, _, _ in listed):
                listed.append((token.text, None, ln))
            yield prediction_of(listed, token, next_ln=ln) if ln is not None else None


def token_bytes(text: str) -> bytes:
    r"""Return a token's bytes; OpenAI writes a part of a character as "bytes:\xe2".

    >>> token_bytes(" a"), token_bytes(r"bytes:\xe2\x80")
    (b' a', b'\xe2\x80')
    """
    hexes = text.removeprefix("bytes:")
    return bytes(int(code, 16) for code in hexes.split("\\x")[1:]) if hexes != text else text.encode()


class OllamaServer:
    """Ollama's /api/generate with `logprobs`: a request for each prefix of the text."""

    def __init__(self, wire: Wire, n_listed: int | None):
        """Ask for a first token.  Raises: Refused if the server gives no log-probabilities"""
        self.wire, self.name, self.n_listed = wire, wire.name, n_listed or 20
        if not wire.model:
            raise RequestError(f"{wire.name}: no model: expected {wire.name}#MODEL")
        if not self._ask("a b")[0]:
            raise Refused(f"{wire.base}/api/generate: no `logprobs` in the answer; Ollama has them since 0.12.11")
        self.kind = f"Ollama's /api/generate, the {self.n_listed} likeliest tokens"

    def _ask(self, prompt: str) -> tuple[list[tuple[bytes, int | None, float]], int]:
        """Return what may follow `prompt` as (bytes, None, log-probability), and the number of the prompt's tokens."""
        body = {
            "model": self.wire.model,
            "prompt": prompt,
            "raw": True,
            "stream": False,
            "logprobs": True,
            "top_logprobs": self.n_listed,
            "options": {"temperature": 0, "num_predict": 1},
        }
        answer = dict_of(self.wire.call("/api/generate", body))
        listed = (answer.get("logprobs") or [{}])[0].get("top_logprobs") or []
        entries: list[tuple[bytes, int | None, float]] = [
            (bytes(entry.get("bytes") or entry["token"].encode()), None, float(entry["logprob"])) for entry in listed
        ]
        return entries, int(answer.get("prompt_eval_count") or 0)

    def split(self, text: str) -> list[TextToken] | None:
        """Return None: Ollama has no route that tokenizes."""
        return None

    def predictions(self, text: str, tokens: Sequence[TextToken]) -> Iterator[Prediction | None]:
        """Yield the prediction after each prefix; None where it ends within a character, or splits into more tokens."""
        before, n_front = b"", None
        for i, token in enumerate(tokens):
            try:
                prompt = before.decode()
            except UnicodeDecodeError:
                prompt = ""
            before += token.text
            if not text.startswith(" "):
                prompt = prompt.removeprefix(" ")  # that SPM adds
            if not prompt:
                yield None
                continue
            entries, n_token = self._ask(prompt)
            n_front = n_token - i if n_front is None else n_front
            yield prediction_of(entries, token) if token.is_word or n_token <= i + n_front else None
