"""Who may import whom: the picture in the README, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Within the engine, a file may import from its own level to the left of it, and from every level above.
ENGINE_LEVELS = [
    ["errors", "duration", "settings", "batch", "trace", "options"],
    ["gguf", "gguf_write", "image", "json_schema", "parse", "template", "store"],
    ["tokenizer", "grammar", "json_mode", "cache", "prefix", "sampling", "model"],
    ["piece", "split", "sequence", "echo", "generate", "job", "embed", "images", "scheduler"],
    ["runner", "pool", "service"],
]
# Optional or heavy libraries are imported in one place each.
ONLY_IN = {
    "jinja2": ["engine/template/jinja.py"],
    "tokenizers": ["engine/tokenizer/bpe.py"],
    "sentencepiece": ["engine/tokenizer/spm.py"],
    "llguidance": ["engine/grammar.py"],
    "safetensors": ["engine/trace.py"],
    "prompt_toolkit": ["api/cli"],
    "typer": ["api/cli"],
    "rich": ["api/cli"],
    "fastapi": ["api"],
    "starlette": ["api"],
    "uvicorn": ["api"],
    "pydantic": ["api"],
    "prometheus_client": ["api"],
    "httpx": ["api", "engine/store/registry.py", "benchmarks/server.py", "benchmarks/soak.py"],
    "cryptography": ["engine/store/auth.py"],
    "PIL": ["engine/image.py"],
}
KERNELS_MAY_IMPORT = {"numpy", "numba", "llvmlite"}
FOLDERS = ("kernels", "engine", "api", "benchmarks")


def sources():
    return sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def imports(path):
    """Modules that a source file names in any import: ours as "engine.model.decoder", others by their first word."""
    package = list(path.parts[:-1])
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            for alias in node.names:
                yield ".".join([*base, *([node.module] if node.module else []), alias.name])


def test_every_folder_is_read():
    assert len(sources()) > 30


@pytest.mark.parametrize("path", sources(), ids=str)
def test_arrows_point_downwards(path):
    ours = {name.split(".")[0] for name in imports(path)} & set(FOLDERS)
    allowed = {"kernels": {"kernels"}, "engine": {"kernels", "engine"}, "api": {"engine", "kernels", "api"}}
    if path.as_posix() == "api/cli/bench.py":  # the one place that runs a benchmark
        ours -= {"benchmarks"}
    if path.parts[0] in allowed:
        assert ours <= allowed[path.parts[0]]


@pytest.mark.parametrize("path", [path for path in sources() if path.parts[0] == "kernels"], ids=str)
def test_kernels_import_numpy_and_numba_only(path):
    import sys

    foreign = {name.split(".")[0] for name in imports(path)} - {"kernels"} - sys.stdlib_module_names
    assert foreign <= KERNELS_MAY_IMPORT


@pytest.mark.parametrize(
    "path", [path for path in sources() if path.parts[0] == "engine" and len(path.parts) > 1], ids=str
)
def test_engine_levels_hold(path):
    rank = {name: i for i, level in enumerate(ENGINE_LEVELS) for name in level}
    order = {name: j for level in ENGINE_LEVELS for j, name in enumerate(level)}
    me = path.parts[1].removesuffix(".py")
    if me == "__init__":
        return
    assert me in rank, f"engine/{me} has no level in this test"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "engine" and len(parts) > 1 and parts[1] != me:
            other = parts[1]
            assert (rank[other], order[other]) < (rank[me], order[me]), f"engine/{me} imports {name}"


@pytest.mark.parametrize("path", sources(), ids=str)
def test_each_library_has_its_place(path):
    for name in {name.split(".")[0] for name in imports(path)} & set(ONLY_IN):
        assert any(str(path).startswith(place) for place in ONLY_IN[name]), f"{path} imports {name}"
