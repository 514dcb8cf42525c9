"""What can be typed after `numllama`: verbs, arguments, flags.

Ollama's, with its texts and exit codes; trace, `-o`, `--raw`, `--kernels` and GGUF files by path are ours.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from .usage import Verb, Verbs, expect_at_least, expect_at_most, expect_exactly, usage_error

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
app = typer.Typer(
    cls=Verbs,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=HELP,
    subcommand_metavar="[COMMAND]",
)
verb = partial(app.command, cls=Verb)
INSECURE = Option("--insecure", help="Use a registry that speaks plain HTTP")


def words(metavar: str) -> Any:
    """Arguments that are counted by the command, in Ollama's words."""
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


@verb("serve")
def serve(nothing: Annotated[list[str] | None, words("")] = None) -> None:
    """Start the server (also: start)

    OLLAMA_HOST says where it listens (127.0.0.1:11434), OLLAMA_MODELS where its models are (~/.ollama/models);
    docs/environment.md has all variables.
    """
    expect_exactly(0, nothing)
    from .serve import serve_forever

    serve_forever()


@verb("run")
def run(
    args: Annotated[list[str] | None, words("MODEL|FILE.gguf [PROMPT]")] = None,
    option: Annotated[
        list[str] | None,
        Option(
            "-o",
            "--option",
            metavar="NAME=VALUE",
            help="Set one of Ollama's options, e.g. temperature=0; again for more",
        ),
    ] = None,
    keepalive: Annotated[
        str | None, Option(metavar="DURATION", help="How long the model stays loaded, e.g. 5m")
    ] = None,
    nowordwrap: Annotated[bool, Option("--nowordwrap", help="Don't wrap words to the next line automatically")] = False,
    verbose: Annotated[bool, Option("--verbose", help="Show timings for response")] = False,
    think: Annotated[
        str | None, Option(metavar="[LEVEL]", help="Have the model think: true/false or high/medium/low/max")
    ] = None,
    hidethinking: Annotated[bool, Option("--hidethinking", help="Hide what the model thinks")] = False,
    format: Annotated[str | None, Option(metavar="json|SCHEMA", help="Response format: json, or a JSON schema")] = None,
    raw: Annotated[bool, Option("--raw", help="Give the model the prompt as it stands, without a template")] = False,
    insecure: Annotated[bool, INSECURE] = False,
    kernels: Annotated[str | None, Option(metavar="SET", help="Run in this process, with this set of kernels")] = None,
    adapter: Annotated[
        list[Path] | None, Option(metavar="FILE", help="Model files: apply this LoRA adapter; again for more")
    ] = None,
    projector: Annotated[
        Path | None, Option(metavar="FILE", help="Model files: see by this projector (mmproj)")
    ] = None,
    dimensions: Annotated[int, Option(metavar="N", help="Embedding models: keep so many dimensions; 0: all")] = 0,
    truncate: Annotated[
        str, Option(metavar="[BOOL]", help="Embedding models: cut a text that is too long; false: refuse it")
    ] = "true",
) -> None:
    """Run a model: answer a prompt, converse, or embed a text"""
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


@verb("show")
def show(
    args: Annotated[list[str] | None, words("MODEL|FILE.gguf")] = None,
    license: Annotated[bool, Option("--license", help="Show license of a model")] = False,
    modelfile: Annotated[bool, Option("--modelfile", help="Show Modelfile of a model")] = False,
    parameters: Annotated[bool, Option("--parameters", help="Show parameters of a model")] = False,
    system: Annotated[bool, Option("--system", help="Show system message of a model")] = False,
    template: Annotated[bool, Option("--template", help="Show template of a model")] = False,
    verbose: Annotated[
        bool, Option("-v", "--verbose", help="Show key-values and tensors, too; of a file always")
    ] = False,
    tokenizer: Annotated[
        Path | None, Option(metavar="DIR", help="Write tokenizer.json and tokenizer_config.json there")
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


@verb("list")
def list_(args: Annotated[list[str] | None, words("[PREFIX]")] = None) -> None:
    """List models (also: ls)"""
    from .list import list_models

    print(list_models(*expect_at_most(1, args)), end="")


@verb("ps")
def ps(args: Annotated[list[str] | None, words("[PREFIX]")] = None) -> None:
    """List running models"""
    from .ps import loaded_models

    print(loaded_models(*expect_at_most(1, args)), end="")


@verb("stop")
def stop(args: Annotated[list[str] | None, words("MODEL")] = None) -> None:
    """Stop a running model"""
    (model,) = expect_exactly(1, args)
    from .ps import stop_model

    stop_model(model)


@verb("pull")
def pull(args: Annotated[list[str] | None, words("MODEL")] = None, insecure: Annotated[bool, INSECURE] = False) -> None:
    """Pull a model from a registry"""
    (model,) = expect_exactly(1, args)
    from .transfer import pull_model

    pull_model(model, insecure)


@verb("push")
def push(args: Annotated[list[str] | None, words("MODEL")] = None, insecure: Annotated[bool, INSECURE] = False) -> None:
    """Push a model to a registry"""
    (model,) = expect_exactly(1, args)
    from .transfer import push_model

    push_model(model, insecure)


@verb("create")
def create(
    args: Annotated[list[str] | None, words("MODEL")] = None,
    file: Annotated[
        str | None, Option("-f", "--file", metavar="FILE", help='Name of the Modelfile (default "Modelfile")')
    ] = None,
    quantize: Annotated[
        str, Option("-q", "--quantize", metavar="TYPE", help="Quantize model to this type, e.g. q4_K_M")
    ] = "",
) -> None:
    """Create a model from a Modelfile, or from the weights in a folder"""
    (model,) = expect_exactly(1, args)
    from .create import create_model

    create_model(model, file, quantize)


@verb("cp")
def cp(args: Annotated[list[str] | None, words("SOURCE DESTINATION")] = None) -> None:
    """Copy a model"""
    source, destination = expect_exactly(2, args)
    from .create import copy_model

    copy_model(source, destination)


@verb("rm")
def rm(args: Annotated[list[str] | None, words("MODEL [MODEL...]")] = None) -> None:
    """Remove a model"""
    from .create import remove_models

    remove_models(expect_at_least(1, args))


@verb("trace")
def trace(
    args: Annotated[list[str] | None, words("MODEL|FILE.gguf PROMPT")] = None,
    kernels: Annotated[
        str, Option(metavar="SET", help="The set of kernels: numpy-float32, numpy-float64, exact, ggml or numba")
    ] = "numpy-float32",
    only: Annotated[
        list[str] | None, Option(metavar="PATTERN", help="Names to show, e.g. 'ffn_*'; again for more")
    ] = None,
    save: Annotated[Path | None, Option(metavar="FILE", help="Write the arrays into a safetensors file")] = None,
    beside: Annotated[
        Path | None, Option(metavar="FILE", help="Compare with such a file, another engine's: docs/compare.md")
    ] = None,
) -> None:
    """Show every named activation of one forward pass

    PROMPT is what the model reads, without a template, marks such as <|user|> included; `numllama template` makes one
    of a conversation.
    """
    model, prompt = expect_exactly(2, args)
    from .trace import trace_model

    trace_model(model, prompt, kernels=kernels, only=only or [], save=save, beside=beside)


@verb("template")
def template(
    args: Annotated[list[str] | None, words("FILE|MODEL")] = None,
    messages: Annotated[str | None, Option(metavar="FILE", help="A conversation: the messages of a chat, JSON")] = None,
    tools: Annotated[str | None, Option(metavar="FILE", help="The tools offered in it, JSON")] = None,
    data: Annotated[str | None, Option(metavar="FILE", help="In place of messages: any JSON for a Go template")] = None,
    think: Annotated[
        str | None, Option(metavar="[LEVEL]", help="As in a chat; without it, whatever can think does")
    ] = None,
) -> None:
    """Show what a template makes of a conversation

    FILE is a GGUF, a Modelfile (by that name or extension) or a template's text. A text is Jinja if its name ends in
    .jinja, .jinja2 or .j2, Go if it ends in .gotmpl, .tmpl or .go; any other is Jinja if it has "{%" in it, else Go.
    What is no file is the name of a model. As in a chat, a last message of the assistant stays open, and after any
    other one comes the beginning of the answer. Where a JSON file is wanted, - is what comes through a pipe.
    """
    (source,) = expect_exactly(1, args)
    from .template import print_template

    print_template(source, messages=messages, tools=tools, data=data, think=think)


@verb("warmup")
def warmup(nothing: Annotated[list[str] | None, words("")] = None) -> None:
    """Compile all kernels now, so that no first answer waits for it"""
    expect_exactly(0, nothing)
    from .warmup import compile_all

    compile_all()


@verb("bench", add_help_option=False, context_settings={"ignore_unknown_options": True})
def bench(args: Annotated[list[str] | None, words("MODEL|FILE.gguf")] = None) -> None:
    """Measure a model's speed, with --peer DIR beside llama.cpp's"""
    from .bench import run_bench

    run_bench(args or [])


@verb("help")
def help_(ctx: typer.Context, args: Annotated[list[str] | None, words("[COMMAND]")] = None) -> None:
    """Help about any command"""
    app([*expect_at_most(1, args), "--help"], prog_name="numllama", standalone_mode=False)
