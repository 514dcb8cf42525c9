import tracemalloc
from time import thread_time

import pytest

from numllama.engine.errors import BadTemplate
from numllama.engine.go import limits
from numllama.engine.template import go, jinja

HELLO = [{"role": "user", "content": "Hello"}]
NESTED = "{% set ns = namespace(t=[1]) %}{% for i in range(60) %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}"

HOSTILE = {
    "text by *": "{{ 'x' * 10**10 }}",
    "list by *": "{% for x in [1] * 10**9 %}{% endfor %}",
    "doubling": "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling by blocks": "{% set a = 'lol' %}" + "{% set a %}" + "{{ a }}" * 10 + "{% endset %}" + "{{ a * 10**7 }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "product": "{% set ns = namespace(n=9) %}{% for i in range(40) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops that write": "{% for i in range(9999) %}{% for j in range(9999) %}xxxx{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a list in itself": NESTED + "{{ ns.t }}",
    "the same as JSON": NESTED + "{{ ns.t | tojson }}",
    "the same compared": NESTED + "{{ ns.t == [1] }}",
    "replace": "{{ ('x' * 10000).replace('x', 'y' * 10000) }}",
    "replace filter": "{{ ('x' * 10000) | replace('x', 'y' * 10000) }}",
    "join": "{{ range(99999) | join('x' * 9999) }}",
    "join method": "{{ ('x' * 9999).join(['a'] * 9999) }}",
    "ljust": "{{ 'x'.ljust(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "translate": "{{ ('x' * 9999).translate({120: 'y' * 9999}) }}",
    "split": "{{ ('a,' * 900000).split(',') | length }}",
    "to_bytes": "{{ (1).to_bytes(10**9, 'big') | length }}",
    "format": "{{ '{:>1000000000}'.format('x') }}",
    "format with a width from a value": "{{ '{:{}}'.format('x', 10**9) }}",
    "percent": "{{ '%1000000000d' | format(1) }}",
    "percent with a width from a value": "{{ '%*d' % (10**9, 1) }}",
    "center": "{{ 'x' | center(10**9) }}",
    "indent": "{{ ('x\n' * 10000) | indent(10000) }}",
    "JSON's indent": "{{ messages | tojson(indent=10**9) }}",
    "JSON's separators": "{{ [[1]] * 9999 | tojson(separators=('x' * 9999, 'y')) }}",
    "batch": "{{ [1] | batch(10**9, 0) | list | length }}",
    "slice": "{{ [1] | slice(10**9) | list | length }}",
    "round": "{{ 1.5 | round(10**9) }}",
    "sum of lists": "{{ ([[1]] * 5000) | sum(start=[]) }}",
    "striptags": "{{ ('<!---->' * 99999) | striptags }}",
    "date": "{{ strftime_now('%A' * 99999) }}",
    "refusal": "{{ raise_exception('x' * 10**9) }}",
    "long text": "x" * 10**6,
    "many tokens": "{{x}}" * 8000,
    "many nodes": "{% macro m(a, b=1) %}{{ a }}{% endmacro %}" * 800,
    "deep expression": "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "long chain": "{{ x" + "|e" * 4000 + " }}",
    "methods of dict": "{% set _ = dict.update(messages[0], {'role': 'system'}) %}",
    "half a surrogate pair": "{{ '\\ud800' }}",
}


@pytest.fixture
def hurry(monkeypatch):
    monkeypatch.setattr(limits, "BASE_SECONDS", 0.1)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_fails_quickly_with_one_line(name, hurry):
    began = thread_time()
    with pytest.raises(BadTemplate) as caught:
        jinja.render_jinja(HOSTILE[name], HELLO)
    assert thread_time() - began < 1  # compiling comes on top of the limit
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_recorded_hostile_templates_fail_or_stay_within_limits(kept, hurry):
    for case in kept.json("jinja/hostile")["templates"]:
        text = case.get("template") or "".join(part * times for part, times in case["parts"])
        try:
            assert jinja.render_jinja(text, HELLO, bos_token="<s>", eos_token="</s>") in case.get("harmless", ()), text[
                :99
            ]
        except BadTemplate:
            pass


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{{ 'ab' ~ 1 ~ none ~ [1, 'a'] }}", "ab1None[1, 'a']"),
        ("{{ 'abcdef'[1:-1:2] }}{{ [1, 2, 3][::-1] }}", "bd[3, 2, 1]"),
        ("{{ 2 ** 10 + 3 * 4 % 5 }}{{ '%s-%03d' % ('a', 7) }}", "1026a-007"),
        ("{{ 'a,b'.split(',') | join('+') }}{{ '{:>4}|{x}'.format('r', x=1) }}", "a+b   r|1"),
        ("{% for x in 'abc' %}{{ loop.index }}{{ x }}{{ '.' if loop.last }}{% endfor %}", "1a2b3c."),
        ("{{ 1 < 2 <= 2 and 'a' in {'a': 1} }}{{ undefined_name }}", "True"),
        ("{{ [3, 1] | sort }}{{ messages | map(attribute='role') | list }}", "[1, 3]['user']"),
        ("{{ dict(a=1) }}{{ [[1], [2]] | sum(start=[]) }}{{ {'a': '<é>'} | tojson }}", '{\'a\': 1}[1, 2]{"a": "<é>"}'),
        ("{%- set ns = namespace(n=1) -%}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ ns }}", "2<Namespace {'n': 2}>"),
    ],
)
def test_the_budget_does_not_change_the_output(text, expected):
    assert jinja.render_jinja(text, HELLO) == expected


@pytest.mark.parametrize(
    "escapes", ["js (js (js (js (js .Prompt))))", "urlquery (js (html .Prompt))", "js | js | js | js"]
)
def test_escapes_of_a_long_text_are_charged_before_they_are_made(escapes):
    """`urlquery (js (html ...))` of 15 MB took 9.3 GB."""
    source = f"{{{{ {'.Prompt | ' if '|' in escapes else ''}{escapes} }}}}"
    prompt = "\\<" * 500_000
    tracemalloc.start()
    with pytest.raises(BadTemplate, match="makes far more text than the conversation has"):
        go.execute_template(source, {"Prompt": prompt})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * len(prompt)


def test_a_long_conversation_has_a_larger_budget():
    text = (
        "{% for m in messages %}{% for n in messages[::-1] %}{% if n.content.startswith('x') %}{% break %}{% endif %}"
    )
    text += "{% endfor %}{{ m.content | trim }}{% endfor %}"
    messages = [{"role": "user", "content": "x" * 10_000}] * 300
    assert len(jinja.render_jinja(text, messages)) == 3_000_000
