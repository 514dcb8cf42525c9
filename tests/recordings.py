"""Recordings of llama.cpp, Ollama, Go and transformers, and the models that they are of.

They lie in two places, under the same names.  tests/golden/recorded is in every clone, and tests/golden/README.md says
what each file is; the largest are cut down there, and most models are made again from their seeds.  NUMLLAMA_SHARED may
name the folder that tests/golden/make_recorded.py cut them from, which has all of each.
"""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path

import numpy as np
import recorded_models

KEPT = Path(__file__).parent / "golden/recorded"
# in the whole folder
AT_THE_TOP = ("dialect", "models", "store", "stories260K", "tinystories-656k", "transcripts", "vocab")


class Recordings:
    """A folder of recordings.

    folder    tests/golden/recorded, or the whole
    scratch   where models are made
    """

    def __init__(self, folder: Path, scratch: Path):
        self.folder, self.scratch = folder, scratch
        self.whole = folder != KEPT

    def path(self, name):
        """Tell where a file is: a path below the folder, or below its golden/."""
        top = not self.whole or name.split("/")[0] in AT_THE_TOP
        return self.folder / name if top else self.folder / "golden" / name

    def json(self, name):
        """Read the record `name`."""
        if self.whole:
            return json.loads(self.path(f"{name}.json").read_bytes())
        return json.loads(gzip.decompress(self.path(f"{name}.json.gz").read_bytes()))

    def arrays(self, name):
        """Read arrays; `columns`, where there is one, says which of the last axis were kept of the logits."""
        return np.load(self.path(f"{name}.npz"))

    def jinja(self):
        """Read the renderings of chat templates, and the templates under the key "templates"."""
        cases = self.json("jinja/cases")
        if self.whole:
            folder = self.path("jinja/templates")
            cases["templates"] = {path.stem: path.read_bytes().decode() for path in folder.glob("*.jinja")}
        return cases

    def model(self, name):
        """Find the GGUF of that name, or make it."""
        folders = ("models", "tinystories-656k", "vocab") if self.whole else ("models",)
        for path in (self.folder / folder / f"{name}.gguf" for folder in folders):
            if path.is_file():
                return path
        path = self.scratch / f"{name}.gguf"
        if not path.exists():
            recorded_models.make(path, KEPT)
        return path

    def store(self, folder):
        """Unpack the store that an Ollama left to `folder`/models; its GGUFs are made again."""
        with tarfile.open(KEPT / "store/ollama-store.tar.gz") as tar:
            tar.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # Python 3.11.4
        for digest, content in recorded_models.stored(KEPT, self.model):
            (folder / f"models/blobs/sha256-{digest}").write_bytes(content)
