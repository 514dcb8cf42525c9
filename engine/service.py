"""What can be asked of numllama, without HTTP: the verbs, on one object.

    Engine.generate, chat   -> Answer, whose pieces come as the model makes them
    Engine.embed            -> Answer, whose one piece has the vectors of all texts
    Engine.list, show, ps, copy, delete, create, blobs     models on disk and in memory
    Engine.pull, push                                      models between the disk and a registry

An answer goes this way (design: "the one path"):

    resolve the name   ModelName, Store
    check              capabilities, options
    load or reuse      Pool
    render             Template, or the bare prompt
    encode             Tokenizer
    submit             Runner; from here on in its thread
    tell apart         Split: thinking, text, tool calls
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter_ns
from typing import Any, NamedTuple

import numpy as np

from ..kernels import NUMBA, Kernels
from .cache import usable_type
from .embed import Vectors, pooling_of, reading, tokens_of
from .errors import BadGrammar, CloudModel, ModelNotFound, RequestError
from .gguf import GGUF
from .grammar import Grammar
from .job import Call, Job
from .model import Model, check_fits, load_model
from .options import AS_USUAL, Options, Wanted
from .parse import ThinkingParser, ToolParser, without_old_thoughts
from .parse.thinking import BLANKS
from .piece import Piece
from .pool import Loaded, Pool, Progress
from .runner import Runner, loading
from .settings import TRACE, Settings
from .split import Split
from .store import LocalModel, ModelName, Store, default_store, go_text, show
from .store.auth import Credentials
from .store.create import create, create_from_modelfile
from .store.download import Downloads
from .store.sources import file_chunks
from .store.transfer import pull, push
from .template import (
    Message,
    Template,
    bare_prompt,
    chat_messages,
    for_jinja,
    generate_messages,
    images_of,
    mark_images,
)
from .tokenizer import Tokenizer, from_gguf

log = logging.getLogger(__name__)

Deliver = Callable[[Piece | Exception], None]
READING_BATCH = 2048  # num_batch for a model that only embeds: nobody waits for a next token
IMAGE_TOKENS = 768  # what an image counts where a conversation is cut
Tool = Mapping[str, Any]


@dataclass(eq=False)
class Answer:
    """What came of a question: a model only loaded or unloaded, a prompt only rendered, or pieces to come.

    done_reason     "load" or "unload", else None: the last piece says it
    load_duration   nanoseconds from the call to a model that is ready
    prompt          as rendered
    n_images        that it shows
    n_prompt        its tokens, as far as the window holds them
    is_over         no piece will come
    call            who waits for it
    split           what the pieces pass before they come out
    """

    done_reason: str | None = None
    prompt: str = ""
    n_images: int = 0
    n_prompt: int = 0
    is_over: bool = False
    load_duration: int = 0
    model: Model | None = None
    call: Call = field(default_factory=Call)
    split: Split = field(default_factory=Split)
    _pieces: SimpleQueue[Piece | Exception] = field(default_factory=SimpleQueue)

    def __iter__(self) -> Iterator[Piece]:
        """The pieces, for a caller who let nothing else take them.  Closing it ends the answer.

        Raises what went wrong.
        """
        try:
            while True:
                piece = self._pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.done_reason:
                    return
        finally:
            self.call.cancel()

    @property
    def total_duration(self) -> int:
        """Nanoseconds since the call."""
        return perf_counter_ns() - self.call.began

    def context(self) -> list[int]:
        """The conversation up to the last piece as tokens, to be handed back with the next prompt."""
        assert self.model
        text = self.prompt + "".join(self.split.said)
        return self.model.tokenizer.encode(text, add_special=False, parse_special=True)


class Token(NamedTuple):
    """An id and the bytes that it adds to a text."""

    id: int
    piece: bytes


@dataclass(frozen=True)
class Prompt:
    """What the model is to go on from.

    bos_once   a template may have written the BOS text: then the tokenizer does not put another one in front
    split      how what comes is to be told apart
    images     what the marks [img-0], [img-1], ... in the text stand for
    ids        in place of those that the tokenizer makes of the text
    n_whole    tokens before messages were left out; 0 where none were
    """

    text: str
    bos_once: bool = False
    split: Split = field(default_factory=Split)
    ids: list[int] | None = None
    n_whole: int = 0
    images: Sequence[bytes] = ()

    def encode(self, runner: Runner, call: Call) -> tuple[list[int], dict[int, np.ndarray]]:
        """The tokens, and what stands in for those below 0.  Raises: BadImage, Cancelled"""
        if self.ids is not None:
            return self.ids, {}
        tokenizer, rows = runner.model.tokenizer, dict[int, np.ndarray]()
        if self.images and runner.images:
            ids, rows = runner.images.prompt(tokenizer, self.text, self.images, call)
        else:
            ids = tokenizer.encode(self.text, add_special=True, parse_special=True)
        twice = self.bos_once and tokenizer.add_bos and ids[:2] == [tokenizer.bos] * 2
        return (ids[1:] if twice else ids), rows


class Engine:
    """One store, one pool of loaded models, and everything that can be done with them.

    file      the one model there is, under whatever name: a GGUF that lies in no store
    kernels   the set that answers
    """

    def __init__(
        self,
        settings: Settings | None = None,
        store: Store | None = None,
        *,
        file: LocalModel | None = None,
        kernels: Kernels = NUMBA,
    ):
        self.settings = settings or Settings.from_env()
        self.store = store or default_store(self.settings)
        self.file, self.kernels = file, kernels
        s = self.settings
        self.pool = Pool(s.keep_alive, s.max_loaded_models, s.max_queue, s.load_timeout)
        self.downloads = Downloads()

    def close(self) -> None:
        """Everything ends: answers and downloads are told so, nothing more is written."""
        self.store.blobs.is_closed = True
        self.downloads.close()
        self.pool.close()

    # --- answers ---

    def generate(
        self,
        name: str,
        prompt: str | Sequence[int] = "",
        wanted: Wanted = AS_USUAL,
        *,
        suffix: str = "",
        system: str = "",
        template: str = "",
        context: Sequence[int] | None = None,
        raw: bool = False,
        images: Sequence[bytes] = (),
        call: Call | None = None,
        deliver: Deliver | None = None,
    ) -> Answer:
        """The continuation of one prompt.  An empty one only loads the model, or unloads it where keep_alive is 0.

        prompt            text, or the very tokens that the model sees
        suffix            what is to follow the answer
        system, template  in place of the model's
        context           what an earlier answer's `context` gave; the model's own messages are then left out
        raw               the prompt is what the model sees
        Checks and their order are those of the contract, section 3.2.
        """
        call = call or Call()
        model = self._resolve(name)
        if not prompt and wanted.keep_alive == 0:
            return self._unload(model)
        if raw and (template or system or context):
            raise RequestError("raw mode does not support template, system, or context")
        wanted = self._checked(name, model, "generate", wanted, images=bool(images), tools=False, suffix=bool(suffix))

        def render(loaded: Loaded) -> Prompt:
            own = self._template(model, loaded)
            if not isinstance(prompt, str):
                return Prompt(text_of(loaded.runner.model, prompt), ids=list(prompt))
            if raw:
                return Prompt(prompt, split=Split() if wanted.echo else split(own, prompt, wanted), images=images)
            asked = Template(template, "go") if template else own
            history = model.messages if context is None else []
            messages = generate_messages(prompt, system or model.system, history, images)
            seen, messages = images_of(messages), mark_images(messages)
            if suffix:
                text = asked.fill(prompt, suffix, wanted.think)
            else:
                text = bare_prompt(messages) if asked.language == "chatml" else rendered(asked, messages, wanted)
            text = text_of(loaded.runner.model, context or ()) + text
            bos_once = asked.language == "jinja" and context is None
            return Prompt(text, bos_once, split(own, text, wanted), images=seen)

        return self._answer(model, prompt, wanted, render, call, deliver)

    def chat(
        self,
        name: str,
        messages: Sequence[Message] = (),
        wanted: Wanted = AS_USUAL,
        *,
        tools: Sequence[Tool] = (),
        call: Call | None = None,
        deliver: Deliver | None = None,
    ) -> Answer:
        """The next turn of a conversation.  None at all only loads the model, or unloads it where keep_alive is 0.

        A last message of the assistant is gone on with.  Checks are those of the contract, section 3.3.
        """
        call = call or Call()
        if not name:
            raise RequestError("model is required")
        model = self._resolve(name)
        if not messages and wanted.keep_alive == 0:
            return self._unload(model)
        images = any(message.get("images") for message in messages)
        wanted = self._checked(name, model, "chat", wanted, images=images, tools=bool(tools), suffix=False)

        def render(loaded: Loaded) -> Prompt:
            own = self._template(model, loaded)
            everything = conversation(model, messages)

            def size(some: Sequence[Message]) -> int:
                text = rendered(own, some, wanted, tools)
                n_images = sum(len(message.get("images") or ()) for message in some) if model.projectors else 0
                return len(loaded.runner.model.tokenizer.encode(text)) + n_images * IMAGE_TOKENS

            whole = everything
            if wanted.truncate:
                everything = fitting(everything, size, loaded.runner.options.num_ctx)
            n_whole = size(whole) if len(everything) < len(whole) else 0
            text = rendered(own, mark_images(everything), wanted, tools)
            told_apart = split(own, text, wanted, tools)
            return Prompt(text, own.language != "go", told_apart, n_whole=n_whole, images=images_of(everything))

        return self._answer(model, messages, wanted, render, call, deliver)

    def embed(
        self,
        name: str,
        texts: Sequence[str] = (),
        wanted: Wanted = AS_USUAL,
        *,
        dimensions: int = 0,
        call: Call | None = None,
        deliver: Deliver | None = None,
    ) -> Answer:
        """A vector of length 1 for each of `texts`, which any model can make.  None at all only loads the model.

        dimensions   keep so many components, the first; 0: all
        A text that is refused ends it for all of them.  Checks are those of the contract, section 3.4.
        """
        call = call or Call()
        try:
            model = self._resolve(name)
        except ModelNotFound:
            told = f'model "{name}" not found, try pulling it first' if name else None
            raise ModelNotFound(name, told) from None
        options = self._options(model, wanted.options)
        loaded = self.pool.acquire(model, options, partial(self._load, model, options), call, wanted.keep_alive)
        runner = loaded.runner
        answer = Answer(load_duration=perf_counter_ns() - call.began, model=runner.model, call=call)
        try:
            pooling = pooling_of(runner.model.hparams)
            n_ctx, tokenizer = runner.options.num_ctx, runner.model.tokenizer
            prompts = []
            for text in texts:
                call.check()
                prompts.append(tokens_of(text, tokenizer, n_ctx, wanted.truncate))
        except BaseException:
            self.pool.release(loaded)
            raise
        if not prompts:
            answer.is_over, answer.done_reason = True, "load"
            self.pool.release(loaded)
            return answer
        answer.n_prompt = sum(map(len, prompts))
        release = partial(self.pool.release, loaded)
        vectors = Vectors(len(prompts), dimensions, call, deliver or answer._pieces.put, release)

        def submit(i: int) -> None:
            runner.submit(reading(call, prompts[i], options, pooling, partial(vectors.take, i)))

        vectors.begin(runner.cache.n_slot, submit)
        return answer

    # --- tokens ---

    def tokenize(self, name: str, text: str, add_special: bool = False, parse_special: bool = True) -> list[Token]:
        """The tokens of `text`.  The model is not loaded for it.

        add_special     BOS and EOS, where the vocabulary wants them
        parse_special   "</s>" is one token
        """
        tokenizer = self._tokenizer(name)
        ids = tokenizer.encode(text, add_special, parse_special)
        return [Token(id, tokenizer.piece(id, special=True)) for id in ids]

    def detokenize(self, name: str, ids: Sequence[int]) -> str:
        """The text of `ids`, special ones included.  Raises: RequestError for one that there is not"""
        tokenizer = self._tokenizer(name)
        check_ids(tokenizer, ids)
        return tokenizer.decode(ids)

    def _tokenizer(self, name: str) -> Tokenizer:
        if not name:
            raise RequestError("model is required")
        model = self._resolve(name)
        loaded = next((entry for entry in self.pool.loaded() if entry.key == model.weights), None)
        return loaded.runner.model.tokenizer if loaded else tokenizer_of(model.weights)

    # --- models ---

    def list(self) -> list[dict[str, Any]]:
        """The store's models, the newest first, as /api/tags says them."""
        return [show.tags_entry(model) for model in self.store.list()]

    def ps(self) -> Sequence[dict[str, Any]]:
        """The loaded models, longest remaining lifetime first, as /api/ps says them."""
        return [
            {
                "name": entry.model.name.short,
                "model": entry.model.name.short,
                "size": entry.runner.nbytes,
                "digest": entry.model.digest,
                "details": show.details(entry.model),
                "expires_at": show.local_time(entry.expires_at),
                "size_vram": 0,
                "context_length": entry.runner.options.num_ctx,
            }
            for entry in self.pool.loaded()
        ]

    def show(
        self, name: str, verbose: bool = False, system: str = "", options: Mapping[str, Any] | None = None
    ) -> dict:
        """All about a model, as /api/show says it.  Raises: ModelNotFound with the short form of `name`, ..."""
        try:
            model = self._resolve(name)
        except ModelNotFound:
            raise ModelNotFound(ModelName.parse_request(name)[0].short) from None
        except CloudModel:
            raise CloudModel("ollama cloud is disabled: remote model details are unavailable") from None
        return show.show(model, verbose, system, options)

    def capabilities(self, name: str) -> Sequence[str]:
        """What the model can do, in Ollama's words.  Raises: BadName, ModelNotFound, CloudModel"""
        return show.capabilities(self._resolve(name))

    def copy(self, source: str, destination: str) -> None:
        """`destination` is what `source` is.  Raises: BadName, ModelNotFound"""
        self.store.copy(ModelName.parse_request(source)[0], ModelName.parse_request(destination)[0])

    def delete(self, name: str) -> None:
        """The model is gone from the disk; one that is loaded stays so.  Raises: ModelNotFound with `name` as asked"""
        try:
            self.store.delete(ModelName.parse_request(name)[0])
        except ModelNotFound:
            raise ModelNotFound(name) from None

    def create(
        self,
        name: str,
        from_: str = "",
        files: Mapping[str, str] | None = None,
        *,
        call: Call | None = None,
        **more: Any,
    ) -> Iterator[dict]:
        """The model `name` in the making, status by status; see store.create.  What it is made from may be pulled."""
        return create(self.store, name, from_, files, fetch=partial(self._fetch, call), fits=check_fits, **more)

    def create_from_modelfile(
        self, name: str, text: str, path: str = "", quantize: str = "", call: Call | None = None
    ) -> Iterator[dict]:
        """The same of a Modelfile's text, or of the file `path` if the settings allow that."""
        more = {"quantize": quantize, "fetch": partial(self._fetch, call), "fits": check_fits}
        return create_from_modelfile(self.store, name, text, path, may_read=self.settings.server_files, **more)

    def _fetch(self, call: Call | None, name: str) -> Iterator[dict]:
        """The statuses of a pull, up to its success; none where the model is here."""
        try:
            self._resolve(name)
        except ModelNotFound:
            yield from (status for status in self.pull(name, call=call) if status["status"] != "success")

    def pull(self, name: str, insecure: bool = False, call: Call | None = None) -> Iterator[dict]:
        """The model `name` on its way from its registry, status by status; see store.transfer.

        Raises: BadName, CloudModel, before the first status
        """
        asked, source = ModelName.parse_request(name)
        if source == "cloud":
            raise CloudModel("ollama cloud is disabled: remote model is unavailable")
        asked = self.store.respell(asked)
        return pull(self.store, self.downloads, asked, insecure, Credentials.from_env(), call or Call())

    def push(self, name: str, insecure: bool = False, call: Call | None = None) -> Iterator[dict]:
        """The model `name` on its way to its registry, status by status; see store.transfer."""
        return push(self.store, name, insecure, Credentials.from_env(), call or Call())

    def put_file(self, path: Path, tell: Callable[[int], None]) -> str:
        """The digest of the file's content, which is in the store; `tell` hears how many bytes are."""
        return self.store.put_blob(file_chunks(path, tell))[0]

    # --- the way of an answer ---

    def _template(self, model: LocalModel, loaded: Loaded) -> Template:
        """What the model is prompted by."""
        layer = model.template if self.settings.go_template else None
        return Template.from_gguf(loaded.runner.model.gguf, layer)

    def _checked(self, name: str, model: LocalModel, verb: str, wanted: Wanted, **needs: bool) -> Wanted:
        return checked(name, model, show.capabilities(model, self.settings.go_template), verb, wanted, **needs)

    def _answer(
        self,
        model: LocalModel,
        question: object,
        wanted: Wanted,
        render: Callable[[Loaded], Prompt],
        call: Call,
        deliver: Deliver | None,
    ) -> Answer:
        """The model loaded, the prompt rendered and encoded, the job with its runner."""
        options = self._options(model, wanted.options)
        loaded = self.pool.acquire(model, options, partial(self._load, model, options), call, wanted.keep_alive)
        answer = Answer(load_duration=perf_counter_ns() - call.began, model=loaded.runner.model, call=call)
        try:
            prompt = render(loaded) if question else Prompt("")
            answer.prompt, answer.split, answer.n_images = prompt.text, prompt.split, len(prompt.images)
            log.log(TRACE, "prompt", extra={"fields": {"model": model.name.short, "text": prompt.text}})
            if wanted.render_only or not question:
                answer.is_over, answer.done_reason = True, None if question else "load"
                self.pool.release(loaded)
                return answer
            shown = loaded.runner.model.tokenizer.controls(answer.split.tags)
            grammar = constraint(loaded.runner.model, wanted.format, answer.split.thinking, shown)
            began = perf_counter_ns()
            ids, rows = prompt.encode(loaded.runner, call)
            encoding = perf_counter_ns() - began if rows else 0
            answer.n_prompt = min(len(ids), loaded.runner.options.num_ctx)
        except BaseException:
            self.pool.release(loaded)
            raise
        release = partial(self.pool.release, loaded)
        how = (options, wanted.truncate, wanted.shift, wanted.n_logprobs, wanted.echo)
        deliver = through(answer.split, deliver or answer._pieces.put)
        loaded.runner.submit(Job(call, ids, *how, deliver, release, shown, grammar, prompt.n_whole, rows, encoding))
        return answer

    def _unload(self, model: LocalModel) -> Answer:
        self.pool.unload(model)
        return Answer("unload", is_over=True)

    def _resolve(self, name: str) -> LocalModel:
        """Raises: BadName, ModelNotFound with the name as it was asked for, CloudModel."""
        if self.file:
            return self.file
        if not name:
            raise ModelNotFound(name)
        parsed, source = ModelName.parse_request(name)
        try:
            return self.store.resolve(parsed)
        except ModelNotFound:
            if source == "cloud":
                raise CloudModel("ollama cloud is disabled: remote model is unavailable") from None
            raise ModelNotFound(name) from None

    def _options(self, model: LocalModel, wanted: Mapping[str, Any]) -> Options:
        """Ours, then the model's, then the request's.  Raises: BadOptions"""
        only_reads = "embedding" in show.capabilities(model)
        ours = {"num_ctx": self.settings.context_length or None, "num_batch": READING_BATCH if only_reads else None}
        return Options.parse(ours, model.params, wanted)

    def _load(self, model: LocalModel, options: Options, progress: Progress) -> Runner:
        projector = next(iter(model.projectors), None)
        loaded = load_model(model.weights, dict.fromkeys(model.adapters, 1.0), projector, self.settings.vision_order)
        asked = self.settings.kv_cache_type if loaded.family.causal else "f16"  # an encoder has no cache
        cache_type = usable_type(asked, loaded.hparams.n_head_dim)
        tap = loading(loaded.hparams.n_layer, progress.tell, {"model": model.name.short})
        return Runner(loaded, options, cache_type, self.kernels, self.settings.num_parallel, tap)


def checked(
    name: str,
    model: LocalModel,
    able: Sequence[str],
    verb: str,
    wanted: Wanted,
    *,
    images: bool,
    tools: bool,
    suffix: bool,
) -> Wanted:
    """`wanted`, if the model can do it, before it is loaded; one that can think does unless it is told not to.

    name  what the request called the model
    able  the model's capabilities
    Raises: RequestError in Ollama's words
    """
    if wanted.think and "thinking" not in able:
        raise RequestError(f'"{name}" does not support thinking')
    if "completion" not in able:
        raise RequestError(f'"{name}" does not support {verb}')
    for capability, used in (("tools", tools), ("insert", suffix)):
        if used and capability not in able:
            raise RequestError(f"{model.name} does not support {capability}")
    if images and "vision" not in able:
        raise RequestError(f'"{name}" does not support images')
    return replace(wanted, think=True) if wanted.think is None and "thinking" in able else wanted


def conversation(model: LocalModel, messages: Sequence[Message]) -> Sequence[Message]:
    """What the model hears when `messages` are said to it: its own first; some hear no thoughts but the newest."""
    everything = chat_messages(messages, model.system, model.messages)
    forgets = model.config.model_family == "qwen3" or model.name.model == "deepseek-r1"
    return without_old_thoughts(everything) if forgets else everything


def rendered(template: Template, messages: Sequence[Message], wanted: Wanted, tools: Sequence[Tool] = ()) -> str:
    """The conversation as text.  A last message of the assistant stays open, so that the model goes on with it."""
    continues = bool(messages) and messages[-1]["role"] == "assistant"
    if template.language != "jinja":
        return template.render(messages, tools, add_generation_prompt=not continues, think=wanted.think)
    thinking: dict[str, Any] = {} if wanted.think is None else {"enable_thinking": bool(wanted.think)}
    if isinstance(wanted.think, str):
        thinking["reasoning_effort"] = wanted.think
    offered = [{key: value for key, value in tool.items() if value is not None} for tool in tools]
    return template.render(for_jinja(messages), offered or None, continue_final_message=continues, **thinking)


def split(template: Template, prompt: str, wanted: Wanted, tools: Sequence[Tool] = ()) -> Split:
    """How the answer to `prompt` is to be told apart, by the tags that the template shows."""
    thoughts = template.thinking_tags if wanted.think else None
    calls = template.tool_tag if tools and wanted.format in (None, "") else None  # JSON that was asked for is no call
    names = [tool["function"].get("name", "") for tool in tools]
    return Split(
        ThinkingParser(*thoughts, is_open=prompt.rstrip(BLANKS).endswith(thoughts[0])) if thoughts else None,
        ToolParser(calls, names) if calls else None,
        (*(thoughts or ()), *([calls] if calls else [])),
    )


def through(split: Split, deliver: Deliver) -> Deliver:
    """`deliver`, for pieces that have not been told apart yet."""

    def told_apart(piece: Piece | Exception) -> None:
        for part in [piece] if isinstance(piece, Exception) else split(piece):
            deliver(part)

    return told_apart


def fitting(messages: Sequence[Message], size: Callable[[Sequence[Message]], int], most: int) -> Sequence[Message]:
    """The conversation without as many of its oldest messages as it takes for its `size` to be at most `most`.

    System messages are kept, and the last message always is, even if it alone is too long.  The place is found by
    halving, not one by one: a message less never makes a prompt longer.
    """

    def without(n: int) -> list[Message]:
        return [*(message for message in messages[:n] if message["role"] == "system"), *messages[n:]]

    if len(messages) < 2 or size(messages) <= most:
        return messages
    return without(bisect_left(range(len(messages) - 1), True, lo=1, key=lambda n: size(without(n)) <= most))


def constraint(
    model: Model, format: Any, thinking: ThinkingParser | None = None, shown: frozenset[int] = frozenset()
) -> Grammar | None:
    """What holds an answer to `format`, once the model has thought.  Raises: BadGrammar"""
    if format is None or format == "":
        return None
    if format != "json" and not isinstance(format, dict):
        quoted = go_text.literal(go_text.json_text(format))
        raise BadGrammar(f'invalid format: {quoted}; expected "json" or a valid JSON Schema object')
    tags, is_open = ((thinking.open, thinking.close), thinking.is_open) if thinking else (None, False)
    return model.grammars.grammar(format, tags, is_open, shown)


@lru_cache(maxsize=2)
def tokenizer_of(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF, for models that are not loaded."""
    return from_gguf(GGUF.open(path).kv)


def check_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> None:
    for id in ids:
        if not 0 <= id < tokenizer.n_vocab:
            raise RequestError(f"there is no token {id}: the vocabulary ends at {tokenizer.n_vocab - 1}")


def text_of(model: Model, ids: Sequence[int]) -> str:
    """The text of tokens that a request brings, special ones included."""
    check_ids(model.tokenizer, ids)
    return b"".join(model.tokenizer.piece(id, special=True) for id in ids).decode("utf-8", "replace")
