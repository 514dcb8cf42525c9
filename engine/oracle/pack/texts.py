"""Items about tokenizers: texts to ids, and ids to texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...gguf.read import GGUF
from ...gguf.write import write_gguf
from ...tokenizer import from_gguf
from ...tokenizer.pre import PRE, Pre
from . import vocabulary
from .item import Item

TEXTS = (
    "",
    " ",
    "   ",
    "hello world",
    " hello  world ",
    "Once upon a time there was a little cat.",
    "They're in it; we'll see, I'M told.",
    "1234567 12 3.14 2024-01-31",
    "a\nb\n\n c\r\n\td",
    "fooBar HTTPServer snake_case x1y2",
    "caf\u00e9 na\u00efve \u00c9COLE e\u0301",
    "\u4f60\u597d\u4e16\u754c \u3053\u3093\u306b\u3061\u306f \ud55c\uad6d\uc5b4",
    "\u043f\u0440\u0438\u0432\u0435\u0442, \u0645\u0631\u062d\u0628\u0627",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u00a0\u3000x",
    "<|user|>hello<|user|> there",
    "hello</s> there",
    "if (x >= 10) { return a[i] ** 2; } // #1",
    "...!!!???--- ''\"\"",
    "ab" * 40,
)


def text_items(folder: Path) -> Iterator[Item]:
    """Write the vocabularies to `folder`/vocabularies, and yield two items for each."""
    (folder / "vocabularies").mkdir(parents=True, exist_ok=True)
    kinds = {
        "spm": vocabulary.tiny_spm(),
        "spm-without-prefix": vocabulary.tiny_spm(False),
        "wordpiece": vocabulary.tiny_wordpiece(),
    }
    rules: dict[Pre, str] = {}
    for pre, rule in PRE.items():  # one name for each rule
        if rule.byte_level and pre != "default":
            rules.setdefault(rule, pre)
    kinds |= {f"bpe-{pre}": vocabulary.tiny_bpe(pre) for pre in rules.values()}
    for kind, values in kinds.items():
        path = folder / "vocabularies" / f"{kind}.gguf"
        write_gguf(path, {"general.architecture": "llama", **values})
        tokenizer = from_gguf(GGUF.open(path).kv)
        ids = [tokenizer.encode(text, add_special=True, parse_special=True) for text in TEXTS]
        about = {"vocabulary": f"../vocabularies/{path.name}"}
        yield Item(
            f"tokenize/{kind}",
            "ids of each text, with BOS, EOS, CLS and SEP where the file asks for them; special tokens are recognized",
            parameters={**about, "texts": list(TEXTS), "add_special": True, "parse_special": True},
            expected={"ids": ids},
        )
        yield Item(
            f"detokenize/{kind}",
            "the text of each list of ids, without control tokens; bytes that are not UTF-8 become U+FFFD",
            parameters={**about, "ids": ids},
            expected={"texts": [tokenizer.decode(some, special=False) for some in ids]},
        )
