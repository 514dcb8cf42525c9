"""Chat templates: a conversation rendered as the prompt.

go       a TEMPLATE from an Ollama Modelfile, rendered as by Ollama
jinja    the template in the GGUF, rendered as by Hugging Face
chatml   the fallback without either, as in llama.cpp
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

from ..errors import BadTemplate
from ..gguf.strings import Strings
from ..go.text import WHITE_SPACE, valid_text
from ..parse.form import PLAIN_FORM, CallForm
from ..parse.found import Thoughts, shape_of
from ..parse.named import PARSERS
from ..parse.shape import Shape
from . import go, jinja
from .known import known_form, known_parser
from .messages import Message, bare_prompt, chat_messages, collate, for_jinja, generate_messages, images_of, mark_images
from .probe import Probed, probe
from .rendered_call import shared_suffix
from .renderer import RENDERERS, render_named, renderer_source

__all__ = [
    "Message",
    "Template",
    "bare_prompt",
    "chat_messages",
    "collate",
    "for_jinja",
    "generate_messages",
    "images_of",
    "mark_images",
]

SPECIAL_TOKENS = {  # a template's variable -> the GGUF's key of the token's id
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "sep_token": "tokenizer.ggml.seperator_token_id",
    "cls_token": "tokenizer.ggml.cls_token_id",
    "mask_token": "tokenizer.ggml.mask_token_id",
}


TOOL_RESULT_PATTERN = re.compile(r"""role['"]?\]?\s*==\s*['"]tool['"]|tool_response|tool_results|ipython""")


@dataclass(frozen=True)
class Template:
    """A model's chat template.

    tool_use        a second text that replaces `text` when tools are offered; some models have one
    special_tokens  bos_token, eos_token, ...: their text; a token that the vocabulary lacks is absent
    renderer        the name of the renderer that writes the prompts of conversations instead, or ""
    parser          the name of the parser that reads the answers; "" for what the prompts show
    """

    text: str = ""
    language: Literal["jinja", "go", "chatml"] = "jinja"
    tool_use: str = ""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    renderer: str = ""
    parser: str = ""

    @classmethod
    def from_gguf(cls, gguf: Any, go_text: str | None = None) -> Template:
        """Choose the template of a GGUF, given as an object or its key-values; `go_text` is the model's TEMPLATE layer.

        The layer is preferred, unless the GGUF's own template supports more.
        """
        kv: Mapping[str, Any] = getattr(gguf, "kv", gguf)
        layer = cls(go_text, "go") if go_text is not None else None
        text = kv.get("tokenizer.chat_template")
        if not isinstance(text, str) or not text:
            return layer or cls(language="chatml")
        tool_use = kv.get("tokenizer.chat_template.tool_use")
        tool_use = valid_text(tool_use) if isinstance(tool_use, str) else ""
        own = cls(valid_text(text), "jinja", tool_use, _special_tokens(kv))
        return layer if layer and not own.supports_more_than(layer) else own

    def named(self, renderer: str, parser: str) -> Template:
        """Return this template under a renderer and a parser, by their names or ""."""
        return replace(self, renderer=renderer, parser=parser)

    def check_names(self) -> None:
        """Check that the renderer and the parser are known.  Raises: BadTemplate"""
        for kind, name, known in (("renderer", self.renderer, RENDERERS), ("parser", self.parser, PARSERS)):
            if name and name not in known:
                raise BadTemplate(f'unknown {kind} "{name}"')

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        think: bool | str | None = None,
        **extra: Any,
    ) -> str:
        """Render the conversation as a prompt; `extra` is passed to render_jinja, `think` to a Go template or renderer.

        Raises: BadTemplate
        """
        if self.renderer:
            self.check_names()
            return render_named(self.renderer, messages, tools or (), think)
        if self.language == "go":
            effort = self.effort(think) if isinstance(think, str) else think
            return go.load_template(self.text).render(messages, tools, effort)
        if self.language == "chatml":
            return _chatml(messages, add_generation_prompt, extra.get("continue_final_message", False))
        text = self.tool_use if tools and self.tool_use else self.text
        return jinja.render_jinja(text, messages, tools, add_generation_prompt, **{**self.special_tokens, **extra})

    def mark_images(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Mark the places of images, unless a renderer does."""
        return messages if self.renderer else mark_images(messages)

    def fill(self, prompt: str, suffix: str, think: bool | str | None = None) -> str:
        """Render a prompt for the text between `prompt` and `suffix`.  Raises: BadTemplate, also for Jinja"""
        if self.language != "go":
            raise BadTemplate("a suffix requires a Go template that uses .Suffix")
        return go.load_template(self.text).fill(prompt, suffix, think)

    def effort(self, word: str) -> str:
        """Return the word for an effort in the prompts: gpt-oss knows none above "high"."""
        return "high" if word == "max" and self.parser_name == "harmony" else word

    @property
    def writes_bos(self) -> bool:
        """Whether the prompts may begin with the text of BOS."""
        return self.language == "jinja" or bool(self.renderer)

    @property
    def capabilities(self) -> list[str]:
        """Capabilities beyond plain text: some of tools, insert, thinking; Jinja is searched for keywords."""
        parser = PARSERS.get(self.parser)
        more = [("tools", parser.tools), ("thinking", parser.thinking)] if parser else []
        return list(dict.fromkeys([*self._own_capabilities, *(capability for capability, has in more if has)]))

    @property
    def _own_capabilities(self) -> list[str]:
        if self.language == "go":
            return self._go.capabilities if self._go else []
        tools = "tools" in self.text or "tool_call" in self.text
        shows = any(word in self.text for word in ("reasoning", "thinking")) and self.probed.thoughts
        thinking = self._names_thoughts or (self.language == "jinja" and shows)
        return [capability for capability, has in (("tools", tools), ("thinking", thinking)) if has]

    @property
    def thinks_by_choice(self) -> bool:
        """Whether the prompt differs where the model shall not think."""
        asked = [{"role": "user", "content": "u"}]
        try:
            if self.language == "jinja" and not self.renderer:
                prompts = {self.render(asked, enable_thinking=thinks) for thinks in (True, False)}
            else:
                prompts = {self.render(asked, think=thinks) for thinks in (True, False)}
        except BadTemplate:
            return False
        return len(prompts) == 2

    @property
    def _names_thoughts(self) -> bool:
        """Whether the text has <think> and </think>, or cuts what comes before </think>."""
        splits = re.search(r"""content\.split\(['"]</think>['"]\)""", self.text)
        cuts = splits and "reasoning_content" not in self.text and "<SPECIAL_12>" not in self.text
        return ("<think>" in self.text and "</think>" in self.text) or bool(cuts)

    @property
    def takes_results(self) -> bool:
        """Whether the template renders earlier tool calls and their results."""
        if self.language == "go":
            return bool(self._go and self._go.takes_results)
        return "tool_call" in self.text and TOOL_RESULT_PATTERN.search(self.text) is not None

    def supports_more_than(self, other: Template) -> bool:
        """Return whether this template supports tools or thinking, or renders tool results, where `other` does not.

        A template that renders tool results is never given up for one that does not.
        """
        mine, others = (sorted({"tools", "thinking"} & set(one.capabilities)) for one in (self, other))
        if self.takes_results != other.takes_results:
            return self.takes_results and (len(mine) > len(others) or (mine == others and "tools" in mine))
        return len(mine) > len(others)

    @property
    def thoughts(self) -> Thoughts | None:
        """The tags around the thinking in an answer, or None."""
        if self.renderer:
            shows = self.renderer in RENDERERS and "<think>" in renderer_source(RENDERERS[self.renderer].file)
            return self.probed.thoughts or (Thoughts("<think>", "</think>") if shows else None)
        if self.language == "go":
            tags = self._go.thinking_tags if self._go else ("", "")
            return Thoughts(*tags) if all(tags) else None
        if self.language == "chatml":
            return None
        return self.probed.thoughts or (Thoughts("<think>", "</think>") if self._names_thoughts else None)

    @property
    def tool_tag(self) -> str | None:
        """The text that tool calls in JSON begin with, for a Go template; None if it does not show them, or otherwise.

        Such calls are read as Ollama reads them; all others by their form.
        """
        if self.language != "go" or not self._go or self.renderer:
            return None
        form = self.probed.form
        return None if form and not form.is_json else self._go.tool_tag

    @property
    def call_form(self) -> CallForm:
        """The form in which the model writes a tool call."""
        if self.language == "chatml" and not self.renderer:
            return PLAIN_FORM
        return self.probed.form or known_form(self.text)

    @property
    def probed(self) -> Probed:
        """The form of calls and the tags of thoughts that the template shows."""
        tokens = tuple(sorted(self.special_tokens.items()))
        return _probed(self.text, self.language, self.tool_use, tokens, self.renderer)

    def answer_shape(self, prompt: str, think: bool | str | None, has_tools: bool, is_continued: bool) -> Shape | None:
        """Return the shape of the answer to `prompt`; None for a Go template, whose answers have tags.

        think         the request's; without thinking, its tags are text
        is_continued  the prompt ends within an answer
        """
        if name := self.parser_name:
            parser = PARSERS[name]
            return replace(parser.shape(think, is_continued, has_tools), tags=parser.tags)
        if self.language == "go" and not self.renderer and (not has_tools or self.tool_tag):
            return None
        thoughts = self.thoughts
        if thoughts and not think and not thoughts.text_open:
            thoughts = None
        is_open = bool(thoughts and think and thoughts.open and prompt.rstrip(WHITE_SPACE).endswith(thoughts.open))
        return shape_of(self.call_form if has_tools else None, thoughts, is_open)

    @property
    def parser_name(self) -> str:
        """The name of the parser of the answers; "" if the prompts show their shape.  Raises: BadTemplate"""
        self.check_names()
        return self.parser or (known_parser(self.text) if self.language == "jinja" and not self.renderer else "")

    @property
    def _go(self) -> go.GoTemplate | None:
        """The Go template, or None if it does not parse; rendering raises the error."""
        try:
            return go.load_template(self.text)
        except BadTemplate:
            return None


@lru_cache(maxsize=64)
def _probed(
    text: str,
    language: Literal["jinja", "go", "chatml"],
    tool_use: str,
    tokens: tuple[tuple[str, str], ...],
    renderer: str = "",
) -> Probed:
    template = Template(text, language, tool_use, dict(tokens), renderer)

    def render(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        text = template.render(messages, tools, messages[-1]["role"] == "user", think=True)
        if not renderer or messages[-1]["role"] != "assistant":
            return text
        asked = template.render(messages[:1], tools, think=True)  # a renderer may begin the next answer
        return text.removesuffix("<".join(["", *shared_suffix(asked, text).split("<")[1:]]))

    return probe(render)


def _chatml(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, continue_final_message: bool) -> str:
    text = "".join(f"<|im_start|>{message['role']}\n{message.get('content', '')}<|im_end|>\n" for message in messages)
    if continue_final_message:
        return text.removesuffix("<|im_end|>\n")
    return text + "<|im_start|>assistant\n" * add_generation_prompt


def _special_tokens(kv: Mapping[str, Any]) -> dict[str, str]:
    tokens = kv.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list | Strings):
        return {}
    ids = {name: kv.get(key) for name, key in SPECIAL_TOKENS.items()}
    return {name: tokens[i] for name, i in ids.items() if isinstance(i, int) and 0 <= i < len(tokens)}
