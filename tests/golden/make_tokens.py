"""Records tests/golden/tokens_*.json: what llama.cpp makes of texts, for three vocabularies of a few hundred pieces.

    NUMLLAMA_LLAMA_CPP=llama.cpp/build/bin PYTHONPATH=tests python tests/golden/make_tokens.py stories260K.gguf

tokens_spm.json   the vocabulary of stories260K (MIT, github.com/karpathy/llama2.c) and TEXTS with every flag
tokens_pre.json   a byte-level vocabulary trained on TEXTS without cutting them, so that each `pre` shows where it cuts
tokens_wordpiece.json   a WordPiece vocabulary trained on TEXTS, for each way to normalise them
"""

import base64
import json
import sys
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
from llama_vocab import LlamaVocab
from tokenizers import BertWordPieceTokenizer, Tokenizer, models, pre_tokenizers, trainers
from vocabularies import wordpiece

from numllama.engine.gguf.read import read_gguf
from numllama.engine.gguf.write import write_gguf
from numllama.engine.tokenizer.pre import PRE

MADE_BY = "tests/golden/make_tokens.py with llama.cpp 0c1e57098"
NEEDED = {  # hyperparameters that llama.cpp wants before it looks at a vocabulary
    "general.architecture": "llama",
    "general.name": "tokens",
    "llama.block_count": 1,
    "llama.context_length": 8,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 8,
    "llama.attention.head_count": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
TEXTS = [
    "",
    " ",
    "Once upon a time, there was a little girl named Lily.",
    "  two blanks, then\ttabs\n\n and lines \r\n  end ",
    "<s>user hi</s>next one <unk> <0x41>",
    "naïve Ångström 你好,世界! こんにちは мир ไทย नमस्ते 🙂👩\u200d👧",
    "I'm you're WE'LL don't 'Tis it's 's , so . what ? ' t",
    "3.14159 1,000,000 1234567890123 x²₃ ٣٤٥ ab12345cd  12",
    'def f(x):\n    return x**2 + 1  # fooBar HTTPServer snake_case\n\n\nif a!=b: print("a\\n")',
    "\u00a0\u3000\u2028 \u2028\u3000a \x00\x01\x7f \u1680\x85!!",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa         b          ",
    "▁already▁escaped ▁ 《书》…“q”—ㄅㄆ 가나다 Ǆǅ ͰͱͲ 一二三,、。 /// ;;\n\n//",
    "bytes \udcff\udcfe and \udce4\udcbd",
]


def base64s(parts):
    return [base64.b64encode(part).decode() for part in parts]


def written(vocabulary, architecture="llama"):
    needed = {key.replace("llama", architecture): value for key, value in NEEDED.items()}
    needed |= {"general.architecture": architecture, f"{architecture}.attention.layer_norm_epsilon": 1e-12}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.gguf"
        write_gguf(path, needed | vocabulary)
        return LlamaVocab(path)


def plain(vocabulary):
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in vocabulary.items()}


def spm(path):
    kv = read_gguf(path).kv
    vocabulary = {key: value for key, value in kv.items() if key.startswith("tokenizer.ggml.")}
    vocab = written(vocabulary)
    entries = []
    for text in TEXTS:
        ids = {f"{add}{special}": vocab.encode(text, add, special) for add, special in product((0, 1), (0, 1))}
        entries.append(
            {
                "text": text,
                "ids": ids,  # by add_special, parse_special
                "pieces": base64s(vocab.piece(id) for id in ids["11"]),
                "detokenized": {  # ids["11"], by remove_special, unparse_special
                    f"{remove}{unparse}": base64s([vocab.detokenize(ids["11"], remove, unparse)])[0]
                    for remove, unparse in product((0, 1), (0, 1))
                },
            }
        )
    return {"made_by": MADE_BY, "kv": plain(vocabulary), "eog": sorted(vocab.eog), "entries": entries}


def pre():
    texts = [text for text in TEXTS if text.isascii() or not any("\ud800" <= c < "\ue000" for c in text)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, min_frequency=1, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].get), "<|im_end|>"]
    vocabulary = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([1] * (len(tokens) - 1) + [3], np.int32),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
    }
    results = {}
    for name in PRE:
        vocab = written(vocabulary | {"tokenizer.ggml.pre": name})
        ids = [vocab.encode(text) for text in texts]
        flat = [id for text in ids for id in text]
        what = {
            "bos": vocab.bos,
            "ids": ids,
            "detokenized": base64s([vocab.detokenize(flat, False, True)])[0],
        }
        results.setdefault(json.dumps(what), []).append(name)
    cases = [{"pre": names, **json.loads(what)} for what, names in results.items()]
    return {"made_by": MADE_BY, "kv": plain(vocabulary), "texts": texts, "cases": cases}


def wordpieces():
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(TEXTS[:-1], vocab_size=600, min_frequency=1, special_tokens=[], show_progress=False)
    pieces = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    pieces = [piece[2:] if piece.startswith("##") else f"_{piece}" for piece in pieces if piece != "_"]
    vocabulary = wordpiece(*pieces) | {"tokenizer.ggml.token_type_count": 2}
    cases = []
    for lowercase, strip_accents in product((True, False), repeat=2):
        flags = {
            "tokenizer.ggml.normalizer.lowercase": lowercase,
            "tokenizer.ggml.normalizer.strip_accents": strip_accents,
        }
        vocab = written(vocabulary | flags, "bert")
        ids = [vocab.encode(text, True, True) for text in TEXTS]
        detokenized = base64s(vocab.detokenize(line, False, True) for line in ids)
        cases.append({"flags": flags, "ids": ids, "detokenized": detokenized})
    return {"made_by": MADE_BY, "kv": plain(vocabulary), "texts": TEXTS, "cases": cases}


def main():
    folder = Path(__file__).parent
    for name, record in (("spm", spm(sys.argv[1])), ("pre", pre()), ("wordpiece", wordpieces())):
        (folder / f"tokens_{name}.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
