"""Chat templates that write tool calls in the ways of published models, written for the tests."""

# ruff: noqa: E501

FRAME = """\
{%- if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}<|assistant|>
BODY<|end|>
{%- else -%}<|{{ m.role }}|>{{ m.content }}<|end|>
{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}<|assistant|>
{% endif -%}"""
THINK = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
EACH = "{% for c in m.tool_calls or [] %}"
ITEMS = "{% for k, v in c.function.arguments.items() %}"
COMMA = "{{ ', ' if not loop.last }}"
ARGUMENTS = "{{ c.function.arguments | tojson }}"
TEXT_OR_JSON = "{{ v if v is string else v | tojson }}"
PYTHON = "{{ c.function.name }}(" + ITEMS + "{{ k }}={{ v | tojson }}" + COMMA + "{% endfor %})"
OBJECT = '{"name": "{{ c.function.name }}", "arguments": ' + ARGUMENTS + "}"
BRACES = """\
{%- macro value(v) -%}{%- if v is string -%}QUOTE{{ v }}QUOTE{%- elif v is boolean -%}{{ 'true' if v else 'false' }}
{%- elif v is mapping -%}{ {%- for k, x in v | dictsort -%}{{ k }}:{{ value(x) }}{{ ',' if not loop.last }}{%- endfor -%} }
{%- elif v is sequence -%}[{%- for x in v -%}{{ value(x) }}{{ ',' if not loop.last }}{%- endfor -%}]
{%- else -%}{{ v }}{%- endif -%}{%- endmacro -%}
MACRO{{ m.content }}{% for c in m.tool_calls or [] %}OPENcall:{{ c.function.name }}{
{%- for k, v in c.function.arguments | dictsort -%}{{ k }}:{{ value(v) }}{{ ',' if not loop.last }}{%- endfor -%}
}CLOSE{% endfor %}"""


def braces(quote, open, close):
    return BRACES.replace("QUOTE", quote).replace("OPEN", open).replace("CLOSE", close)


def listed(open, call, close, joint=COMMA):
    return "{{ m.content }}{% if m.tool_calls %}" + open + EACH + call + joint + "{% endfor %}" + close + "{% endif %}"


CODER = (
    "{{ m.content }}" + EACH + "\n<tool_call>\n<function={{ c.function.name }}>\n" + ITEMS
    + "<parameter={{ k }}>\n" + TEXT_OR_JSON + "\n</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}"
)  # fmt: skip
BODIES = {
    "one-tag": "{{ m.content }}" + EACH + "<call>" + OBJECT + "</call>{% endfor %}",
    "nested-function": "{{ m.content }}" + EACH + '<tool_call>{"id": "{{ c.id }}", "function": ' + OBJECT
    + "}</tool_call>{% endfor %}",
    "arguments-in-a-string": "{{ m.content }}" + EACH + '<call>{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson | tojson }}}</call>{% endfor %}",
    "internlm": "{{ m.content }}" + EACH + '<|action_start|><|plugin|>\n{"name": "{{ c.function.name }}", "parameters": '
    + ARGUMENTS + "}<|action_end|>\n{% endfor %}",
    "mistral-7": listed("[TOOL_CALLS] [", "{{ (c.function | tojson)[:-1] }}, \"id\": \"{{ c.id }}\"}", "]"),
    "jamba": listed("<tool_calls>[", OBJECT, "]</tool_calls>"),
    "granite-3": "{{ m.content }}{% if m.tool_calls %}<|tool_call|>"
    "{{ m.tool_calls | map(attribute='function') | list | tojson }}{% endif %}",
    "phi-4": listed("<|tool_call|>[", '{"type": "function", "function": ' + OBJECT + "}", "]<|/tool_call|>"),
    "command-r": listed("{{ '\n' }}Action:\n```json\n[\n", '    {\n        "tool_name": "{{ c.function.name }}",\n'
    '        "parameters": {{ c.function.arguments | tojson(indent=4) }}\n    }', "]```", "{{ ',' if not loop.last }}\n"),
    "command-r7b": "{% if m.tool_calls %}<|START_ACTION|>[\n" + EACH + '    {"tool_call_id": "{{ loop.index0 }}", '
    '"tool_name": "{{ c.function.name }}", "parameters": ' + ARGUMENTS + "}{{ ',' if not loop.last }}\n{% endfor %}]"
    "<|END_ACTION|>{% else %}<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>{% endif %}",
    "xlam": "{% if m.tool_calls %}[" + EACH + OBJECT + COMMA + "{% endfor %}]{% else %}{{ m.content }}{% endif %}",
    "name-is-the-key": listed("<|tools|>[", '{"{{ c.function.name }}": ' + ARGUMENTS + "}", "]<|end_tools|>"),
    "kimi-k2": listed("<|tool_calls_section_begin|>", "<|tool_call_begin|>functions.{{ c.function.name }}:"
    "{{ loop.index0 }}<|tool_call_argument_begin|>" + ARGUMENTS + "<|tool_call_end|>", "<|tool_calls_section_end|>", ""),
    "deepseek-r1": listed("<｜tool▁calls▁begin｜>", "{{ '\n' if not loop.first }}<｜tool▁call▁begin｜>{{ c.type }}"
    "<｜tool▁sep｜>{{ c.function.name }}\n```json\n" + ARGUMENTS + "\n```<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", ""),
    "deepseek-v3.1": listed("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>{{ c.function.name }}<｜tool▁sep｜>"
    + ARGUMENTS + "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", ""),
    "hunyuan": listed("<tool_calls>\n", "<tool_call>{{ c.function.name }}\n```json\n" + ARGUMENTS + "\n```\n</tool_call>\n",
    "</tool_calls>", ""),
    "mistral-ids": "{{ m.content }}" + EACH + "[TOOL_CALLS]{{ c.function.name }}[CALL_ID]{{ c.id }}[ARGS]" + ARGUMENTS
    + "{% endfor %}",
    "magistral": "{% if m.reasoning_content %}[THINK]{{ m.reasoning_content }}[/THINK]{% endif %}{{ m.content }}" + EACH
    + "[TOOL_CALLS]{{ c.function.name }}[ARGS]" + ARGUMENTS + "{% endfor %}",
    "solar": listed("<|tool_calls|>", "<|tool_call:begin|>{{ c.id }}<|tool_call:name|>{{ c.function.name }}"
    "<|tool_call:args|>" + ARGUMENTS + "<|tool_call:end|>", "", ""),
    "functionary-3.1": "{{ m.content }}" + EACH + "<function={{ c.function.name }}>" + ARGUMENTS + "</function>{% endfor %}",
    "functionary-3.2": "{{ m.content }}" + EACH + ">>>{{ c.function.name }}\n" + ARGUMENTS + "{% endfor %}",
    "arguments-as-text": "{{ m.content }}" + EACH + "<call>{{ c.function.name }}: {{ c.function.arguments + '' }}</call>"
    "{% endfor %}",
    "llama-4": listed("<|python_start|>[", PYTHON, "]<|python_end|>"),
    "lfm2": listed("<|tool_call_start|>[", PYTHON, "]<|tool_call_end|>"),
    "toolace": "{% if m.tool_calls %}[" + EACH + PYTHON + COMMA + "{% endfor %}]{% else %}{{ m.content }}{% endif %}",
    "olmo-3": listed("<function_calls>", PYTHON, "</function_calls>", "{{ '\n' if not loop.last }}"),
    "functiongemma": braces("<escape>", "<start_function_call>", "<end_function_call>"),
    "gemma-4": braces('<|"|>', "<|tool_call>", "<tool_call|>"),
    "qwen3-coder": CODER,
    "qwen3.5": THINK + CODER,
    "seed-oss": "{{ m.content }}" + EACH + "<seed:tool_call>\n<function={{ c.function.name }}>\n" + ITEMS
    + "<parameter={{ k }}>{{ v }}</parameter>\n{% endfor %}</function>\n</seed:tool_call>{% endfor %}",
    "glm-4.5": "\n" + THINK + "{{ m.content }}" + EACH + "\n<tool_call>{{ c.function.name }}\n" + ITEMS
    + "<arg_key>{{ k }}</arg_key>\n<arg_value>" + TEXT_OR_JSON + "</arg_value>\n{% endfor %}</tool_call>{% endfor %}",
    "minimax-m2": listed("\n<minimax:tool_call>\n", '<invoke name="{{ c.function.name }}">\n' + ITEMS
    + '<parameter name="{{ k }}">' + TEXT_OR_JSON + "</parameter>\n{% endfor %}</invoke>\n", "</minimax:tool_call>", ""),
    "deepseek-v3.2": listed("\n\n<｜DSML｜function_calls>\n", '<｜DSML｜invoke name="{{ c.function.name }}">\n' + ITEMS
    + """<｜DSML｜parameter name="{{ k }}" string="{{ 'true' if v is string else 'false' }}">""" + TEXT_OR_JSON
    + "</｜DSML｜parameter>\n{% endfor %}</｜DSML｜invoke>\n", "</｜DSML｜function_calls>", ""),
    "step": listed("<｜tool_calls_begin｜>", '<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="'
    '{{ c.function.name }}">' + ITEMS + '<steptml:parameter name="{{ k }}">' + TEXT_OR_JSON + "</steptml:parameter>"
    "{% endfor %}</steptml:invoke><｜tool_call_end｜>", "<｜tool_calls_end｜>", ""),
    "keys-are-tags": "{{ m.content }}" + EACH + "<call><{{ c.function.name }}>" + ITEMS + "<{{ k }}>" + TEXT_OR_JSON
    + "</{{ k }}>{% endfor %}</{{ c.function.name }}></call>{% endfor %}",
}  # fmt: skip
MACROS = {name: body.rpartition("MACRO") for name, body in BODIES.items()}
TEMPLATES = {name: macro + FRAME.replace("BODY", body) for name, (macro, _, body) in MACROS.items()}
