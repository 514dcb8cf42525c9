"""`numllama batch` with parquet: the rows of a table are the lines of a file.  pyarrow comes with the extra `ray`."""

from __future__ import annotations

import json

import pytest

from numllama.api.cli import batch as module

pytestmark = pytest.mark.ray
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def lines():
    """Return six requests, the third of them wrong."""
    bodies = [{"prompt": f"the cat {i}", "max_tokens": 1 + i, "temperature": 0} for i in range(6)]
    lines = [{"custom_id": str(i), "url": "/v1/completions", "body": body} for i, body in enumerate(bodies)]
    lines[2] |= {"method": "GET"}
    return lines


def write_table(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def choices(path):
    """Return status and choices of each answer in a table."""
    rows = pq.read_table(path).to_pylist()
    return [(row["custom_id"], row["error"] or json.loads(row["response"]["body"])["choices"]) for row in rows]


@pytest.mark.parametrize("columns", ["text", "struct"])
def test_rows_are_answered_as_the_lines_that_they_are(alone, numllama, lines, tmp_path, columns):
    plain, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    plain.write_text("".join(json.dumps(line) + "\n" for line in lines))
    numllama("batch", str(plain), str(target), "-m", "m")
    rows = [{"method": "POST"} | line for line in lines]
    if columns == "text":
        rows = [row | {"body": json.dumps(row["body"])} for row in rows]
    else:
        rows[0]["method"] = None
        rows[1]["body"] = {"prompt": "the cat 1", "max_tokens": 2, "temperature": 0, "stop": ["x"], "seed": None}
    source, table = write_table(tmp_path / "in.parquet", rows), tmp_path / "out.parquet"
    assert numllama("batch", source, str(table), "-m", "m").out == f"{table}: 5 answered, 1 errors\n"
    expected = [json.loads(line) for line in target.read_text().splitlines()]
    assert choices(table) == [
        (line["custom_id"], line["error"] or line["response"]["body"]["choices"]) for line in expected
    ]
    assert numllama("batch", source, str(table), "-m", "m").out == f"{table}: all 6 lines are there\n"
    assert [path.name for path in tmp_path.iterdir() if "out.parquet" in path.name] == ["out.parquet"]


def test_an_interrupted_table_goes_on(alone, numllama, lines, tmp_path, monkeypatch):
    source, table = write_table(tmp_path / "in.parquet", lines), tmp_path / "out.parquet"
    ask = module.answer_request

    async def interrupted(request, answering):
        if request.number == 5:
            raise KeyboardInterrupt
        return await ask(request, answering)

    monkeypatch.setattr(module, "answer_request", interrupted)
    assert numllama("batch", source, str(table), "-m", "m", "--parallel", "1").status == 130 and not table.exists()
    monkeypatch.setattr(module, "answer_request", ask)
    out = numllama("batch", source, str(table), "-m", "m").out
    assert "were there" in out and [row[0] for row in choices(table)] == list("012345")


def test_files_that_are_not_parquet_and_tables_of_other_answers_are_refused(alone, numllama, lines, tmp_path):
    wrong = tmp_path / "in.parquet"
    wrong.write_bytes(b"PAR1 but no more")
    _, _, err = numllama("batch", str(wrong), str(tmp_path / "out.jsonl"), "-m", "m")
    assert err.startswith(f"Error: {wrong} cannot be read: ") and err.count("\n") == 1
    source, table = write_table(wrong, lines[:2]), tmp_path / "out.parquet"
    assert numllama("batch", source, str(table), "-m", "m").status == 0
    write_table(wrong, lines)
    assert "answers 2 of 6 lines; name another file" in numllama("batch", source, str(table), "-m", "m").err
    write_table(wrong, lines[1:])
    assert "line 1: answers '0', expected '1'" in numllama("batch", source, str(table), "-m", "m").err
