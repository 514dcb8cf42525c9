"""Named chat formats: their stop strings, and Go templates for files whose Jinja template does not run here.

A format is recognized by words in the Jinja text that no other format has.  Ollama instead compares edit distances to
37 stored texts and always uses its own template; here the model's own template is preferred.  Names and stop strings
are Ollama's.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..go.text import quote

Turn = tuple[str, str]  # the text before and after a message


@dataclass(frozen=True)
class NamedTemplate:
    """A chat format.

    words    words that identify it; a Jinja text in this format has all of them
    stop     strings at which generation stops
    user     text around the user's message; `{system}` is replaced by the system text if that has no turn of its own
    opens    text that the model's answer follows
    begins   text at the beginning of the prompt
    """

    name: str
    words: tuple[str, ...]
    stop: tuple[str, ...]
    system: Turn
    user: Turn
    assistant: Turn
    opens: str = ""
    begins: str = ""

    @property
    def template(self) -> str:
        """The format as a Go template."""
        before, after = self.user
        is_deferred = "{system}" in before
        if is_deferred:  # the system text is written with the next user message
            form = quote("%s".join(text.replace("%", "%%") for text in self.system))
            first, last = "{{ $system := `` }}", "{{ $system = `` }}"
            system = f"{{{{ if .Content }}}}{{{{ $system = printf {form} .Content }}}}{{{{ end }}}}"
        else:
            first, last = "", ""
            system = "{{ .Content }}".join(self.system)
        user = before.replace("{system}", "{{ $system }}") + "{{ .Content }}" + after + last
        return (
            f"{first}{self.begins}{{{{ range .Messages }}}}"
            f'{{{{ if eq .Role "system" }}}}{system}'
            f'{{{{ else if eq .Role "user" }}}}{user}'
            f'{{{{ else if eq .Role "assistant" }}}}{"{{ .Content }}".join(self.assistant)}'
            f"{{{{ end }}}}{{{{ end }}}}{self.opens}"
        )


def _tagged(before: str, after: str) -> tuple[Turn, Turn, Turn]:
    """Return the turns of a format whose tags contain the role's name."""
    system, user, assistant = (before.replace("role", role) for role in ("system", "user", "assistant"))
    return (system, after), (user, after), (assistant, after)


NAMED = [  # the first match wins
    NamedTemplate(
        "chatml",
        ("<|im_start|>",),
        ("<|im_start|>", "<|im_end|>"),
        *_tagged("<|im_start|>role\n", "<|im_end|>\n"),
        opens="<|im_start|>assistant\n",
    ),
    NamedTemplate(
        "llama3-instruct",
        ("<|start_header_id|>",),
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        *_tagged("<|start_header_id|>role<|end_header_id|>\n\n", "<|eot_id|>"),
        opens="<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    NamedTemplate(
        "phi-3",
        ("<|assistant|>", "<|end|>"),
        ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>"),
        *_tagged("<|role|>\n", "<|end|>\n"),
        opens="<|assistant|>\n",
    ),
    NamedTemplate(
        "zephyr",
        ("<|assistant|>", "eos_token"),
        ("<|system|>", "</s>", "<|user|>", "<|assistant|>"),
        *_tagged("<|role|>\n", "</s>\n"),
        opens="<|assistant|>\n",
    ),
    NamedTemplate(
        "openchat",
        ("GPT4 Correct",),
        ("<|end_of_turn|>",),
        ("GPT4 Correct System: ", "<|end_of_turn|>"),
        ("GPT4 Correct User: ", "<|end_of_turn|>"),
        ("GPT4 Correct Assistant: ", "<|end_of_turn|>"),
        opens="GPT4 Correct Assistant:",
    ),
    NamedTemplate(
        "llama2-chat",
        ("[INST]", "<<SYS>>"),
        ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
        ("\n", "\n"),
        ("<<SYS>>{system}<</SYS>>\n\n", " [/INST]"),
        (" ", "</s><s>[INST] "),
        begins="[INST] ",
    ),
    NamedTemplate(
        "mistral-instruct",
        ("[INST]",),
        ("<|im_start|>", "<|im_end|>"),  # as Ollama has them
        ("", "\n\n"),
        ("", "[/INST]"),
        (" ", "</s>[INST] "),
        begins="[INST] ",
    ),
    NamedTemplate(
        "gemma3-instruct",
        ("<start_of_turn>", "first_user_prefix"),
        ("<end_of_turn>",),
        ("", "\n\n"),
        ("<start_of_turn>user\n{system}", "<end_of_turn>\n"),
        ("<start_of_turn>model\n", "<end_of_turn>\n"),
        opens="<start_of_turn>model\n",
    ),
    NamedTemplate(
        "gemma-instruct",
        ("<start_of_turn>",),
        ("<start_of_turn>", "<end_of_turn>"),
        ("", "\n"),
        ("<start_of_turn>user\n{system}", "<end_of_turn>\n"),
        ("<start_of_turn>model\n", "<end_of_turn>\n"),
        opens="<start_of_turn>model\n",
    ),
    NamedTemplate(
        "command-r",
        ("<|START_OF_TURN_TOKEN|>",),
        ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        ("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        ("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        ("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        opens="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    ),
    NamedTemplate(
        "alpaca",
        ("### Instruction:",),
        ("### Instruction:", "### Response"),
        ("", "\n\n"),
        ("{system}### Instruction:\n", "\n\n"),
        ("### Response:\n", "\n\n"),
        opens="### Response:\n",
    ),
    NamedTemplate(
        "starcoder2-instruct",
        ("### Instruction",),
        ("### Instruction", "### Response", "<|endoftext|>"),
        ("", "\n\n"),
        ("{system}### Instruction\n", "\n\n"),
        ("### Response\n", "<|endoftext|>\n\n"),
        opens="### Response\n",
    ),
    NamedTemplate(
        "magicoder",
        ("@@ Instruction",),
        ("@@ Instruction", "@@ Response"),
        ("", "\n\n"),
        ("{system}@@ Instruction\n", "\n\n"),
        ("@@ Response\n", "\n\n"),
        opens="@@ Response\n",
    ),
    NamedTemplate(
        "solar-instruct",
        ("### System:", "### User:"),
        ("### System:", "### User:", "### Assistant"),
        ("### System:\n", "\n\n"),
        ("### User:\n", "\n\n"),
        ("### Assistant:\n", "</s>\n\n"),
        opens="### Assistant:\n",
    ),
    NamedTemplate(
        "codellama-70b-instruct",
        ("Source:", "<step>"),
        ("Source:", "Destination:", "<step>"),
        *_tagged("Source: role\n\n ", " <step> "),
        opens="Source: assistant\nDestination: user\n\n ",
    ),
    NamedTemplate(
        "granite-instruct",
        ("Question:", "Answer:"),
        ("System:", "Question:", "Answer:"),
        ("System:\n", "\n\n"),
        ("Question:\n", "\n\n"),
        ("Answer:\n", "\n\n"),
        opens="Answer:\n",
    ),
    NamedTemplate(
        "alfred",
        ("<start_user>",),
        ("<start_system>", "<end_message>", "<start_user>", "<start_assistant>"),
        *_tagged("<start_role>", "<end_message>"),
        opens="<start_assistant>",
    ),
    NamedTemplate(
        "falcon-instruct",
        ("User:", "Falcon:"),
        ("User:", "Assistant:"),
        ("System: ", "\n"),
        ("User:\n", "\n"),
        ("Falcon:\n", "\n"),
        opens="Falcon:\n",
    ),
    NamedTemplate(
        "chatqa",
        ("User: ", "Assistant: "),
        ("System:", "User:", "Assistant:", "<|begin_of_text|>"),
        ("System: ", "\n\n"),
        ("User: ", "\n\n"),
        ("Assistant: ", "\n\n"),
        opens="Assistant:",
    ),
    NamedTemplate(
        "vicuna",
        ("USER: ", "ASSISTANT: "),
        ("USER:", "ASSISTANT:"),
        ("", "\n\n"),
        ("{system}USER: ", "\n"),
        ("ASSISTANT: ", "</s>\n"),
        opens="ASSISTANT:",
    ),
]


def match(jinja: str) -> NamedTemplate | None:
    """Return the named format of a Jinja template, recognized by its words, or None."""
    return next((named for named in NAMED if all(word in jinja for word in named.words)), None)
