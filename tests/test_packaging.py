"""Tests of the installed forms: wheel, editable installation, source tree."""

import os
import re
import socket
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree, ignore_patterns

import httpx
import pytest
from packaging.requirements import Requirement
from serving import wait_for

from numllama import __version__

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "engine", "api", "benchmarks", "numllama")
VERSION = "0.0.7"  # of the copies below, so that no installed numllama can stand in for them

# Runs `numllama` as installed in the folder argv[1], whether or not the environment has an installation of its own.
START = """
import runpy, site, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
others = len(sys.meta_path)
site.addsitedir(sys.argv.pop(1))
sys.meta_path[:] = sys.meta_path[others:] + sys.meta_path[:others]
runpy.run_module("numllama", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the source tree, whose version is VERSION."""
    tree = tmp_path_factory.mktemp("source") / "tree"
    ignored = ignore_patterns(".git", ".*_cache", ".hypothesis", ".venv", "build", "*.egg-info", "__pycache__", "tests")
    copytree(ROOT, tree, ignore=ignored, symlinks=True)
    module = tree / "numllama" / "__init__.py"
    module.write_text(re.sub(r'^__version__ = "[^"]+"', f'__version__ = "{VERSION}"', module.read_text(), flags=re.M))
    return tree


@pytest.fixture(scope="module")
def install(tree, tmp_path_factory):
    """Build the tree's wheel with `hook` of the build backend.  -> the folder it is unpacked into"""

    @cache
    def install(hook):
        folder = tmp_path_factory.mktemp(hook)
        build = f"import sys; from setuptools import build_meta; build_meta.{hook}(sys.argv[1])"
        subprocess.run([sys.executable, "-c", build, folder], cwd=tree, check=True, capture_output=True)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        return folder

    return install


@pytest.fixture(scope="module", params=["source tree", "editable", "wheel"])
def numllama(request, tree, install):
    """The command that starts `numllama` from the tree, from an editable installation of it, or from its wheel."""
    if request.param == "source tree":
        return [sys.executable, "-P", "-c", START, str(tree)], {"PYTHONPATH": str(tree)}
    if request.param == "editable":
        return [sys.executable, "-P", "-c", START, str(install("build_editable"))], {"PYTHONPATH": ""}
    folder = str(install("build_wheel"))
    return [sys.executable, "-P", "-c", START, folder], {"PYTHONPATH": folder}


def test_top_level_names_are_not_claimed():
    """Hugging Face publishes a package `kernels`; ours must not be importable under that name."""
    for name in ("kernels", "engine", "api"):
        spec = find_spec(name)
        assert spec is None or not str(spec.origin).startswith(str(ROOT))


def test_the_wheel_holds_every_source_file(install):
    folder = install("build_wheel")
    packed = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for top in FOLDERS:
        beside = ROOT / "numllama" if top == "numllama" else ROOT
        for path in (ROOT / top).rglob("*"):
            wanted = path.suffix == ".py" or path.name == "py.typed" or "builtin" in path.parts
            if path.is_file() and wanted and "__pycache__" not in path.parts:
                assert f"numllama/{path.relative_to(beside).as_posix()}" in packed
    for lesson in (ROOT / "docs" / "course").glob("*.md"):
        assert f"numllama/course/{lesson.name}" in packed
    tops = {name.partition("/")[0] for name in packed if not name.endswith(".whl")}
    assert tops == {"numllama", f"numllama-{VERSION}.dist-info"}  # so nothing of ours has a plain name


def test_each_form_serves_with_its_version_and_its_built_in_model(numllama, tmp_path):
    command, variables = numllama
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    environ = os.environ | variables | {"OLLAMA_HOST": url, "OLLAMA_MODELS": str(tmp_path), "HOME": str(tmp_path)}
    process = {"env": environ, "cwd": tmp_path, "text": True}
    with subprocess.Popen([*command, "serve"], stderr=subprocess.PIPE, **process) as server:
        try:
            wait_for(server)
            answer = httpx.get(f"{url}/api/tags")
            output = subprocess.run([*command, "--version"], check=True, stdout=subprocess.PIPE, **process).stdout
        finally:
            server.terminate()
    assert answer.headers["server"] == f"numllama/{VERSION}"
    assert [model["name"] for model in answer.json()["models"]] == ["primer:latest"]
    assert output == f"numllama version is {VERSION}\n"


def test_a_walk_through_the_packages_of_a_source_tree_ends(tree):
    """There the folder `numllama` lies in a folder of its own path."""
    walk = """if True:
        import pkgutil, numllama
        names = [module.name for module in pkgutil.walk_packages(numllama.__path__, "numllama.", lambda name: None)]
        print(len(names), max(name.count(".") for name in names), "numllama.engine.go.json" in names)
    """
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, "-c", walk], env=environment, check=True, capture_output=True, text=True)
    n, depth, is_complete = done.stdout.split()
    assert 150 < int(n) < 1000 and int(depth) < 6 and is_complete == "True"


def test_the_lowest_versions_are_those_that_pyproject_allows():
    """Against the `packaging` library's reading of the requirements: each pin is allowed, and nothing below it is."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["test"]]
    run = [sys.executable, ROOT / "scripts/lowest.py", "test"]
    pins = [Requirement(line) for line in subprocess.check_output(run, text=True).splitlines()]
    assert [pin.name for pin in pins] == [requirement.name for requirement in wanted]
    for pin, requirement in zip(pins, wanted, strict=True):
        (version,) = (clause.version for clause in pin.specifier)
        assert requirement.specifier.contains(version)
        assert not requirement.specifier.contains(f"{version}.dev0", prereleases=True)


def test_a_release_has_one_version_and_one_date():
    title = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    citation = (ROOT / "CITATION.cff").read_text()
    assert (__version__, title[1]) == (title[1], re.search(r"^version: (\S+)$", citation, flags=re.MULTILINE)[1])
    assert title[2] == re.search(r"^date-released: (\S+)$", citation, flags=re.MULTILINE)[1]
