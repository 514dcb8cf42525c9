"""The flags of `numllama bench`, part by part, and the types of their values."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ..engine.errors import RequestError
from ..kernels.kv import CACHE_TYPES, types_of_keys_and_values
from .workload import ARRIVALS, powers_of_two

PARTS_TEXT = """Measure models and servers, and say what the measurements allow.

    bench model FILE... [--peer DIR]      a model's prefill and decode, beside llama.cpp's
    bench serve a=WIRE+URL#MODEL ...      servers, in turns, with equal work
    bench formats MODEL                   one model in several formats: speed, size, distance
    bench embed FILE [--peer DIR]         an embedding model, in process and served, beside llama.cpp's
    bench vision [MMPROJ] [--peer DIR]    an image, beside llama.cpp's
    bench stages FILE                     a model in 2 to 4 processes, beside the prediction for clusters
    bench long FILE [--peer DIR]          a model after thousands of cached tokens, by type of cache
    bench kernels                         each kernel beside the machine's limits
    bench speculate MODEL                 answers with guesses at the next tokens, and without
    bench compare A.jsonl B.jsonl         two files of results
    bench report FILE...                  tables and charts of results
    bench self                            the harness itself, measured on servers whose figures are known

`bench FILE` is short for `bench model FILE`.
"""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises RequestError instead of exiting."""

    def __init__(self, **more: Any):
        more.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **more)

    def error(self, message: str) -> NoReturn:
        raise RequestError(message)


def number_from(minimum: float, kind: type = int, maximum: float = math.inf) -> Callable[[str], Any]:
    """Return an argument type: numbers from `minimum` on."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (minimum <= value <= maximum) or not math.isfinite(value):
            name = "a whole number" if kind is int else "a number"
            upto = f" to {maximum:g}" if math.isfinite(maximum) else " on"
            raise argparse.ArgumentTypeError(f"'{text}', expected {name} from {minimum:g}{upto}")
        return value

    return parse


def duration(text: str) -> float:
    """Parse `90`, `90s`, `5m` or `1h` to seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|)", text)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"'{text}', expected a time such as 90s, 5m or 1h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def share(text: str) -> float:
    """Parse `2%` or `0.02`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text)
    value = float(found[1]) / (100 if found[2] else 1) if found else 0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{text}', expected a share such as 2% or 0.02")
    return value


def ramp(text: str) -> tuple[str, list[float]]:
    """Parse `1..64`, clients, or `0.5..8/s`, requests a second.  -> "clients" or "rate", and the steps"""
    kind = "rate" if text.endswith("/s") else "clients"
    try:
        return kind, powers_of_two(text.removesuffix("/s"), int if kind == "clients" else float)
    except ValueError:
        expected = "expected a range such as 1..64, of clients, or 0.5..8/s, of requests a second"
        raise argparse.ArgumentTypeError(f"'{text}', {expected}") from None


def limits(text: str) -> dict[str, float]:
    """Parse `ttft:2,tpot:0.2`."""
    found = {}
    for part in text.split(","):
        name, _, value = part.partition(":")
        if name not in ("ttft", "tpot", "e2e") or not re.fullmatch(r"\d+(\.\d+)?", value):
            raise argparse.ArgumentTypeError(f"'{part}', expected limits in seconds such as ttft:2,tpot:0.2,e2e:30")
        found[name] = float(value)
    return found


def ids(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"'{text}', expected token ids such as 2,32000")
    return [int(part) for part in text.split(",")]


def cache_type(text: str) -> str:
    """Read a type of cache, or of keys and of values."""
    try:
        types_of_keys_and_values(text)
    except KeyError:
        known = " ".join(CACHE_TYPES)
        raise argparse.ArgumentTypeError(f"'{text}', expected one or two (q8_0/q4_0) of {known}") from None
    return text


def build_parser(prog: str) -> Parser:
    """Build the parser of all parts."""
    parser = Parser(prog=prog, description=PARTS_TEXT, usage=f"{prog} PART ...")
    parts = parser.add_subparsers(
        dest="part", metavar="PART", required=True, prog=prog, help="PART --help lists its flags"
    )

    def part(name: str, text: str) -> argparse.ArgumentParser:
        return parts.add_parser(name, description=text)

    add_model(part("model", "Measure a model's prefill and decode; with --peer, beside llama.cpp's, in turns"))
    add_serve(part("serve", "Compare servers over their wires, in turns, with equal work"))
    add_formats(part("formats", "Quantize a model to several formats and compare speed, size, memory and distance"))
    add_embed(part("embed", "Measure embeddings; with --peer, beside llama.cpp's, in turns"))
    add_vision(part("vision", "Measure the encoding of an image; with --peer, beside llama.cpp's, in turns"))
    add_stages(part("stages", "Measure a model in stages on Ray, beside what benchmarks/scale.py predicts"))
    add_long(part("long", "Measure prefill and decode after thousands of cached tokens, by type of cache"))
    add_kernels(part("kernels", "Measure each kernel beside the machine's limits"))
    add_speculate(part("speculate", "Measure answers with guesses at the next tokens, and without, in turns"))
    add_compare(part("compare", "Compare two files of results"))
    add_report(part("report", "Print results as tables, or write a page with charts"))
    add_self(part("self", "Measure the harness itself: false verdicts, known differences, known token times"))
    return parser


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say when to stop, and where results go."""
    several = parser.add_argument_group("rounds and results")
    several.add_argument(
        "--budget", type=duration, metavar="TIME", help="stop after TIME (5m; without limit with --rounds)"
    )
    several.add_argument(
        "--within", type=share, default=0.02, metavar="SHARE", help="differences that count as the same (2%%)"
    )
    several.add_argument(
        "--rounds",
        type=number_from(1),
        metavar="N",
        help="a fixed number of rounds; 6 are the fewest that allow a verdict on one figure",
    )
    several.add_argument(
        "--busy", action="store_true", help="count rounds in which the machine was disturbed like others"
    )
    several.add_argument("--seed", type=number_from(0), metavar="N", help="seed of prompts and orders (drawn by lot)")
    add_outputs(several)


def add_outputs(parser: Any) -> None:
    parser.add_argument(
        "--jsonl", type=Path, metavar="FILE", help="append a line for every round; resumes an unfinished run"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with tables and charts (extra `bench`)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the tables as CSV")


def add_model(parser: argparse.ArgumentParser) -> None:
    several: dict[str, Any] = {"nargs": "*", "metavar": "N", "default": None}
    parser.add_argument("models", nargs="+", metavar="MODEL|FILE.gguf")
    parser.add_argument("--peer", type=Path, metavar="DIR", help="folder of llama.cpp's programs")
    parser.add_argument("--threads", type=number_from(1), **several | {"nargs": "+"}, help="threads (1, and all cores)")
    parser.add_argument("--prefill", type=number_from(1), **several, help="prompt lengths (32 128 512)")
    parser.add_argument("--depth", type=number_from(0), **several, help="decode after N cached tokens (0 1024 4096)")
    parser.add_argument("--batch", type=number_from(1), **several, help="decode N sequences (1 2 4 8)")
    parser.add_argument("--start", action="store_true", help="measure only load time and memory")
    parser.add_argument("--cpu", action="store_true", help="count CPU seconds: for busy machines")
    parser.add_argument("--torch", action="store_true", help="also time prompts in transformers, in bfloat16")
    add_plan(parser)


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `bench serve`."""
    parser.add_argument(
        "servers",
        nargs="+",
        metavar="NAME=WIRE+URL#MODEL",
        help="WIRE: ollama, openai or llama; settings follow the URL as ?name=value",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--completion",
        dest="kind",
        action="store_const",
        const="completion",
        help="prompts without a template (default)",
    )
    kind.add_argument("--chat", dest="kind", action="store_const", const="chat", help="messages of a chat")
    kind.add_argument("--embed", dest="kind", action="store_const", const="embed", help="embeddings of texts")
    parser.set_defaults(kind="completion")
    parser.add_argument("--prompt", type=number_from(1), default=128, metavar="N", help="tokens of a prompt (128)")
    parser.add_argument("--answer", type=number_from(1), default=64, metavar="N", help="tokens of an answer (64)")
    parser.add_argument(
        "--clients", type=number_from(1), nargs="+", default=[], metavar="N", help="closed loop: clients at once (1)"
    )
    parser.add_argument(
        "--ramp",
        type=ramp,
        metavar="1..N|R..S/s",
        help="closed loops from 1 to N clients, or open ones from R to S requests a second, to find the knee",
    )
    parser.add_argument(
        "--load", action="store_true", help="also measure the time until a model that is not loaded answers"
    )
    parser.add_argument(
        "--start",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="start a server by COMMAND, which listens at its address, and stop it at the end",
    )
    parser.add_argument(
        "--rate",
        type=number_from(0.001, float),
        nargs="+",
        default=[],
        metavar="R",
        help="open loop: requests a second",
    )
    parser.add_argument("--arrivals", choices=ARRIVALS, default="poisson", help="of an open loop (poisson)")
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="open loop: replay JSON lines of timestamp, input_length, output_length",
    )
    parser.add_argument(
        "--requests",
        type=number_from(1),
        metavar="N",
        help="requests per round (from one a client to twice as many, as the budget allows)",
    )
    parser.add_argument(
        "--shared",
        type=number_from(0, float, 1),
        default=0.0,
        metavar="SHARE",
        help="share of every prompt that is common to all",
    )
    parser.add_argument("--mixed", action="store_true", help="vary lengths from half to double")
    parser.add_argument("--turns", type=number_from(1), default=1, metavar="N", help="turns of each conversation (1)")
    parser.add_argument(
        "--cache",
        choices=["cold", "warm"],
        default="cold",
        help="whether the server has seen a round's prompts before (cold)",
    )
    parser.add_argument("--ctx", type=number_from(1), metavar="N", help="context size, set on Ollama's wire")
    parser.add_argument(
        "--goodput", type=limits, metavar="LIMITS", help="limits of goodput in seconds, such as ttft:2,tpot:0.2"
    )
    parser.add_argument(
        "--image", type=Path, action="append", default=[], metavar="FILE", help="an image for every prompt"
    )
    parser.add_argument("--tools", type=Path, metavar="FILE", help="tools of the chat: a JSON list")
    parser.add_argument(
        "--key-env",
        action="append",
        default=[],
        metavar="[NAME=]VARIABLE",
        help="variable with the API key of a server, or of all",
    )
    parser.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="[NAME=]HEADER",
        help="a header for a server, or for all: 'X-Name: value'",
    )
    parser.add_argument("--timeout", type=duration, default=600.0, metavar="TIME", help="longest wait for a text (10m)")
    parser.add_argument(
        "--tokenizer", metavar="FILE.gguf", help="count answers here, for servers whose counts are missing or wrong"
    )
    parser.add_argument(
        "--end-tokens", type=ids, default=[], metavar="IDS", help="tokens that end an answer, to ban by logit_bias"
    )
    parser.add_argument("--unequal", action="store_true", help="measure although the work differs, without verdicts")
    add_plan(parser)


def add_formats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL|FILE.gguf|FOLDER")
    parser.add_argument(
        "--formats", metavar="A,B,...", default="Q8_0,Q6_K,Q4_K_M,Q4_0", help="formats (Q8_0,Q6_K,Q4_K_M,Q4_0)"
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="text for the distance (a built-in one)")
    parser.add_argument("--tokens", type=number_from(16), default=512, metavar="N", help="tokens of that text (512)")
    parser.add_argument("--threads", type=number_from(1), metavar="N", help="threads (all cores)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the files in DIR")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="compute the distances on a Ray cluster, whose nodes see DIR; local: one here"
    )
    add_plan(parser)


def add_embed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL|FILE.gguf")
    parser.add_argument("--texts", type=number_from(1), default=256, metavar="N", help="texts in a request (256)")
    parser.add_argument("--tokens", type=number_from(4), default=128, metavar="N", help="tokens of a text (128)")
    add_peer(parser, "folder with llama-server")


def add_vision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mmproj", nargs="?", type=Path, metavar="MMPROJ.gguf")
    add_peer(parser, "folder with libmtmd.so")


def add_peer(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--peer", type=Path, metavar="DIR", help=text)
    parser.add_argument("--threads", nargs="+", type=number_from(1), metavar="N", help="threads (1, and all cores)")
    parser.add_argument("--cpu", action="store_true", help="count CPU seconds: for busy machines")
    add_plan(parser)


def add_stages(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE.gguf")
    parser.add_argument(
        "--stages", nargs="+", type=number_from(2), default=[2, 3, 4], metavar="N", help="stages (2 3 4)"
    )
    parser.add_argument("--threads", type=number_from(1), default=1, metavar="N", help="threads of each process (1)")
    parser.add_argument("--rounds", type=number_from(1), default=10, metavar="N", help="measurements of each time (10)")
    parser.add_argument("--ray", default="local", metavar="ADDRESS", help="the cluster; by default one on this machine")
    parser.add_argument("--costs", type=Path, metavar="FILE", help="write the costs of one process to FILE, as JSON")
    parser.add_argument(
        "--within", type=share, default=0.15, metavar="SHARE", help="error of a prediction that counts as right (15%%)"
    )


def add_long(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE.gguf")
    parser.add_argument("--peer", type=Path, metavar="DIR", help="folder of llama.cpp's programs")
    parser.add_argument(
        "--depth", nargs="+", type=number_from(1), default=[4096, 16384], metavar="N", help="tokens (4096 16384)"
    )
    parser.add_argument(
        "--cache-type", nargs="+", type=cache_type, default=["f16", "q8_0"], metavar="TYPE", help="such as q8_0/q4_0"
    )
    parser.add_argument("--threads", type=number_from(1), metavar="N", help="threads (all cores)")


def add_kernels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", nargs="+", metavar="NAME", help="formats (all that have a fast product)")
    parser.add_argument("--threads", nargs="+", type=number_from(1), metavar="N", help="threads (1, and all cores)")
    parser.add_argument(
        "--tokens", nargs="+", type=number_from(1), default=[1, 4, 5, 8, 9, 64], metavar="N", help="tokens"
    )
    parser.add_argument("--rounds", type=number_from(1), metavar="N", help="rounds of each row (5)")
    parser.set_defaults(budget=None, within=0.02, busy=False, seed=0)
    add_outputs(parser)


def add_speculate(parser: argparse.ArgumentParser) -> None:
    texts = "copying", "right", "plain", "own"
    parser.add_argument("model", metavar="MODEL|FILE.gguf")
    parser.add_argument("--texts", nargs="+", choices=texts, default=texts, help="kinds of text (all)")
    parser.add_argument("--answer", type=number_from(16), default=96, metavar="N", help="tokens of an answer (96)")
    parser.add_argument("--threads", type=number_from(1), metavar="N", help="threads (all cores)")
    parser.add_argument("--cpu", action="store_true", help="count CPU seconds: for busy machines")
    add_plan(parser)


def add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", type=Path, metavar="A.jsonl")
    parser.add_argument("after", type=Path, metavar="B.jsonl")
    parser.add_argument(
        "--within", type=share, default=0.02, metavar="SHARE", help="differences that count as the same (2%%)"
    )
    parser.add_argument(
        "--drift", type=share, default=0.05, metavar="SHARE", help="change of a machine from run to run (5%%)"
    )


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with tables and charts (extra `bench`)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the tables as CSV")


def add_self(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--simulated", type=number_from(0), default=200, metavar="N", help="simulated comparisons (200)"
    )
    parser.add_argument(
        "--real", type=number_from(0), default=20, metavar="N", help="real comparisons of a server with itself (20)"
    )
    parser.add_argument("--quick", action="store_true", help="two minutes: 2 real comparisons, and fewer requests")
    parser.add_argument("--seed", type=number_from(0), default=0, metavar="N")
