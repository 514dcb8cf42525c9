"""Output of Ollama's own parsers, step by step (recorded from v0.33.0-rc2)."""

from numllama.engine.parse import ThinkingParser, ToolParser, without_old_thoughts

# Cases in which Ollama's answer depends on the cuts between chunks; here it never does.
OTHER_CALLS = {
    "tp-p0126": "[] is closed before there is a call: content, as in tp-p0125",
    "tp-p0153": "{...} is closed before there is a call: content, as in tp-p0154",
    "tp-p0166": "after a call, brackets that close end nothing: three calls, as in tp-p0165",
    "tp-p0190": "a call, although its chunk continues with a possible beginning of a name: as in tp-p0189",
}
EARLIER = {"tp-p0095": "the same call a chunk earlier: its object was complete, and so was its name"}
# Cases in which text is held back when the answer ends.
SENT_TWICE = {"tp-p0128", "tp-p0149", "tp-p0171", "tp-p0187"}  # content with a bracket in it; here it is sent once
LOST = {  # the beginning of a tag that never became one; here it is content
    *("tp-p0025", "tp-p0026", "tp-p0027", "tp-p0028", "tp-p0029", "tp-p0195", "tp-p0196", "tp-p0197", "tp-p0198"),
    *("tp-p0225", "tp-p0226"),
}


def steps(parser, chunks):
    """Return the calls and content for each chunk."""
    pushed = [parser.push(chunk) for chunk in chunks]
    return [[[[call.name, call.index, call.arguments] for call in calls], content] for content, calls in pushed]


def test_thinking_is_split_step_by_step_as_in_ollama(kept):
    for case in kept.json("go/thinking_parser"):
        parser = ThinkingParser(case["open"], case["close"])
        assert [list(parser.push(chunk)) for chunk in case["chunks"]] == case["steps"], case["id"]


def test_calls_are_returned_step_by_step_as_in_ollama(kept):
    differ = {
        case["id"]
        for case in kept.json("go/tool_parser")
        if steps(ToolParser(case["tag"], case["tools"]), case["chunks"]) != case["steps"]
    }
    assert differ == OTHER_CALLS.keys() | EARLIER.keys()


def test_the_rest_at_the_end_is_as_in_ollama(kept):
    differ = set()
    for case in kept.json("go/tool_parser"):
        parser = ToolParser(case["tag"], case["tools"])
        steps(parser, case["chunks"])
        content, calls = parser.flush()
        assert not calls
        if content != case["final"]:
            differ.add(case["id"])
            expected = "" if case["id"] in SENT_TWICE else case["buffer"]
            assert content == expected, case["id"]
    assert differ == SENT_TWICE | LOST


def test_old_thoughts_are_removed_as_in_ollama(kept):
    for case in kept.json("go/think_filter"):
        if case["family"] == "qwen3" or "deepseek-r1" in case["model"]:
            got = [message["content"] for message in without_old_thoughts(case["messages"])]
            assert got == case["out"], case["id"]
