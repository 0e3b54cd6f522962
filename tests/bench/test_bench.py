"""The harness itself: it tells the truth on clocks made for it, and its page is well-formed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel import Engine
from tests import models
from tests.bench import loops, report, rows_health
from tests.bench.__main__ import main
from tests.bench.kit import Kit
from tests.bench.measure import LEAST_CALLS, QUICK, Loop, Spread, calls_in, paired
from tests.bench.report import Measured, Outcome, Row, SkipRow, page
from tests.bench.rows import ROWS
from tests.bench.run import run


class Machine:
    """A clock that only its loops move, at `speed`, and that loses `stall` seconds in every n-th block."""

    def __init__(self, stall: float = 0.0, every: int = 3) -> None:
        self.now, self.speed, self.blocks = 0.0, 1.0, 0
        self.stall, self.every = stall, every

    def clock(self) -> float:
        return self.now

    def loop(self, seconds: float) -> Loop:
        def run_calls(calls: int) -> None:
            self.blocks += 1
            self.now += calls * seconds / self.speed
            if self.blocks % self.every == 0:
                self.now += self.stall

        return run_calls


times = st.floats(1e-6, 1e-2)


@given(times, times, st.integers(1, 300), st.integers(1, 300))
def test_a_ratio_is_that_of_the_costs_a_step(a: float, b: float, a_steps: int, b_steps: int) -> None:
    machine = Machine()
    found = paired(
        machine.loop(a), machine.loop(b), QUICK, a_steps=a_steps, b_steps=b_steps, clock=machine.clock
    )
    np.testing.assert_allclose(found.a.median, a / a_steps, rtol=1e-6)
    np.testing.assert_allclose(found.ratio.median, a * b_steps / (b * a_steps), rtol=1e-6)


def test_stalls_of_the_machine_do_not_reach_the_ratio() -> None:
    machine = Machine(stall=0.5)
    found = paired(machine.loop(2e-5), machine.loop(1e-5), QUICK, clock=machine.clock)
    np.testing.assert_allclose(found.ratio.high, 2, rtol=1e-6)


def test_a_machine_that_slows_down_does_not_reach_the_ratio() -> None:
    machine = Machine()
    steady, other = machine.loop(3e-5), machine.loop(1e-5)

    def slowing(calls: int) -> None:
        machine.speed *= 0.9995
        steady(calls)

    found = paired(slowing, other, replace(QUICK, rounds=400), clock=machine.clock)
    assert found.a.high > 1.2 * found.a.low  # the machine did slow down
    np.testing.assert_allclose(found.ratio.median, 3, rtol=0.01)


@given(st.floats(1e-7, 1.0), st.floats(1e-4, 1.0))
def test_a_block_lasts_as_long_as_asked(call: float, seconds: float) -> None:
    machine = Machine()
    calls = calls_in(machine.loop(call), seconds, machine.clock)
    assert calls * call >= 0.999 * seconds
    assert calls == LEAST_CALLS or calls * call <= 2 * seconds + call
    assert calls >= LEAST_CALLS


def test_loops_that_differ_are_not_compared() -> None:
    steady: Loop = lambda _: np.ones(3)  # noqa: E731 - a loop in one line
    loops.agree(steady, lambda _: np.ones(3) + 1e-6)
    with pytest.raises(AssertionError, match="no ratio means anything"):
        loops.agree(steady, lambda _: np.ones(3) + 1e-3)
    with pytest.raises(AssertionError, match="no ratio means anything"):
        loops.agree(steady, lambda _: np.ones(4))


def _row(name: str = "r", bar: float | None = 0.5, measure: object = None) -> Row:
    return Row(name, "what", "How.", measure, bar)  # type: ignore[arg-type]


def _rows_of_table(text: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_the_page_says_what_was_met_missed_skipped_and_failed() -> None:
    outcomes = [
        Outcome(_row(), Measured(Spread(0.5, 0.4, 0.6), [("beside", "1 µs")])),
        Outcome(_row(), Measured(Spread(0.501, 0.4, 0.6)), hot=["- 90% `f`"]),
        Outcome(_row(), skipped="nothing to hear"),
        Outcome(_row(), failed="ValueError: no"),
        Outcome(_row(bar=None), Measured(Spread(7.0, 6.0, 8.0))),
    ]
    text = page([("date", "today")], outcomes)
    table = _rows_of_table(text)[2:]
    assert [r[3] for r in table] == ["yes", "**no**", "skipped", "**failed**", ""]
    assert [r[2] for r in table] == [
        "0.500 (0.400–0.600)", "0.501 (0.400–0.600)", "", "", "7.000 (6.000–8.000)",
    ]  # fmt: skip
    assert {len(r) for r in table} == {4}
    assert "nothing to hear" in text
    assert "ValueError: no" in text
    assert text.count("- 90% `f`") == 1
    assert "- beside: 1 µs" in text


@pytest.mark.parametrize(
    ("figure", "least", "met"),
    [(0.7, True, "yes"), (0.69, True, "**no**"), (0.7, False, "yes"), (0.71, False, "**no**")],
)
def test_a_bar_is_at_most_or_at_least(figure: float, least: bool, met: str) -> None:
    row = replace(_row(bar=0.7), least=least)
    outcome = Outcome(row, Measured(Spread(figure, figure, figure)))
    assert outcome.verdict == met
    assert outcome.bar == ("≥ 0.7" if least else "≤ 0.7")


def test_a_row_that_raises_is_an_outcome_and_names_no_folder(tmp_path: Path) -> None:
    def failing(kit: Kit) -> Measured:
        raise ValueError(f"{kit.folder}/model is bad\nand more")

    def skipping(kit: Kit) -> Measured:
        raise SkipRow("not here")

    kit = Kit(tmp_path, QUICK)
    assert run(_row(measure=failing), kit).failed == "ValueError: …/model is bad"
    assert run(_row(measure=skipping), kit).skipped == "not here"


def test_a_missed_bar_is_profiled(tmp_path: Path) -> None:
    def slow(calls: int) -> None:
        for _ in range(calls):
            sorted(range(1000))

    outcome = run(_row(measure=lambda _: Measured(Spread(2, 2, 2), profile=slow)), Kit(tmp_path, QUICK))
    assert any("sorted" in line for line in outcome.hot)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.234e-6, "1.23 µs"), (9.9e-6, "9.90 µs"), (123.4e-6, "123 µs"), (12345e-6, "12345 µs")],
)
def test_microseconds_have_three_digits(seconds: float, text: str) -> None:
    assert report.micros(Spread(seconds, seconds, seconds)).startswith(text)


def test_names_are_unique() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_a_run_writes_a_page(tmp_path: Path) -> None:
    output = tmp_path / "RESULTS.md"
    assert main(["--quick", "--only", "feed-small", "--output", str(output)]) == 0
    text = output.read_text()
    [line] = _rows_of_table(text)[2:]
    assert re.fullmatch(r"\d+\.\d{3} \(\d+\.\d{3}–\d+\.\d{3}\)", line[2])
    assert line[3] in ("yes", "**no**")
    assert re.search(r"- versions: .*numpy \d.*onnxruntime \d", text)
    assert re.search(r"- by hand: [\d.]+ µs", text)
    assert str(Path.home()) not in text


def test_each_call_of_what_is_timed_with_looks_has_one(tmp_path: Path) -> None:
    """The fastest of several blocks that only now and then have one would be one that has none."""
    hand = models.lstm(tmp_path / "m.onnx")
    engine = Engine.load(hand.path, trust=True)
    loop = rows_health.between_looks(loops.feed(engine, [np.zeros((1, 3), np.float32)]))
    for calls in (1, 1, 1, 4):
        before = engine.health.checks
        loop(calls)
        assert engine.health.checks - before == calls
