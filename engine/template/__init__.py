"""Chat templates: a conversation rendered as the prompt.

go       a TEMPLATE from an Ollama Modelfile, rendered as by Ollama
jinja    the template in the GGUF, rendered as by Hugging Face
chatml   the fallback without either, as in llama.cpp
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import BadTemplate
from ..go.text import valid_text
from . import go, jinja, tags
from .messages import Message, bare_prompt, chat_messages, collate, for_jinja, generate_messages, images_of, mark_images

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
    """

    text: str = ""
    language: Literal["jinja", "go", "chatml"] = "jinja"
    tool_use: str = ""
    special_tokens: Mapping[str, str] = field(default_factory=dict)

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

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        think: bool | str | None = None,
        **extra: Any,
    ) -> str:
        """Render the conversation as a prompt; `extra` is passed to render_jinja, `think` to the Go template.

        Raises: BadTemplate
        """
        if self.language == "go":
            return go.load_template(self.text).render(messages, tools, think)
        if self.language == "chatml":
            return _chatml(messages, add_generation_prompt, extra.get("continue_final_message", False))
        text = self.tool_use if tools and self.tool_use else self.text
        return jinja.render_jinja(text, messages, tools, add_generation_prompt, **{**self.special_tokens, **extra})

    def fill(self, prompt: str, suffix: str, think: bool | str | None = None) -> str:
        """Render a prompt for the text between `prompt` and `suffix`.  Raises: BadTemplate, also for Jinja"""
        if self.language != "go":
            raise BadTemplate("a suffix requires a Go template that uses .Suffix")
        return go.load_template(self.text).fill(prompt, suffix, think)

    @property
    def capabilities(self) -> list[str]:
        """Capabilities beyond plain text: some of tools, insert, thinking; Jinja is searched for keywords."""
        if self.language == "go":
            return self._go.capabilities if self._go else []
        tools = "tools" in self.text or "tool_call" in self.text
        splits = re.search(r"""content\.split\(['"]</think>['"]\)""", self.text)
        cuts = splits and "reasoning_content" not in self.text and "<SPECIAL_12>" not in self.text
        thinking = ("<think>" in self.text and "</think>" in self.text) or cuts
        return [capability for capability, has in (("tools", tools), ("thinking", thinking)) if has]

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
    def thinking_tags(self) -> tuple[str, str] | None:
        """The tags around the thinking in an answer, or None."""
        if self.language == "go":
            return self._go.thinking_tags if self._go and all(self._go.thinking_tags) else None
        return ("<think>", "</think>") if "thinking" in self.capabilities else None

    @property
    def tool_tag(self) -> str | None:
        """The text that tool calls begin with in an answer; None if they cannot be recognized."""
        if self.language == "go":
            return self._go.tool_tag if self._go else None
        return tags.tool_tag(self._render_probe)

    @property
    def call_form(self) -> tags.CallForm:
        """The form in which the template shows a tool call."""
        return tags.call_form(self._render_probe, self.tool_tag)

    def _render_probe(self, said: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        return self.render(said, tools, said[-1]["role"] == "user")

    @property
    def _go(self) -> go.GoTemplate | None:
        """The Go template, or None if it does not parse; rendering raises the error."""
        try:
            return go.load_template(self.text)
        except BadTemplate:
            return None


def _chatml(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, continue_final_message: bool) -> str:
    text = "".join(f"<|im_start|>{message['role']}\n{message.get('content', '')}<|im_end|>\n" for message in messages)
    if continue_final_message:
        return text.removesuffix("<|im_end|>\n")
    return text + "<|im_start|>assistant\n" * add_generation_prompt


def _special_tokens(kv: Mapping[str, Any]) -> dict[str, str]:
    tokens = kv.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        return {}
    ids = {name: kv.get(key) for name, key in SPECIAL_TOKENS.items()}
    return {name: tokens[i] for name, i in ids.items() if isinstance(i, int) and 0 <= i < len(tokens)}
