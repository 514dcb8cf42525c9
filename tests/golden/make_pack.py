"""Record the hashes of the files that `numllama pack` writes: PYTHONPATH=tests python tests/golden/make_pack.py

A pack of a release is rebuilt byte for byte.  Record it again when its items change, on x86.
"""

import json
import tempfile
from hashlib import sha256
from pathlib import Path

from numllama.engine.oracle.pack.build import build_pack


def hashes_by_operation(folder):
    """Return a hash of the files of each operation, so that a difference can be located."""
    groups = {}
    for name, entry in json.loads((folder / "manifest.json").read_text())["files"].items():
        groups.setdefault(name.partition("/")[0], []).append(f"{name} {entry['sha256']}")
    return {group: sha256("\n".join(lines).encode()).hexdigest()[:16] for group, lines in groups.items()}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        build_pack(Path(scratch) / "pack")
        found = hashes_by_operation(Path(scratch) / "pack")
    Path(__file__).with_name("pack.json").write_text(json.dumps(found, indent=1) + "\n")
