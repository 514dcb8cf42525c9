"""Exported files: Hugging Face's `tokenizers` gives the same ids from tokenizer.json."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFace
from vocabularies import ALIKE, CONTROL, USER_DEFINED, bpe, spm, wordpiece

from numllama.engine.gguf.read import GGUF
from numllama.engine.tokenizer import from_gguf
from numllama.engine.tokenizer.export import merges, tokenizer_json, write_tokenizer

VOCABULARIES = {
    "spm": spm("▁", "t", "h", "e", "th", "▁th", "the", "▁the", "<|x|>", "<u>", types=[1] * 8 + [CONTROL, USER_DEFINED]),
    "spm without prefix": spm("▁", "th", "t", "h", add_space_prefix=False, add_bos_token=False),
    "qwen2": bpe("<|x|>", types=[CONTROL]),
    "gpt-2 with ends": bpe(
        "<s>", types=[CONTROL], pre="gpt-2", bos_token_id=258, eos_token_id=258, add_bos_token=True, add_eos_token=True
    ),
    "wordpiece": wordpiece(*"_the _t h e _h _. _1 1 _<u>".split(), "<|x|>", types=[1] * 9 + [CONTROL]),
    "llama-bpe": bpe("<|x|>", types=[CONTROL], pre="llama-bpe", merges=("t h", "th e"), bos_token_id=258),
}
ANY = st.characters(exclude_categories=["Cs"])


@pytest.mark.parametrize("kv", VOCABULARIES.values(), ids=VOCABULARIES)
@given(data=st.data())
def test_the_ids_are_the_same(kv, data):
    ours = from_gguf(kv)
    rare = ALIKE if ours.vocab.model == "bert" else ANY
    text = data.draw(st.text(st.sampled_from("the Thé☕ \n1.<|x|><u>")) | st.text(rare, max_size=8))
    theirs = HuggingFace.from_str(json.dumps(tokenizer_json(ours.vocab)))
    assert theirs.encode(text).ids == ours.encode(text)


def test_an_spm_merge_is_a_pair_that_makes_a_piece():
    vocab = from_gguf(spm("a", "b", "ab", "aba")).vocab  # scores fall with the id: "ab" is better than "aba"
    assert merges(vocab) == [["a", "b"], ["ab", "a"]]


def test_the_exported_files_name_the_tokens_around_a_text(tmp_path):
    kv = VOCABULARIES["spm"] | {
        "general.architecture": "llama",
        "llama.context_length": 64,
        "tokenizer.chat_template": "T",
    }
    files = write_tokenizer(kv, tmp_path / "new")
    assert [file.name for file in files] == ["tokenizer.json", "tokenizer_config.json"]
    config = json.loads(files[1].read_text())
    assert (config["bos_token"], config["eos_token"], config["unk_token"]) == ("<s>", "</s>", "<unk>")
    assert (config["add_bos_token"], config["model_max_length"], config["chat_template"]) == (True, 64, "T")
    assert HuggingFace.from_file(str(files[0])).encode("the").tokens == ["<s>", "▁the"]


def texts_have_the_same_ids(recordings, model, texts):
    ours = from_gguf(GGUF.open(recordings.model(model)).kv)
    theirs = HuggingFace.from_str(json.dumps(tokenizer_json(ours.vocab)))
    entries = recordings.json(f"tokens_{texts}")["entries"]
    texts = [entry["text"] for entry in entries if entry["text"] is not None]  # some are no UTF-8
    assert len(texts) >= 50
    for text in texts:
        assert theirs.encode(text).ids == ours.encode(text), text


def test_a_trained_vocabulary_gives_the_same_ids(kept):
    texts_have_the_same_ids(kept, "stories260K-F32", "tok512")


@pytest.mark.slow
@pytest.mark.parametrize(("model", "texts"), [("ggml-vocab-llama-spm", "spm32k"), ("ggml-vocab-llama-bpe", "bpe128k")])
def test_llamas_vocabularies_give_the_same_ids(whole, model, texts):
    texts_have_the_same_ids(whole, model, texts)
