"""Named chat formats: their stop strings and Go templates, which a new model gets with its Jinja template.

A format is recognized by words in the Jinja text that no other format has, and by its length.  Ollama instead compares
edit distances to 37 stored texts, of which the least must be below 100.  A longer text writes something else as well,
such as tools, and stays.  Names, stop strings and lengths are Ollama's.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..go.text import quote

MAX_DISTANCE = 100  # characters by which two texts of one format differ, as in Ollama
Turn = tuple[str, str]  # the text before and after a message


@dataclass(frozen=True)
class NamedTemplate:
    """A chat format.

    words    words that identify it; a Jinja text in this format has all of them
    lengths  characters of the Jinja texts that are known to be in this format
    stop     strings at which generation stops
    user     text around the user's message; `{system}` is replaced by the system text if that has no turn of its own
    opens    text that the model's answer follows
    begins   text at the beginning of the prompt
    """

    name: str
    words: tuple[str, ...]
    lengths: tuple[int, ...]
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
        if (self.system, self.user, self.assistant) == _tagged(before.replace("user", "role"), after):
            tag = before.replace("user", "{{ .Role }}")
            return f"{self.begins}{{{{- range .Messages }}}}{tag}{{{{ .Content }}}}{after}{{{{ end }}}}{self.opens}"
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
        (196, 209, 291, 306, 327, 328, 358, 441, 450, 629, 1842),
        ("<|im_start|>", "<|im_end|>"),
        *_tagged("<|im_start|>role\n", "<|im_end|>\n"),
        opens="<|im_start|>assistant\n",
    ),
    NamedTemplate(
        "llama3-instruct",
        ("<|start_header_id|>",),
        (389, 4614),
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        *_tagged("<|start_header_id|>role<|end_header_id|>\n\n", "<|eot_id|>"),
        opens="<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    NamedTemplate(
        "phi-3",
        ("<|assistant|>", "<|end|>"),
        (218, 254, 269),
        ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>"),
        *_tagged("<|role|>\n", "<|end|>\n"),
        opens="<|assistant|>\n",
    ),
    NamedTemplate(
        "zephyr",
        ("<|assistant|>", "eos_token"),
        (306, 410),
        ("<|system|>", "</s>", "<|user|>", "<|assistant|>"),
        *_tagged("<|role|>\n", "</s>\n"),
        opens="<|assistant|>\n",
    ),
    NamedTemplate(
        "openchat",
        ("GPT4 Correct",),
        (222,),
        ("<|end_of_turn|>",),
        ("GPT4 Correct System: ", "<|end_of_turn|>"),
        ("GPT4 Correct User: ", "<|end_of_turn|>"),
        ("GPT4 Correct Assistant: ", "<|end_of_turn|>"),
        opens="GPT4 Correct Assistant:",
    ),
    NamedTemplate(
        "llama2-chat",
        ("[INST]", "<<SYS>>"),
        (813, 815),
        ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
        ("\n", "\n"),
        ("<<SYS>>{system}<</SYS>>\n\n", " [/INST]"),
        (" ", "</s><s>[INST] "),
        begins="[INST] ",
    ),
    NamedTemplate(
        "mistral-instruct",
        ("[INST]",),
        (470, 477),
        ("<|im_start|>", "<|im_end|>"),  # as Ollama has them
        ("", "\n\n"),
        ("", "[/INST]"),
        (" ", "</s>[INST] "),
        begins="[INST] ",
    ),
    NamedTemplate(
        "gemma3-instruct",
        ("<start_of_turn>", "first_user_prefix"),
        (1532,),
        ("<end_of_turn>",),
        ("", "\n\n"),
        ("<start_of_turn>user\n{system}", "<end_of_turn>\n"),
        ("<start_of_turn>model\n", "<end_of_turn>\n"),
        opens="<start_of_turn>model\n",
    ),
    NamedTemplate(
        "gemma-instruct",
        ("<start_of_turn>",),
        (591,),
        ("<start_of_turn>", "<end_of_turn>"),
        ("", "\n"),
        ("<start_of_turn>user\n{system}", "<end_of_turn>\n"),
        ("<start_of_turn>model\n", "<end_of_turn>\n"),
        opens="<start_of_turn>model\n",
    ),
    NamedTemplate(
        "command-r",
        ("<|START_OF_TURN_TOKEN|>",),
        (1204,),
        ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        ("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        ("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        ("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        opens="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    ),
    NamedTemplate(
        "alpaca",
        ("### Instruction:",),
        (1041,),
        ("### Instruction:", "### Response"),
        ("", "\n\n"),
        ("{system}### Instruction:\n", "\n\n"),
        ("### Response:\n", "\n\n"),
        opens="### Response:\n",
    ),
    NamedTemplate(
        "starcoder2-instruct",
        ("### Instruction",),
        (574,),
        ("### Instruction", "### Response", "<|endoftext|>"),
        ("", "\n\n"),
        ("{system}### Instruction\n", "\n\n"),
        ("### Response\n", "<|endoftext|>\n\n"),
        opens="### Response\n",
    ),
    NamedTemplate(
        "magicoder",
        ("@@ Instruction",),
        (571,),
        ("@@ Instruction", "@@ Response"),
        ("", "\n\n"),
        ("{system}@@ Instruction\n", "\n\n"),
        ("@@ Response\n", "\n\n"),
        opens="@@ Response\n",
    ),
    NamedTemplate(
        "solar-instruct",
        ("### System:", "### User:"),
        (409,),
        ("### System:", "### User:", "### Assistant"),
        ("### System:\n", "\n\n"),
        ("### User:\n", "\n\n"),
        ("### Assistant:\n", "</s>\n\n"),
        opens="### Assistant:\n",
    ),
    NamedTemplate(
        "codellama-70b-instruct",
        ("Source:", "<step>"),
        (531,),
        ("Source:", "Destination:", "<step>"),
        *_tagged("Source: role\n\n ", " <step> "),
        opens="Source: assistant\nDestination: user\n\n ",
    ),
    NamedTemplate(
        "granite-instruct",
        ("Question:", "Answer:"),
        (376,),
        ("System:", "Question:", "Answer:"),
        ("System:\n", "\n\n"),
        ("Question:\n", "\n\n"),
        ("Answer:\n", "\n\n"),
        opens="Answer:\n",
    ),
    NamedTemplate(
        "alfred",
        ("<start_user>",),
        (533,),
        ("<start_system>", "<end_message>", "<start_user>", "<start_assistant>"),
        *_tagged("<start_role>", "<end_message>"),
        opens="<start_assistant>",
    ),
    NamedTemplate(
        "falcon-instruct",
        ("User:", "Falcon:"),
        (340, 356),
        ("User:", "Assistant:"),
        ("System: ", "\n"),
        ("User:\n", "\n"),
        ("Falcon:\n", "\n"),
        opens="Falcon:\n",
    ),
    NamedTemplate(
        "chatqa",
        ("User: ", "Assistant: "),
        (459, 690),
        ("System:", "User:", "Assistant:", "<|begin_of_text|>"),
        ("System: ", "\n\n"),
        ("User: ", "\n\n"),
        ("Assistant: ", "\n\n"),
        opens="Assistant:",
    ),
    NamedTemplate(
        "vicuna",
        ("USER: ", "ASSISTANT: "),
        (),
        ("USER:", "ASSISTANT:"),
        ("", "\n\n"),
        ("{system}USER: ", "\n"),
        ("ASSISTANT: ", "</s>\n"),
        opens="ASSISTANT:",
    ),
]


def match(jinja: str) -> NamedTemplate | None:
    """Return the format that a Jinja template is like, by its words and its length, or None."""
    named = match_words(jinja)
    return named if named and any(abs(len(jinja) - n) < MAX_DISTANCE for n in named.lengths) else None


def match_words(jinja: str) -> NamedTemplate | None:
    """Return the format whose words a Jinja template has, whatever else it writes, or None."""
    return next((named for named in NAMED if all(word in jinja for word in named.words)), None)
