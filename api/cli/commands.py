"""The commands of `numllama`, their arguments and flags.

Names, texts and exit codes are Ollama's.  Extensions: the commands learn, look, course, trace, diff, pack, score,
compare, template, warmup and bench; the flags -o, --raw, --kernels, --adapter, --projector and --tokenizer; GGUF files
given by path.
"""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from .usage import Command, CommandGroup, expect_at_least, expect_at_most, expect_exactly, usage_error

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
app = typer.Typer(
    cls=CommandGroup,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT_SETTINGS,
    subcommand_metavar="[COMMAND]",
)
command = partial(app.command, cls=Command)
INSECURE = Option("--insecure", help="Use plain HTTP for the registry")


def positional(metavar: str) -> Any:
    """Declare positional arguments; the command checks their number itself, for Ollama's error texts."""
    return Argument(metavar=metavar, hidden=True)


@app.callback(invoke_without_command=True)
def numllama(
    ctx: typer.Context, version: Annotated[bool, Option("-v", "--version", help="Show version information")] = False
) -> None:
    """A reference inference engine for GGUF models, with Ollama's HTTP API."""
    if version:
        from .version import version_text

        print(version_text(), end="")
    elif ctx.invoked_subcommand is None:
        print(ctx.get_help())
    else:
        return
    raise typer.Exit()


@command("serve")
def serve(
    args: Annotated[list[str] | None, positional("")] = None,
    cache_dir: Annotated[
        Path | None, Option(metavar="FOLDER", help="Save conversations here, so that they go on after a restart")
    ] = None,
    stages: Annotated[
        int, Option(metavar="N", help="Cut models by layers into N processes of a Ray cluster (docs/scale.md)")
    ] = 0,
    stage_memory: Annotated[str, Option(metavar="SIZE", help="As many stages as fit into SIZE each, e.g. 4GiB")] = "",
    ray: Annotated[
        str, Option(metavar="[ADDRESS]", help="Compute on this Ray cluster; local, or nothing: on one that starts here")
    ] = "",
    replicas: Annotated[
        str, Option(metavar="N|MIN:MAX", help="How many processes of the cluster answer, e.g. 1:8; 0 ends them")
    ] = "",
) -> None:
    """Start the server (alias: start)

    OLLAMA_HOST sets the address (default 127.0.0.1:11434), OLLAMA_MODELS the folder of models (default
    ~/.ollama/models). All variables: docs/environment.md.
    """
    expect_exactly(0, args)
    gc.disable()  # imports make little garbage, and looking for it takes a tenth of their time
    try:
        from ...kernels.llvm_pages import release_llvm
        from ...kernels.warmup import begin

        begin()  # while the rest is imported
        from .serve import replica_scale, serve_forever, staged_cache

        release_llvm()  # of which importing Numba read 38 MiB, and a server that waits needs none
    finally:
        gc.freeze()  # until serve_forever looks once
        gc.enable()

    if replicas or (ray and not stages and not stage_memory):
        if not (scale := replica_scale(replicas or "1", ray)):
            return
        staged = staged_cache(stages, stage_memory, ray)
        return serve_forever(cache_dir=cache_dir, staged=staged, scale=scale, address=ray)
    serve_forever(cache_dir=cache_dir, staged=staged_cache(stages, stage_memory, ray))


@command("run")
def run(
    args: Annotated[list[str] | None, positional("MODEL|FILE.gguf [PROMPT]")] = None,
    option: Annotated[
        list[str] | None,
        Option(
            "-o",
            "--option",
            metavar="NAME=VALUE",
            help="Set a model option, e.g. temperature=0 (repeatable)",
        ),
    ] = None,
    keepalive: Annotated[
        str | None, Option(metavar="DURATION", help="Duration to keep the model loaded, e.g. 5m")
    ] = None,
    nowordwrap: Annotated[bool, Option("--nowordwrap", help="Don't wrap words to the next line automatically")] = False,
    verbose: Annotated[bool, Option("--verbose", help="Show timings for response")] = False,
    think: Annotated[
        str | None, Option(metavar="[LEVEL]", help="Enable thinking: true/false or high/medium/low/max")
    ] = None,
    hidethinking: Annotated[bool, Option("--hidethinking", help="Hide thinking output")] = False,
    format: Annotated[str | None, Option(metavar="json|SCHEMA", help="Response format: json or a JSON schema")] = None,
    raw: Annotated[bool, Option("--raw", help="Send the prompt without applying the template")] = False,
    insecure: Annotated[bool, INSECURE] = False,
    kernels: Annotated[
        str | None, Option(metavar="SET", help="Run without a server, with this kernel set (see trace)")
    ] = None,
    adapter: Annotated[
        list[Path] | None, Option(metavar="FILE", help="Apply a LoRA adapter; GGUF files only (repeatable)")
    ] = None,
    projector: Annotated[
        Path | None, Option(metavar="FILE", help="Use this vision projector (mmproj); GGUF files only")
    ] = None,
    dimensions: Annotated[int, Option(metavar="N", help="Truncate embeddings to N dimensions; 0 for all")] = 0,
    truncate: Annotated[
        str,
        Option(
            metavar="[BOOL]", help="Truncate inputs of embedding models that exceed the context; false to refuse them"
        ),
    ] = "true",
) -> None:
    """Run a model: answer a prompt, chat, or embed a text"""
    model, *prompt = expect_at_least(1, args)
    from .run import run_model

    run_model(
        model,
        prompt,
        options=option or (),
        keepalive=keepalive,
        kernels=kernels,
        adapters=adapter or (),
        projectors=[projector] if projector else (),
        raw=raw,
        think=think,
        hidethinking=hidethinking,
        format=format,
        verbose=verbose,
        wordwrap=not nowordwrap,
        insecure=insecure,
        dimensions=dimensions,
        truncate=truncate,
    )


@command("show")
def show(
    args: Annotated[list[str] | None, positional("MODEL|FILE.gguf")] = None,
    license: Annotated[bool, Option("--license", help="Show license of a model")] = False,
    modelfile: Annotated[bool, Option("--modelfile", help="Show Modelfile of a model")] = False,
    parameters: Annotated[bool, Option("--parameters", help="Show parameters of a model")] = False,
    system: Annotated[bool, Option("--system", help="Show system message of a model")] = False,
    template: Annotated[bool, Option("--template", help="Show template of a model")] = False,
    verbose: Annotated[
        bool, Option("-v", "--verbose", help="Show metadata and tensors (always shown for a file)")
    ] = False,
    tokenizer: Annotated[
        Path | None, Option(metavar="DIR", help="Write tokenizer.json and tokenizer_config.json to DIR")
    ] = None,
) -> None:
    """Show information for a model or any GGUF file"""
    (model,) = expect_exactly(1, args)
    flags = {
        "license": license,
        "modelfile": modelfile,
        "parameters": parameters,
        "system": system,
        "template": template,
    }
    parts = [part for part, is_set in flags.items() if is_set]
    if len(parts) > 1:
        raise usage_error(
            "only one of '--license', '--modelfile', '--parameters', '--system', or '--template' can be specified"
        )
    from .show import show_model, show_tokenizer

    if tokenizer:
        return print(show_tokenizer(model, tokenizer), end="")
    print(show_model(model, parts[0] if parts else None, verbose), end="")


@command("list")
def list_(args: Annotated[list[str] | None, positional("[PREFIX]")] = None) -> None:
    """List models (alias: ls)"""
    from .list import list_models

    print(list_models(*expect_at_most(1, args)), end="")


@command("ps")
def ps(args: Annotated[list[str] | None, positional("[PREFIX]")] = None) -> None:
    """List running models"""
    from .ps import loaded_models

    print(loaded_models(*expect_at_most(1, args)), end="")


@command("stop")
def stop(args: Annotated[list[str] | None, positional("MODEL")] = None) -> None:
    """Stop a running model"""
    (model,) = expect_exactly(1, args)
    from .ps import stop_model

    stop_model(model)


@command("pull")
def pull(
    args: Annotated[list[str] | None, positional("MODEL")] = None, insecure: Annotated[bool, INSECURE] = False
) -> None:
    """Pull a model from a registry"""
    (model,) = expect_exactly(1, args)
    from .transfer import pull_model

    pull_model(model, insecure)


@command("push")
def push(
    args: Annotated[list[str] | None, positional("MODEL")] = None, insecure: Annotated[bool, INSECURE] = False
) -> None:
    """Push a model to a registry"""
    (model,) = expect_exactly(1, args)
    from .transfer import push_model

    push_model(model, insecure)


@command("create")
def create(
    args: Annotated[list[str] | None, positional("MODEL")] = None,
    file: Annotated[
        str | None, Option("-f", "--file", metavar="FILE", help='Name of the Modelfile (default "Modelfile")')
    ] = None,
    quantize: Annotated[
        str, Option("-q", "--quantize", metavar="TYPE", help="Quantize model to this level, e.g. q4_K_M")
    ] = "",
    draft_quantize: Annotated[
        str, Option("--draft-quantize", metavar="TYPE", help="Quantize the draft model to this level")
    ] = "",
) -> None:
    """Create a model from a Modelfile or local weights"""
    (model,) = expect_exactly(1, args)
    from .create import create_model

    create_model(model, file, quantize, draft_quantize)


@command("cp")
def cp(args: Annotated[list[str] | None, positional("SOURCE DESTINATION")] = None) -> None:
    """Copy a model"""
    source, destination = expect_exactly(2, args)
    from .create import copy_model

    copy_model(source, destination)


@command("rm")
def rm(args: Annotated[list[str] | None, positional("MODEL [MODEL...]")] = None) -> None:
    """Remove a model"""
    from .create import remove_models

    remove_models(expect_at_least(1, args))


@command("trace")
def trace(
    args: Annotated[list[str] | None, positional("MODEL|FILE.gguf PROMPT")] = None,
    kernels: Annotated[
        str,
        Option(
            metavar="SET",
            help="Kernel set: numpy-float32, numpy-float64, exact, ggml, llamacpp, llamacpp-avx2 or numba",
        ),
    ] = "numpy-float32",
    only: Annotated[
        list[str] | None, Option(metavar="PATTERN", help="Show only these names, e.g. 'ffn_*' (repeatable)")
    ] = None,
    save: Annotated[Path | None, Option(metavar="FILE", help="Save all arrays to a safetensors file")] = None,
    beside: Annotated[
        Path | None, Option(metavar="FILE", hidden=True, help="Older spelling of `numllama diff MODEL FILE`")
    ] = None,
) -> None:
    """Show every named activation of one forward pass

    PROMPT is tokenized as is, without a template; special tokens such as <|user|> are recognized. `numllama template`
    renders a conversation to such a prompt.
    """
    model, prompt = expect_exactly(2, args)
    if beside is not None:
        from .diff import diff_model

        raise typer.Exit(diff_model(model, beside, prompt=prompt))
    from .trace import trace_model

    trace_model(model, prompt, kernels=kernels, only=only or [], save=save)


@command("learn")
def learn(
    args: Annotated[list[str] | None, positional("[MODEL|FILE.gguf]")] = None,
    no_browser: Annotated[bool, Option("--no-browser", help="Only print the page's address")] = False,
) -> None:
    """Open the page that shows what a model computes

    Uses the server at OLLAMA_HOST, or starts one that runs until Ctrl-C. docs/learn.md describes the page.
    """
    (model,) = expect_at_most(1, args) or [""]
    from .learn import learn_page

    learn_page(model, not no_browser)


@command("look")
def look(
    args: Annotated[list[str] | None, positional("MODEL|FILE.gguf PROMPT")] = None,
    html: Annotated[
        Path | None,
        Option(metavar="FILE", help="Write the page with this answer in it: one file, no server, no network"),
    ] = None,
    json: Annotated[bool, Option("--json", help="Print the answer as /api/generate streams it with `look`")] = False,
    raw: Annotated[bool, Option("--raw", help="Send the prompt without applying the template")] = False,
    head: Annotated[
        str,
        Option(
            metavar="LAYER.HEAD",
            help="The head whose attention is printed; its layer's is in --html, if all is too much",
        ),
    ] = "0.0",
    option: Annotated[
        list[str] | None,
        Option("-o", "--option", metavar="NAME=VALUE", help="Set a model option, e.g. temperature=0 (repeatable)"),
    ] = None,
) -> None:
    """Answer a prompt and show what was computed: attention, each layer's guess, the sampler, time"""
    model, prompt = expect_exactly(2, args)
    from .look import look_at

    look_at(model, prompt, html=html, as_json=json, raw=raw, head=head, options=option or ())


@command("diff")
def diff(
    args: Annotated[list[str] | None, positional("MODEL|FILE.gguf DUMP")] = None,
    prompt: Annotated[
        str | None, Option(metavar="TEXT", help="The prompt that the engine computed, without a template")
    ] = None,
    ids: Annotated[str | None, Option(metavar="1,2,3", help="Its token ids, in place of a prompt")] = None,
    decode: Annotated[int, Option(metavar="N", help="The last N tokens are decode steps")] = 0,
    names: Annotated[str, Option(metavar="hf", help="Names in the dump: hf for those of transformers")] = "",
    map: Annotated[
        Path | None, Option(metavar="FILE", help='JSON of own names to ours: {"layers.{il}.q": "Qcur-{il}"}')
    ] = None,
    json: Annotated[bool, Option("--json", help="Print the report as JSON")] = False,
    html: Annotated[Path | None, Option(metavar="FILE", help="Write a heat map of all values to this file")] = None,
    verbose: Annotated[bool, Option("-v", "--verbose", help="Show all values")] = False,
) -> None:
    """Find which operation of another engine is wrong, and why

    DUMP holds the values of that engine under llama.cpp's names: safetensors, .npz, a folder of .npy, or the text of
    llama-eval-callback (docs/compare.md). The exit status is 0 if it agrees, 1 if something is wrong, 2 if it cannot be
    compared.
    """
    model, dump = expect_exactly(2, args)
    from .diff import diff_model

    status = diff_model(
        model,
        Path(dump),
        prompt=prompt,
        ids=ids,
        n_decode=decode,
        names=names,
        map_file=map,
        as_json=json,
        html=html,
        verbose=verbose,
    )
    if status:
        raise typer.Exit(status)


@command("pack")
def pack(
    args: Annotated[list[str] | None, positional("DIR | --check DIR -- COMMAND...")] = None,
    check: Annotated[
        Path | None, Option(metavar="DIR", help="Run COMMAND INPUT OUTPUT for each item of this pack, and judge it")
    ] = None,
    only: Annotated[
        str, Option(metavar="NAME", help="Check these items only: dequantize/Q4_0, or rope, or gelu*")
    ] = "",
    timeout: Annotated[float, Option(metavar="SECONDS", help="Time that an item may take")] = 60.0,
    json: Annotated[bool, Option("--json", help="Print the results as JSON")] = False,
    ray: Annotated[
        str | None, Option(metavar="ADDRESS", help="Run COMMAND on the nodes of a Ray cluster; local: one here")
    ] = None,
) -> None:
    """Write golden inputs and outputs to a folder, or check a program in any language by them

    A pack has the blocks of every format, every operation, a tiny model of every family, tokenizers and sampling, as
    safetensors and JSON (docs/packs.md). With --check, the exit status is 0 if all items are right, 1 if one is wrong,
    2 if none could be checked.
    """
    from .pack import check_program, write_pack

    if check is None:
        (folder,) = expect_exactly(1, args)
        status = write_pack(Path(folder))
    else:
        status = check_program(check, expect_at_least(1, args), only, timeout, json, cluster_of(ray))
    if status:
        raise typer.Exit(status)


@command("score")
def score(
    args: Annotated[list[str] | None, positional("MODEL|FILE.gguf")] = None,
    text: Annotated[
        str | None, Option("-f", "--text", metavar="FILE", help="The text to score, - for standard input")
    ] = None,
    ctx_size: Annotated[int, Option("-c", "--ctx-size", metavar="N", help="Tokens in a chunk")] = 512,
    chunks: Annotated[int | None, Option(metavar="N", help="Score at most N chunks")] = None,
    kernels: Annotated[str, Option(metavar="SET", help="Kernel set (see trace)")] = "numba",
    cache_type: Annotated[
        str | None, Option(metavar="TYPE", help="Type of keys and values; by default f16, f32 for reference sets")
    ] = None,
    kl_divergence_base: Annotated[
        Path | None,
        Option(metavar="FILE", help="Save all log-probabilities to this file, in llama-perplexity's format"),
    ] = None,
    kl_divergence: Annotated[
        bool, Option("--kl-divergence", help="Compare with the log-probabilities in that file")
    ] = False,
    json: Annotated[bool, Option("--json", help="Print the numbers as JSON")] = False,
    ray: Annotated[
        str | None, Option(metavar="ADDRESS", help="Score the chunks on a Ray cluster; local: one on this machine")
    ] = None,
) -> None:
    """Compute a model's perplexity on a text, as llama-perplexity

    The text is cut into chunks, and the second half of each is scored. Ctrl-C prints what there is.
    """
    (model,) = expect_exactly(1, args)
    from .score import score_model

    status = score_model(
        model,
        text=text,
        n_ctx=ctx_size,
        n_chunk=chunks,
        kernels=kernels,
        cache_type=cache_type,
        base=kl_divergence_base,
        beside_base=kl_divergence,
        as_json=json,
        ray=cluster_of(ray),
    )
    if status:
        raise typer.Exit(status)


@command("compare")
def compare(
    args: Annotated[list[str] | None, positional("A B")] = None,
    text: Annotated[
        str | None,
        Option("-f", "--text", metavar="FILE", help="The text, - for standard input; a built-in one by default"),
    ] = None,
    tokens: Annotated[int | None, Option(metavar="N", help="Stop after N tokens")] = None,
    top: Annotated[int | None, Option(metavar="N", help="Likely tokens to ask servers for")] = None,
    kernels: Annotated[
        str, Option(metavar="SET[,SET]", help="Kernel set of models in this process; A's and B's")
    ] = "numba",
    cache_type: Annotated[
        str | None, Option(metavar="TYPE[,TYPE]", help="Their type of keys and values; A's and B's")
    ] = None,
    json: Annotated[bool, Option("--json", help="Print the numbers as JSON")] = False,
) -> None:
    """Compare the predictions of two models or servers on a text

    A and B are models, GGUF files, or addresses URL#MODEL of servers that give log-probabilities: Ollama's and
    OpenAI's APIs, and llama-server (docs/compare.md). Ctrl-C prints what there is.
    """
    a, b = expect_exactly(2, args)
    from .compare import compare_models

    status = compare_models(
        a,
        b,
        text=text,
        kernels=kernels,
        cache_type=cache_type,
        n_token=tokens,
        n_listed=top,
        as_json=json,
    )
    if status:
        raise typer.Exit(status)


def cluster_of(address: str | None) -> str | None:
    """Return the cluster of --ray: "" is one that starts on this machine, None no cluster."""
    return "" if address == "local" else address


@command("batch")
def batch(
    args: Annotated[list[str] | None, positional("IN.jsonl OUT.jsonl")] = None,
    model: Annotated[str, Option("-m", "--model", metavar="MODEL", help="Answers lines whose body names none")] = "",
    parallel: Annotated[
        int, Option(metavar="N", help="Requests at once; 0: OLLAMA_NUM_PARALLEL, or 4 for each worker")
    ] = 0,
    ray: Annotated[
        str | None, Option(metavar="ADDRESS", help="Answer on a Ray cluster; local: one on this machine")
    ] = None,
    workers: Annotated[int, Option(metavar="N", help="Workers on the cluster; 0: one for each node")] = 0,
) -> None:
    """Answer a file of requests, in the lines of OpenAI's batch files

    Files named .parquet have a row for each line (docs/scale.md). The same command continues an interrupted run.
    """
    source, target = expect_exactly(2, args)
    from .batch import answer_batch

    status = answer_batch(Path(source), Path(target), model, parallel, cluster_of(ray), workers)
    if status:
        raise typer.Exit(status)


@command("course")
def course(args: Annotated[list[str] | None, positional("DIR")] = None) -> None:
    """Write the lessons of the course to a folder, as notebooks

    Six lessons of 15 minutes with the built-in model, from tokens to finding a bug. DIR/solutions has the same
    notebooks with the exercises solved.
    """
    (folder,) = expect_exactly(1, args)
    from .course import write_course

    write_course(folder)


@command("template")
def template(
    args: Annotated[list[str] | None, positional("FILE|MODEL")] = None,
    messages: Annotated[
        str | None, Option(metavar="FILE", help="Conversation to render: JSON, the messages of a chat")
    ] = None,
    tools: Annotated[str | None, Option(metavar="FILE", help="Tools of the conversation: JSON")] = None,
    data: Annotated[
        str | None, Option(metavar="FILE", help="Execute a Go template on any JSON instead of messages")
    ] = None,
    think: Annotated[
        str | None, Option(metavar="[LEVEL]", help="Enable thinking; the default if the template supports it")
    ] = None,
    calls: Annotated[bool, Option("--calls", help="Print the form of tool calls and thoughts that was found")] = False,
) -> None:
    """Render a conversation with a chat template

    The template is that of a GGUF file, a Modelfile, a template file or an installed model. Template files are Jinja
    (.jinja, .jinja2, .j2) or Go (.gotmpl, .tmpl, .go); with any other extension, a file that contains "{%" is Jinja.
    As in a chat, a final assistant message stays open, and any other message is followed by the start of the answer.
    Use - to read a JSON file from standard input.
    """
    (source,) = expect_exactly(1, args)
    from .template import print_calls, print_template

    if calls:
        print_calls(source)
        return
    print_template(source, messages=messages, tools=tools, data=data, think=think)


@command("warmup")
def warmup(args: Annotated[list[str] | None, positional("")] = None) -> None:
    """Compile all kernels ahead of the first request"""
    expect_exactly(0, args)
    from .warmup import compile_all

    compile_all()


@command("bench", add_help_option=False, context_settings={"ignore_unknown_options": True})
def bench(args: Annotated[list[str] | None, positional("PART|MODEL|FILE.gguf ...")] = None) -> None:
    """Measure models and servers: model, serve, formats, embed, vision, kernels, compare, report, self

    `bench FILE [--peer DIR]` is short for `bench model`. `bench PART --help` lists the flags of a part.
    docs/benchmarks.md says how it measures.
    """
    from .bench import run_bench

    if status := run_bench(args or ["--help"]):
        raise typer.Exit(status)


@command("help")
def help_(ctx: typer.Context, args: Annotated[list[str] | None, positional("[COMMAND]")] = None) -> None:
    """Help about any command"""
    app([*expect_at_most(1, args), "--help"], prog_name="numllama", standalone_mode=False)
