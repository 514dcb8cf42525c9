"""Beginnings that lost their slot: restored equals recomputed, bit for bit; damaged files are recomputed."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numllama.engine.handle import RequestHandle
from numllama.engine.model.load import load_model
from numllama.engine.options import Options
from numllama.engine.run import kept as module
from numllama.engine.run.cache_file import CacheFiles
from numllama.engine.run.job import Job
from numllama.engine.run.kept import KeptPrefixes
from numllama.engine.run.request import complete
from numllama.engine.run.scheduler import Scheduler
from tiny import tiny_gguf

N_CTX = 96
OPTIONS = Options(temperature=1.0, seed=3, num_predict=6, num_ctx=N_CTX)
ENOUGH = 1 << 30


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", quant="Q4_0", seed=3))


def talk(n, number):
    """Make the ids of conversation `number`, of which all begin alike."""
    own = np.random.default_rng(number).integers(259, 330, n).tolist()
    return [1, *range(259, 275), *own]


class Server:
    """A scheduler with one slot, and a folder of files."""

    def __init__(self, model, n_slot=1, memory=0, folder=None, type="f16", identity=None, disk=ENOUGH):
        self.model, self.type = model, type
        cache = model.new_cache(N_CTX, n_slot, type)
        self.files = CacheFiles(folder, identity or {"model": "m"}, cache, disk) if folder else None
        self.scheduler = Scheduler(model, cache, guard=False, kept=KeptPrefixes(cache, memory, self.files))

    def ask(self, prompt, options=OPTIONS):
        """Answer a prompt; check the answer's ids against those without any reuse.  -> prompt tokens that were known"""
        pieces = []
        self.scheduler.submit(Job(handle=RequestHandle(), prompt=prompt, options=options, deliver=pieces.append))
        while not self.scheduler.idle:
            self.scheduler.step()
        alone = complete(self.model, prompt, options, cache=self.model.new_cache(N_CTX, type=self.type))
        assert [piece.token for piece in pieces] == [piece.token for piece in alone]
        return pieces[-1].timings.prompt_eval_cached_count


@pytest.mark.parametrize("type", ["f16", "q8_0", "f32"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_conversations_that_alternate_on_one_slot_are_not_read_again(tmp_path_factory, type, on_disk, model):
    if type == "q8_0":
        path = tiny_gguf(tmp_path_factory.mktemp("models") / "wide.gguf", quant="Q4_0", n_head_dim=32)
        model = load_model(path)
    folder = tmp_path_factory.mktemp("kept") if on_disk else None
    server = Server(model, memory=0 if on_disk else ENOUGH, folder=folder, type=type)
    talks = [talk(60, number) for number in range(3)]
    first = [server.ask(one) for one in talks]
    again = [server.ask([*one, 300]) for one in talks]
    assert first == [0, 17, 17] and again == [len(one) for one in talks]


def test_without_a_budget_nothing_is_kept(model):
    server = Server(model)
    server.ask(talk(60, 0)), server.ask(talk(60, 1))
    assert server.ask(talk(60, 0)) == 17 and server.scheduler.kept.nbytes == 0


def test_a_restarted_server_goes_on(model, tmp_path):
    before = Server(model, n_slot=2, folder=tmp_path)
    before.ask(talk(60, 0)), before.ask(talk(50, 1))
    before.scheduler.save()
    after = Server(model, n_slot=2, folder=tmp_path)
    assert after.ask([*talk(60, 0), 300]) == 77 and after.ask([*talk(50, 1), 301]) == 67


def test_restored_positions_are_those_computed_to_the_bit(model, tmp_path):
    before, after = Server(model, folder=tmp_path), Server(model)
    prompt = talk(60, 0)
    before.ask(prompt), after.ask(prompt)
    before.scheduler.save()
    restored = Server(model, folder=tmp_path)
    assert restored.scheduler.kept.restore(0, prompt, 0) == len(prompt) - 1
    for got, expected in zip(
        restored.scheduler.cache.snapshot(0, 76), after.scheduler.cache.snapshot(0, 76), strict=True
    ):
        assert got.tobytes() == expected.tobytes()


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "a byte changed": lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
    "of another version": lambda data: data.replace(b'"version":"1"', b'"version":"0"'),
    "foreign": lambda data: b"GGUF" * 100,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_computed_again_and_logged(model, tmp_path, caplog, damage):
    before = Server(model, folder=tmp_path)
    before.ask(talk(60, 0))
    before.scheduler.save()
    (path,) = tmp_path.glob("*/*.safetensors")
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        after = Server(model, folder=tmp_path)
        assert after.ask(talk(60, 0)) == 0
    assert "is not used and deleted" in caplog.text and not path.exists()


def test_another_model_window_or_type_has_files_of_its_own(model, tmp_path):
    before = Server(model, folder=tmp_path)
    before.ask(talk(60, 0))
    before.scheduler.save()
    assert Server(model, folder=tmp_path, identity={"model": "other"}).ask(talk(60, 0)) == 0


def test_the_least_recently_used_files_go_beyond_the_budget(model, tmp_path):
    server = Server(model, folder=tmp_path)
    server.ask(talk(60, 0))
    server.scheduler.save()
    (path,) = tmp_path.glob("*/*.safetensors")
    small = Server(model, folder=tmp_path, disk=int(path.stat().st_size * 1.5))
    small.ask(talk(60, 1))
    small.scheduler.save()
    (left,) = tmp_path.glob("*/*.safetensors")
    assert left != path


def test_a_longer_text_takes_the_place_of_its_beginning(model, tmp_path):
    server = Server(model, folder=tmp_path)
    for n in (40, 60):
        server.ask(talk(60, 0)[:n], replace(OPTIONS, num_predict=1))  # its answer is not cached
        server.scheduler.save()
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 1


def test_a_folder_that_cannot_be_written_costs_nothing_else(model, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    server = Server(model, folder=tmp_path / "file" / "caches")
    server.ask(talk(60, 0))
    with caplog.at_level(logging.WARNING):
        server.scheduler.save()
    assert "could not be saved" in caplog.text
    assert server.ask([*talk(60, 0), 300]) == 77


def test_images_end_what_is_saved(model, tmp_path):
    server = Server(model, folder=tmp_path)
    tokens = [*talk(40, 0), -1, -2, 300]
    server.files.save(tokens, server.scheduler.cache.snapshot(0, len(tokens)))
    assert Server(model, folder=tmp_path).files.has(tokens[:57])


def test_whatever_is_kept_every_answer_is_as_alone(model, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(module, "MIN_TOKENS", 4)

    @settings(max_examples=15)
    @given(
        asked=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 70)), min_size=2, max_size=8),
        memory=st.sampled_from([0, 20_000, ENOUGH]),
        on_disk=st.booleans(),
        n_slot=st.integers(1, 2),
        seed=st.integers(0, 9),
    )
    def check(asked, memory, on_disk, n_slot, seed):
        folder = tmp_path_factory.mktemp("kept") if on_disk else None
        server = Server(model, n_slot, memory, folder, disk=200_000)
        for i, (number, n) in enumerate(asked):
            server.ask(talk(70, number)[:n], replace(OPTIONS, seed=seed))  # the window shifts in some
            if i == len(asked) // 2:
                server.scheduler.save()
                server = Server(model, n_slot, memory, folder, disk=200_000)

    check()
