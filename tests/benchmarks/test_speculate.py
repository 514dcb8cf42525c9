"""`bench speculate`: prescribed answers, compared to the bit before they are timed."""

import ast
import json
import re

import pytest
from numba.core import config

from numllama.benchmarks import speculate
from numllama.benchmarks.command import run_part
from numllama.benchmarks.results import read_runs
from numllama.benchmarks.speculate import Prescribed, SpeculateBench
from numllama.engine.errors import EngineError, RequestError
from numllama.engine.model.load import load_model
from numllama.engine.store.file import FileModel
from tiny import tiny_gguf

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="texts of hundreds of tokens need the compiler")

EDIT = re.compile(r"```python\n(.*)\n```\n\nRename `(\w+)` to `(\w+)`:\n\n```python\n", re.DOTALL)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", n_ctx=2048)


def test_every_kind_of_text_is_compared_and_measured(path, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    options = "--rounds 1 --busy --threads 1 --answer 16".split()
    assert run_part(["speculate", str(path), *options, "--jsonl", str(rows)], FileModel.of) == 0
    (run,) = read_runs([rows])
    found = [(line["cell"], line["contender"]) for line in run.rounds]
    assert sorted(found) == sorted((c, n) for c in ("copying", "right", "plain", "own") for n in ("off", "auto"))
    assert all(line["figures"]["tok_s"] > 0 for line in run.rounds)
    assert {line["raw"]["guessed"] for line in run.rounds if line["contender"] == "off"} == {0}
    out = capsys.readouterr().out
    assert "copying: 20 answers are equal to the bit" in out and "plain: 4 answers are equal to the bit" in out


def test_a_model_with_a_short_context_is_told_which_texts_do_not_fit(tmp_path):
    short = tiny_gguf(tmp_path / "short.gguf", n_ctx=64)
    with pytest.raises(RequestError, match="copying: no text fits into the model's 64 positions"):
        run_part(["speculate", str(short), "--rounds", "1", "--texts", "copying"], FileModel.of)


def test_a_prescribed_answer_is_what_the_model_is_taken_to_say(path):
    bench = SpeculateBench(load_model(path), 64, 2, 24, cpu=False)
    answer = list(range(300, 320))
    for contender in ("off", "auto"):
        answered = bench.answer(Prescribed([1, 270, *answer, 270], answer), contender)
        assert [piece.token for piece in answered.pieces[:-1]] == answer


def test_answers_that_differ_are_a_bug_and_not_measured(path):
    bench, item = SpeculateBench(load_model(path), 64, 2, 24, cpu=False), Prescribed([1, 270], [300, 301])
    assert "1 answers are equal" in bench.check("copying", [item])
    plain = bench.answer
    bench.answer = lambda item, contender, **more: plain(
        Prescribed(item.prompt, [300, 301 + (contender == "auto")]), contender, **more
    )
    with pytest.raises(EngineError, match="copying, text 1: the answer with guesses is not the plain one"):
        bench.check("copying", [item])


def test_the_tasks_are_ten_quotations_and_ten_code_edits_with_right_answers():
    tasks = json.loads(speculate.TASKS.read_text("utf-8"))["tasks"]
    quotations = [task for task in tasks if task["kind"] == "quotation"]
    edits = [task for task in tasks if task["kind"] == "code edit"]
    assert len(quotations) == len(edits) == 10 and len(tasks) == 20
    for task in quotations:
        assert task["answer"].strip() in task["prompt"]
    for task in edits:
        ((before, old, new),) = EDIT.findall(task["prompt"])
        after = task["answer"].removesuffix("```\n")
        assert ast.dump(ast.parse(before)) != ast.dump(ast.parse(after))
        assert after.replace(new, old).split() == before.replace(new, old).split()
