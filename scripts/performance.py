"""Measures the tables of docs/performance.md, and writes them from the results: no figure there is typed by hand.

    python scripts/performance.py measure --shape 1.1B-Q4_0.gguf --tiny TinyStories-656K.f16.gguf --peer DIR
    python scripts/performance.py write

`measure` runs the commands of STEPS, which it prints, on a quiet machine (about 25 minutes), and appends their lines to
benchmarks/results/unreleased/NAME.jsonl; the same command resumes an interrupted step.  `write` replaces everything
between `<!-- bench: unreleased/NAME -->` and `<!-- end -->`.  A release renames the folder, and the marks.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from numllama.benchmarks import report
from numllama.benchmarks.knee import knee_lines
from numllama.benchmarks.models import requantize_file
from numllama.benchmarks.results import Run, read_runs
from numllama.engine.serve.engine import Engine
from numllama.engine.settings import Settings
from numllama.kernels.quants import FORMATS_BY_NAME

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/performance.md"
RESULTS = ROOT / "benchmarks/results"
SECTION = re.compile(r"<!-- bench: ([\w./]+) -->\n(.*?)<!-- end -->\n", re.DOTALL)
N_CTX, N_SLOT = 2048, 8
OURS, OTHER = "http://127.0.0.1:9101#m", "http://127.0.0.1:9103#m"
SERVE_OURS = f"OLLAMA_HOST=127.0.0.1:9101 OLLAMA_MODELS=store OLLAMA_CONTEXT_LENGTH={N_CTX} numllama serve"
SERVE_OTHER = f"llama.cpp/llama-server -m 1.1B-Q4_0.gguf --port 9103 -c {N_SLOT * N_CTX} -np {N_SLOT}"
LOAD = "--prompt 128 --answer 32"


@dataclass(frozen=True)
class Step:
    """A command of `numllama bench`, and how many minutes it is expected to take on two quiet cores."""

    name: str
    minutes: float
    command: str


STEPS = [
    Step("model", 6, "model 1.1B-Q4_0.gguf --peer llama.cpp --threads 2 --prefill 512 --depth 0 --batch 8 --budget 8m"),
    Step(
        "serve",
        7,
        f"serve llama-server=llama+{OTHER} numllama=ollama+{OURS} --start 'llama-server={SERVE_OTHER}' "
        f"--start 'numllama=OLLAMA_NUM_PARALLEL={N_SLOT} {SERVE_OURS}' {LOAD} --clients 1 8 --load --budget 9m",
    ),
    Step("itself", 2, f"serve a=ollama+{OURS} b=ollama+{OURS} --start 'a={SERVE_OURS}' {LOAD} --budget 4m"),
    Step(
        "settings",
        2,
        f"serve two=ollama+{OURS} one=ollama+{OURS.replace('#', '?num_thread=1#')} --start 'two={SERVE_OURS}' {LOAD} "
        "--budget 4m",
    ),
    Step("formats", 6, "formats 1.1B-F16.gguf --formats Q8_0,Q4_0 --budget 8m"),
    Step("tiny", 2, "formats TinyStories-656K.f16.gguf --formats Q8_0,Q4_K_M,Q4_0 --budget 3m"),
]


def measure(options: argparse.Namespace) -> int:
    """Run the steps in a folder of links, so that commands and results name no path of this machine.  -> exit status"""
    chosen = [step for step in STEPS if not options.only or step.name in options.only]
    out = RESULTS / "unreleased"
    out.mkdir(parents=True, exist_ok=True)
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    print(f"{len(chosen)} steps, about {sum(step.minutes for step in chosen):g} minutes", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "results").symlink_to(out)
        prepare(Path(folder), options, {step.name for step in chosen})
        for step in chosen:
            print(f"\n$ numllama bench {step.command}    # about {step.minutes:g} minutes", flush=True)
            began = perf_counter()
            more = [*options.flags.split(), "--jsonl", f"results/{step.name}.jsonl"]
            command = ["numllama", "bench", *shlex.split(step.command), *more]
            if status := subprocess.run(command, cwd=folder, env=environ).returncode:
                return status
            print(f"\n{step.name}: {(perf_counter() - began) / 60:.1f} minutes", flush=True)
    return 0


def prepare(folder: Path, options: argparse.Namespace, names: set[str]) -> None:
    """Link the files into `folder`, and make those that steps need: a store, and the shape in F16."""
    (folder / "llama.cpp").symlink_to(options.peer.resolve())
    (folder / "1.1B-Q4_0.gguf").symlink_to(options.shape.resolve())
    (folder / "TinyStories-656K.f16.gguf").symlink_to(options.tiny.resolve())
    if names & {"serve", "itself", "settings"}:
        engine = Engine(Settings(models=folder / "store", builtin=False))
        digest, _ = engine.store.put_blob([options.shape.read_bytes()])
        list(engine.create("m", files={"model.gguf": digest}))
        engine.close()
    if "formats" in names:
        requantize_file(str(options.shape), FORMATS_BY_NAME["F16"], str(folder / "1.1B-F16.gguf"))


# --- the page


def write(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Replace the sections of the page that have results."""
    page.write_text(rendered(page.read_text(), results))


def rendered(text: str, results: Path = RESULTS) -> str:
    """Return the page with its sections made from the results; a section without results stays as it is."""

    def section(found: re.Match[str]) -> str:
        path = results / f"{found[1]}.jsonl"
        if not path.exists():
            return found[0]
        runs = read_runs([path])
        ended = [run for run in runs if run.end] or runs
        return f"<!-- bench: {found[1]} -->\n{section_of(ended[-1])}\n<!-- end -->\n"

    return SECTION.sub(section, text)


def section_of(run: Run) -> str:
    """Return a run's command, its tables with the figures that have verdicts, and its remarks."""
    machine = run.header["machine"]
    sides = [f"{name}: {version}" for name, side in run.header["contenders"].items() if (version := version_of(side))]
    head = [f"{machine['cpu']}, {machine['cores']} cores, {machine['simd']}", *sides, run.header["started"][:10]]
    command = " ".join(shlex.quote(word) if " " in word else word for word in shown_arguments(run.header["arguments"]))
    parts = ["", "```", f"numllama bench {command}", "```", "", "; ".join(head) + ".", ""]
    for table in report.tables_of(run)[: 1 if run.header["part"] == "formats" else None]:
        words = [column for column in table.columns if column.endswith(" is")]
        rows = [row for row in table.rows if not words or any(row.get(word) for word in words)]
        parts += [type(table)(table.title, table.columns, rows, table.remarks).to_markdown(), ""]
    ended = run.end["reason"] if run.end else "interrupted"
    outputs = [note for note in run.notes if note.startswith("outputs of")]
    return "\n".join([*parts, "; ".join([*knee_lines(run), *outputs, f"stopped: {ended}"]) + ".", ""])


def version_of(side: dict[str, object]) -> str:
    return " ".join(str(side[key]) for key in ("version", "commit") if side.get(key))


def shown_arguments(arguments: list[str]) -> list[str]:
    """Return the arguments without the file of results."""
    at = arguments.index("--jsonl") if "--jsonl" in arguments else len(arguments)
    return arguments[:at] + arguments[at + 2 :]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    measuring = parts.add_parser("measure")
    measuring.add_argument("--shape", type=Path, required=True, help="the 1.1B shape in Q4_0")
    measuring.add_argument("--tiny", type=Path, required=True, help="TinyStories-656K in F16")
    measuring.add_argument("--peer", type=Path, required=True, help="folder of llama.cpp's programs")
    measuring.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], help="these steps")
    measuring.add_argument("--flags", default="", help="flags for every command, for example '--busy --rounds 1'")
    parts.add_parser("write")
    chosen = parser.parse_args()
    sys.exit(measure(chosen) if chosen.part == "measure" else write())
