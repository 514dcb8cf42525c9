"""Golden files have an origin and a licence, stay small, and give the models that were recorded."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import recorded_models
from recordings import Recordings

GOLDEN = Path(__file__).parent / "golden"
README = (GOLDEN / "README.md").read_text()


def listed(section):
    """Read the patterns in the first column of a section's table, whose other columns say something."""
    table = README[README.index(f"## {section}") :].split("\n## ")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    assert all(len(row) == 6 and all(cell.strip() for cell in row[1:5]) for row in rows)
    return [name for row in rows for name in re.findall(r"`(.+?)`", row[1])]


@pytest.mark.parametrize(
    ("folder", "section"),
    [(GOLDEN, "Recorded by a script of its own"), (GOLDEN / "recorded", "Cut from the recordings")],
)
def test_every_golden_file_is_listed_with_its_origin_and_licence(folder, section):
    paths = [path for path in (folder.iterdir() if folder == GOLDEN else folder.rglob("*")) if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in paths if path.suffix not in (".py", ".md")]
    names = [name for name in names if not name.startswith("LICENSE")]
    patterns = listed(section)
    assert len(names) > 20
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in names)] == []


def test_a_clone_stays_small():
    assert sum(path.stat().st_size for path in (GOLDEN / "recorded").rglob("*") if path.is_file()) < 3_200_000


def test_a_model_that_comes_out_otherwise_is_an_error(kept, tmp_path, monkeypatch):
    monkeypatch.setitem(recorded_models.LLAMAS, "tiny256", (13, *recorded_models.LLAMAS["tiny256"][1:]))
    with pytest.raises(ValueError, match=r"^tiny256-F16: the tensors' SHA-256 is \w+, the recorded model's is \w+$"):
        Recordings(kept.folder, tmp_path).model("tiny256-F16")
