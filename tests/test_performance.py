"""The tables of docs/performance.md are those of the recorded runs."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("performance", ROOT / "scripts/performance.py")
performance = sys.modules["performance"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(performance)


def test_the_tables_with_verdicts_are_made_from_the_results():
    text = performance.PAGE.read_text()
    assert performance.rendered(text) == text, "python scripts/performance.py write"
    marked = [Path(name).name for name in re.findall(r"<!-- bench: (\S+) -->", text)]
    assert marked == [step.name for step in performance.STEPS]


def test_a_section_shows_the_command_the_verdicts_and_why_it_ended(tmp_path):
    header = {
        "type": "run",
        "schema": "numllama.bench/1",
        "run": "x",
        "part": "serve",
        "started": "2026-11-30T00:00:00",
    }
    header |= {"arguments": ["serve", "a=x", "--start", "a=one two", "--jsonl", "/secret/rows.jsonl", "--busy"]}
    header |= {"machine": {"cpu": "one", "cores": 2, "simd": "avx2"}, "contenders": {"a": {"commit": "0c1e"}, "b": {}}}
    lines = [header]
    for number in range(12):
        for name, seconds in (("a", 1.0), ("b", 2.0)):
            figures = {"e2e_p50": seconds * (1 + number / 1e3), "e2e_p90": seconds, "decode_tok_s": 9.0}
            line = {"type": "round", "run": "x", "cell": "1 client", "round": number, "contender": name}
            lines.append(line | {"figures": figures, "disturbance": {}, "disturbed": []})
    lines.append({"type": "end", "run": "x", "reason": "every verdict is known", "verdicts": []})
    path = tmp_path / "unreleased/name.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    page = (
        "before\n<!-- bench: unreleased/name -->\nold\n<!-- end -->\n<!-- bench: other -->\nkept\n<!-- end -->\nafter\n"
    )
    got = performance.rendered(page, tmp_path)
    assert "numllama bench serve a=x --start 'a=one two' --busy\n" in got and "secret" not in got and "old" not in got
    assert (
        "one, 2 cores, avx2; a: 0c1e; 2026-11-30." in got
        and "kept" in got
        and "stopped: every verdict is known." in got
    )
    rows = [line for line in got.splitlines() if line.startswith("| ") and "figure" not in line]
    assert len(rows) == 1 and "e2e p50, ms" in rows[0] and "slower" in rows[0]
    assert performance.rendered(got, tmp_path) == got
