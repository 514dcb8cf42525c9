"""Models with predefined output, in an otherwise real engine."""

from __future__ import annotations

import numpy as np

from numllama.engine.gguf.write import write_gguf
from numllama.engine.run.piece import Piece, Timings
from numllama.engine.serve.runner import Runner
from numllama.kernels.quants import FORMATS_BY_NAME
from tiny import BYTE, CONTROL, NORMAL, UNKNOWN

# A template with thinking in <think> tags and tool calls in <tool_call> tags.
TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.thinking %}<think>{{ m.thinking }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{% if m.role == 'tool' %} from {{ m.name }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking %}({{ reasoning_effort }}){% endif %}{% endif %}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
HELLO = [{"role": "user", "content": "hello"}]


class Script:
    """Called with texts, it makes every model generate them, one per token, and records the request.

    prompt    the prompt's text
    options   the request's options
    """

    def __init__(self, monkeypatch):
        self._monkeypatch = monkeypatch
        self.prompt, self.options = None, None

    def __call__(self, *texts, done_reason="stop", met=None, error=None):
        """Set the output.  `error` is raised in place of the last piece."""

        def submit(runner, job):
            prompt = runner.model.tokenizer.decode(job.prompt, special=False)
            self.prompt, self.options = prompt.removeprefix(" "), job.options  # SPM adds the leading blank
            for text in texts:
                job.deliver(Piece(text, token=1))
            job.finished()
            timings = Timings(0, 2, 1, len(texts), 1)
            job.deliver(error or Piece("", done_reason=done_reason, timings=timings, met=met))

        self._monkeypatch.setattr(Runner, "submit", submit)


# --- a model whose weights define its output

BLANK, USER_DEFINED = "\u2581", 4


def scripted_gguf(path, scripts):
    """Write a Llama that, after the token <hello>, generates the pieces of scripts["hello"], one per token.

    The output does not depend on the sampler.  A piece has one successor, so ["la", "li", "la"] never ends.  Pieces
    like <0xE2> are bytes.

    Attention and feed-forward weights are zero, so the residual stream is the last token's embedding, a unit vector.
    The output matrix maps it to the next token, whose logit is sqrt(n_embd); all other logits are 0.
    """
    all_pieces = [piece.replace(" ", BLANK) for pieces in scripts.values() for piece in pieces]
    characters = [BLANK, *map(chr, range(33, 127))]
    triggers = [f"<{name}>" for name in scripts]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters, *triggers]
    ids = {token: id for id, token in enumerate(tokens)}
    for piece in all_pieces:
        ids.setdefault(piece, len(ids))
    n_pieces = len(ids) - len(tokens)

    follows = {}
    for trigger, pieces in zip(triggers, scripts.values(), strict=True):
        chain = [ids[piece.replace(" ", BLANK)] for piece in pieces]
        for id, next_id in zip([ids[trigger], *chain], [*chain, ids["</s>"]], strict=True):
            follows.setdefault(id, next_id)

    n_vocab, n_embd = len(ids), -len(ids) // 64 * -64
    output = np.zeros((n_vocab, n_embd), np.float32)
    output[[follows.get(id, ids["</s>"]) for id in range(n_vocab)], np.arange(n_vocab)] = 1
    blk = {"attn_q": (n_embd, n_embd), "attn_k": (64, n_embd), "attn_v": (64, n_embd), "attn_output": (n_embd, n_embd)}
    blk |= {"ffn_gate": (64, n_embd), "ffn_up": (64, n_embd), "ffn_down": (n_embd, 64)}
    weights = {
        "token_embd": np.eye(n_vocab, n_embd, dtype=np.float32),
        "output": output,
        "output_norm": np.ones(n_embd, np.float32),
        **{f"blk.0.{name}": np.ones(n_embd, np.float32) for name in ("attn_norm", "ffn_norm")},
        **{f"blk.0.{name}": np.zeros(shape, np.float32) for name, shape in blk.items()},
    }
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(characters) + [USER_DEFINED] * len(triggers)
    scores = np.r_[
        np.zeros(259), -10 - np.arange(len(characters)), np.zeros(len(triggers)), -1000 - np.arange(n_pieces)
    ]
    kv = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 2048,
        "llama.embedding_length": n_embd,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": n_embd // 64,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 64,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(ids),
        "tokenizer.ggml.scores": scores.astype(np.float32),
        "tokenizer.ggml.token_type": kinds + [NORMAL] * n_pieces,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": False,
    }
    F32 = FORMATS_BY_NAME["F32"]
    write_gguf(path, kv, [(f"{name}.weight", F32, x.shape, x) for name, x in weights.items()])
    return path
