r"""Pre-tokenizers, named by `tokenizer.ggml.pre`: how byte-level BPE splits text into words before merging.

Merges never cross a split, so this is all that BPE needs to know about a model.  Each expression is applied in turn to
every word left by the one before.  A match becomes a word, and so does the text between two matches ("isolated").

    gpt-2         "Hello world, 1234!"   ->   Hello| world|,| 1234|!
    llama-bpe     "Hello world, 1234!"   ->   Hello| world|,| |123|4|!

Source: the case statement in llama.cpp's src/llama-vocab.cpp, commit 0c1e57098, and its interpretation in
src/unicode.cpp, where \p{Lu} and \p{Ll} mean \p{L}, as they are written here.  `tokenizers` (Oniguruma) and `regex`
agree on these expressions except for code points newer than Unicode 16.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Pre:
    """A pre-tokenizer: the splits, and llama.cpp's defaults for a file that names it.

    split           expressions, applied in turn
    ignore_merges   a word that is itself a piece becomes that token, whatever the merges
    add_bos         default if the file has no such key
    clean_spaces    detokenizing removes the blank before  . , ! ? 's 'm 're 've
    byte_level      pieces are in GPT-2's alphabet of bytes; otherwise in UTF-8 with U+2581 for blanks
    has_bos         without a bos_token_id, token 11 is BOS (llama.cpp's default for this kind of vocabulary)
    """

    split: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    clean_spaces: bool = True
    byte_level: bool = True
    has_bos: bool = True


# 's 't 're 've 'm 'll 'd in either case, spelt out: (?i:) would also match the long s, which llama.cpp does not
_SHORT = r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _TAIL
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_ASCII_SIGNS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = _SHORT + "|" + _WORD + r"|\p{N}{1,3}" + _SIGNS
_QWEN2 = _SHORT + "|" + _WORD + r"|\p{N}" + _SIGNS
_MARKED = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+(?:{_SHORT})?"
_SLASHES = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _TAIL


def _camel(letter: str, suffix: str = "") -> str:
    """Build an expression that splits before a capital after an ASCII small letter: `fooBar` -> foo|Bar.

    Each word includes one sign before it.
    """
    small, capital = rf"(?:(?={letter})[^A-Z])", rf"(?:(?={letter})[^a-z])"
    sign = r"[^\r\n\p{L}\p{N}]?"
    return f"{sign}{capital}*{small}+{suffix}|{sign}{capital}+{small}*{suffix}"


_GPT4O = _camel(r"\p{L}", f"(?:{_SHORT})?") + r"|\p{N}{1,3}" + _SLASHES
_DEEPSEEK3_WORDS = _ASCII_SIGNS + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_HAN_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
# digits in groups of three from the right; text before digits stays with the first group, other text is a word
_THREES = r"\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|\P{N}+"
_LINES = r"[^\n]+|\n+"

# cased letters, as listed in DeepSeek's tokenizer.json
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-"
    "\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
# excludes white space such as U+2028 in the range, because llama.cpp maps it to U+000B before such expressions
_DEEPSEEK_CJK = r"(?:(?!\s)[\u0800-\u9fa5\uac00-\ud7ff])+"

_GPT2_WORDS = Pre((_GPT2,))
_STARCODER = Pre((r"\p{N}", _GPT2))
_LLAMA3_WORDS = Pre((_LLAMA3,), ignore_merges=True, add_bos=True)
_QWEN2_WORDS = Pre((_QWEN2,), clean_spaces=False)
_GPT4O_WORDS = Pre((_GPT4O,), clean_spaces=False)
_DEEPSEEK3 = Pre((r"\p{N}{1,3}", _HAN_KANA, _DEEPSEEK3_WORDS + r"| ?[\p{P}\p{S}]+[\r\n]*" + _TAIL), clean_spaces=False)
_BLOOM = Pre((" ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+",))
_BAILING = Pre(
    (
        r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|" + _WORD + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+",
    ),
    clean_spaces=False,
)
_GEMMA4 = Pre((_LINES,), byte_level=False)

# a file without `pre`, or with "default"
DEFAULT = Pre((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))

PRE: dict[str, Pre] = {
    "default": DEFAULT,
    **dict.fromkeys(
        "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe a.x-4.0 mellum "
        "modern-bert mpt olmo jais exaone4".split(),
        _GPT2_WORDS,
    ),
    **dict.fromkeys(["trillion", "granite-docling"], replace(_GPT2_WORDS, clean_spaces=False)),
    **dict.fromkeys("starcoder refact codeshell exaone minerva-7b mellum2".split(), _STARCODER),
    **dict.fromkeys(["command-r", "smollm"], replace(_STARCODER, clean_spaces=False)),
    "falcon": Pre((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    **dict.fromkeys(
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano".split(), _LLAMA3_WORDS
    ),
    **dict.fromkeys(["dbrx", "smaug-bpe"], Pre((_LLAMA3,))),
    "chatglm-bpe": Pre((_LLAMA3,), has_bos=False),
    **dict.fromkeys(["glm4", "glm5"], Pre((_LLAMA3,), ignore_merges=True, has_bos=False)),
    "jais-2": Pre(
        (
            _LLAMA3.removesuffix(r"|\s+(?!\S)|\s+")
            + "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
            + r"|\s{1,2}(?!\S)|\s{1}",
        )
    ),
    "minicpm5": Pre((r"\p{N}{1,3}", _SHORT + "|" + _WORD + r"|\p{N}+" + _SIGNS), ignore_merges=True),
    **dict.fromkeys(
        "qwen2 deepseek-r1-qwen kormo f2llmv2 hunyuan solar-open grok-2".split(),
        _QWEN2_WORDS,
    ),
    **dict.fromkeys(["stablelm2", "megrez"], replace(_QWEN2_WORDS, clean_spaces=True)),
    "qwen35": Pre(
        (_SHORT + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _TAIL,), clean_spaces=False
    ),
    "ufakzeka": Pre((_WORD + r"|\p{N}" + _SIGNS,), clean_spaces=False),
    "seed-coder": Pre((_SHORT + "|" + _WORD + r"|\p{N}| ?[^\s\p{L}\p{N}\r\n]+" + _TAIL,), clean_spaces=False),
    "laguna": Pre((_LINES, _QWEN2), clean_spaces=False),
    "exaone-moe": Pre(
        (
            _SHORT + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
            r"|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    **dict.fromkeys(["bailingmoe", "bailingmoe2", "llada-moe"], _BAILING),
    **dict.fromkeys(["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], _GPT4O_WORDS),
    "granite-embed-multi-97m": Pre(
        (_camel(r"[\p{L}\p{M}]", f"(?:{_SHORT})?") + r"|\p{N}{1,3}" + _SLASHES,), ignore_merges=True, clean_spaces=False
    ),
    "tekken": Pre((_camel(r"\p{L}") + r"|\p{N}" + _SLASHES,), ignore_merges=True, add_bos=True, clean_spaces=False),
    **dict.fromkeys(
        ["tiny_aya", "cohere2moe"], Pre((_THREES, _MARKED + r"|\p{N}{1,3}" + _SLASHES), clean_spaces=False)
    ),
    "youtu": Pre(
        (
            "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c"
            "\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _HAN_KANA,
            _MARKED + r"|\p{N}" + _SLASHES,
        ),
        ignore_merges=True,
        clean_spaces=False,
    ),
    "deepseek-llm": Pre(
        (
            "[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001-\u3002]+",
            r"\s+$",
            _DEEPSEEK_CJK,
            r"\p{N}+",
        ),
        clean_spaces=False,
    ),
    "deepseek-coder": Pre(
        ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}"),
        clean_spaces=False,
    ),
    **dict.fromkeys(["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], _DEEPSEEK3),
    "spark2_5": Pre(
        (
            r"\p{N}{1,3}",
            _HAN_KANA,
            _DEEPSEEK3_WORDS + r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+",
            r"\p{N}",
        ),
        clean_spaces=False,
    ),
    "chameleon": Pre(
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            "([\\t\\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
        clean_spaces=False,
    ),
    **dict.fromkeys(["bloom", "gpt3-finnish"], _BLOOM),
    "poro-chat": replace(_BLOOM, clean_spaces=False),
    "viking": Pre((*_BLOOM.split, r"\p{N}"), clean_spaces=False),
    **dict.fromkeys(["gemma4", "granite-embed-multi-311m"], _GEMMA4),
    "sarvam-moe": replace(_GEMMA4, clean_spaces=False),
}
