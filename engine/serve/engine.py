"""The engine's verbs without HTTP, on one object.

    Engine.generate, chat   -> Answer, a stream of pieces
    Engine.embed            -> Answer, one piece with the vectors of all texts
    Engine.list, show, ps, copy, delete, create            models on disk and in memory
    Engine.pull, push                                      models between the disk and a registry

The steps of an answer (docs/architecture.md, "The way of a chat"):

    prepare   resolve the name (ModelName, Store), check capabilities and options
    load      Pool: load the model or reuse it
    render    prompting.py: Template, trimmed to the window; Tokenizer
    submit    Runner, in whose thread the rest runs
    split     answer.py: each piece into thinking, tool calls and text
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any, NamedTuple

from ...kernels import NUMBA, Kernels
from ..errors import CloudModel, ModelNotFound, RequestError
from ..gguf.dialect import text_view
from ..gguf.read import GGUF
from ..go.times import rfc3339
from ..handle import RequestHandle
from ..look.collector import Collector, patch_values
from ..look.file import block_facts, tensor_map
from ..look.held import HeldRun
from ..look.maps import AttentionMap, map_of_heads
from ..look.request import LookRequest
from ..look.step import LookStep
from ..look.timeline import Timeline
from ..model.cache import KVCache, usable_type
from ..model.load import check_draft, check_fits, check_loads, load_model
from ..model.model import Model
from ..options import DEFAULT_REQUEST, Options, RequestOptions
from ..run.embed import Vectors, embedding_job, embedding_tokens, pooling_of
from ..run.job import Job
from ..run.split import Split
from ..sampling.forced_call import ForcedCall
from ..sampling.rng import seed_of_choice
from ..settings import TRACE, Settings
from ..store import LocalModel, ModelName, Store, default_store, show
from ..store.chat_template import chat_template
from ..store.make.create import create, create_from_modelfile
from ..store.make.sources import file_chunks
from ..store.registry.auth import Credentials
from ..store.registry.download import Downloads
from ..template import (
    Message,
    Template,
)
from ..template.messages import Tool
from ..tokenizer import Tokenizer, from_gguf
from .answer import Answer, Deliver, answer_splitter, grammar_for, splitting
from .keeping import Keeping
from .pool import Loaded, LoadProgress, Pool
from .prompting import (
    Prompt,
    chat_prompt,
    check_capabilities,
    check_ids,
    full_history,
    generate_prompt,
    message_spans,
    with_last_question,
)
from .runner import Runner, loading

log = logging.getLogger(__name__)

EMBEDDING_NUM_BATCH = 2048  # default for a model that only embeds: no sequence waits for its next token


class Token(NamedTuple):
    """A token: its id and its bytes."""

    id: int
    piece: bytes


class Prepared(NamedTuple):
    """A request that passed its checks; `options` are merged from the server's, the model's and the request's."""

    stored: LocalModel
    options: Options
    request: RequestOptions
    handle: RequestHandle


class Engine:
    """One store, one pool of loaded models, and the operations on them.

    file      a GGUF outside the store that answers under every name; then it is the only model
    kernels   the kernel set
    staged    makes a cache in stages, which run the layers: (adapters, model, n_ctx, n_slot, cache_type) -> cache
    """

    def __init__(
        self,
        settings: Settings | None = None,
        store: Store | None = None,
        *,
        file: LocalModel | None = None,
        kernels: Kernels = NUMBA,
        staged: Callable[[Sequence[Path], Model, int, int, str], KVCache] | None = None,
    ):
        self.settings, self.staged = settings or Settings.from_env(), staged
        self.store = store or default_store(self.settings)
        self.file, self.kernels = file, kernels
        s = self.settings
        self.pool = Pool(s.keep_alive, s.max_loaded_models, s.max_queue, s.load_timeout)
        self.downloads = Downloads()

    def close(self) -> None:
        """End all answers and downloads; the store is not written to afterwards."""
        self.store.blobs.is_closed = True
        self.downloads.close()
        self.pool.close()

    # --- answers ---

    def generate(
        self,
        name: str,
        prompt: str | Sequence[int] = "",
        request: RequestOptions = DEFAULT_REQUEST,
        *,
        suffix: str = "",
        system: str = "",
        template: str = "",
        context: Sequence[int] | None = None,
        raw: bool = False,
        images: Sequence[bytes] = (),
        handle: RequestHandle | None = None,
        deliver: Deliver | None = None,
    ) -> Answer:
        """Answer one prompt.  An empty prompt only loads the model, or unloads it if keep_alive is 0.

        prompt            text, or token ids to use unchanged
        suffix            text that is to follow the answer
        system, template  replace the model's
        context           ids from an earlier answer's `context`; replaces the Modelfile's messages
        raw               use the prompt without a template
        The checks and their order: docs/compatibility.md, "Checks of generate".
        """
        handle = handle or RequestHandle()
        stored = self._resolve(name)
        if not prompt and request.keep_alive == 0:
            return self._unload(stored)
        if raw and (template or system or context):
            raise RequestError("raw mode does not support template, system, or context")
        able = show.capabilities(stored, self.settings.go_template)
        request = check_capabilities(
            name, stored, able, "generate", request, images=bool(images), tools=False, suffix=bool(suffix)
        )
        prepared = Prepared(stored, self._options(stored, able, request), request, handle)
        loaded = self._acquire(prepared)
        with self._released_on_error(loaded):
            if not prompt:
                return self._submit(prepared, loaded, None, Split(), deliver)
            own = self.template_of(stored, loaded.runner.model)

            def render(prompt: str | Sequence[int]) -> Prompt:
                return generate_prompt(
                    prompt,
                    request,
                    stored,
                    loaded.runner.model,
                    Template(template, "go") if template else own,
                    suffix=suffix,
                    system=system,
                    context=context,
                    raw=raw,
                    images=images,
                )

            rendered = render(prompt)
            splitter = Split() if rendered.plain else answer_splitter(own, rendered.text, request)
            return self._submit(prepared, loaded, rendered, splitter, deliver, render)

    def chat(
        self,
        name: str,
        messages: Sequence[Message] = (),
        request: RequestOptions = DEFAULT_REQUEST,
        *,
        tools: Sequence[Tool] = (),
        handle: RequestHandle | None = None,
        deliver: Deliver | None = None,
    ) -> Answer:
        """Answer a conversation.  Without messages, only load the model, or unload it if keep_alive is 0.

        If the last message is the assistant's, the answer continues it.
        The checks: docs/compatibility.md, "Checks of chat".
        """
        handle = handle or RequestHandle()
        if not name:
            raise RequestError("model is required")
        stored = self._resolve(name)
        if not messages and request.keep_alive == 0:
            return self._unload(stored)
        able, images = show.capabilities(stored, self.settings.go_template), any(m.get("images") for m in messages)
        request = check_capabilities(
            name, stored, able, "chat", request, images=images, tools=bool(tools), suffix=False
        )
        prepared = Prepared(stored, self._options(stored, able, request), request, handle)
        loaded = self._acquire(prepared)
        with self._released_on_error(loaded):
            if not messages:
                return self._submit(prepared, loaded, None, Split(), deliver)
            runner, own = loaded.runner, self.template_of(stored, loaded.runner.model)
            if request.must_call:
                request = replace(request, format=ForcedCall(own.call_form, tools))
                prepared = prepared._replace(request=request)

            def render(messages: Sequence[Message]) -> Prompt:
                return chat_prompt(
                    full_history(stored, messages),
                    request,
                    runner.model.tokenizer,
                    own,
                    tools,
                    n_ctx=runner.options.num_ctx,
                    has_vision=runner.images is not None,
                    check=handle.check,
                )

            def render_other(text: str) -> Prompt:
                return render(with_last_question(messages, text))

            rendered = render(messages)
            is_continued = messages[-1]["role"] == "assistant"
            splitter = answer_splitter(own, rendered.text, request, tools, is_continued)
            return self._submit(prepared, loaded, rendered, splitter, deliver, render_other)

    def embed(
        self,
        name: str,
        texts: Sequence[str | Sequence[int]] = (),
        request: RequestOptions = DEFAULT_REQUEST,
        *,
        dimensions: int = 0,
        handle: RequestHandle | None = None,
        deliver: Deliver | None = None,
    ) -> Answer:
        """Embed each of `texts` as a vector of length 1; any model can.  Without texts, only load the model.

        texts        token ids in place of a text are used unchanged
        dimensions   number of leading components to keep; 0: all
        An error with one text ends the request.  The checks: docs/compatibility.md, "Checks of embed".
        """
        handle = handle or RequestHandle()
        try:
            stored = self._resolve(name)
        except ModelNotFound:
            message = f'model "{name}" not found, try pulling it first' if name else None
            raise ModelNotFound(name, message) from None
        options = self._options(stored, show.capabilities(stored), request)
        loaded = self._acquire(Prepared(stored, options, request, handle))
        runner = loaded.runner
        answer = Answer(load_duration=perf_counter_ns() - handle.began, model=runner.model, handle=handle)
        with self._released_on_error(loaded):
            pooling = pooling_of(runner.model.hparams)
            n_ctx, tokenizer = min(options.num_ctx, runner.options.num_ctx), runner.model.tokenizer
            prompts = []
            for text in texts:
                handle.check()
                if not isinstance(text, str):
                    check_ids(tokenizer, text)
                prompts.append(embedding_tokens(text, tokenizer, n_ctx, request.truncate, handle.check))
        if not prompts:
            answer.is_over, answer.done_reason = True, "load"
            self.pool.release(loaded)
            return answer
        answer.n_prompt = sum(map(len, prompts))
        release = partial(self.pool.release, loaded)
        vectors = Vectors(len(prompts), dimensions, handle, deliver or answer.put, release)

        def submit(i: int) -> None:
            runner.submit(embedding_job(handle, prompts[i], options, pooling, partial(vectors.add, i)))

        vectors.start(runner.cache.n_slot, submit)
        return answer

    # --- tokens ---

    def tokenize(
        self,
        name: str,
        text: str,
        add_special: bool = False,
        parse_special: bool = True,
        handle: RequestHandle | None = None,
    ) -> list[Token]:
        """Tokenize `text` without loading the model.

        add_special     add BOS and EOS if the vocabulary says so
        parse_special   parse "</s>" as one token
        """
        tokenizer = self._tokenizer(name)
        ids = tokenizer.encode(text, add_special, parse_special, (handle or RequestHandle()).check)
        return [Token(id, tokenizer.piece(id, special=True)) for id in ids]

    def detokenize(self, name: str, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens included.  Raises: RequestError for an unknown id"""
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
        """Return the store's models, newest first, in the form of /api/tags."""
        return show.tags_entries(self.store.list())

    def ps(self) -> Sequence[dict[str, Any]]:
        """Return the loaded models, longest remaining lifetime first, in the form of /api/ps."""
        return [
            {
                "name": entry.model.name.short,
                "model": entry.model.name.short,
                "size": entry.runner.nbytes,
                "digest": entry.model.digest,
                "details": show.details(entry.model, entry.runner.model.gguf),
                "expires_at": rfc3339(entry.expires_at, local=True),
                "size_vram": 0,
                "context_length": entry.runner.options.num_ctx,
            }
            for entry in self.pool.loaded()
        ]

    def show(
        self, name: str, verbose: bool = False, system: str = "", options: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return a model's details in the form of /api/show.

        Raises: BadName, CloudModel, ModelNotFound with the short form of `name`
        """
        try:
            model = self._resolve(name)
        except ModelNotFound:
            raise ModelNotFound(ModelName.parse_request(name)[0].short) from None
        except CloudModel:
            raise CloudModel("ollama cloud is disabled: remote model details are unavailable") from None
        return show.show(model, verbose, system, options)

    def capabilities(self, name: str) -> Sequence[str]:
        """Return the model's capabilities under Ollama's names.  Raises: BadName, ModelNotFound, CloudModel"""
        return show.capabilities(self._resolve(name))

    def thinks_by_choice(self, name: str) -> bool:
        """Return whether the model can think, and its prompt tells it whether to.  Raises: as `capabilities`"""
        return show.thinks_by_choice(self._resolve(name), self.settings.go_template)

    def copy(self, source: str, destination: str) -> None:
        """Copy model `source` to `destination`.  Raises: BadName, ModelNotFound"""
        self.store.copy(ModelName.parse_request(source)[0], ModelName.parse_request(destination)[0])

    def delete(self, name: str) -> None:
        """Delete the model from disk.  If it is loaded, it stays loaded.

        Raises: BadName, ModelNotFound with `name` unchanged
        """
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
        handle: RequestHandle | None = None,
        **more: Any,
    ) -> Iterator[dict[str, Any]]:
        """Create the model `name`, yielding statuses; see store.make.create.  A missing base model is pulled."""
        more |= {"fetch": partial(self._fetch, handle), "check_fits": check_fits, "check_loads": check_loads}
        return create(self.store, name, from_, files, **more)

    def create_from_modelfile(
        self, name: str, text: str, path: str = "", quantize: str = "", handle: RequestHandle | None = None
    ) -> Iterator[dict[str, Any]]:
        """Create a model from a Modelfile's text, or from the file `path` if the settings allow that; see create()."""
        more = {"quantize": quantize, "fetch": partial(self._fetch, handle)}
        more |= {"check_fits": check_fits, "check_loads": check_loads}
        return create_from_modelfile(self.store, name, text, path, may_read=self.settings.server_files, **more)

    def _fetch(self, handle: RequestHandle | None, name: str) -> Iterator[dict[str, Any]]:
        """Pull the model unless it is here, yielding the statuses before "success"."""
        try:
            self._resolve(name)
        except ModelNotFound:
            yield from (status for status in self.pull(name, handle=handle) if status["status"] != "success")

    def pull(self, name: str, insecure: bool = False, handle: RequestHandle | None = None) -> Iterator[dict[str, Any]]:
        """Pull the model `name` from its registry, yielding statuses; see store.registry.transfer.

        Raises: BadName, CloudModel, before the first status
        """
        from ..store.registry.transfer import pull  # with an HTTP client: 60 ms and 8 MiB

        requested, source = ModelName.parse_request(name)
        if source == "cloud":
            raise CloudModel("ollama cloud is disabled: remote model is unavailable")
        requested = self.store.respell(requested)
        return pull(self.store, self.downloads, requested, insecure, Credentials.from_env(), handle or RequestHandle())

    def push(self, name: str, insecure: bool = False, handle: RequestHandle | None = None) -> Iterator[dict[str, Any]]:
        """Push the model `name` to its registry, yielding statuses; see store.registry.transfer."""
        from ..store.registry.transfer import push

        return push(self.store, name, insecure, Credentials.from_env(), handle or RequestHandle())

    def put_file(self, path: Path, progress: Callable[[int], None]) -> str:
        """Store the file's content as a blob and return its digest.

        progress   called with the number of bytes read so far
        """
        return self.store.put_blob(file_chunks(path, progress))[0]

    # --- the steps of an answer ---

    def _acquire(self, prepared: Prepared) -> Loaded:
        """Load the model, or reuse it.  Raises as Pool.acquire"""
        stored, options, request, handle = prepared
        return self.pool.acquire(stored, options, partial(self._load, stored, options), handle, request.keep_alive)

    @contextmanager
    def _released_on_error(self, loaded: Loaded) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.pool.release(loaded)
            raise

    def template_of(self, stored: LocalModel, model: Model) -> Template:
        """Return a loaded model's chat template.  Raises: BadTemplate for an unknown name"""
        template = chat_template(stored, model.gguf, self.settings.go_template)
        template.check_names()
        return template

    def look_again(self, run: str, position: int, look: Any) -> tuple[Model, LookStep]:
        """Look at a position of an answer that `"look": {"keep": true}` held.  Raises: RequestError"""
        held = self._held(run)
        return held.model, held.at(position, LookRequest.parse(look, held.model.hparams))

    def look_at_maps(self, run: str, layer: int, head: int | None = None) -> AttentionMap:
        """Map the attention of a held answer: of one head, or of all heads of a layer.  Raises: RequestError"""
        return map_of_heads(self._held(run), layer, head)

    def _held(self, run: str) -> HeldRun:
        """Return an answer that is held.  Raises: RequestError"""
        for loaded in self.pool.loaded():
            if run in loaded.runner.scheduler.held:
                return loaded.runner.scheduler.held[run]
        raise RequestError(f"look: no answer '{run}' is held by a loaded model; ask again with \"keep\": true")

    def model_facts(self, name: str) -> dict[str, Any]:
        """Return a model's file as a map of tensors, and what can be looked at in it.  Raises: ModelNotFound"""
        stored = self._resolve(name)
        able = show.capabilities(stored, self.settings.go_template)
        gguf = text_view(GGUF.open(stored.weights))
        about: dict[str, Any] = {"name": stored.name.short, "capabilities": able}
        about["has_template"] = bool(stored.template or gguf.text("tokenizer.chat_template"))
        return about | tensor_map(gguf)

    def tensor_block(self, name: str, tensor: str, index: int) -> dict[str, Any]:
        """Return one block of a tensor: its bytes, fields and numbers.  Raises: ModelNotFound, RequestError"""
        return block_facts(text_view(GGUF.open(self._resolve(name).weights)), tensor, index)

    def timelines(self) -> dict[str, Timeline]:
        """Return the last steps of each loaded model's scheduler."""
        return {loaded.model.name.short: loaded.runner.scheduler.timeline for loaded in self.pool.loaded()}

    def _collector(
        self, request: RequestOptions, runner: Runner, prompt: Prompt, render: Callable[[str], Prompt] | None
    ) -> Collector | None:
        """Make what collects the request's look; None if it has none.  Raises: RequestError"""
        if request.look is None:
            return None
        look = LookRequest.parse(request.look, runner.model.hparams)

        def encode(text: str) -> list[int]:
            assert render
            return render(text).encode(runner, RequestHandle())[0]

        sources = patch_values(runner.model, self.kernels, look, encode, runner.options.num_ctx)
        spans = message_spans(prompt.text, prompt.said)
        return Collector(look, runner.model, prompt.text, spans, sources, self.settings.look_limit << 20)

    def _submit(
        self,
        prepared: Prepared,
        loaded: Loaded,
        prompt: Prompt | None,
        splitter: Split,
        deliver: Deliver | None,
        render: Callable[[str], Prompt] | None = None,
    ) -> Answer:
        """Tokenize `prompt` and submit it to the runner.  Without a prompt, only report the load.

        render   renders another prompt in its place, for a look
        """
        stored, options, request, handle = prepared
        runner = loaded.runner
        answer = Answer(load_duration=perf_counter_ns() - handle.began, model=runner.model, handle=handle)
        if prompt is None:
            answer.is_over, answer.done_reason = True, "load"
            self.pool.release(loaded)
            return answer
        answer.prompt, answer.split, answer.n_images = prompt.text, splitter, len(prompt.images)
        log.log(TRACE, "prompt", extra={"fields": {"model": stored.name.short, "text": prompt.text}})
        if request.render_only:
            answer.is_over = True
            self.pool.release(loaded)
            return answer
        if request.count_only:
            answer.n_prompt, answer.is_over = len(prompt.encode(runner, handle)[0]), True
            self.pool.release(loaded)
            return answer
        shown = runner.model.tokenizer.controls(splitter.tags)
        look = self._collector(request, runner, prompt, render)
        grammar = grammar_for(runner.grammars, request.format, splitter.thoughts, splitter.is_open, shown, handle)
        began = perf_counter_ns()
        ids, embeds = prompt.encode(runner, handle, request.truncate)
        encoding = perf_counter_ns() - began if embeds else 0
        answer.n_prompt = min(len(ids), runner.options.num_ctx)
        runner.submit(
            Job(
                handle=handle,
                prompt=ids,
                options=options,
                deliver=splitting(splitter, deliver or answer.put),
                finished=partial(self.pool.release, loaded),
                truncate=request.truncate,
                shift=request.shift,
                n_logprobs=request.n_logprobs,
                echo=request.echo,
                shown=shown,
                grammar=grammar,
                embeds=embeds,
                n_whole=prompt.n_whole,
                encoding=encoding,
                look=look,
            )
        )
        return answer

    def _unload(self, model: LocalModel) -> Answer:
        self.pool.unload(model)
        return Answer("unload", is_over=True)

    def _resolve(self, name: str) -> LocalModel:
        """Find the model `name` in the store.  Raises: BadName, CloudModel, ModelNotFound with `name` unchanged"""
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

    def _options(self, stored: LocalModel, able: Sequence[str], request: RequestOptions) -> Options:
        """Merge the server's options, the model's and the request's; the request's win.  Raises: BadOptions"""
        num_batch = EMBEDDING_NUM_BATCH if "embedding" in able else None
        defaults = {"num_ctx": self.settings.context_length or None, "num_batch": num_batch}
        options = Options.parse(defaults, stored.params, request.options)
        return replace(options, seed=seed_of_choice(options.seed, request.choice)) if request.choice else options

    def _load(self, model: LocalModel, options: Options, progress: LoadProgress) -> Runner:
        projector = next(iter(model.projectors), None)
        loaded = load_model(model.weights, dict.fromkeys(model.adapters, 1.0), projector, self.settings.vision_order)
        requested = self.settings.kv_cache_type if loaded.family.causal else "f16"  # an encoder has no cache
        cache_type = usable_type(requested, loaded.hparams.n_head_dim)
        tap = loading(loaded.hparams.n_layer, progress.report, {"model": model.name.short})
        draft = load_model(model.drafts[0]) if model.drafts else None
        if draft:
            check_draft(draft, loaded)
        s = self.settings
        keeping = Keeping(s.kv_cache_ram << 20, s.kv_cache_dir, s.kv_cache_disk << 20)
        new_cache = partial(self.staged, model.adapters) if self.staged and loaded.family.causal else Model.new_cache
        return Runner(loaded, options, cache_type, self.kernels, s.num_parallel, tap, draft, keeping, new_cache)


@lru_cache(maxsize=2)
def tokenizer_of(path: Path) -> Tokenizer:
    """Read the tokenizer of a GGUF, for models that are not loaded."""
    return from_gguf(text_view(GGUF.open(path)).kv)
