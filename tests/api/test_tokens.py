"""/api/tokenize and /api/detokenize, and logit_bias."""

from __future__ import annotations

import pytest


def test_text_round_trips_through_tokens(served):
    got = served.ok("/api/tokenize", model="bare", content="the cat")
    assert (got["model"], got["pieces"]) == ("bare", [" the", " cat"]) and got["total_duration"] > 0
    assert served.ok("/api/detokenize", model="bare", tokens=got["tokens"])["content"] == "the cat"


@pytest.mark.parametrize("name", ["content", "text", "prompt"])
def test_the_text_can_be_in_any_of_three_fields(served, name):
    assert served.ok("/api/tokenize", model="bare", **{name: "the"})["pieces"] == [" the"]


def test_special_tokens_are_added_and_parsed_on_request(served):
    def pieces(**how):
        return served.ok("/api/tokenize", model="bare", content="</s>", **how)["pieces"]

    assert pieces() == ["</s>"] and pieces(add_special=True) == ["<s>", "</s>"]
    assert "".join(pieces(parse_special=False)) == " </s>" and len(pieces(parse_special=False)) > 1


def test_part_of_a_character_is_a_list_of_bytes(served):
    assert served.ok("/api/tokenize", model="bare", content="€")["pieces"] == [" ", [0xE2], [0x82], [0xAC]]


def test_the_tokens_equal_those_of_the_prompt(served):
    said = served.ok("/api/generate", model="bare", prompt="the cat", stream=False, raw=True)
    tokens = served.ok("/api/tokenize", model="bare", content="the cat", add_special=True)["tokens"]
    assert said["prompt_eval_count"] == len(tokens)


def test_tokenizing_loads_no_model(served):
    served.ok("/api/generate", model="bare", keep_alive=0)
    served.ok("/api/tokenize", model="bare", content="the cat")
    assert "bare:latest" not in [entry["name"] for entry in served.client.get("/api/ps").json()["models"]]


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/api/tokenize", {"content": "a"}, 400, "model is required"),
        ("/api/tokenize", {"model": "nope", "content": "a"}, 404, "model 'nope' not found"),
        ("/api/detokenize", {"model": "bare", "tokens": [-1]}, 400, "unknown token -1: the vocabulary ends at 400"),
    ],
)
def test_errors_get_a_status_and_a_text(served, path, body, status, error):
    answer = served.post(path, **body)
    assert answer.status_code == status and answer.json()["error"].startswith(error.split(":")[0])


def test_a_logit_bias_forces_or_bans_a_token(served):
    [the] = served.ok("/api/tokenize", model="bare", content="the")["tokens"]

    def said(bias):
        options = {"temperature": 0, "num_predict": 3, "logit_bias": {str(the): bias}}
        return served.ok("/api/generate", model="bare", prompt="a", stream=False, options=options)["response"]

    assert said(1000) == " the the the" and "the" not in said(False)
    answer = served.post("/api/generate", model="bare", prompt="a", options={"logit_bias": {"999999": 1}})
    assert answer.status_code == 400 and "unknown token 999999" in answer.json()["error"]
