"""Makes tests/golden/transcripts.json: of conversations recorded with Ollama, the steps that teach most.

    PYTHONPATH=tests python tests/golden/make_transcripts.py RECORDINGS

README.md beside this file describes the folder.  The recordings are of a scripted model, whose script is written down
with them: tests/scripted.py makes it again.
Numbers in brackets are those of docs/compatibility.md.
"""

import json
import sys
from pathlib import Path

from serving import figures

from numllama.engine.gguf.read import GGUF

STEPS = {
    "templates": {
        8: "a prompt is rendered by the model's template",
        9: "a context is gone on from",
        10: "raw is the prompt itself, and gives no context [36]",
        11: "the model's own messages come first, its stop strings end it",
        12: "an empty context leaves the model's messages out [38]",
        14: "stop strings of the request take the place of the model's [54]",
        17: "a system text of the request takes the place of the model's [42]",
        18: "system, messages, prompt",
        21: "a context is put in front of what is rendered",
        22: "a template of the request is cut after its .Response [43]",
        23: "a template with .Messages sees all of them",
        24: "a suffix is rendered from prompt and suffix only [45]",
        26: "what stands between prompt and suffix",
        27: "a suffix without a place for it is refused [44]",
        28: "a template that does not parse [43]",
        29: "a function that there is not",
    },
    "chat": {
        8: "a stream is messages of the assistant [81]",
        12: "a character of several tokens comes whole",
        13: "num_predict ends an answer with length [50]",
        14: "a stop string over two tokens is not shown [53]",
        16: "a model is required [77]",
        17: "an unknown model is told as it was asked for [78]",
        18: "a last message of the assistant is gone on with [87]",
        22: "thinking is refused by who cannot [65]",
        23: "tools are refused by who cannot [89]",
        26: "without any template a chat is ChatML",
        31: "roles are lower case [83]",
        37: "a system message of the request drops the model's",
        40: "neighbours of one role are one message [180]",
        41: "a legacy template does not see results of tools",
        46: "the model's system text and messages come first [86]",
        48: "a system message of the request drops the model's system text, not its messages [85]",
        52: "results of tools are messages like others",
        63: "what is to be gone on with stays open",
        66: "the last turn is written up to .Response",
        72: "turns begin at a user's or a system's message",
        76: ".System is all system messages, which are in .Messages too",
        78: "slice, len and eq tell which message is the last",
        86: "whether to think, and a .Prompt that there is not [172]",
        90: "printf",
        96: "with and else",
        98: "a message printed is a Go struct",
    },
    "tools": {
        6: "a call comes in a message without text",
        7: "a call in one object [90]",
        8: "two calls in one answer are counted [91]",
        10: "text before a tag is streamed [92]",
        13: "where calls have a tag, bare JSON is text",
        17: "a call that never ends is no text and no call",
        18: "what only begins like a tag is text [93]",
        25: "without a tag a call begins with a brace",
        27: "JSON that names no tool is text [94]",
        29: "after text a brace begins no call",
        34: "a call of a tool that was not offered is dropped",
        36: "without tools a call is text",
        37: "tools, calls and results are rendered, keys of arguments sorted [95]",
        40: "an answer to a result",
        42: "a thought, then a call",
        46: "a thought is text where thinking is off",
        52: "JSON that was asked for is no call",
    },
    "thinking": {
        4: "a stream is thoughts, then content [98]",
        6: "generate thinks, too",
        11: "tags are text where thinking is off [99]",
        14: "how hard to think",
        17: "a prompt that ends in the opening tag begins within a thought",
        29: "a thought that never ends is all there is",
        41: "who does not think only speaks",
        65: "without tags in the template there are no thoughts",
        67: "old thoughts are rendered",
        69: "an answer that is cut within a thought",
    },
}


def scripts(gguf):
    """What the model says after each of its triggers, piece by piece."""
    tokens, kinds = gguf.kv["tokenizer.ggml.tokens"], gguf.kv["tokenizer.ggml.token_type"]
    follows = gguf.tensors["output.weight"].dequantize().argmax(axis=0)
    said = {}
    for trigger in (id for id, kind in enumerate(kinds) if kind == 4):
        ids = [follows[trigger]]
        while ids[-1] != gguf.kv["tokenizer.ggml.eos_token_id"] and ids[-1] not in ids[:-1]:
            ids.append(follows[ids[-1]])
        pieces = [tokens[id].replace("\u2581", " ") for id in ids if id != gguf.kv["tokenizer.ggml.eos_token_id"]]
        said[tokens[trigger].strip("<>")] = pieces
    return said


def steps(recorded, wanted):
    models = {}
    for i, step in enumerate(recorded["steps"]):
        body, path = step["send"].get("body", {}), step["send"]["path"]
        if path == "/api/create":
            kept = ("template", "system", "messages", "parameters")
            models[body["model"]] = {key: body[key] for key in kept if key in body}
        if i in wanted:
            got = step.get("ours", step["got"])
            answer = figures(got["lines"] if "lines" in got else got["json"])
            yield {
                "shows": wanted[i],
                "from": f"{recorded['name']} {i}",
                "model": models.get(body.get("model")),
                "path": path,
                "body": body,
                "status": got["status"],
                "answer": answer,
            }


def main():
    whole = Path(sys.argv[1])
    recorded = {name: json.loads((whole / f"transcripts/{name}.json").read_text()) for name in STEPS}
    gguf = GGUF.open(whole / "models/scripted-F16.gguf")
    record = {
        "made_by": "tests/golden/make_transcripts.py",
        "recorded_from": recorded["chat"]["recorded_from"],
        "scripts": scripts(gguf),
        "steps": [step for name, wanted in STEPS.items() for step in steps(recorded[name], wanted)],
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in record.items()]
    own = ",\n".join(json.dumps(step, ensure_ascii=False) for step in record["steps"])
    lines[-1] = f'"steps": [\n{own}\n]'
    Path(__file__).with_name("transcripts.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
