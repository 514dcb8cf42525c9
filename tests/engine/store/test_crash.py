"""A store stays valid under kill -9 at any moment and with two processes at once."""

import hashlib
import random
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from numllama.engine.store import Store
from numllama.engine.store.make.create import create
from tiny import tiny_gguf

# Creates and deletes models that share weights and texts, until it is killed or its time is over.
RESTLESS = """
import random, sys, time
from numllama.engine.errors import ModelNotFound
from numllama.engine.store import Store
from numllama.engine.store.make.create import create
root, digest, seed, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
store, choose = Store(root), random.Random(seed)
print("ready", flush=True)
end = time.monotonic() + seconds
while time.monotonic() < end:
    name = f"m{choose.randrange(3)}"
    try:
        if choose.random() < 0.6:
            texts = {"system": f"system {choose.randrange(2)}", "parameters": {"seed": choose.randrange(2)}}
            list(create(store, name, files={"m.gguf": digest}, **texts))
        elif choose.random() < 0.5:
            store.copy(name, f"c{choose.randrange(2)}")
        else:
            store.delete(name)
    except ModelNotFound:  # the other process has just deleted the model
        pass
"""

HOLDER = """
import sys, time
from numllama.engine.store import Store
with Store(sys.argv[1]).lock:
    print("in", flush=True)
    time.sleep(60)
"""


KEEPER = """
import sys, time
from numllama.engine.store import Store
with Store(sys.argv[1]).keeping() as task:
    task.blob_path(sys.argv[2])
    print("in", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "models")
    path = tiny_gguf(tmp_path / "m.gguf", general__file_type=0)
    digest = store.put_blob([path.read_bytes()])[0]
    list(create(store, "kept", files={"m.gguf": digest}, system="kept"))
    return store


@contextmanager
def process(code, first_line, *arguments):
    """Run `code` in a Python that has printed `first_line`; kill it at the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout.readline() == f"{first_line}\n"
            yield child
        finally:
            child.kill()


def restless(store, seed, seconds):
    return process(RESTLESS, "ready", store.root, store.resolve("kept").weights_digest, seed, seconds)


def check(store):
    """Check that every model in the store is complete, and that the store can be changed."""
    models = store.list()
    assert {model.name for model in models} == set(store.names())
    for model in models:
        for layer in model.manifest.all_layers:
            content = store.blob_path(layer.digest).read_bytes()
            assert (len(content), f"sha256:{hashlib.sha256(content).hexdigest()}") == (layer.size, layer.digest)
    list(create(store, "after", "kept", system="after"))
    assert store.resolve("after").system == "after"
    store.delete("after")


def test_a_kill_at_any_moment_leaves_complete_models_and_only_files_that_prune_deletes(store):
    choose = random.Random(1)
    for seed in range(6):
        with restless(store, seed, seconds=60):
            time.sleep(choose.uniform(0, 0.1))
        check(store)
    store.prune(age_seconds=-1)
    named = {layer.digest for model in store.list() for layer in model.manifest.all_layers}
    assert store.digests() == named
    manifests = store.root / "manifests"
    assert {path for path in manifests.rglob("*") if path.is_file()} == {
        manifests / name.path for name in store.names()
    }
    assert all(any(path.iterdir()) for path in manifests.rglob("*") if path.is_dir())


def test_two_processes_at_once_leave_complete_models(store):
    with restless(store, 1, seconds=1) as one, restless(store, 2, seconds=1) as two:
        while one.poll() is None or two.poll() is None:
            store.prune(age_seconds=3600)
            time.sleep(0.05)
        assert (one.returncode, two.returncode) == (0, 0)
    check(store)


def test_a_task_of_a_killed_process_keeps_no_blob(store):
    """A keep file is locked by its process; what a killed one leaves counts no longer, and is deleted."""
    digest = store.put_blob([b"mine"])[0]
    with process(KEEPER, "in", store.root, digest) as keeper:
        assert len(list((store.root / "manifests").glob(".keep-*"))) == 1
        store.prune(age_seconds=-1)
        assert store.has_blob(digest)
        keeper.kill()
        keeper.wait()
    store.prune(age_seconds=-1)
    assert not store.has_blob(digest) and not list((store.root / "manifests").glob(".*"))


def test_the_lock_is_released_when_its_process_is_killed(store):
    with process(HOLDER, "in", store.root) as holder, restless(store, 1, seconds=0.1) as waiting:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.5)
        holder.kill()
        assert waiting.wait(30) == 0
    check(store)
