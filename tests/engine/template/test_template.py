import pytest

from numllama.engine.errors import BadTemplate
from numllama.engine.template import Template, bare_prompt, chat_messages, collate, for_jinja, generate_messages


def say(role, content, **more):
    return {"role": role, "content": content, **more}


HI = [say("system", "S"), say("user", "U")]


def test_gguf_without_a_template_is_rendered_as_chatml():
    template = Template.from_gguf({})
    assert template.language == "chatml"
    assert template.render(HI) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )
    prefill = [say("user", "U"), say("assistant", "A")]
    assert template.render(prefill, continue_final_message=True).endswith("<|im_start|>assistant\nA")


def test_a_template_can_use_the_special_tokens():
    kv = {
        "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token is defined }}",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 99,
    }
    assert Template.from_gguf(kv).render(HI) == "<s>S</s>False"


def test_the_second_template_is_used_when_tools_are_offered():
    kv = {"tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "{{ tools | length }} tools"}
    assert Template.from_gguf(kv).render(HI) == "plain"
    assert Template.from_gguf(kv).render(HI, tools=[{}]) == "1 tools"


def test_the_template_layer_is_preferred_unless_the_ggufs_own_supports_more(kept):
    for case in kept.json("go/template_choice"):
        jinja = Template(case["jinja"])
        assert jinja.takes_results == case["jinja_round_trip"], case["jinja"]
        chosen = Template.from_gguf({"tokenizer.chat_template": case["jinja"]}, case["go_template"])
        assert chosen.language == ("jinja" if case["prefer_jinja"] else "go"), case["id"]
    assert Template.from_gguf({}, "{{ .Prompt }}").render(HI) == "U"
    assert Template.from_gguf({"tokenizer.chat_template": "tools"}, "{{ .Prompt }}").render(HI) == "tools"


def test_takes_results_is_right_for_published_jinja_templates(kept):
    for case in kept.json("go/named_templates"):
        assert Template(case["jinja"]).takes_results == case["round_trip"], case["id"]


def test_an_invalid_go_template_has_no_capabilities_and_fails_when_rendered():
    broken = Template("{{ .Tools", "go")
    assert (broken.capabilities, broken.thoughts, broken.tool_tag) == ([], None, None)
    with pytest.raises(BadTemplate, match=r"^template: :1: unclosed action$"):
        broken.render(HI)


def test_a_suffix_requires_a_go_template():
    assert Template("{{ .Prompt }}<hole>{{ .Suffix }}", "go").fill("a", "b") == "a<hole>b"
    with pytest.raises(BadTemplate):
        Template("jinja").fill("a", "b")


def test_jinja_capabilities_are_the_ones_ollama_finds(kept):
    for case in kept.json("go/template_choice"):
        assert Template(case["jinja"]).capabilities == case["jinja_caps"], case["jinja"]


def test_generate_sends_system_history_and_prompt():
    history = [say("user", "q"), say("assistant", "a")]
    assert generate_messages("p", "S", history) == [say("system", "S"), *history, say("user", "p")]
    assert generate_messages("p") == [say("user", "p")]
    assert generate_messages("p", images=["i"]) == [say("user", "p", images=["i"])]


def test_a_system_message_in_chat_replaces_the_models():
    history = [say("user", "q"), say("assistant", "a")]
    assert chat_messages([say("user", "p")], "S", history) == [say("system", "S"), *history, say("user", "p")]
    own = [say("system", "mine"), say("user", "p")]
    assert chat_messages(own, "S", history) == [*history, *own]


def test_a_bare_prompt_is_the_text_of_user_and_assistant():
    turns = [say("system", "S"), say("user", "U1"), say("assistant", "A1"), say("user", "U2")]
    assert bare_prompt(turns) == "U1A1U2"
    assert bare_prompt([say("user", "a"), say("user", "b")]) == "a\n\nb"


def test_neighbours_of_the_same_role_are_merged_except_tool_results():
    turns = [say("user", "a"), say("user", "b"), say("tool", "1"), say("tool", "2")]
    assert collate(turns) == [say("user", "a\n\nb"), say("tool", "1"), say("tool", "2")]
    assert turns[0] == say("user", "a")


def test_messages_use_the_field_names_of_jinja_templates():
    call = {"id": "call_1", "function": {"index": 0, "name": "f", "arguments": {"x": 1}}}
    asked = [say("assistant", "", tool_calls=[call], images=[]), say("tool", "7", tool_name="f", tool_call_id="call_1")]
    function = {"name": "f", "arguments": {"x": 1}}
    assert for_jinja(asked) == [
        say("assistant", "", tool_calls=[{"id": "call_1", "type": "function", "function": function}]),
        say("tool", "7", name="f", tool_call_id="call_1"),
    ]
