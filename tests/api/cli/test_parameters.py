"""Options on the command line."""

import pytest

from numllama.api.cli.parameters import parse_parameters
from numllama.engine.errors import BadOptions


def test_values_are_converted_to_their_options_type():
    typed = ["temperature=0", "seed=7", "stop=a", "stop=b=c", "use_mmap=f", "temperature=0.5"]
    assert parse_parameters(typed) == {"temperature": 0.5, "seed": 7, "stop": ["a", "b=c"], "use_mmap": False}


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("bogus=1", "unknown parameter 'bogus'"),
        ("num_ctx=1.5", "invalid int value [1.5]"),
        ("top_p=x", "invalid float value [x]"),
        ("use_mmap=yes", "invalid bool value [yes]"),
        ("seed", "option 'seed' has no value; expected NAME=VALUE"),
    ],
)
def test_errors_have_ollamas_text(typed, message):
    with pytest.raises(BadOptions) as raised:
        parse_parameters([typed])
    assert str(raised.value) == message
