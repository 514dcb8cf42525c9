"""The loop of a comparison: when it stops, what it records, what it resumes, and what a disturbed machine allows."""

from __future__ import annotations

import json
from itertools import count

import numpy as np
import pytest

from numllama.benchmarks import disturbance
from numllama.benchmarks.disturbance import Disturbance
from numllama.benchmarks.results import ResultsFile, read_runs
from numllama.benchmarks.rounds import Plan, RoundResult, Subject, draw_order, finish_run, run_rounds, verdicts_of
from numllama.engine.errors import RequestError

HEADER = {"part": "model", "settings": {}, "contenders": {"a": {}, "b": {}}, "machine": {}}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """A machine that nothing disturbs, whatever runs beside the tests."""
    monkeypatch.setattr(Disturbance, "reasons", property(lambda self: []))


def subject(name, speed, noise=0.01):
    rng = np.random.default_rng(len(name) + int(speed))
    return Subject(
        name, lambda cell, number: RoundResult({"tok_s": speed * float(np.exp(noise * rng.standard_normal()))})
    )


def words(results, plan=Plan()):  # noqa: B008
    return {v.cell: v.judgement.word for v in verdicts_of(results.run.rounds, results.run.contenders, plan)}


@pytest.mark.parametrize(("speed", "word"), [(100, "the same"), (120, "faster"), (80, "slower")])
def test_it_stops_when_the_verdict_is_known(speed, word):
    results = ResultsFile(None, HEADER)
    plan = Plan(within=0.05)
    assert run_rounds([subject("a", 100), subject("b", speed)], ["x"], plan, results) == "every verdict is known"
    assert words(results, plan) == {"x": word} and 8 <= len(results.run.rounds) / 2 < 40


def test_each_cell_stops_on_its_own():
    results = ResultsFile(None, HEADER)
    slow = iter(np.random.default_rng(0).standard_normal(10_000))
    b = Subject(
        "b", lambda cell, n: RoundResult({"tok_s": 150 if cell == "clear" else 103 * float(np.exp(0.08 * next(slow)))})
    )
    run_rounds([subject("a", 100), b], ["clear", "close"], Plan(budget_s=20), results)
    rounds = [line["cell"] for line in results.run.rounds]
    assert rounds.count("clear") == 16 < rounds.count("close")


def test_the_budget_ends_it(monkeypatch):
    ticks = count()
    monkeypatch.setattr("numllama.benchmarks.rounds.perf_counter", lambda: next(ticks))
    results = ResultsFile(None, HEADER)
    assert (
        run_rounds([subject("a", 100, 0.3), subject("b", 101, 0.3)], ["x"], Plan(5), results) == "the budget is spent"
    )
    assert words(results) == {"x": "cannot tell"}


def test_a_fixed_number_of_rounds_is_kept():
    results = ResultsFile(None, HEADER)
    assert run_rounds([subject("a", 100), subject("b", 120)], ["x"], Plan(rounds=6), results) == "the rounds are done"
    assert len(results.run.rounds) == 12 and words(results, Plan(rounds=6)) == {"x": "faster"}


def test_disturbed_rounds_are_repeated_and_a_busy_machine_allows_no_verdict(monkeypatch):
    lot = iter([["others used 2 cores"], [], [], []] * 1000)
    monkeypatch.setattr(Disturbance, "reasons", property(lambda self: next(lot)))
    results = ResultsFile(None, HEADER)
    run_rounds([subject("a", 100), subject("b", 120)], ["x"], Plan(), results)
    assert words(results) == {"x": "faster"} and len(results.run.rounds) == 2 * 16  # every second round is marked

    monkeypatch.setattr(Disturbance, "reasons", property(lambda self: ["others used 2 cores"]))
    busy = ResultsFile(None, HEADER)
    run_rounds([subject("a", 100), subject("b", 120)], ["x"], Plan(rounds=9), busy)
    (verdict,) = verdicts_of(busy.run.rounds, ["a", "b"], Plan(rounds=9))
    assert verdict.judgement.word == "cannot tell" and verdict.judgement.note == "18 of 18 rounds were disturbed"
    assert words(busy, Plan(rounds=18, busy=True)) == {"x": "faster"}


def test_unequal_work_allows_no_verdict():
    results = ResultsFile(None, HEADER)
    b = Subject(
        "b", lambda cell, n: RoundResult({"tok_s": 200}, unequal="b answered 29 of 64 tokens" if n == 3 else "")
    )
    run_rounds([subject("a", 100), b], ["x"], Plan(rounds=8), results)
    (verdict,) = verdicts_of(results.run.rounds, ["a", "b"], Plan(rounds=8))
    assert verdict.judgement.word == "cannot tell"
    assert verdict.judgement.note == "the work was not equal: b answered 29 of 64 tokens"


def test_one_failure_in_many_rounds_is_left_out():
    results = ResultsFile(None, HEADER)
    b = Subject("b", lambda cell, n: RoundResult({"tok_s": 200}, unequal="b: 1 of 4 requests failed" if n == 3 else ""))
    assert run_rounds([subject("a", 100), b], ["x"], Plan(rounds=11), results) == "the rounds are done"
    assert words(results, Plan(rounds=11)) == {"x": "faster"} and len(results.run.rounds) == 2 * 12


def test_rounds_end_early_if_no_verdict_is_possible():
    results = ResultsFile(None, HEADER)
    b = Subject("b", lambda cell, n: RoundResult({"tok_s": 200}, unequal="b answered 29 of 64 tokens"))
    run_rounds([subject("a", 100), b], ["x"], Plan(), results)
    assert len(results.run.rounds) == 2 * 5 and words(results) == {"x": "cannot tell"}


def test_every_second_round_reverses_the_order():
    orders = [draw_order(3, 7, "x", n) for n in range(400)]
    assert all(one == other[::-1] for one, other in zip(orders[::2], orders[1::2], strict=True))
    firsts = np.bincount([order[0] for order in orders])
    assert firsts.min() > 90  # of 400 / 3; by lot, so each contender is first about as often


def test_ctrl_c_keeps_complete_rounds_and_the_same_command_resumes(tmp_path):
    path = tmp_path / "rows.jsonl"

    def interrupted(cell, number):
        if number == 3:
            raise KeyboardInterrupt
        return RoundResult({"tok_s": 120.0 + number % 2})

    results = ResultsFile(path, HEADER)
    plan = Plan(rounds=8)
    assert run_rounds([subject("a", 100), Subject("b", interrupted)], ["x"], plan, results) == "interrupted"
    finish_run(results, "interrupted", plan)
    assert len(results.run.rounds) == 6 and results.run.end is None
    with open(path, "a") as file:
        file.write('{"type": "round", "half')  # as when the process is killed while it writes

    again = ResultsFile(path, HEADER)
    assert (
        again.is_resumed
        and run_rounds([subject("a", 100), subject("b", 120)], ["x"], plan, again) == "the rounds are done"
    )
    finish_run(again, "the rounds are done", plan)
    (run,) = read_runs([path])
    assert sorted({line["round"] for line in run.rounds}) == list(range(8)) and len(run.rounds) == 16
    assert run.end["verdicts"][0]["verdict"] == "faster"
    assert not ResultsFile(path, HEADER).is_resumed  # it has ended, so this is another run


def test_other_settings_are_another_run(tmp_path):
    ResultsFile(tmp_path / "x", HEADER)
    assert not ResultsFile(tmp_path / "x", HEADER | {"settings": {"answer": 2}}).is_resumed
    assert ResultsFile(tmp_path / "x", HEADER).is_resumed


@pytest.mark.parametrize(
    "line",
    ["nonsense", "[]", "{}", '{"type": "run", "schema": "other/9", "run": "x"}', '{"type": "round", "run": "x"}'],
)
def test_a_file_of_other_lines_is_refused_with_its_place(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(RequestError, match=r"rows.jsonl:2: not a line of numllama.bench/1: "):
        read_runs([path])


def test_lines_are_json_with_the_documented_fields(tmp_path):
    results = ResultsFile(tmp_path / "x", HEADER)
    run_rounds([subject("a", 100), subject("b", 120)], ["x"], Plan(rounds=6), results)
    header, *rounds = map(json.loads, (tmp_path / "x").read_text().splitlines())
    assert {"type", "schema", "run", "started", "part", "settings", "contenders", "machine"} <= header.keys()
    for line in rounds:
        assert {
            "type",
            "run",
            "at",
            "cell",
            "round",
            "order",
            "contender",
            "figures",
            "disturbance",
            "disturbed",
        } <= line.keys()


def test_others_are_measured_without_this_process_s_own_work(monkeypatch):
    busy, own, now = [0.0], [0.0], [100.0]
    monkeypatch.setattr(disturbance, "cpu_seconds_of_machine", lambda: (busy[0], 0.0))
    monkeypatch.setattr(disturbance, "own_cpu_seconds", lambda: own[0])
    monkeypatch.setattr(disturbance, "perf_counter", lambda: now[0])
    with disturbance.watch() as found:
        busy[0], own[0], now[0] = 3.0, 1.0, 102.0
    assert found.others == 1.0
    with disturbance.watch() as brief:  # too short to tell by itself, so the time before counts
        busy[0], now[0] = 3.001, 102.01
    assert brief.others == pytest.approx(2.001 / 2.01, abs=1e-3)


def test_where_processes_cannot_be_listed_a_process_has_no_descendants(monkeypatch, tmp_path):
    """macOS has no /proc."""
    monkeypatch.setattr(disturbance, "PROC", tmp_path / "proc")
    assert disturbance.process_tree([5]) == {5}
    assert disturbance.cpu_seconds_of(5) == 0


def test_the_limits_of_a_disturbance(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert Disturbance(others=0.3, steal=0.01, throttled=0, swapped=0.5).reasons == []
    reasons = Disturbance(others=0.5, steal=0.05, throttled=2, swapped=9.0).reasons
    assert reasons == ["others used 0.5 of 4 cores", "the hypervisor took 5%", "throttled 2 times", "9 MiB swapped"]
