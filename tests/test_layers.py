"""The import rules between packages and rooms, checked against the source."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Lowest level first.  A room imports only from its own level and lower ones; docs/architecture.md has a diagram.
LEVELS = {
    "engine": [
        ["errors", "handle", "options"],
        ["go", "gguf"],
        ["settings", "tokenizer", "template", "parse"],
        ["model", "vision"],
        ["sampling"],
        ["look"],
        ["run", "store"],
        ["serve", "oracle"],
        ["distributed"],
    ],
    "api": [["wire"], ["ollama", "openai", "anthropic", "learn"], ["server"], ["scale"], ["cli"]],
}
# The three wires do not import one another; they share only api/wire.
APART = {"api/ollama", "api/openai", "api/anthropic"}
# Optional or heavy libraries are imported only in these places.
ONLY_IN = {
    "ray": ["engine/distributed"],
    "pyarrow": ["api/scale/parquet.py"],
    "jinja2": ["engine/template/jinja.py"],
    "tokenizers": ["engine/tokenizer/bpe.py"],
    "sentencepiece": ["engine/tokenizer/spm.py"],
    "llguidance": ["engine/sampling/grammar.py", "engine/sampling/trial.py"],
    "safetensors": ["engine/model/trace.py", "engine/run/cache_file.py"],
    "prompt_toolkit": ["api/cli"],
    "typer": ["api/cli"],
    "rich": ["api/cli", "benchmarks/show.py"],
    "plotly": ["benchmarks/chart.py"],
    "fastapi": ["api"],
    "starlette": ["api"],
    "uvicorn": ["api"],
    "pydantic": ["api"],
    "prometheus_client": ["api"],
    "httpx": ["api", "engine/store/registry/", "benchmarks/"],
    "matplotlib": ["engine/look/pictures.py"],
    "cryptography": ["engine/store/registry/auth.py"],
    "PIL": ["engine/vision/pixels.py"],
}
KERNELS_MAY_IMPORT = {"numpy", "numba", "llvmlite"}
FOLDERS = ("kernels", "engine", "api", "benchmarks")


def sources():
    return sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def imports(path):
    """Yield the modules that a source file imports: ours as "engine.model.decoder", others by their first component."""
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
def test_packages_import_only_lower_ones(path):
    ours = {name.split(".")[0] for name in imports(path)} & set(FOLDERS)
    allowed = {"kernels": {"kernels"}, "engine": {"kernels", "engine"}, "api": {"engine", "kernels", "api"}}
    if path.as_posix() == "api/cli/bench.py":  # the only file that runs a benchmark
        ours -= {"benchmarks"}
    if path.parts[0] in allowed:
        assert ours <= allowed[path.parts[0]]


@pytest.mark.parametrize("path", [path for path in sources() if path.parts[0] == "kernels"], ids=str)
def test_kernels_import_numpy_and_numba_only(path):
    import sys

    foreign = {name.split(".")[0] for name in imports(path)} - {"kernels"} - sys.stdlib_module_names
    assert foreign <= KERNELS_MAY_IMPORT


@pytest.mark.parametrize(
    "path", [path for path in sources() if path.parts[0] in LEVELS and path.name != "__init__.py"], ids=str
)
def test_rooms_import_only_from_their_own_level_and_below(path):
    top, room = path.parts[0], path.parts[1].removesuffix(".py")
    rank = {name: i for i, level in enumerate(LEVELS[top]) for name in level}
    assert room in rank, f"{top}/{room} has no level in this test"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == top and len(parts) > 1 and parts[1] in rank:
            assert rank[parts[1]] <= rank[room], f"{path} imports {name}"
            if f"{top}/{room}" in APART and f"{top}/{parts[1]}" in APART:
                assert parts[1] == room, f"{path} imports {name}"


def test_there_are_no_import_cycles():
    """This includes imports for types only."""
    files = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in sources()}
    graph = {}
    for name, path in files.items():
        graph[name] = {m if m in files else m.rpartition(".")[0] for m in imports(path)} & set(files) - {name}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("path", sources(), ids=str)
def test_each_library_is_imported_only_in_its_place(path):
    for name in {name.split(".")[0] for name in imports(path)} & set(ONLY_IN):
        assert any(str(path).startswith(place) for place in ONLY_IN[name]), f"{path} imports {name}"


def definitions(path):
    """Yield the public classes and functions of a file, without handlers, which decorators register by another name."""
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            registered = any(
                ast.unparse(d).split(".")[0] in ("router", "overload") or ast.unparse(d).startswith("command(")
                for d in node.decorator_list
            )
            if not node.name.startswith("_") and not registered and node.name != "main":
                yield node.name


def test_a_public_name_is_defined_once():
    """So that a search finds one thing."""
    places = {}
    for path in sources():
        for name in definitions(path):
            places.setdefault(name, []).append(path.as_posix())
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
    assert len(places) > 1000


def test_no_two_files_of_a_package_differ_by_a_plural():
    files = {path.with_suffix("").as_posix() for path in sources()}
    assert {name for name in files if f"{name}s" in files} == set()
