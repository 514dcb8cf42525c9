"""keep_alive of a loaded model: a request changes it without a reload."""

from time import monotonic_ns

import pytest

from numllama.engine.go.duration import FOREVER, SECOND
from numllama.engine.options import RequestOptions
from numllama.engine.serve.engine import Engine
from numllama.engine.settings import Settings
from numllama.engine.store.file import FileModel
from tiny import tiny_gguf


@pytest.fixture
def engine(tmp_path):
    engine = Engine(
        Settings(models=tmp_path / "store", builtin=False), file=FileModel.of(tiny_gguf(tmp_path / "m.gguf"))
    )
    yield engine
    engine.close()


def left(engine):
    """Return the loaded model, and the seconds until it is unloaded."""
    (loaded,) = engine.pool.loaded()
    return loaded, (loaded.deadline - monotonic_ns()) / SECOND


def test_a_request_changes_the_keep_alive_of_a_loaded_model(engine):
    engine.generate("m", request=RequestOptions(keep_alive=FOREVER))
    first, seconds = left(engine)
    assert seconds > 1e9
    engine.generate("m", request=RequestOptions(keep_alive=60 * SECOND))
    second, seconds = left(engine)
    assert second is first and 50 < seconds <= 60
    engine.generate("m")  # without keep_alive: unchanged
    third, seconds = left(engine)
    assert third is first and 50 < seconds <= 60
