import pytest

from numllama.engine.errors import BadName
from numllama.engine.store.name import ModelName, split_source

VALID = {
    "llama3": ("registry.ollama.ai/library/llama3:latest", "llama3:latest"),
    "LLaMA3:8B": ("registry.ollama.ai/library/LLaMA3:8B", "LLaMA3:8B"),
    "a/b:c": ("registry.ollama.ai/a/b:c", "a/b:c"),
    "hf.co/o/m:Q4_K_M": ("hf.co/o/m:Q4_K_M", "hf.co/o/m:Q4_K_M"),
    "localhost:5000/a/b": ("localhost:5000/a/b:latest", "localhost:5000/a/b:latest"),
    "_why/_the/_lucky:_stiff": ("_why/_the/_lucky:_stiff", "_why/_the/_lucky:_stiff"),
    "hf.co/library/x": ("hf.co/library/x:latest", "hf.co/library/x:latest"),
    "REGISTRY.OLLAMA.AI/library/m": ("REGISTRY.OLLAMA.AI/library/m:latest", "m:latest"),
    "http:///a/b": ("registry.ollama.ai/a/b:latest", "a/b:latest"),
    "://h/a/b": ("h/a/b:latest", "h/a/b:latest"),
}
INVALID = [
    "a:b:c",
    "a/b/c/d",
    "",
    "a@sha256:1",
    "x:",
    "/x",
    "m/",
    "ns.x/m",
    "-a",
    "a b",
    "hh/nn/mm:-tt",
    "a\n",
    "..",
    ".",
]
INVALID += [
    "../a",
    "a/../b",
    "a/..:t",
    "host/name:space/model:tag",
    "/a/b",
    "m:..",
    "é",
    "m" * 81,
    "h" * 351 + "/n/m",
    "a/b\0",
]


@pytest.mark.parametrize("text", VALID)
def test_a_name_is_completed_and_shown_short(text):
    name = ModelName.parse(text)
    assert (str(name), name.short) == VALID[text]


@pytest.mark.parametrize("text", INVALID)
def test_an_invalid_name_is_refused(text):
    with pytest.raises(BadName, match="invalid model name"):
        ModelName.parse(text)


def test_scheme_is_kept_for_the_registry():
    assert ModelName.parse("http://localhost:5000/a/b:t").base_url == "http://localhost:5000"


def test_white_space_around_a_name_is_gos():
    assert str(ModelName.parse_request(" m\u2003")[0]).endswith("/m:latest")
    with pytest.raises(BadName):
        ModelName.parse_request("\x1cm")  # str.strip would remove it


def test_source_suffixes():
    assert split_source(" m:Local ") == ("m", "local")
    assert split_source("m:8b-CLOUD") == ("m:8b", "cloud")
    assert split_source("x-cloud") == ("x-cloud", "")
    assert split_source("m: cloud") == ("m", "cloud") and split_source("m:\tLocal") == ("m", "local")
    assert split_source("m: 8b-cloud") == ("m:8b", "cloud") and split_source("m : x") == ("m : x", "")
    assert ModelName.parse_request("m:8b-cloud")[0].short == "m:8b-cloud"
    with pytest.raises(BadName, match='use either :local or :cloud, not both: "x:local:cloud"'):
        split_source("x:local:cloud")


def test_existing_spelling_wins_part_by_part():
    existing = [ModelName.parse("Tellers/Grandma:v1.0"), ModelName.parse("copy-of:Stories")]
    assert ModelName.parse("tellers/GRANDMA:V1.0").respelled(existing).short == "Tellers/Grandma:v1.0"
    assert ModelName.parse("grandma:new").respelled(existing).short == "Grandma:new"
    twins = [ModelName.parse("A/x:t"), ModelName.parse("a/y:t")]
    assert ModelName.parse("a/x:t").respelled(twins).short == "A/x:t"


def test_names_are_parsed_as_ollama_parses_them(kept):
    for case in kept.json("go/model_names"):
        try:
            name = ModelName.parse(case["name"])
        except BadName:
            assert not case["valid"], case
        else:
            assert case["valid"], case
            parts = {part: getattr(name, part) for part in case["parts"]}
            assert parts == case["parts"]
            assert (str(name), name.short) == (case["full"], case["short"])
            if "path" in case:
                assert (name.path.as_posix(), name.base_url) == (case["path"], case["base_url"])
        try:
            base, source = split_source(case["name"])
        except BadName as error:
            assert str(error) == case["ref_err"]
        else:
            ref = case.get(
                "ref", {"base": "", "source": ""}
            )  # Ollama responds with "model is required" to an empty name
            assert (base, source) == (ref["base"], ref["source"]), case
