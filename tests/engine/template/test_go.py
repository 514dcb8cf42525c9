"""Go's text/template: worked cases, and the recorded output of Go 1.26 for 2,226 templates.

Numbers in brackets are those of docs/compatibility.md.
"""

import base64

import pytest

from numllama.engine.errors import BadTemplate
from numllama.engine.go import limits
from numllama.engine.go.parse import node_text, parse_template
from numllama.engine.template.go import execute_template

ADA = {
    "Name": "Ada",
    "Empty": "",
    "Age": 36,
    "Tags": ["x", "y"],
    "Nested": {"b": {"c": 1.5}, "a": "A"},
    "Null": None,
}


def go(text, data=ADA):
    """Return the template's output for JSON `data`, or the error text."""
    try:
        return execute_template(text, data)
    except BadTemplate as error:
        return str(error)


WORKED = {
    "the dot and its fields": {
        "Hi {{ .Name }}!": "Hi Ada!",
        "{{ .Nested.b.c }}": "1.5",
        "{{ .Age }} {{ 3 }} {{ 1e6 }} {{ 0x10 }} {{ 1_000 }} {{ 'a' }}": "36 3 1e+06 16 1000 97",
        "{{ .Tags }} {{ .Nested }} {{ .Null }} {{ .Missing }}": (
            "[x y] map[a:A b:map[c:1.5]] <no value> <no value>"  # a map prints in the order of its keys
        ),
        "{{ (index .Tags 0) }} {{ (.Nested).a }}": "x A",
        "{{ .Missing.Deeper }}": (
            'template: :1:11: executing "" at <.Missing.Deeper>: nil pointer evaluating interface {}.Deeper'
        ),
        "{{ .Name.First }}": (
            'template: :1:8: executing "" at <.Name.First>: can\'t evaluate field First in type interface {}'
        ),
        "{{ $n := .Name }}{{ $n.First }}": (  # a variable holds the value inside the interface
            'template: :1:22: executing "" at <$n.First>: can\'t evaluate field First in type string'
        ),
    },
    "what is true": {
        '{{ if 0 }}a{{ else if "" }}b{{ else if .Tags }}c{{ end }}': "c",
        "{{ if .Missing }}a{{ else }}b{{ end }}{{ if not .Null }}c{{ end }}": "bc",
        '{{ and 1 0 2 }} {{ or 0 "" "z" }} {{ and .Name .Age }}': "0 z 36",  # the operand that decides
        "{{ or .Name (index .Tags 99) }}": "Ada",  # which ends the evaluation
        '{{ eq "a" "b" "a" }} {{ ne .Name "Bob" }} {{ lt 1 2 }} {{ ge "b" "a" }}': "true true true true",
        "{{ eq .Age 36.0 }}": "true",
        "{{ eq 1 1.0 }}": (
            'template: :1:3: executing "" at <eq 1 1.0>: error calling eq: '
            "incompatible types for comparison: int and float64"
        ),
        "{{ eq .Age 36 }}": (  # a number from JSON is a float64
            'template: :1:3: executing "" at <eq .Age 36>: error calling eq: '
            "incompatible types for comparison: float64 and int"
        ),
    },
    "range": {
        "{{ range .Tags }}<{{ . }}>{{ end }}": "<x><y>",
        "{{ range $i, $t := .Tags }}{{ $i }}={{ $t }};{{ end }}": "0=x;1=y;",
        "{{ range $k, $v := .Nested }}{{ $k }} {{ end }}": "a b ",  # by key
        "{{ range 3 }}{{ . }}{{ end }} {{ range len .Tags }}{{ . }}{{ end }}": "012 01",
        "{{ range .Missing }}a{{ else }}none{{ end }}": "none",
        "{{ range .Tags }}{{ $.Name }}{{ break }}{{ end }}": "Ada",
        '{{ range .Tags }}{{ if eq . "x" }}{{ continue }}{{ end }}{{ . }}{{ end }}': "y",
        "{{ range .Name }}{{ end }}": 'template: :1:9: executing "" at <.Name>: range can\'t iterate over Ada',
    },
    "with": {
        "{{ with .Nested }}{{ .a }}{{ $.Name }}{{ end }}": "AAda",
        "{{ with .Empty }}a{{ else with .Name }}{{ . }}{{ else }}c{{ end }}": "Ada",
        "{{ with $x := .Nested.a }}{{ $x }}{{ end }}": "A",
    },
    "variables": {
        "{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}": "2",  # = assigns the outer variable
        "{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ end }}{{ $x }}": "1",  # := declares another one
        "{{ if $x := .Name }}{{ $x }}{{ end }}{{ $x }}": 'template: :1: undefined variable "$x"',
        "{{ $x, $y := .Tags }}": "template: :1: too many declarations in command",
    },
    "pipelines": {
        '{{ .Name | printf "%s-%s" "a" }}': "a-Ada",  # the piped value is the last argument
        '{{ "<&>" | html | len }}': "13",
        '{{ print "a" 1 2 "b" }}|{{ println 1 "a" }}': "a1 2b|1 a\n",  # a blank between two that are not strings
        '{{ slice "héllo" 1 3 }}{{ len "héllo" }}{{ index "abc" 1 }}': "é698",  # bytes, not characters
        '{{ index .Nested "b" "c" }}': "1.5",
        "{{ js `it's <b>` }} {{ urlquery `a b&c` }}": r"it\'s \u003Cb\u003E a+b%26c",
        '{{ json .Nested }}{{ json "<é>" }}{{ json 1000000 }}': '{"a":"A","b":{"c":1.5}}"\\u003cé\\u003e"1000000',
        '{{ "a" | "b" }}': "template: :1: non executable command in pipeline stage 2",
        "{{ len 3 }}": 'template: :1:3: executing "" at <len 3>: error calling len: len of type int',
    },
    "white space": {
        "a \n{{- .Name -}}\n b": "aAdab",
        "a {{- /* a comment */ -}} b": "ab",
        "{{ 3 -}} x {{- 4 }}": "3x4",
        "{{.Name -}} \n\t{{- .Name}}": "AdaAda",
        "{{-3}}": "-3",  # a number: the dash needs a blank after it
    },
    "templates": {
        '{{ define "t" }}<{{ . }}>{{ end }}{{ template "t" .Name }}{{ template "t" 1 }}': "<Ada><1>",
        '{{ block "b" .Nested }}{{ .a }}{{ end }}': "A",
        '{{ $x := 1 }}{{ define "t" }}{{ $x }}{{ end }}': 'template: :1: undefined variable "$x"',
        '{{ template "no" . }}': ('template: :1:12: executing "" at <{{template "no" .}}>: template "no" not defined'),
    },
    "printf": {
        '{{ printf "%v %s %q %d %5.2f|%-4s|%05d" .Tags .Name .Name 7 .Age "ab" 42 }}': (
            '[x y] Ada "Ada" 7 36.00|ab  |00042'
        ),
        '{{ printf "%d %s" .Name }}': "%!d(string=Ada) %!s(MISSING)",
        '{{ printf "%t" true 1 }}': "true%!(EXTRA int=1)",
        '{{ printf "%x %X %c %U %T" "hi" 255 97 10003 .Age }}': "6869 FF a U+2713 float64",
        '{{ printf "%[2]s %[1]s" "a" "b" }}': "b a",
        '{{ printf "%v %v" .Null 1.0 }}': "<nil> 1",
    },
    "what does not parse": {
        "{{ .Name": "template: :1: unclosed action",
        "{{ if }}": "template: :1: missing value for if",
        "{{ if 1 }}": "template: :1: unexpected EOF",
        "{{ end }}": "template: :1: unexpected {{end}}",
        "{{ foo }}": 'template: :1: function "foo" not defined',
        "a\n\n{{ .Name; }}": "template: :3: bad character U+003B ';'",
        "{{ break }}": "template: :1: {{break}} outside {{range}}",
        '{{ "a }}': "template: :1: unterminated quoted string",
        "{{ ( }}": "template: :1: unclosed left paren",
        "{{/* a": "template: :1: unclosed comment",
        "a\n{{ .Name\n\n": "template: :4: unclosed action started at :2",
        "{{ .Name\n .b-c }}": "template: :2: bad character U+002D '-' in action started at :1",
    },
}


@pytest.mark.parametrize("subject", WORKED)
def test_worked_cases(subject):
    """[172], [178], [179], [182]"""
    for text, expected in WORKED[subject].items():
        assert go(text) == expected, text


def test_templates_give_the_same_output_as_in_go(kept, freeze, monkeypatch):
    """Compare every output and every error with Go 1.26, including rare printf verbs and literals."""
    monkeypatch.setattr(limits, "BASE_SECONDS", 60)  # two templates call themselves 100,000 deep
    for case in kept.json("go/text_template"):
        freeze(case)
        expected = case.get("out", case.get("err"))
        if expected is None:
            expected = base64.b64decode(case["out_b64"]).decode("utf-8", "surrogateescape")
        assert go(case["t"], case["d"]) == expected, (case["id"], case["t"])


def test_a_separator_is_text_and_not_white_space():
    """Use U+001C, which str.strip removes but unicode.IsSpace rejects, so that a second definition is an error."""
    twice = '{{ define "t" }}%s{{ end }}{{ define "t" }}x{{ end }}{{ template "t" . }}'
    assert go(twice % "\u2003") == "x"
    assert "multiple definition" in go(twice % "\x1c")


def test_nodes_print_as_go_prints_them():
    text = '{{range  $i,$x:=.A|f (g .B "c") }}{{ (h).C }}{{template "t"  $x.D}}{{ .E  1.50 \'x\' nil . }}{{end}}'
    loop = parse_template(text, "fgh")[""].nodes[0]
    assert node_text(loop.pipe) == '$i, $x := .A | f (g .B "c")'
    assert [node_text(node) for node in loop.body.nodes] == [
        "{{(h).C}}",
        '{{template "t" $x.D}}',
        "{{.E 1.50 'x' nil .}}",
    ]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}", "nested deeper than 1000 blocks and parentheses"),
        ("{{ if 1 }}" * 5_000, "nested deeper than 1000 blocks and parentheses"),
        ("x" * 100_000, "at most 65536 are allowed"),
        ('{{ define "r" }}{{ template "r" . }}{{ end }}{{ template "r" . }}', "template"),
        ("{{ range 1000000000 }}{{ end }}", "takes longer than"),
        ('{{ $x := "ab" }}{{ range 100 }}{{ $x = print $x $x }}{{ end }}', "far more text than"),
        ('{{ $x := "ab" }}{{ range 100 }}{{ $x = printf "%s%s" $x $x }}{{ end }}', "far more text than"),
        ("{{ range 1000000 }}" + "x" * 100 + "{{ end }}", "far more text than"),
        ('{{ printf "%999999d%999999d%999999d" 1 1 1 }}', "far more text than"),
        ('{{ printf "%.999999f%.999999f%.999999f" 1.0 1.0 1.0 }}', "far more text than"),
    ],
)
def test_a_template_that_exceeds_its_limits_gives_a_clear_error(text, expected):
    assert expected in go(text, {})


def test_nesting_does_not_use_the_stack():
    depth = 900
    assert go("{{ " + "(" * depth + "len .Tags" + ")" * depth + " }}") == "2"
    assert go("{{ if 1 }}" * depth + "x" + "{{ end }}" * depth) == "x"
    assert go("{{ if 0 }}" + "{{ else if 0 }}" * depth + "{{ else }}y{{ end }}") == "y"


def test_data_nested_too_deeply_are_an_error():
    deep = []
    for _ in range(5000):
        deep = [deep]
    assert go("{{ . }}", deep) == "template: the data are nested too deeply"


PARSED_NUMBERS = {  # strconv/atof_test.go and unquote_test.go of Go 1.26
    "1_23.50_0_0e+1_2": "1.235e+14",
    "0x_1_2.3_4_5p+1_2": "74565",
    "-0x_12.345p+12": "-74565",
    "1_0.5i": "(0+10.5i)",
    "1_0+2_0i": "(10+20i)",
    "0x1p4+0x_1p1i": "(16+2i)",
    r"'\xFF'": "255",
    r"'\377'": "255",
    r"'\u00ff'": "255",
}


@pytest.mark.parametrize("text", PARSED_NUMBERS)
def test_numbers_are_parsed_by_strconv(text):
    assert go(f"{{{{ {text} }}}}") == PARSED_NUMBERS[text]


PARSE_ERRORS = {  # by the code of text/template/parse, Go 1.26
    # an underscore stands between two digits
    **{
        f"{{{{ {text} }}}}": f':1: illegal number syntax: "{text}"'
        for text in ("1__23.5", "123_.5", "123._5", "123.5_e+12", "123.5e_12", "123.5e+12_", "0x1_.8p1", "0x1.8")
    },
    "{{ 0_9 }}": ':1: integer overflow: "0_9"',
    "{{ 1e999 }}": ':1: illegal number syntax: "1e999"',
    # fmt.Sscan reads complex numbers
    "{{ 1+i }}": ':1: strconv.ParseFloat: parsing "+": invalid syntax',
    "{{ 1__0+2i }}": ':1: strconv.ParseFloat: parsing "1__0": invalid syntax',
    "{{ 1+1e999i }}": ':1: strconv.ParseFloat: parsing "+1e999": value out of range',
    "{{ 0b1+2i }}": ":1: syntax error scanning complex number",
    # an escaped byte is a number of its own
    r"{{ '\xc3\xa9' }}": r":1: malformed character constant: '\xc3\xa9'",
    r"{{ '\400' }}": ":1: invalid syntax",
    # a token longer than ten bytes, even of fewer characters, is followed by dots
    '{{ .A "\u65e5\u672c\u8a9e" "\u00e9\u00e9" \u00b7 }}': ":1: unrecognized character in action: U+00B7 '\u00b7'",
    "{{ template .\u65e5\u672c\u8a9e\u3066 }}": ':1: unexpected ".\u65e5\u672c\u8a9e\u3066"... in template clause',
    # an error is in the line of the newest token, even if that was put back
    "{{ $x\n 1 }}": ':2: undefined variable "$x"',
    # an else of a block is an error of the block's clause; the block's action is over in its body
    '{{ block "b" . }}\n{{ else }}\n{{ end }}': ":1: unexpected {{else}} in block clause",
    '{{ define "b" }}\n{{ else }}\n{{ end }}': ":2: unexpected {{else}} in define clause",
    '{{ block "b" . }}\n{{/* c': ":2: unclosed comment",
    "{{ if . }}\n{{/* c": ":2: unclosed comment in action started at :1",
}


@pytest.mark.parametrize("text", PARSE_ERRORS)
def test_parse_errors_have_gos_words_and_lines(text):
    assert go(text) == f"template: {PARSE_ERRORS[text]}"
