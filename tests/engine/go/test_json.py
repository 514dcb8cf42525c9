"""JSON as it is written: what orjson refuses is written too."""

import json

import numpy as np
import pytest

from numllama.engine.go.json import dumps


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [2**64, -(2**63) - 1, nested(300), {"a": [2**70, "é<", np.float32(0.5), np.arange(2)]}]
)
def test_what_orjson_refuses_is_written_as_python_writes_it(value):
    expected = {"a": [2**70, "é<", 0.5, [0, 1]]} if isinstance(value, dict) else value
    assert json.loads(dumps(value)) == expected
    assert b"<" not in dumps(value) and b" " not in dumps(value)


def test_a_lone_surrogate_becomes_a_replacement_character():
    assert dumps({"\ud800": "a\udc80"}) == '{"\ufffd":"a\ufffd"}'.encode()
