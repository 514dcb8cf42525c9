"""The unmodified lm-evaluation-harness, scoring a served model."""

from __future__ import annotations

import json

import pytest

from numllama.engine.gguf.read import GGUF
from numllama.engine.options import Options
from numllama.engine.run.request import complete
from numllama.engine.tokenizer.export import write_tokenizer

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]
lm_eval = pytest.importorskip("lm_eval")

QUESTIONS = [
    {"question": "once upon a", "choices": [" time", " the there"], "answer": 0},
    {"question": "there was", "choices": [" a", " girl girl girl"], "answer": 1},
    {"question": "the time", "choices": [" upon", " was there"], "answer": 0},
]
TASK = """
task: tiny
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def log_probability(model, context, continuation):
    """Compute ln p(continuation | context) with the engine, without BOS, as in the harness."""
    tokenizer = model.tokenizer
    n_context = len(tokenizer.encode(context, add_special=False))
    ids = tokenizer.encode(context + continuation, add_special=False)
    *pieces, _ = complete(model, ids, Options(num_predict=0, num_ctx=256), echo=True, n_logprobs=0)
    return sum(piece.logprob.logprob for piece in pieces[n_context:])


def test_the_harness_scores_equal_the_engines(served, models, tmp_path, monkeypatch):
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (tmp_path / "tiny.yaml").write_text(TASK.format(file=questions))
    write_tokenizer(GGUF.open(models / "bare.gguf").kv, tmp_path / "tokenizer")

    got = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "bare",
            "base_url": f"{served.url}/v1/completions",
            "tokenizer": str(tmp_path / "tokenizer"),
            "tokenized_requests": True,
            "max_length": 256,
        },
        tasks=["tiny"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        batch_size=2,
        bootstrap_iters=0,
        log_samples=True,
    )

    model = served.engine.pool.loaded()[0].runner.model
    for sample in got["samples"]["tiny"]:
        question = sample["doc"]
        expected = [log_probability(model, question["question"], choice) for choice in question["choices"]]
        scored = [float(answer[0][0]) for answer in sample["resps"]]
        assert scored == pytest.approx(expected, abs=1e-9)  # the same numbers, after JSON
        assert sample["acc"] == (expected[question["answer"]] == max(expected))
