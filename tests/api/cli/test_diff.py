"""`numllama diff`: its report, its JSON and its exit status."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file


@pytest.fixture
def theirs(alone, numllama, models, tmp_path):
    """Return a saved trace of "hello", and the model file."""
    file = str(models / "chat.gguf")
    numllama("trace", file, "hello world", "--save", str(tmp_path / "theirs.safetensors"))
    return file, tmp_path / "theirs.safetensors"


def with_error(path):
    arrays = load_file(path)
    arrays["ffn_swiglu-1"] = arrays["ffn_swiglu-1"].copy()
    arrays["ffn_swiglu-1"][1:] *= 1.25
    save_file(arrays, path)


def test_the_exit_status_is_0_for_a_right_engine_1_for_a_wrong_one_and_2_if_it_cannot_be_compared(numllama, theirs):
    file, dump = theirs
    status, out, err = numllama("diff", file, str(dump))
    assert (status, err) == (0, "") and "no operation is wrong" in out
    assert out.startswith("elementwise values 2") and "float32" in out.splitlines()[0]
    with_error(dump)
    status, out, err = numllama("diff", file, str(dump), "--prompt", "hello world")
    assert (status, err) == (1, "")
    assert "ffn_swiglu" in out and "1.., 0 agrees" in out and "unexplained" in out and "ffn_out-1" in out
    status, out, err = numllama("diff", file, str(dump), "--ids", "5,6")
    assert status == 2 and out == "" and err.startswith("Error: ") and err.count("\n") == 1


def test_the_report_is_json_too(numllama, theirs, tmp_path):
    file, dump = theirs
    with_error(dump)
    status, out, _ = numllama("diff", file, str(dump), "--prompt", "hello world", "--json")
    report = json.loads(out)
    assert status == 1 and report["agrees"] is False and report["profile"]["product"]["like"] == "float32"
    wrong = {entry["name"]: entry for entry in report["wrong"]}
    assert wrong["ffn_swiglu-1"]["layer"] == 1 and wrong["ffn_swiglu-1"]["rows"][0] == 1
    assert wrong["ffn_swiglu-1"]["enters"] == ["ffn_out-1"] and wrong["ffn_swiglu-1"]["cause"] is None
    assert set(report) == {"agrees", "tokens", "profile", "notes", "wrong", "values", "not_compared"}


def test_the_heat_map_and_all_values_are_written(numllama, theirs, tmp_path):
    file, dump = theirs
    status, out, _ = numllama("diff", file, str(dump), "-v", "--html", str(tmp_path / "map.html"))
    assert status == 0 and "kq_soft_max-1" in out
    page = (tmp_path / "map.html").read_text()
    assert '<a href="#kq_soft_max-1">' in page
    details = page[page.index("<summary>kq_soft_max-1") :]
    assert '<table id="kq_soft_max-1">' in details[: details.index("</details>")]  # a link to it opens the details


def test_errors_of_diff_are_one_line_and_status_2(numllama, theirs, tmp_path):
    file, dump = theirs
    save_file({"blk": np.zeros(2)}, alien := tmp_path / "alien.safetensors")
    (tmp_path / "map.json").write_text("[1]")
    for args, message in [
        (["nope", str(dump)], "model 'nope' not found"),
        ([file, str(tmp_path / "none")], "none: cannot be read: No such file"),
        ([file, file], "expected safetensors, .npz"),
        ([file, str(alien), "--prompt", "hi"], "no values in common with the model for"),
        ([file, str(alien)], "the dump has no token ids"),
        ([file, str(dump), "--ids", "x"], "--ids is 'x', expected numbers such as 1,5,9"),
        ([file, str(dump), "--prompt", "a", "--ids", "1"], "--prompt and --ids exclude each other"),
        ([file, str(dump), "--decode", "99"], "expected at least one prompt token"),
        ([file, str(dump), "--names", "x"], "unknown names 'x'; --names accepts hf"),
        ([file, str(dump), "--map", str(tmp_path / "map.json")], "expected a JSON object such as"),
        ([file, str(alien), "--ids", "999999"], "token id 999999, expected 0 to"),
    ]:
        status, _, err = numllama("diff", *args)
        assert status == 2 and err.startswith("Error: ") and message in err and err.count("\n") == 1, (args, err)


def test_a_bar_shows_the_progress_on_a_terminal_and_ctrl_c_ends_it_in_one_line(numllama, theirs, monkeypatch, capsys):
    from numllama.api.cli import diff

    file, dump = theirs
    with_error(dump)
    done = []
    diff.judged(file, dump, "hello world", None, 0, "", None, lambda *step: done.append(step))
    assert ("judging layers", 2, 2) in done
    tried = [step for step in done if step[0] == "trying causes for ffn_swiglu-1"]
    assert tried and tried[-1][1] + 1 == tried[-1][2] == len(tried)

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with diff.judgement_bar() as advance:
        advance("judging layers", 1, 2)
    assert "judging layers" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(diff, "judge", interrupted)
    status, out, err = numllama("diff", file, str(dump), "--prompt", "hello world")
    assert (status, out, err.count("\n")) == (130, "", 1) and err.startswith("interrupted")
