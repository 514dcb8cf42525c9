"""The command line's errors: usage errors in Ollama's words, and one line for every other error."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ...engine.go.text import one_line

UsageError = typer.BadParameter.__mro__[1]  # click.UsageError, also where typer bundles click


def usage_error(message: str) -> Exception:
    error: Exception = UsageError(message)
    return error


class CommandGroup(TyperGroup):
    """The group of all commands, with Ollama's aliases and its text for an unknown command."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, {"ls": "list", "start": "serve"}.get(cmd_name, cmd_name))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None:
            raise usage_error(f'unknown command "{args[0]}" for "numllama"')
        return super().resolve_command(ctx, args)


class Command(TyperCommand):
    """A command whose usage line shows the metavars of its arguments."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", *(p.metavar for p in self.params if p.param_type_name == "argument" and p.metavar)]


def expect_exactly(n: int, args: Sequence[str] | None) -> Sequence[str]:
    """Return `args` if there are exactly `n`.  Raises: UsageError"""
    if len(args or ()) != n:
        raise usage_error(f"accepts {n} arg(s), received {len(args or ())}")
    return args or ()


def expect_at_most(n: int, args: Sequence[str] | None) -> Sequence[str]:
    """Return `args` if there are at most `n`.  Raises: UsageError"""
    if len(args or ()) > n:
        raise usage_error(f"accepts at most {n} arg(s), received {len(args or ())}")
    return args or ()


def expect_at_least(n: int, args: Sequence[str] | None) -> Sequence[str]:
    """Return `args` if there are at least `n`.  Raises: UsageError"""
    if len(args or ()) < n:
        raise usage_error(f"requires at least {n} arg(s), only received {len(args or ())}")
    return args or ()


def usage_message(error: Any) -> str:
    """Return Ollama's text for a usage error."""
    name = getattr(error, "option_name", "")
    match type(error).__name__:
        case "NoSuchOption":
            return (
                f"unknown flag: {name}" if name.startswith("--") else f"unknown shorthand flag: '{name[1]}' in {name}"
            )
        case "BadOptionUsage" if "requires" in error.message:
            return f"flag needs an argument: {name}"
        case "MissingParameter":
            return "accepts 1 arg(s), received 0"
        case _:
            return str(error.format_message())


def error_line(error: BaseException) -> str:
    """Return the line that the user sees for `error`."""
    from ...engine.errors import EngineError, system_error_line

    match error:
        case EngineError():
            return str(error)
        case ValueError() if str(error).startswith(
            "NUMLLAMA_SIMD "
        ):  # kernels import nothing of the engine, so they raise plain errors
            return str(error)
        case _ if type(error).__name__ in ("ServerError", "ServerNotRunning"):
            return str(error)
    if line := system_error_line(error):
        return line
    return f"internal error: {type(error).__name__}: {' '.join(str(error).split())}; set OLLAMA_DEBUG=1 for a traceback"


def fill_flag_values(args: Sequence[str]) -> list[str]:
    """Add the optional values to flags before `--`: a bare `--think` becomes `--think=true`.

    `--ray` takes the next argument, as most flags do; it becomes `--ray=local` where none follows, or another flag.
    """
    end = list(args).index("--") if "--" in args else len(args)
    filled = [f"{arg}=true" if arg in ("--think", "--truncate") else arg for arg in args[:end]]
    for i, (arg, following) in enumerate(zip(filled, [*filled[1:], "-"], strict=False)):
        if arg == "--ray" and following.startswith("-"):
            filled[i] = "--ray=local"
    return filled + list(args[end:])


def call_app(app: typer.Typer, args: Sequence[str] | None = None) -> int:
    """Run the command line.  -> exit status: 0; 1 after `Error: ...`; 130 after Ctrl-C"""
    prepare_streams()
    with InterruptRecord() as interrupt:
        try:
            try:
                status = app(
                    fill_flag_values(sys.argv[1:] if args is None else args),
                    prog_name="numllama",
                    standalone_mode=False,
                )
            finally:
                sys.stdout.flush()
            return status if isinstance(status, int) else 0
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit does not fail
            return 1
        except UsageError as error:  # type: ignore[misc]
            message = usage_message(error)
        except Exception as error:
            if interrupt.happened:
                return 130
            if os.environ.get("OLLAMA_DEBUG", "0") not in ("", "0", "false"):
                raise
            message = one_line(error_line(error))
        print(f"Error: {message}", file=sys.stderr)
        return 1


def prepare_streams() -> None:
    """Open standard streams that the parent process has closed, and write UTF-8 whatever the locale, as Ollama does."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


class InterruptRecord:
    """A context that records whether Ctrl-C was pressed in it.

    Python raises KeyboardInterrupt wherever it is.  In the import of an extension module that becomes another error.
    """

    def __enter__(self) -> InterruptRecord:
        self.happened = False
        self._before = signal.getsignal(signal.SIGINT)
        self._is_set = (
            self._before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
        )
        if self._is_set:
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_set and signal.getsignal(signal.SIGINT) == self._interrupt:
            signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.happened = True
        signal.default_int_handler(number, frame)
