"""`numllama batch`: the answers of a server, in the order of the lines, continued after an interruption."""

from __future__ import annotations

import json

import pytest

from numllama.api.cli import batch as module


def chat(id, text, **body):
    body |= {"messages": [{"role": "user", "content": text}]}
    return {"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body}


@pytest.fixture
def written(tmp_path):
    """Return a function that writes lines and returns the paths of input and output."""

    def write(*lines):
        source = tmp_path / "in.jsonl"
        source.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return str(source), str(tmp_path / "out.jsonl")

    return write


def read(path):
    with open(path) as file:
        return [json.loads(line) for line in file]


def test_answers_are_a_servers_in_the_order_of_the_lines(alone, numllama, written, with_server, served):
    lines = [chat(str(i), f"the cat {i}", max_tokens=9 - i) for i in range(9)]
    lines.append(
        {
            "custom_id": "c",
            "url": "/v1/completions",
            "body": {"model": "bare", "prompt": "the", "max_tokens": 3, "temperature": 0},
        }
    )
    lines.append({"custom_id": "e", "url": "/v1/embeddings", "body": {"model": "bare", "input": "the cat"}})
    source, target = written(*lines)
    status, out, err = numllama("batch", source, target, "--model", "m", "--parallel", "3")
    assert (status, out, err) == (0, f"{target}: 11 answered, 0 errors\n", "")
    answers = read(target)
    assert [line["custom_id"] for line in answers] == [line["custom_id"] for line in lines]
    for line, answer in zip(lines, answers, strict=True):
        assert answer["error"] is None and answer["response"]["status_code"] == 200
        if line["url"] != "/v1/embeddings" and "bare" in str(line):
            theirs = served.ok(line["url"], **line["body"])
            assert answer["response"]["body"]["choices"] == theirs["choices"]


def test_a_wrong_line_is_one_error_and_the_others_are_answered(alone, numllama, written):
    lines = [
        "nonsense",
        "[1]",
        chat("a", "x", stream=True),
        {"custom_id": "b", "url": "/v1/models", "body": {}},
        {"custom_id": "c", "method": "GET", "url": "/v1/completions", "body": {}},
        {"custom_id": "d", "url": "/v1/completions", "body": "x"},
        {"url": "/v1/completions", "body": {}},
        chat("e", "x", model="nope"),
        chat("f", "x", max_tokens=2),
    ]
    source, target = written(*lines)
    status, out, _ = numllama("batch", source, target, "-m", "m")
    assert (status, out) == (1, f"{target}: 1 answered, 8 errors\n")
    *wrong, missing, good = read(target)
    messages = [line["error"]["message"] for line in wrong]
    expected = ["not JSON", "found a list", "body.stream", "'/v1/models', expected one of", "'GET', expected 'POST'"]
    expected += ["body is text", "custom_id is missing"]
    for i, (message, part) in enumerate(zip(messages, expected, strict=True), 1):
        assert message.startswith(f"line {i}: ") and part in message
    assert missing["response"]["status_code"] == 404 and good["response"]["status_code"] == 200


def test_without_a_model_a_line_says_so(alone, numllama, written):
    source, target = written(chat("a", "x"))
    assert numllama("batch", source, target).status == 1
    assert "--model names none" in read(target)[0]["error"]["message"]


def test_a_file_answers(alone, numllama, written, file):
    source, target = written(chat("a", "x", max_tokens=2))
    assert numllama("batch", source, target, "--model", file).status == 0


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_an_interrupted_run_goes_on_after_its_last_whole_line(alone, numllama, written, monkeypatch, cut):
    lines = [chat(str(i), f"the cat {i}", max_tokens=3, temperature=0) for i in range(6)]
    source, target = written(*lines)
    assert numllama("batch", source, target, "-m", "m").status == 0
    with open(target, "rb") as file:
        whole = file.readlines()
    with open(target, "wb") as file:
        file.write(b"".join(whole[:3]) + whole[3][:cut])
    asked = []
    ask = module.answer_request

    async def counted(request, answering):
        asked.append(request.custom_id)
        return await ask(request, answering)

    monkeypatch.setattr(module, "answer_request", counted)
    status, out, _ = numllama("batch", source, target, "-m", "m")
    assert (status, out, sorted(asked)) == (0, f"{target}: 3 answered, 0 errors, 3 were there\n", ["3", "4", "5"])
    texts = [line["response"]["body"]["choices"] for line in read(target)]
    assert texts == [json.loads(line)["response"]["body"]["choices"] for line in whole]
    assert numllama("batch", source, target, "-m", "m").out == f"{target}: all 6 lines are there\n"


def test_ctrl_c_keeps_what_is_answered(alone, numllama, written, monkeypatch):
    ask = module.answer_request

    async def interrupted(request, answering):
        if request.custom_id == "2":
            raise KeyboardInterrupt
        return await ask(request, answering)

    source, target = written(*[chat(str(i), "x", max_tokens=1) for i in range(5)])
    monkeypatch.setattr(module, "answer_request", interrupted)
    status, _, err = numllama("batch", source, target, "-m", "m", "--parallel", "1")
    assert status == 130 and err.endswith("of 5 lines; the same command goes on from there\n")
    monkeypatch.setattr(module, "answer_request", ask)
    assert numllama("batch", source, target, "-m", "m").status == 0
    assert [line["custom_id"] for line in read(target)] == list("01234")


def test_files_that_do_not_fit_are_refused_before_anything_is_asked(alone, numllama, written, tmp_path):
    source, target = written(chat("a", "x"), chat("b", "x"), chat("a", "x"))
    assert "line 3: custom_id 'a' is that of line 1, too" in numllama("batch", source, target, "-m", "m").err
    assert "cannot be read: No such file" in numllama("batch", str(tmp_path / "no"), target, "-m", "m").err
    source, target = written()
    assert "no lines, expected one request a line" in numllama("batch", source, target, "-m", "m").err
    source, target = written(chat("a", "x"))
    assert "cannot be written" in numllama("batch", source, str(tmp_path / "no" / "x"), "-m", "m").err
    with open(target, "w") as file:
        file.write('{"custom_id": "z", "response": null}\n')
    err = numllama("batch", source, target, "-m", "m").err
    assert "line 1: answers 'z', expected 'a'" in err
    with open(target) as file:
        assert file.read() == '{"custom_id": "z", "response": null}\n'


def test_without_ray_the_error_says_how_to_get_it(alone, numllama, written, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    source, target = written(chat("a", "x"))
    status, _, err = numllama("batch", source, target, "-m", "m", "--ray", "local")
    assert status == 1 and "pip install 'numllama[ray]'" in err and err.count("\n") == 1


def test_without_pyarrow_parquet_is_one_line_of_error(alone, numllama, written, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    source, target = written(chat("a", "x"))
    for names in ((source, str(tmp_path / "out.parquet")), (str(tmp_path / "in.parquet"), target)):
        status, _, err = numllama("batch", *names, "-m", "m")
        assert (status, err) == (1, "Error: parquet needs pyarrow, which is not installed: pip install pyarrow\n")
        assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]
