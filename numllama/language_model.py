"""The front door: a model and what one does with it, in a Python session or a notebook.

load            a model by its name in the store, the built-in "primer", or a GGUF file
LanguageModel   generate, chat, look, embed; encode, decode, pieces, template; trace, logits
Reply           an answer as it is generated: iterate over its text, or take str() of the whole
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from .engine.errors import ModelNotFound, RequestError
from .engine.gguf.file_type import parameter_size
from .engine.go.duration import FOREVER
from .engine.model.batch import Batch
from .engine.model.decoder import forward, logits
from .engine.model.model import Model, require_decoder
from .engine.model.trace import INSIDE_ATTENTION, Trace
from .engine.options import RequestOptions
from .engine.run.piece import Piece, Timings
from .engine.serve.answer import Answer
from .engine.serve.engine import Engine
from .engine.serve.prompting import full_history, render_prompt
from .engine.settings import Settings, expand_home
from .engine.store import ModelName, default_store
from .engine.store.file import FileModel
from .engine.tokenizer import Tokenizer
from .kernels import SETS, Kernels

if TYPE_CHECKING:
    from .looked import Looked


def load(
    source: str | os.PathLike[str],
    *,
    num_ctx: int | None = None,
    kernels: str = "numba",
    adapters: Sequence[str | os.PathLike[str]] = (),
    projectors: Sequence[str | os.PathLike[str]] = (),
) -> LanguageModel:
    """Load a model into this process.

    source      "primer", which is built in; a name in the store (OLLAMA_MODELS), such as "llama3.2:1b"; or the path
                of a GGUF file, which ends in .gguf or exists
    num_ctx     the window in tokens; by default the model's own parameter, else 4096
    kernels     the set that computes: "numba" for speed, "exact" or "numpy-float64" for reference (kernels/__init__.py)
    adapters, projectors   files that go with a GGUF file: LoRA adapters, the part that encodes images
    Raises: ModelNotFound, ModelError, RequestError for an unknown set of kernels
    """
    if kernels not in SETS:
        raise RequestError(f"unknown kernel set '{kernels}'; choose from {', '.join(SETS)}")
    path = expand_home(source)
    if isinstance(source, os.PathLike) or str(source).lower().endswith(".gguf") or path.is_file():
        file = FileModel.of(path, [Path(a) for a in adapters], [Path(p) for p in projectors])
        return LanguageModel(Engine(file=file, kernels=SETS[kernels]), path.name, num_ctx)
    if adapters or projectors:
        raise RequestError(f"adapters and projectors go with a GGUF file, and '{source}' is a name")
    settings = Settings.from_env()
    store = default_store(settings)
    try:
        store.resolve(ModelName.parse_request(str(source))[0])
    except ModelNotFound:
        known = ", ".join(model.name.short for model in store.list()) or "none"
        message = f"'{source}' is neither a GGUF file nor an installed model; installed: {known}"
        raise ModelNotFound(str(source), message) from None
    return LanguageModel(Engine(settings, store, kernels=SETS[kernels]), str(source), num_ctx)


class LanguageModel:
    """A loaded model.

    name      as it was loaded
    engine    the Engine that answers: queue, batching and cached prefixes as in the server
    model     hyperparameters, weights and tokenizer, see engine/model/model.py

    Answers go through the same code as the server's, so text, ids and vectors are the same, bit for bit.  Works as a
    context manager; close() ends its threads.
    """

    def __init__(self, engine: Engine, name: str, num_ctx: int | None = None):
        """Load `name` of `engine`'s models now.  Raises: ModelNotFound, ModelError"""
        self.engine, self.name = engine, name
        self._options: dict[str, Any] = {} if num_ctx is None else {"num_ctx": num_ctx}
        self.stored = engine.file or engine.store.resolve(ModelName.parse_request(name)[0])
        engine.embed(name, request=RequestOptions(self._options, keep_alive=FOREVER))  # without texts it only loads
        (self._loaded,) = engine.pool.loaded()
        self.model: Model = self._loaded.runner.model

    def __repr__(self) -> str:
        hp, n = self.model.hparams, sum(t.n_elements for t in self.model.gguf.tensors.values())
        window = self._loaded.runner.options.num_ctx
        return (
            f"<LanguageModel {self.name}: {self.model.family.name}, {parameter_size(n)} parameters, "
            f"{hp.n_layer} layers, window {window}>"
        )

    def __enter__(self) -> LanguageModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what runs and free the model."""
        self.engine.close()

    # answers

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        system: str = "",
        template: str = "",
        suffix: str = "",
        raw: bool = False,
        images: Sequence[bytes] = (),
        format: Any = None,
        think: bool | str | None = None,
        logprobs: int | None = None,
        **options: Any,
    ) -> Reply:
        """Answer one prompt.  The prompt goes through the model's template unless `raw`; ids are used unchanged.

        system, template   in place of the model's
        suffix             the text to follow the answer, for models that fill in the middle
        format             "json" or a JSON schema that the answer must match
        think              whether a model that can think does
        logprobs           report each token's log-probability and those of the n likeliest
        options            Ollama's: temperature, seed, num_predict, stop, top_k, ... (engine/options.py)
        Raises: RequestError, BadOptions, BadGrammar, BadTemplate
        """
        request = self._request(format, think, logprobs, options)
        more: dict[str, Any] = {"system": system, "template": template, "suffix": suffix, "raw": raw, "images": images}
        return Reply(self.engine.generate(self.name, prompt, request, **more))

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        format: Any = None,
        think: bool | str | None = None,
        logprobs: int | None = None,
        **options: Any,
    ) -> Reply:
        """Answer a conversation: messages with "role" and "content", or one text of the user.

        `reply.message` is the message to append before the next turn.  Other arguments as for generate().
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        request = self._request(format, think, logprobs, options)
        return Reply(self.engine.chat(self.name, messages, request, tools=tools))

    def look(
        self,
        prompt: str | Sequence[int] | Sequence[Mapping[str, Any]],
        *,
        attention: Any = "*",
        peaks: bool = False,
        lens: int = 5,
        logits: int = 64,
        neurons: int = 8,
        neuron_layers: Sequence[int] = (),
        values: Sequence[str] = (),
        rows: str = "all",
        keep: bool = False,
        ablate: Sequence[Mapping[str, Any]] = (),
        patch: Sequence[Mapping[str, Any]] = (),
        system: str = "",
        raw: bool = False,
        think: bool | str | None = None,
        **options: Any,
    ) -> Looked:
        """Answer `prompt` and keep what it computed: attention, lens, sampler, time, cache, merges, steps.

        prompt      as for generate(), or messages as for chat(); the answer is the same, bit for bit
        attention   [[layer, head], ...] whose weights are kept; "*" in a place for all, "*" alone for all heads
        peaks       each head's largest weight and where it is, in steps: for models too large for all weights
        lens        tokens that each layer's output would predict;  logits: the largest before sampling, -1 for all
        neurons     strongest neurons of each layer, or of the layers neuron_layers alone
        values      patterns of labels such as "l_out-*"
        rows        "last": of the prompt look at the last token alone, which keeps large models quick
        keep        hold keys and values: look.prompt.run names them for engine.look_again()
        ablate      [{"layer": 3, "head": 1}, {"layer": 2, "block": "attn" | "ffn" | "layer"}]: what to switch off
        patch       [{"name": "l_out", "layer": 1, "row": -1, "from": "another prompt"}]: values of another prompt
        Raises: RequestError, also where the parts together are too large (OLLAMA_LOOK_LIMIT)
        """
        from .looked import Looked

        wanted = {"attention": attention, "lens": lens, "logits": logits, "neurons": neurons, "values": list(values)}
        wanted |= {"peaks": peaks, "prompt": rows, "keep": keep, "ablate": list(ablate), "patch": list(patch)}
        wanted["neuron_layers"] = list(neuron_layers)
        wanted |= dict.fromkeys(("sampler", "residual", "time", "cache", "merges"), True)
        request = replace(self._request(None, think, None, options), look=wanted)
        if not isinstance(prompt, str) and prompt and isinstance(prompt[0], Mapping):
            system_message = [{"role": "system", "content": system}] if system else []
            messages: list[Any] = [*system_message, *prompt]
            return Looked(self, Reply(self.engine.chat(self.name, messages, request)))
        text: Any = prompt
        return Looked(self, Reply(self.engine.generate(self.name, text, request, system=system, raw=raw)))

    def embed(self, texts: str | Sequence[str], *, dimensions: int = 0) -> np.ndarray:
        """Return the unit vector of each text; of one text a single vector.  -> f32 [n_text, n_embd] or f32 [n_embd]

        dimensions   keep only the first so many components; 0: all
        Raises: RequestError, ContextFull
        """
        one = isinstance(texts, str)
        batch = [texts] if isinstance(texts, str) else list(texts)
        if not batch:
            return np.zeros((0, dimensions or self.model.hparams.n_embd), np.float32)
        request = RequestOptions(self._options, keep_alive=FOREVER)
        (piece,) = self.engine.embed(self.name, batch, request, dimensions=dimensions)
        vectors = np.stack(piece.embeddings)
        return vectors[0] if one else vectors

    def _request(self, format: Any, think: Any, logprobs: int | None, options: Mapping[str, Any]) -> RequestOptions:
        merged = {**self._options, **options}
        return RequestOptions(merged, FOREVER, think, format, n_logprobs=logprobs)

    # text and tokens

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; tokenizer.explain(text) shows every merge."""
        return self.model.tokenizer

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of `text`, with BOS and EOS where the vocabulary wants them unless `special` is False."""
        return self.tokenizer.encode(text, add_special=special)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens included."""
        return self.engine.detokenize(self.name, ids)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each id by itself; bytes that are not UTF-8 alone show as U+FFFD."""
        return [self.tokenizer.piece(int(id)).decode("utf-8", "replace") if id >= 0 else "[image]" for id in ids]

    def template(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        think: bool | str | None = None,
    ) -> str:
        """Render the prompt that chat() makes of `messages`.  Raises: BadTemplate"""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        template = self.engine.template_of(self.stored, self.model)
        return render_prompt(template, full_history(self.stored, messages), RequestOptions(think=think), tools)

    # inside

    def trace(self, prompt: str | Sequence[int], *names: str, kernels: str | None = None) -> Trace:
        """Run one forward pass over `prompt` and keep every value whose name matches one of `names`; all by default.

        names     llama.cpp's: "attn_norm", "Qcur", "kq_soft_max", "ffn_*", "l_out", "result_output", ...
        kernels   another set; values inside attention (kq, kq_soft_max) exist in NumPy's, which is taken for them
        Raises: RequestError for a name that never comes or a prompt longer than the window
        """
        inside = any(name in INSIDE_ATTENTION for name in names)
        chosen = self._kernels(kernels or ("numpy-float32" if inside else self.engine.kernels.name))
        ids, trace = self._ids(prompt), Trace(*names, kernels=chosen)
        cache = self.model.new_cache(len(ids), type="f64" if chosen.name.endswith("64") else "f32")
        hidden = self.model.family.hidden(self.model, Batch.of(ids), cache, chosen, trace)
        if self.model.family.causal:
            logits(self.model, hidden, chosen, trace)
        if not trace.values:
            raise RequestError(f"no value is called {' or '.join(names)}; trace() without names lists all")
        return trace

    def logits(self, prompt: str | Sequence[int], *, kernels: str | None = None) -> np.ndarray:
        """Return the logits after every token of `prompt`.  -> f32 [n_tok, n_vocab]

        Raises: RequestError for an encoder or a prompt longer than the window
        """
        require_decoder(self.model)
        ids, chosen = self._ids(prompt), self._kernels(kernels or self.engine.kernels.name)
        cache = self.model.new_cache(len(ids), type="f64" if chosen.name.endswith("64") else "f32")
        return forward(self.model, Batch.of(ids, outputs=range(len(ids))), cache, chosen)

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        ids = self.encode(prompt) if isinstance(prompt, str) else [int(id) for id in prompt]
        n_ctx = self.model.hparams.n_ctx_train
        if not 0 < len(ids) <= n_ctx:
            raise RequestError(f"the prompt has {len(ids)} tokens, expected 1 to {n_ctx}, the model's window")
        self.engine.detokenize(self.name, ids)  # raises for an id outside the vocabulary
        return ids

    @staticmethod
    def _kernels(name: str) -> Kernels:
        if name not in SETS:
            raise RequestError(f"unknown kernel set '{name}'; choose from {', '.join(SETS)}")
        return SETS[name]


class Reply:
    """An answer, generated while it is read: iterate over pieces of text, or take str() of the whole.

    A second iteration repeats the pieces that are known.  Everything but iteration waits for the end.
    """

    def __init__(self, answer: Answer):
        self.prompt: str = answer.prompt  # as rendered
        self._answer, self._source, self._pieces = answer, iter(answer), list[Piece]()

    def __iter__(self) -> Iterator[str]:
        for piece in self.pieces():
            if piece.text:
                yield piece.text

    def pieces(self) -> Iterator[Piece]:
        """Yield the pieces with all they carry: text, thinking, tool calls, token, log-probability, timings."""
        i = 0
        while True:
            if i == len(self._pieces):
                if self._pieces and self._pieces[-1].done_reason:
                    return
                self._pieces.append(next(self._source))
            yield self._pieces[i]
            i += 1

    def _all(self) -> list[Piece]:
        return list(self.pieces())

    def __str__(self) -> str:
        return "".join(self)

    def __repr__(self) -> str:
        text = "".join(piece.text for piece in self._pieces)
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        ended = self._pieces[-1].done_reason if self._pieces else None
        return f"<Reply {shown!r}, {ended or 'being generated'}>"

    @property
    def text(self) -> str:
        """The whole text, without thinking."""
        return str(self)

    @property
    def thinking(self) -> str:
        """The whole thinking; "" if there was none."""
        return "".join(piece.thinking for piece in self._all())

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The tool calls, as a message has them."""
        calls = [call for piece in self._all() for call in piece.tool_calls]
        return [{"id": call.id, "function": {"name": call.name, "arguments": call.arguments}} for call in calls]

    @property
    def ids(self) -> list[int]:
        """The generated tokens."""
        return [piece.token for piece in self._all() if piece.token is not None]

    @property
    def done_reason(self) -> str:
        """Why it ended: "stop" or "length"."""
        return self._all()[-1].done_reason or ""

    @property
    def timings(self) -> Timings:
        """Counts of tokens and durations in nanoseconds."""
        return self._all()[-1].timings or Timings()

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message, to be appended to the conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        more = {"thinking": self.thinking, "tool_calls": self.tool_calls}
        return message | {key: value for key, value in more.items() if value}

    def close(self) -> None:
        """Cancel the answer."""
        self._answer.handle.cancel()
