"""Ids, pieces and text against llama.cpp's, recorded (tests/golden) and live (peer)."""

import base64
import json
import os
import random
from itertools import product
from pathlib import Path

import pytest
from llama_vocab import LlamaVocab

from numllama.engine.gguf.read import read_gguf
from numllama.engine.tokenizer import Tokenizer, from_gguf

GOLDEN = Path(__file__).parents[2] / "golden"
SPM = json.loads((GOLDEN / "tokens_spm.json").read_text())
PRE = json.loads((GOLDEN / "tokens_pre.json").read_text())
WORDPIECE = json.loads((GOLDEN / "tokens_wordpiece.json").read_text())
OF_MODELS = {  # recorded texts, and the model or vocabulary they were read with
    "tok512": "stories260K-F32",
    "spm2k": "tiny256-Q4_K",
    "spm32k": "ggml-vocab-llama-spm",
    "bpe128k": "ggml-vocab-llama-bpe",
}
FIXTURES = (
    "llama-spm phi-3 llama-bpe qwen2 qwen35 gpt-2 gemma-4 falcon deepseek-llm deepseek-coder command-r starcoder mpt "
    "refact bert-bge"
).split()


def both(kv):
    """Return the engine's tokenizer and the plain Python one."""
    tokenizer = from_gguf(kv)
    return tokenizer, Tokenizer(tokenizer.vocab)


@pytest.fixture(scope="module")
def spm():
    return both(SPM["kv"])


@pytest.mark.parametrize("entry", SPM["entries"], ids=lambda entry: ascii(entry["text"][:20]))
def test_spm_encodes_and_decodes_as_llama_cpp(spm, entry):
    for tokenizer in spm:
        for add, special in product((0, 1), (0, 1)):
            assert tokenizer.encode(entry["text"], bool(add), bool(special)) == entry["ids"][f"{add}{special}"]
    ids = entry["ids"]["11"]
    assert [tokenizer.piece(id) for id in ids] == [base64.b64decode(piece) for piece in entry["pieces"]]
    for remove, unparse in product((0, 1), (0, 1)):
        expected = base64.b64decode(entry["detokenized"][f"{remove}{unparse}"])
        assert tokenizer.detokenize(ids, bool(remove), bool(unparse)) == expected


@pytest.mark.parametrize("case", PRE["cases"], ids=lambda case: case["pre"][0])
def test_words_are_split_as_by_llama_cpp(case):
    for name in case["pre"]:
        for tokenizer in both(PRE["kv"] | {"tokenizer.ggml.pre": name}):
            assert tokenizer.bos == case["bos"]
            assert [tokenizer.encode(text) for text in PRE["texts"]] == case["ids"]
            everything = [id for text in case["ids"] for id in text]
            assert tokenizer.detokenize(everything) == base64.b64decode(case["detokenized"])


@pytest.mark.parametrize("case", WORDPIECE["cases"], ids=lambda case: "-".join(map(str, case["flags"].values())))
def test_words_are_normalized_as_by_llama_cpp(case):
    for tokenizer in both(WORDPIECE["kv"] | case["flags"]):
        for text, ids, detokenized in zip(WORDPIECE["texts"], case["ids"], case["detokenized"], strict=True):
            assert tokenizer.encode(text) == ids, text
            assert tokenizer.detokenize(ids) == base64.b64decode(detokenized)


def texts_have_their_ids_pieces_and_text(recordings, name):
    record = recordings.json(f"tokens_{name}")
    engine, plain = both(read_gguf(recordings.model(OF_MODELS[name])).kv)
    facts = (engine.n_vocab, engine.bos, engine.eos, engine.add_bos, engine.add_eos, engine.vocab.roles.get("eot", -1))
    assert facts == tuple(record[key] for key in ("n_vocab", "bos", "eos", "add_bos", "add_eos", "eot"))
    assert engine.encode("\n", add_special=False)[-1] == record["nl"]
    for entry in record["entries"]:
        text = base64.b64decode(entry["b64"]).decode("utf-8", "surrogateescape")
        for tokenizer, add, special in product((engine, plain), (0, 1), (0, 1)):
            assert tokenizer.encode(text, bool(add), bool(special)) == entry[f"ids_add{add}_special{special}"], text
        bare, full = entry["ids_add0_special0"], entry["ids_add1_special1"]
        assert [engine.piece(id) for id in bare] == [base64.b64decode(piece) for piece in entry["pieces_b64"]]
        assert engine.detokenize(bare) == base64.b64decode(entry["detok_b64"])
        assert engine.detokenize(full) == base64.b64decode(entry["detok_add1_special1_render_b64"])
        assert engine.detokenize(full, True, False) == base64.b64decode(entry["detok_add1_special1_norender_b64"])


def test_recorded_texts_have_their_ids_pieces_and_text(kept):
    texts_have_their_ids_pieces_and_text(kept, "tok512")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OF_MODELS if name != "tok512"])
def test_texts_recorded_with_llamas_vocabularies_have_their_ids_pieces_and_text(whole, name):
    texts_have_their_ids_pieces_and_text(whole, name)


@pytest.fixture(scope="session")
def sources():
    """Return llama.cpp's folder models/: vocabularies, each with texts (.inp) and their ids (.out)."""
    folder = os.environ.get("NUMLLAMA_LLAMA_CPP_SOURCE")
    if not folder:
        pytest.skip("needs NUMLLAMA_LLAMA_CPP_SOURCE, llama.cpp's source tree")
    return Path(folder) / "models"


@pytest.mark.peer
@pytest.mark.parametrize("name", FIXTURES)
def test_llama_cpps_own_fixtures(sources, name):
    path = sources / f"ggml-vocab-{name}.gguf"
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = [[int(id) for id in line.split()] for line in path.with_suffix(".gguf.out").read_text().splitlines()]
    assert len(texts) >= len(expected) >= 46
    for tokenizer in both(read_gguf(path).kv):
        for text, ids in zip(texts, expected, strict=False):
            assert tokenizer.encode(text, add_special=False, parse_special=False) == ids, text


@pytest.mark.peer
@pytest.mark.parametrize("name", FIXTURES)
def test_random_text_is_tokenized_as_by_llama_cpp(sources, name):
    path = sources / f"ggml-vocab-{name}.gguf"
    peer, (engine, plain) = LlamaVocab(path), both(read_gguf(path).kv)
    assert (engine.bos, engine.eos, engine.add_bos, engine.add_eos) == (peer.bos, peer.eos, peer.add_bos, peer.add_eos)
    assert engine.eog == peer.eog
    for id in range(engine.n_vocab):
        assert (engine.piece(id), engine.piece(id, special=False)) == (peer.piece(id), peer.piece(id, special=False))
    dice = random.Random(name)
    for text in (random_text(dice, engine.vocab) for _ in range(300)):
        add, special = dice.random() < 0.5, dice.random() < 0.5
        ids = peer.encode(text, add, special)
        assert engine.encode(text, add, special) == ids, text
        assert plain.encode(text, add, special) == ids, text
        assert engine.detokenize(ids, add, special) == peer.detokenize(ids, add, special)
    peer.close()


def random_text(dice, vocab):
    """Return a random text of words, runs of one character, scripts, blanks of all kinds and special tokens."""
    scripts = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x500), (0x5D0, 0x5EB), (0x900, 0x960), (0xE00, 0xE30),
               (0x3041, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0x1F300, 0x1F640), (0x2000, 0x2030)]  # fmt: skip
    words = "Once It's don't WE'LL fooBar snake_case HTTPServer 1234567 ' t 's . \u00a0x x²٣ na\u00efve \ufeff".split(
        " "
    )

    def part():
        match dice.randrange(6):
            case 0 | 1:
                return " ".join(dice.choices(words, k=3))
            case 2:
                first, end = dice.choice(scripts)
                return "".join(chr(dice.randrange(first, end)) for _ in range(6))
            case 3:
                return dice.choice(" \n\t\u3000\u2028\x0b\x00") * dice.randrange(1, 5)
            case 4:
                return dice.choice("abx.! 0") * dice.randrange(1, 40)
            case _:
                return vocab.tokens[dice.choice(vocab.specials)]

    return "".join(part() for _ in range(dice.randrange(1, 10)))
