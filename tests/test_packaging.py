"""What `pip install` puts on a machine."""

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree, ignore_patterns

ROOT = Path(__file__).parents[1]


def test_plain_names_stay_free():
    """Hugging Face ships a `kernels`; ours must never answer to that name."""
    for name in ("kernels", "engine", "api"):
        spec = find_spec(name)
        assert spec is None or not str(spec.origin).startswith(str(ROOT))


def test_the_wheel_holds_every_source_file(tmp_path):
    copytree(
        ROOT,
        tmp_path / "tree",
        ignore=ignore_patterns(".git", ".venv", "build", "*.egg-info", "__pycache__"),
        symlinks=True,
    )
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=tmp_path / "tree", check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    folders = [folder for folder in ("kernels", "engine", "api", "benchmarks") if any((ROOT / folder).rglob("*.py"))]
    for folder in folders:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and (path.suffix == ".py" or "builtin" in path.parts) and "__pycache__" not in path.parts:
                assert f"numllama/{path.relative_to(ROOT)}" in packed
    assert "numllama/__init__.py" not in packed  # a namespace: nothing of ours stands at its top
    assert not any(name.startswith(("kernels/", "engine/", "api/", "tests/")) for name in packed)
