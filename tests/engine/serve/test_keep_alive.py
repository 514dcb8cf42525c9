"""keep_alive of a model that is loaded already: the request's takes effect, and nothing is loaded again."""

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
    """The loaded model, and seconds until it goes."""
    (loaded,) = engine.pool.loaded()
    return loaded, (loaded.deadline - monotonic_ns()) / SECOND


def test_a_request_changes_the_time_that_is_left_and_loads_nothing(engine):
    engine.generate("m", request=RequestOptions(keep_alive=FOREVER))
    first, seconds = left(engine)
    assert seconds > 1e9
    engine.generate("m", request=RequestOptions(keep_alive=60 * SECOND))
    second, seconds = left(engine)
    assert second is first and 50 < seconds <= 60
    engine.generate("m")  # without one: as it was
    third, seconds = left(engine)
    assert third is first and 50 < seconds <= 60
