"""The page in a browser: its numbers are those of model.look for the same run (pytest -m browser)."""

from __future__ import annotations

import base64
import json
import re
from urllib.parse import urlencode

import numpy as np
import pytest

from numllama.api.learn.page import FOLDER
from numllama.engine.sampling.steps import (
    candidates,
    dist,
    min_p,
    scale_by_temperature,
    softmax,
    top_k,
    top_p,
    typical_p,
)

pytestmark = pytest.mark.browser

QUESTION = "Why is the grass green?"
HOT = {"temperature": 1.7, "seed": 5, "num_predict": 24}


def address(**state):
    return "/learn#" + urlencode({"model": "primer", "prompt": QUESTION} | state)


@pytest.fixture(scope="module")
def look(primer):
    return primer.look([{"role": "user", "content": QUESTION}], **HOT)


@pytest.fixture
def page(tab):
    return tab(address(**HOT))


def choose(page, token):
    page.locator(".token").nth(token).click()
    page.locator("main[aria-busy=false]").wait_for()


def table(page, name):
    """Return the texts of a table's cells, row by row."""
    rows = page.locator(f"[data-{name}] tbody tr")
    return [rows.nth(i).locator("th, td").all_inner_texts() for i in range(rows.count())]


def percent_of(text):
    return float(text.split("%")[0].split()[-1].lstrip("(")) / 100


def shown(text):
    """A token as the page shows it."""
    text = text.replace("\n", "\u21b5").replace("\t", "\u21e5")
    return ("\u2423" if text[:1] == " " else "") + text.strip(" ") + ("\u2423" if text[1:] and text[-1] == " " else "")


def tokens_to_try(look):
    return [look.n_prompt, look.n_prompt + 7, len(look.ids) - 2]


def test_the_spine_has_every_token(page, look):
    texts = page.locator(".token").all_inner_texts()
    assert texts == [shown(piece) for piece in look.model.pieces(look.ids)]
    roles = [page.locator(".token").nth(i).get_attribute("class").split()[1] for i in range(len(texts))]
    assert roles[look.n_prompt :] == ["answer"] * (len(texts) - look.n_prompt)
    asked = "".join(piece for piece, role in zip(look.pieces, roles, strict=True) if role == "user")
    assert asked.strip() == QUESTION and roles[0] == roles[look.n_prompt - 2] == "special"
    assert look.pieces[look.n_prompt - 1] == "<think>" and roles[look.n_prompt - 1] == "template"


def test_a_click_shows_the_step_of_that_token_in_every_panel(page, look):
    for token in tokens_to_try(look):
        choose(page, token)
        step, ledger = look.steps[token - 1], look.sampler[token - look.n_prompt]
        next_piece = shown(look.pieces[token])

        rows = table(page, "lens")
        assert [percent_of(row[2]) for row in rows] == pytest.approx(step.lens.p_next.tolist(), abs=6e-4)
        assert [int(row[3]) for row in rows] == (step.lens.rank + 1).tolist()

        rows = table(page, "ledger")
        assert [row[0] for row in rows] == [one.name for one in ledger]
        assert [int(row[2].replace(",", "")) for row in rows] == [one.n for one in ledger]
        assert float(rows[-1][1]) == pytest.approx(ledger[-1].parameter, rel=1e-2) and next_piece in rows[-1][4]

        rows = table(page, "residual")
        assert [float(row[2]) for row in rows] == pytest.approx(step.residual.adds.tolist(), rel=6e-3, abs=1e-4)
        assert [float(row[1]) for row in rows] == pytest.approx(step.residual.norms.tolist(), rel=6e-3, abs=1e-4)

        rows = table(page, "neurons")
        expected = [neuron for neuron in step.residual.neurons if neuron[0] == 3]
        assert [int(row[0]) for row in rows] == [j for _, j, _, _ in expected]
        assert [float(row[2]) for row in rows] == pytest.approx([adds for *_, adds in expected], rel=6e-3, abs=1e-4)

        for head in ((0, 0), (3, 2)):
            page.get_by_role("button", name=f"layer {head[0]}, head {head[1]}", exact=True).click()
            row = look.attention[head][token - 1]
            best = np.argsort(-row, kind="stable")[:5]
            rows = table(page, "attention")
            # four digits in f16
            assert [percent_of(cells[2]) for cells in rows] == pytest.approx(row[best].tolist(), abs=8e-4)
            assert int(rows[0][0]) == best[0] and rows[0][1] == shown(look.pieces[best[0]])

        assert {row[0] for row in table(page, "time")} >= {"Qcur", "ffn_out", "result_output"}


def test_the_cache_panel_counts_what_was_computed(page, look):
    n, n_prompt = len(look.ids), look.n_prompt
    assert page.locator("[data-with]").inner_text() == str(n - 1)
    without = sum(n_prompt + i for i in range(n - n_prompt))
    assert (
        page.locator("[data-without]").inner_text().replace(",", "")
        == str(without)
        == str(look.cache["columns_without"])
    )


def test_the_merges_slider_goes_from_characters_to_tokens(page, look):
    panel = page.locator("#tokens")
    word = next(word for word in look.merges if "grass" in word.text)
    panel.locator("select").select_option(label="grass")
    slider = panel.locator("input[type=range]")
    slider.fill("0")
    assert panel.locator(".symbols .tok").count() == len(word.merges) + len(word.symbols)
    slider.fill(str(len(word.merges)))
    assert panel.locator(".symbols .tok").all_inner_texts() == [shown(s.replace("\u0120", " ")) for s in word.symbols]


def test_a_block_shows_the_numbers_of_the_file(page, primer):
    tensor = primer.model.gguf.tensors["blk.2.ffn_down.weight"]
    page.get_by_role("button", name="blk.2.ffn_down.weight").click()
    page.locator("#weights input[type=number]").fill("17")
    page.locator("#weights h3", has_text="blk.2.ffn_down.weight").wait_for()
    expected = tensor.format.dequantize(np.ascontiguousarray(tensor.blocks.reshape(-1)[17:18])).reshape(-1)
    page.wait_for_timeout(300)
    got = json.loads(page.locator("[data-numbers]").get_attribute("data-numbers"))
    np.testing.assert_array_equal(np.array(got, np.float32), expected)
    block = np.ascontiguousarray(tensor.blocks.reshape(-1)[17:18]).tobytes()
    assert page.locator("[data-bytes] span").all_inner_texts() == [f"{byte:02x}" for byte in block]


SLIDERS = [
    {"temperature": 2},
    {"temperature": 0},
    {"top_k": 3},
    {"top_k": 0, "top_p": 1, "temperature": 2, "draw": 0.998},
    {"top_p": 0.5, "temperature": 2},
    {"top_k": 40, "top_p": 1, "min_p": 0.02, "temperature": 2, "draw": 0.9},
    {"top_k": 50, "top_p": 1, "typical_p": 0.6, "temperature": 1.5, "draw": 0.3},
]


@pytest.mark.parametrize("moved", SLIDERS, ids=lambda moved: " ".join(f"{name}={x}" for name, x in moved.items()))
def test_the_sliders_draw_what_the_engine_draws_from_the_same_logits(page, look, primer, moved):
    token = look.n_prompt + 7
    choose(page, token)
    kept = primer.look([{"role": "user", "content": QUESTION}], logits=-1, **HOT)
    row = kept.steps[token - 1].logits.values
    ledger = {one.name: one.parameter for one in look.sampler[7]}
    for name, value in moved.items():
        page.locator(f"#sampler input[name={name}]").fill(str(value))
    page.wait_for_timeout(500)  # all logits come, if the largest are not enough
    o = (
        {"draw": ledger["dist"]}
        | {k: ledger[k] for k in ("temperature", "top_k", "top_p", "min_p", "typical_p")}
        | moved
    )
    c = candidates(np.arange(len(row), dtype=np.int32), row, None)
    for step, setting in ((top_k, o["top_k"]), (typical_p, o["typical_p"]), (top_p, o["top_p"]), (min_p, o["min_p"])):
        c = step(c, int(setting) if step is top_k else setting)
    c = scale_by_temperature(c, o["temperature"])
    expected = int(c.ids[dist(c, round(o["draw"], 3) if "draw" in moved else o["draw"])])
    assert int(page.locator("[data-redrawn]").get_attribute("data-redrawn")) == expected
    got = [percent_of(cells[1]) for cells in table(page, "shown")]
    assert got == pytest.approx(np.sort(softmax(c.logits))[::-1][:8].tolist(), abs=1e-3)


def test_switching_off_a_layer_changes_the_answer(page, primer):
    panel = page.locator("#try")
    panel.locator("select").first.select_option("layer")
    panel.locator("select").nth(1).select_option("0")
    panel.get_by_role("button", name="Run changed").click()
    panel.locator("[data-changed]").wait_for()
    ablate = [{"layer": 0, "block": "layer"}]
    expected = primer.look([{"role": "user", "content": QUESTION}], ablate=ablate, **HOT)
    got = panel.locator("[data-changed]").inner_text()
    assert got.replace("\u2423", " ") == "".join(expected.pieces[expected.n_prompt :])
    assert got != panel.locator("[data-plain]").inner_text()
    assert panel.locator("h3").all_inner_texts() == ["As it is", "without layer 0"]
    assert "The answers part at token" in panel.locator(".look").inner_text()


def test_two_students_share_steps(page):
    panel = page.locator("#students")
    shared = 0
    for _ in range(8):  # on a busy machine the first may be answered before the second has arrived
        panel.get_by_role("button", name="Ask both").click()
        panel.get_by_role("button", name="Ask both").wait_for()
        panel.locator("[data-shared]").wait_for()
        shared = int(panel.locator("[data-shared]").get_attribute("data-shared"))
        if shared:
            break
    assert shared > 0 and f"{shared} of " in panel.locator(".look").inner_text()


def test_the_tour_goes_to_its_end_by_keyboard_and_ends_by_escape(page):
    page.get_by_role("button", name="Tour").click()
    panels = page.locator(".panel").evaluate_all("panels => panels.map((panel) => panel.id)")
    stops = re.findall(r'^  \["([a-z]+)"', (FOLDER / "tour.js").read_text(), re.MULTILINE)
    assert sorted(stops) == sorted(["spine", *panels]) and len(panels) == 12
    for stop in stops:
        page.locator(f"#{stop}.toured").wait_for()
        page.keyboard.press("ArrowRight")
    assert "13 of 13" in page.locator(".tour").inner_text()
    page.keyboard.press("ArrowLeft")
    assert "12 of 13" in page.locator(".tour").inner_text()
    page.keyboard.press("Escape")
    assert page.locator(".tour").count() == 0


def test_arrow_keys_during_the_tour_move_the_slider_and_the_token_that_have_the_focus(page):
    page.get_by_role("button", name="Tour").click()
    choose(page, 3)
    page.keyboard.press("ArrowRight")
    page.locator(".token[aria-pressed=true][aria-label^='token 4:']").wait_for()
    slider = page.locator("#tokens input[type=range]")
    slider.fill("0")
    page.keyboard.press("ArrowRight")
    assert slider.input_value() == "1"
    assert "1 of 13" in page.locator(".tour").inner_text()
    page.keyboard.press("Escape")
    page.locator(".tour").wait_for(state="detached")


def test_every_panel_links_to_its_code_and_its_lesson(page, school):
    for panel in page.locator(".panel").all():
        code, lesson = panel.locator(".foot a").all(), panel.locator(".foot span").nth(1).locator("a")
        for link in code:
            answer = school.client.get(link.get_attribute("href").partition("#")[0])
            assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
            if link.locator("code").count():
                names = link.inner_text().partition(": ")[2]
                assert all(name.split(".")[-1] in answer.text for name in names.split(", "))
        _, title = lesson.inner_text().split(", ", 1)
        assert title.lower() in school.client.get(lesson.get_attribute("href")).text.splitlines()[0].lower()


def test_values_have_their_names_in_llama_cpp(page, primer, look):
    known = set(primer.trace(look.ids[:4]).values) | {("kq_soft_max", 0)}
    lines = page.locator("[data-names]").all_inner_texts()
    names = {name for line in lines for name in line.split(", ") if not name.startswith("cache_")}
    assert names <= {name for name, _ in known} and len(lines) == 6


def test_escape_closes_the_glossary(page):
    page.get_by_role("button", name="Glossary").click()
    page.get_by_role("dialog").wait_for()  # the page draws a moment after an event
    assert "KV cache" in page.get_by_role("dialog").inner_text()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")


def test_arrow_keys_walk_along_the_spine(page, look):
    choose(page, 3)
    page.keyboard.press("ArrowRight")
    page.locator(".token[aria-pressed=true][aria-label^='token 4:']").wait_for()
    page.keyboard.press("End")
    page.locator(f".token[aria-pressed=true][aria-label^='token {len(look.ids) - 1}:']").wait_for()


def test_a_link_restores_model_prompt_seed_token_and_panel(tab, page, school, look):
    choose(page, look.n_prompt + 5)
    page.locator("#try select").first.focus()
    page.wait_for_function("() => location.hash.includes('panel=try')")
    link = page.evaluate("() => location.href")
    other = tab(link.removeprefix(school.url))
    assert other.locator(".token").all_inner_texts() == page.locator(".token").all_inner_texts()
    assert (
        other.locator(".token[aria-pressed=true]").get_attribute("aria-label").startswith(f"token {look.n_prompt + 5}:")
    )
    assert other.locator("[name=prompt]").input_value() == QUESTION
    assert other.locator("[name=seed]").input_value() == "5"
    is_seen = "() => document.querySelector('#try h2').getBoundingClientRect().top < innerHeight"
    other.wait_for_function(is_seen)  # three windows further down


def test_texts_are_never_markup(tab):
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    page = tab(address(prompt=hostile, num_predict=2))
    assert page.locator("#app img:not([src^='data:image/png;']), #app script").count() == 0
    assert hostile in page.locator("#template pre").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=scheme)
    page.locator("#sampler input[name=temperature]").fill("2")
    for opened in ("", "Tour", "Glossary"):
        if opened:
            page.get_by_role("button", name=opened).click()
        # Playwright's evaluate is not bound by the page's policy
        found = axe.run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
        if opened:
            page.keyboard.press("Escape")


@pytest.mark.parametrize("width", [390, 820, 1280, 3840])
def test_nothing_is_wider_than_the_window_or_lost_in_another(page, width):
    page.locator("#sampler input[name=temperature]").fill("0")
    page.set_viewport_size({"width": width, "height": 844})
    page.wait_for_timeout(300)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert page.locator("[data-redrawn]").count() == 1
    boxes = page.locator(".panel").evaluate_all("all => all.map((one) => one.getBoundingClientRect().toJSON())")
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            beside = a["right"] <= b["left"] or b["right"] <= a["left"]
            assert beside or a["bottom"] <= b["top"] or b["bottom"] <= a["top"]


def test_an_encoder_says_so_and_shows_its_file(tab):
    page = tab("/learn#model=encoder", ready=False)
    page.get_by_role("alert").filter(has_text="is an encoder").wait_for()
    assert page.locator("#weights .map button").count() > 10


def test_a_model_without_a_template_says_so(tab):
    page = tab("/learn#model=bare&prompt=the+cat&num_predict=4")
    assert "has no chat template" in page.locator("#template .look").inner_text()


def test_a_large_vocabulary_says_how_much_the_sliders_leave_out(tab, school):
    page = tab("/learn#model=wide&prompt=the+cat&mode=raw&num_predict=4&seed=3")
    choose(page, 4)
    for name, value in (("top_k", 0), ("top_p", 1), ("temperature", 2)):
        page.locator(f"#sampler input[name={name}]").fill(str(value))
    left_out = page.locator("[data-missing='124160']")  # of 128,256 the 4,096 largest stay
    left_out.wait_for()
    options = {"seed": 3, "num_predict": 4, "temperature": 0.8}
    body = {"model": "wide", "prompt": "the cat", "raw": True, "stream": False, "options": options}
    steps = school.ok("/api/generate", look={"logits": -1}, **body)["look"]["steps"]
    (packed,) = [step["logits"]["f32"] for step in steps if step["position"] == 3]
    row = np.frombuffer(base64.b64decode(packed), "<f4")
    p = np.sort(np.exp(row.astype(float)))[::-1]
    assert "Among the 4,096 largest logits: 124,160 others" in left_out.inner_text()
    assert percent_of(left_out.inner_text().split("with ")[1]) == pytest.approx(p[4096:].sum() / p.sum(), abs=6e-4)
    assert page.locator("[data-shown] tbody tr").count() == 8


@pytest.fixture
def large(tab):
    """Return a function that opens the page on primer as if it had more than 30 million weights."""

    def told(route):
        answer = route.fetch()
        facts = answer.json()
        route.fulfill(response=answer, json=facts | {"n_weight": 1_100_000_000} if "tensors" in facts else facts)

    tab.context.route("**/api/look/model?*", told)
    return lambda **state: tab(address(**state))


def test_a_large_model_shows_the_step_of_any_token(large, look):
    page = large(**HOT)
    assert "A large model" in page.locator(".hint").inner_text()
    for token in (3, *tokens_to_try(look)):
        choose(page, token)
        step = look.steps[token - 1]
        rows = table(page, "lens")
        assert [percent_of(row[2]) for row in rows] == pytest.approx(step.lens.p_next.tolist(), abs=6e-4)
        rows = table(page, "residual")
        assert [float(row[2]) for row in rows] == pytest.approx(step.residual.adds.tolist(), rel=6e-3, abs=1e-4)
        for layer in (3, 1) if token == 3 else (2, 1):  # the last one comes with the step, then the one chosen before
            page.locator("#feedforward select").select_option(str(layer))
            expected = [(j, adds) for il, j, _, adds in step.residual.neurons if il == layer]
            page.locator("[data-neurons] tbody th").first.filter(has_text=re.compile(f"^{expected[0][0]}$")).wait_for()
            rows = table(page, "neurons")
            assert [int(row[0]) for row in rows] == [j for j, _ in expected] and len(rows) == 8
            assert [float(row[2]) for row in rows] == pytest.approx([x for _, x in expected], rel=6e-3, abs=1e-4)
        for layer, head in ((2, 1), (0, 3)):
            page.locator("#attention select").nth(0).select_option(str(layer))
            page.locator("#attention select").nth(1).select_option(str(head))
            row = look.attention[layer, head][token - 1]
            best = int(row.argmax())
            told = page.locator("#attention .look", has_text=f"head {layer}.{head} looks mostly at")
            assert percent_of(told.inner_text()) == pytest.approx(float(row[best]), abs=8e-4)
            assert table(page, "attention")[0][:2] == [str(best), shown(look.pieces[best])]


def test_a_step_that_cannot_be_had_is_told_where_it_would_be(large, tab, look):
    page = large(**HOT)
    refuse = "**/api/look/run"
    tab.context.route(refuse, lambda route: route.fulfill(status=400, json={"error": "look: no answer is held"}))
    choose(page, 3)
    for panel in ("attention", "lens", "residual", "feedforward"):
        assert page.locator(f"#{panel} .waiting").inner_text() == "look: no answer is held"
    tab.context.unroute(refuse)
    choose(page, 4)
    assert page.locator("[data-lens] tbody tr").count() == 4 and page.locator("#lens .waiting").count() == 0
    choose(page, 3)  # asked for again
    rows = table(page, "lens")
    assert [percent_of(row[2]) for row in rows] == pytest.approx(look.steps[2].lens.p_next.tolist(), abs=6e-4)
    tab.problems[:] = [text for text in tab.problems if "400" not in text]  # the browser reports the status itself


def test_the_maps_of_a_large_model_tell_the_weight_under_the_pointer(large, primer):
    question = "What is a token, and " * 20 + "what is attention?"
    page = large(prompt=question, num_predict=8, seed=1)
    look = primer.look([{"role": "user", "content": question}], seed=1, num_predict=8, temperature=0.8)
    n = len(look.ids) - 1
    page.locator("#attention select").first.select_option("2")
    page.get_by_role("button", name="layer 2, head 1", exact=True).click()
    figure = page.locator("[data-map]", has_text="layer 2, head 1")
    assert f"{n} tokens are too many for a row each: every 2nd has one" in figure.inner_text()
    canvas = figure.locator("canvas")
    canvas.scroll_into_view_if_needed()
    box, n_row = canvas.bounding_box(), -(-n // 2)
    page.mouse.move(box["x"] + 20.5 * box["width"] / n, box["y"] + 30.5 * box["height"] / n_row)  # row 30: token 60
    weight = float(look.attention[2, 1][60, 20])
    assert percent_of(figure.locator("figcaption").inner_text()) == pytest.approx(
        weight, abs=8e-3
    )  # a byte for its root
    page.mouse.click(box["x"] + 20.5 * box["width"] / n, box["y"] + 30.5 * box["height"] / n_row)
    assert page.locator(".token[aria-pressed=true]").get_attribute("aria-label").startswith("token 61:")


def test_a_mixture_of_experts_says_so(tab):
    page = tab("/learn#model=moe&prompt=the+cat&num_predict=4")
    assert "mixture of experts" in page.locator("#feedforward").inner_text()
    assert page.locator("[data-lens] tbody tr").count() == 2


def test_a_model_with_vision_says_that_the_page_sends_text_alone(tab):
    page = tab("/learn#model=seer&prompt=the+cat&num_predict=4")
    assert "sends text alone" in page.locator(".hint").inner_text()


def test_the_large_map_tells_the_weight_under_the_pointer(page, look):
    page.get_by_role("button", name="layer 2, head 1", exact=True).click()
    canvas = page.locator("#attention figure canvas")
    canvas.scroll_into_view_if_needed()
    box, n = canvas.bounding_box(), len(look.ids) - 1
    cell = box["width"] / n
    page.mouse.move(box["x"] + 3.5 * cell, box["y"] + 20.5 * cell)
    caption = page.locator("#attention figcaption").inner_text()
    assert percent_of(caption) == pytest.approx(float(look.attention[2, 1][20, 3]), abs=8e-4)
    page.mouse.click(box["x"] + 3.5 * cell, box["y"] + 20.5 * cell)
    assert page.locator(".token[aria-pressed=true]").get_attribute("aria-label").startswith("token 21:")


def test_the_large_map_has_tokens_on_both_axes(page, look):
    n, box = len(look.ids) - 1, page.locator("#attention figure canvas").bounding_box()
    down, across = (page.locator(f"#attention .{name} span") for name in ("down", "across"))
    every = -(-n // len(down.all()))
    assert down.all_inner_texts() == [shown(piece) for piece in look.pieces[:n:every]] == across.all_inner_texts()
    for k in (0, 1, len(down.all()) - 1):
        row, column = down.nth(k).bounding_box(), across.nth(k).bounding_box()
        place = (k * every + 0.5) / n
        assert row["y"] + row["height"] / 2 == pytest.approx(box["y"] + place * box["height"], abs=1.5)
        assert column["x"] + column["width"] / 2 == pytest.approx(box["x"] + place * box["width"], abs=1.5)
        assert row["x"] + row["width"] <= box["x"] and column["y"] + column["height"] <= box["y"]


def test_a_model_that_thinks_can_be_asked_not_to(tab, primer):
    messages = [{"role": "user", "content": QUESTION}]
    for think in ("", "off"):
        page = tab(address(think=think, **HOT))
        expected = primer.look(messages, think=None if think == "" else False, **HOT)
        assert page.locator(".token").count() == len(expected.ids)
        assert page.locator(".token").nth(expected.n_prompt).inner_text() == shown(expected.pieces[expected.n_prompt])


def test_a_prompt_that_is_one_word_stays_short(tab):
    """A vocabulary of sentencepiece's kind cuts no words."""
    page = tab(address(model="wide", prompt="the cat and the dog " * 30, mode="raw", num_predict=2))
    assert len(page.locator("#tokens .look").inner_text()) < 120
    assert page.locator("#tokens .symbols").bounding_box()["height"] < 400
    assert "The first 200 of the" in page.locator("#tokens caption").inner_text()


def test_a_missing_model_is_named(tab):
    page = tab("/learn#model=nope", ready=False)
    page.get_by_role("alert").filter(has_text="model 'nope' not found").wait_for()
    tab.problems[:] = [text for text in tab.problems if "404" not in text]  # the browser reports the status itself


def test_the_page_in_one_file_needs_no_server(tab, tmp_path, monkeypatch, school, look):
    from numllama.api.cli.look import look_at

    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    monkeypatch.delenv("NUMLLAMA_BUILTIN", raising=False)
    options = [f"{name}={value}" for name, value in HOT.items()]
    look_at("primer", QUESTION, html=tmp_path / "page.html", as_json=False, raw=False, head="0.0", options=options)
    page = tab((tmp_path / "page.html").as_uri())
    token = look.n_prompt + 7
    choose(page, token)
    p_next = [percent_of(row[2]) for row in table(page, "lens")]
    assert p_next == pytest.approx(look.steps[token - 1].lens.p_next.tolist(), abs=6e-4)
    page.locator("#sampler input[name=temperature]").fill("0")
    assert page.locator("[data-redrawn]").count() == 1
    assert page.locator("[data-bytes] span").count() == 34


def test_a_long_answer_in_one_file_has_the_attention_of_one_layer(tab, tmp_path, monkeypatch, primer, capsys):
    from numllama.api.cli.look import look_at

    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    monkeypatch.delenv("NUMLLAMA_BUILTIN", raising=False)
    monkeypatch.setenv("OLLAMA_LOOK_LIMIT", "1")
    question = "What is a token, and " * 35 + "what is attention?"
    options = ["num_predict=4", "seed=1"]
    look_at("primer", question, html=tmp_path / "a.html", as_json=False, raw=False, head="2.1", options=options)
    assert "attention of layer 2 alone" in capsys.readouterr().out
    look = primer.look([{"role": "user", "content": question}], seed=1, num_predict=4)
    page = tab((tmp_path / "a.html").as_uri())
    assert page.locator("header").bounding_box()["height"] < 150  # of a prompt of 750 characters
    assert "This file has 4 of 16 heads" in page.locator("#attention .note").inner_text()
    choose(page, 100)
    page.get_by_role("button", name="layer 2, head 3", exact=True).click()
    row = look.attention[2, 3][99]
    told = page.locator("#attention .look", has_text="head 2.3 looks mostly at")
    assert percent_of(told.inner_text()) == pytest.approx(float(row.max()), abs=8e-4)
