"""Images over HTTP: in every route that accepts them, and errors for invalid images."""

from __future__ import annotations

import base64

import pytest

from tiny import CHAT_TEMPLATE, tiny_gguf
from tiny_llava import encoded, picture, tiny_mmproj

ONE, TWO = (base64.b64encode(encoded(picture(seed=seed))).decode() for seed in (0, 1))
N_ROWS = 16


@pytest.fixture(scope="module")
def seer(served, tmp_path_factory):
    """Add a tiny LLaVA, v, to the server."""
    folder = tmp_path_factory.mktemp("llava")
    model = tiny_gguf(folder / "model.gguf", seed=1, chat_template=CHAT_TEMPLATE, n_ctx=2048)
    mmproj = tiny_mmproj(folder / "mmproj.gguf")
    digests = {path.name: served.engine.store.put_blob([path.read_bytes()])[0] for path in (model, mmproj)}
    list(served.engine.create("v", files=digests, parameters={"temperature": 0, "num_predict": 6}))
    yield served
    served.ok("/api/generate", model="v", keep_alive=0)
    served.engine.delete("v")


def url(image, kind="png"):
    return f"data:image/{kind};base64,{image}"


def chat(served, *messages):
    return served.ok("/api/chat", model="v", messages=list(messages), stream=False)


def test_generate_accepts_an_image(seer):
    one, two = (seer.ok("/api/generate", model="v", prompt="what?", images=[i], stream=False) for i in (ONE, TWO))
    blind = seer.ok("/api/generate", model="v", prompt="what?", stream=False)
    assert len({answer["response"] for answer in (one, two, blind)}) == 3
    assert N_ROWS <= one["prompt_eval_count"] - blind["prompt_eval_count"] <= N_ROWS + 2  # a space may be added


def test_a_look_names_the_rows_of_an_image_and_predicts_none(seer):
    look = {"attention": [[1, 0]], "lens": 2, "residual": True, "keep": True}
    got = seer.ok("/api/generate", model="v", prompt="what?", images=[ONE], stream=False, look=look)
    plain = seer.ok("/api/generate", model="v", prompt="what?", images=[ONE], stream=False)
    kinds = [kind for _, _, kind in got["look"]["prompt"]["tokens"]]
    steps, run = got["look"]["steps"], got["look"]["prompt"]["run"]
    assert got["response"] == plain["response"] and kinds.count("image") == N_ROWS
    for step in steps:
        is_predicted = step["next"][0] >= 0
        assert ("lens" in step) == ("residual" in step) == is_predicted
    row = kinds.index("image")
    assert seer.post("/api/look/run", run=run, position=row, look={}).status_code == 400
    again = seer.ok("/api/look/run", run=run, position=len(steps) - 1, look={"lens": 2})
    assert again["lens"]["rank"] == steps[-1]["lens"]["rank"]


def test_the_next_turn_reuses_the_image_from_the_cache(seer):
    first = {"role": "user", "content": "what is this?", "images": [TWO]}
    answer = chat(seer, first)
    again = chat(seer, first, answer["message"], {"role": "user", "content": "and why?"})
    assert again["prompt_eval_cached_count"] > N_ROWS


def test_a_message_can_have_several_images(seer):
    both = chat(seer, {"role": "user", "content": "[img] or [img]?", "images": [ONE, TWO]})
    turned = chat(seer, {"role": "user", "content": "[img] or [img]?", "images": [TWO, ONE]})
    assert both["prompt_eval_count"] == turned["prompt_eval_count"] > 2 * N_ROWS
    assert both["message"]["content"] != turned["message"]["content"]


PART = {"type": "image_url", "image_url": {"url": url(ONE)}}
ASKED = {
    "/v1/chat/completions": [
        {"messages": [{"role": "user", "content": [PART, {"type": "text", "text": "what?"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, PART]}]},
        {"messages": [{"role": "user", "content": [PART | {"image_url": url(ONE)}]}]},
    ],
    "/v1/responses": [
        {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "what?"},
                        {"type": "input_image", "image_url": url(ONE)},
                    ],
                }
            ]
        }
    ],
    "/v1/messages": [
        {
            "max_tokens": 6,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ONE}},
                        {"type": "text", "text": "what?"},
                    ],
                }
            ],
        }
    ],
}


@pytest.mark.parametrize(("path", "body"), [(path, body) for path, bodies in ASKED.items() for body in bodies])
def test_other_apis_accept_images(seer, path, body):
    usage = seer.ok(path, model="v", **body)["usage"]
    assert usage.get("prompt_tokens", usage.get("input_tokens")) > N_ROWS


def test_the_first_event_of_an_anthropic_stream_counts_the_image(seer):
    (body,) = ASKED["/v1/messages"]
    answer = seer.post("/v1/messages", model="v", stream=True, **body)
    assert f'"input_tokens":{seer.ok("/v1/messages", model="v", **body)["usage"]["input_tokens"]}' in answer.text


BROKEN = base64.b64encode(b"hello").decode()


@pytest.mark.parametrize("image", [BROKEN, "", ONE[:200]])
def test_an_invalid_image_is_a_bad_request(seer, image):
    for stream in (True, False):
        answer = seer.post("/api/generate", model="v", prompt="what?", images=[image], stream=stream)
        assert answer.status_code == 400 and answer.json()["error"].startswith("image ")
    part = {"type": "image_url", "image_url": {"url": url(BROKEN)}}
    answer = seer.post("/v1/chat/completions", model="v", messages=[{"role": "user", "content": [part]}])
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_a_text_model_refuses_images(seer):
    answer = seer.post("/api/generate", model="m", prompt="what?", images=[ONE])
    assert (answer.status_code, answer.json()) == (400, {"error": '"m" does not support images'})


def test_the_rendered_prompt_counts_its_images(seer):
    message = {"role": "user", "content": "x [img] y", "images": [ONE, TWO]}
    answer = seer.ok("/api/chat", model="v", messages=[message], _debug_render_only=True)
    rendered = {"rendered_template": "<|user|>[img-1]x [img-0] y\n<|assistant|>", "image_count": 2}
    assert answer["_debug_info"] == rendered


def test_verbose_show_includes_the_projectors_arrays(seer):
    brief, verbose = (seer.ok("/api/show", model="v", verbose=verbose)["projector_info"] for verbose in (False, True))
    assert brief["clip.vision.image_mean"] is None and len(verbose["clip.vision.image_mean"]) == 3
    assert brief["clip.vision.patch_size"] == verbose["clip.vision.patch_size"] == 8


def test_the_projector_counts_as_memory(seer):
    seer.ok("/api/generate", model="v")
    (entry,) = [model for model in seer.client.get("/api/ps").json()["models"] if model["name"] == "v:latest"]
    model = seer.engine.store.list()
    assert entry["size"] > next(one.size for one in model if one.name.model == "v")
