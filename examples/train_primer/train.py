"""Train primer, numllama's built-in model, and write it in Ollama's store layout.

    python examples/train_primer/train.py            # the whole recipe; needs numllama and torch
    python examples/train_primer/train.py --out /tmp/store --steps 300

Text -> byte-level BPE -> a 3.5M parameter Llama -> quantized GGUF -> manifest and blobs.
The loss covers the assistant's tokens only.  Seed and order are fixed: the same machine and torch give the same file.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from random import Random

import torch
from conversations import FOLLOWUPS, Text
from export import load_quantized, quantized, write_store
from model import Hparams, Llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F

SEED = 42
N_VOCAB = 1536
TOKENS_PER_STEP = 1536
LENGTHS = [96, 96, 96, 224, 224, 512]  # tokens of a training row; half of the rows are one or two turns
LEARNING_RATE = 1.5e-3
SPECIALS = BOS, END, SYSTEM, USER, ASSISTANT = "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
BUILTIN = Path(__file__).parents[2] / "engine" / "store" / "builtin"


def train_tokenizer(text: Text) -> Tokenizer:
    """Train GPT-2's byte-level BPE on the training text: special tokens first, then 256 bytes, then merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.texts(), trainer)
    return tokenizer


def encode_turn(tokenizer: Tokenizer, question: str, answer: str) -> tuple[list[int], list[int]]:
    """Return the token ids of a turn, and a mark for each: 1 if the assistant writes it."""
    asked = tokenizer.encode(f"{USER}{question}{END}{ASSISTANT}").ids
    answered = tokenizer.encode(f"{answer}{END}").ids
    return asked + answered, [0] * len(asked) + [1] * len(answered)


def training_row(text: Text, tokenizer: Tokenizer, n_tok: int, rng: Random) -> tuple[list[int], list[int]]:
    """Return `n_tok` + 1 tokens of one conversation, truncated if necessary, and their marks."""
    ids, marks = tokenizer.encode(BOS).ids, [0]
    if system := text.system(rng):
        ids += tokenizer.encode(f"{SYSTEM}{system}{END}").ids
        marks = [0] * len(ids)
    for question, answer in text.conversation(rng):
        turn_ids, turn_marks = encode_turn(tokenizer, question, answer)
        ids += turn_ids
        marks += turn_marks
        if len(ids) > n_tok:
            return ids[: n_tok + 1], marks[: n_tok + 1]
    raise AssertionError("conversation() must not end")


def loss_on_answers(model: Llama, ids: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    """Compute the mean cross-entropy of the marked tokens.  ids, marks i64 [batch, n_tok + 1]"""
    wanted = marks[:, 1:].bool()
    return F.cross_entropy(model.logits(model(ids[:, :-1])[wanted]), ids[:, 1:][wanted])


@torch.no_grad()
def share_right(model: Llama, tokenizer: Tokenizer, conversations: list[list[tuple[str, str]]]) -> float:
    """Return the fraction of `conversations` whose last answer is generated word for word by greedy decoding.

    One forward pass is enough: each token of the answer must be the arg-max after those before it.
    """
    right = 0
    for turns in conversations:
        ids, marks = tokenizer.encode(BOS).ids, [0]
        for question, answer in turns:
            turn_ids, turn_marks = encode_turn(tokenizer, question, answer)
            marks = [0] * len(marks) + turn_marks
            ids += turn_ids
        tokens, wanted = torch.tensor(ids), torch.tensor(marks[1:]).bool()
        likeliest = model.logits(model(tokens[None, :-1])[0, wanted]).argmax(-1)
        right += bool((likeliest == tokens[1:][wanted]).all())
    return right / len(conversations)


def examinations(text: Text) -> dict[str, list[list[tuple[str, str]]]]:
    """Return conversations to evaluate, by name: the written questions, held-out ones, and follow-ups."""
    topics = {**text.topics, **text.stories}
    first = [[(text.topics[id].questions[0], text.topics[id].answer)] for id in text.askable]
    written = [[(q, text.topics[id].answer)] for id in text.askable for q in text.topics[id].questions]
    held_out = [[(q, topics[id].answer)] for id, questions in text.held_out.items() if id in topics for q in questions]
    followups = [
        [*conversation, (q, text.topics[id].lines[mark])]
        for id, conversation in zip(text.askable, first, strict=True)
        for kind, mark in FOLLOWUPS.items()
        for q in text.held_out[kind]
    ]
    return {"first": first, "written": written, "held out": held_out, "follow-ups": followups}


def examine(model: Llama, tokenizer: Tokenizer, text: Text) -> None:
    """Print the fraction of correct answers in each examination."""
    for name, conversations in examinations(text).items():
        print(f"    {name}: {share_right(model, tokenizer, conversations):.1%} right", flush=True)


def train(text: Text, tokenizer: Tokenizer, n_steps: int, save: Path | None) -> Llama:
    """Train a Llama for `n_steps` steps; print loss, speed and the fraction of correct answers."""
    rng = Random(SEED)
    torch.manual_seed(SEED)
    model = Llama(Hparams(n_vocab=tokenizer.get_vocab_size()))
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    norms = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), fused=True)
    n_warmup = min(100, n_steps // 10)
    started = time.perf_counter()
    print(f"{sum(w.numel() for w in model.parameters()):,} parameters, {n_steps} steps", flush=True)
    for step in range(1, n_steps + 1):
        rate = min(step / n_warmup, 0.02 + 0.98 * (1 + math.cos(math.pi * step / n_steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        n_tok = rng.choice(LENGTHS)
        rows = [training_row(text, tokenizer, n_tok, rng) for _ in range(TOKENS_PER_STEP // n_tok)]
        ids, marks = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
        loss = loss_on_answers(model, ids, marks)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            seconds = time.perf_counter() - started
            speed = step * TOKENS_PER_STEP / seconds
            print(f"step {step}  loss {loss.item():.4f}  {speed:.0f} tok/s  {seconds:.0f} s", flush=True)
        if step % 1000 == 0 or step == n_steps:
            examine(model, tokenizer, text)
            if save:
                torch.save(model.state_dict(), save)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=BUILTIN, help="store folder to write (default: the built-in one)")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--threads", type=int, default=1, help="torch threads; the number affects rounding")
    parser.add_argument("--save", type=Path, help="also save torch weights to this file, every 1000 steps")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    text = Text()
    tokenizer = train_tokenizer(text)
    model = train(text, tokenizer, arguments.steps, arguments.save)
    tensors = quantized(model)
    load_quantized(model, tensors)
    print("quantized:")
    examine(model, tokenizer, text)
    write_store(arguments.out, model, tokenizer, tensors)


if __name__ == "__main__":
    main()
