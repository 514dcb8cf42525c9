"""Train primer, numllama's built-in model, and write it in Ollama's store layout.

    python examples/train_primer/train.py            # the whole recipe; needs numllama and torch
    python examples/train_primer/train.py --out /tmp/store --steps 300

Text -> byte-level BPE -> a 3.7M parameter Llama -> quantized GGUF -> manifest and blobs.
The loss covers the assistant's tokens only.  Seed and order are fixed.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import torch
from conversations import ADDING, COPYING, KINDS, LAST, RECALL, Text
from examinations import Question, examinations
from export import SPECIALS, encode_conversation, load_quantized, quantized, write_f16, write_store
from model import Hparams, Llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F

SEED = 42
N_VOCAB = 2048
TOKENS_PER_STEP = 1536
LENGTHS = [96, 96, 96, 224, 224, 512]  # tokens of a training row; half of the rows are one or two turns
MUON_RATE, ADAM_RATE = 3e-3, 1.5e-3  # highest learning rates
# Up to which step, which shares of conversations; then LAST
PHASES = [(800, COPYING), (2000, KINDS), (3600, ADDING), (5200, RECALL)]
# Learning rate by step, as a share of the highest; straight lines between
RATES = [(0, 0.0), (100, 1.0), (2970, 1.0), (3600, 0.74), (5200, 0.323), (6600, 0.01)]
BUILTIN = Path(__file__).parents[2] / "engine" / "store" / "builtin"


def train_tokenizer(text: Text) -> Tokenizer:
    """Train GPT-2's byte-level BPE on the training text: special tokens first, then 256 bytes, then merges.

    The text goes in without its digits, so that every digit stays a token of its own.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((re.sub(r"\d", "", line) for line in text.texts()), trainer)
    return tokenizer


def training_row(
    text: Text, tokenizer: Tokenizer, n_tok: int, rng: Random, kinds: Mapping[str, int] = KINDS
) -> tuple[list[int], list[int]]:
    """Return `n_tok` + 1 tokens of one conversation, truncated if necessary, and a mark on each trained one."""
    system, turns = text.conversation(rng, kinds)
    ids, marks = encode_conversation(tokenizer, system, [])
    for turn in turns:
        turn_ids, turn_marks = encode_conversation(tokenizer, None, [turn])
        ids += turn_ids
        marks += turn_marks
        if len(ids) > n_tok:
            return ids[: n_tok + 1], marks[: n_tok + 1]
    raise AssertionError("conversation() must not end")


def loss_on_answers(model: Llama, ids: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    """Compute the mean cross-entropy of the marked tokens.  ids, marks i64 [batch, n_tok + 1]"""
    wanted = marks[:, 1:].bool()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model.logits(model(ids[:, :-1])[wanted])
    return F.cross_entropy(logits.float(), ids[:, 1:][wanted])


def optimizers(model: Llama) -> list[torch.optim.Optimizer]:
    """Return Muon for most of the layers' matrices, and AdamW for the others.

    Queries and keys are among the others: Muon makes their products grow until each head looks at one token alone.
    """
    by_muon = [
        weight
        for name, weight in model.weights.items()
        if weight.ndim == 2 and name.endswith(("attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"))
    ]
    others = [weight for weight in model.weights.values() if all(weight is not one for one in by_muon)]
    groups = [
        {"params": [weight for weight in others if weight.ndim == 2], "weight_decay": 0.1},
        {"params": [weight for weight in others if weight.ndim == 1], "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(by_muon, lr=MUON_RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=ADAM_RATE, betas=(0.9, 0.98), fused=True),
    ]


def learning_rate(step: int) -> float:
    """Return the learning rate of a step, as a share of the highest."""
    return float(np.interp(step, *zip(*RATES, strict=True)))


@torch.no_grad()
def share_right(model: Llama, tokenizer: Tokenizer, questions: Sequence[Question]) -> float:
    """Return the fraction of `questions` to which greedy decoding gives one of the right answers, word for word.

    One forward pass is enough: each token of the answer must be the arg-max after those before it.
    """
    candidates = [
        (i, *encode_conversation(tokenizer, q.system, [*q.earlier, replace(q.turn, answer=answer)]))
        for i, q in enumerate(questions)
        for answer in q.answers
    ]
    candidates.sort(key=lambda candidate: len(candidate[1]))
    right = set()
    for at in range(0, len(candidates), 32):
        rows = candidates[at : at + 32]
        n_tok = max(len(row[1]) for row in rows)
        ids = torch.tensor([row[1] + [0] * (n_tok - len(row[1])) for row in rows])
        hidden = model(ids[:, :-1])
        for row, (i, own, marks) in enumerate(rows):
            begins = len(own) - marks[::-1].index(0)  # the last turn's answer is the last run of marks
            likeliest = model.logits(hidden[row, begins - 1 : len(own) - 1]).argmax(-1)
            if (likeliest == ids[row, begins : len(own)]).all():
                right.add(i)
    return len(right) / len(questions)


def examine(model: Llama, tokenizer: Tokenizer, text: Text, whole: bool = False) -> None:
    """Print the fraction of correct answers in each examination."""
    for name, questions in examinations(text, whole):
        print(f"    {name}: {share_right(model, tokenizer, questions):.1%} of {len(questions)}", flush=True)


def train(text: Text, tokenizer: Tokenizer, n_steps: int, save: Path | None) -> Llama:
    """Train a Llama for `n_steps` steps; print loss, speed and the fraction of correct answers.

    save   a file for the state every 200 steps; if it exists, training resumes from there
    """
    rng, first = Random(SEED), 1
    torch.manual_seed(SEED)
    model = Llama(Hparams(n_vocab=tokenizer.get_vocab_size()))
    steppers = optimizers(model)
    rates = [[group["lr"] for group in stepper.param_groups] for stepper in steppers]
    if save and save.exists():
        state = torch.load(save, weights_only=False)
        model.load_state_dict(state["model"])
        for stepper, saved in zip(steppers, state["optimizers"], strict=True):
            stepper.load_state_dict(saved)
        first = state["step"] + 1
        rng.setstate(state["rng"])
    started = time.perf_counter()
    print(f"{sum(w.numel() for w in model.parameters()):,} parameters, {n_steps} steps", flush=True)
    for step in range(first, n_steps + 1):
        for stepper, highest in zip(steppers, rates, strict=True):
            for group, rate in zip(stepper.param_groups, highest, strict=True):
                group["lr"] = rate * learning_rate(step)
        n_tok = rng.choice(LENGTHS)
        kinds = next((kinds for last, kinds in PHASES if step <= last), LAST)
        rows = [training_row(text, tokenizer, n_tok, rng, kinds) for _ in range(TOKENS_PER_STEP // n_tok)]
        ids, marks = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
        loss = loss_on_answers(model, ids, marks)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
        if step % 50 == 0:
            seconds = time.perf_counter() - started
            speed = (step - first + 1) * TOKENS_PER_STEP / seconds
            print(f"step {step}  loss {loss.item():.4f}  {speed:.0f} tok/s  {seconds:.0f} s", flush=True)
        if save and step % 200 == 0:
            saved = [stepper.state_dict() for stepper in steppers]
            state = {"model": model.state_dict(), "optimizers": saved, "step": step, "rng": rng.getstate()}
            torch.save(state, save.with_suffix(".new"))
            save.with_suffix(".new").replace(save)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=BUILTIN, help="store folder to write (default: the built-in one)")
    parser.add_argument("--steps", type=int, default=6600)
    parser.add_argument("--threads", type=int, default=1, help="torch threads; the number affects rounding")
    parser.add_argument("--save", type=Path, help="keep the state in this file, every 200 steps, and resume from it")
    parser.add_argument("--f16", type=Path, metavar="FILE", help="also write the weights in F16, before quantizing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    text = Text()
    tokenizer = train_tokenizer(text)
    model = train(text, tokenizer, arguments.steps, arguments.save)
    if arguments.f16:
        write_f16(arguments.f16, model, tokenizer)
    tensors = quantized(model)
    load_quantized(model, tensors)
    print("quantized:")
    examine(model, tokenizer, text, whole=True)
    write_store(arguments.out, model, tokenizer, tensors)


if __name__ == "__main__":
    main()
