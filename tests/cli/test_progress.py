"""Pace and progress, under a clock of the test's own."""

from __future__ import annotations

import io

import numpy as np
import pytest

from runnel import Signal, TensorSpec
from runnel.cli.pace import paced
from runnel.cli.progress import Progress
from tests.cli.support import open_source


class Clock:
    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_a_chunk_is_fed_when_its_last_time_step_would_have_arrived():
    clock, fed = Clock(), []
    for chunk in paced(({"x": np.zeros(n)} for n in (10, 5, 5, 20)), 10.0, clock=clock, sleep=clock.sleep):
        fed.append((len(chunk["x"]), clock.now - 50))
        clock.now += 1.2 if len(fed) == 2 else 0  # a slow step: the next chunk follows at once
    assert fed == [(10, 1.0), (5, 1.5), (5, pytest.approx(2.7)), (20, 4.0)]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_is_one_line_rewritten():
    clock, stream = Clock(), Terminal()
    progress = Progress(1000, 100.0, stream=stream, clock=clock)
    for _ in range(4):
        clock.now += 0.06
        progress.add(250)
    progress.close(progress.summary())
    shown = stream.getvalue().split("\r\x1b[K")
    assert len(shown) == 4  # nothing, twice while it ran, and the end
    assert shown[1].startswith("[###############...............]  50%  500 time steps, 0.12 s")
    assert shown[1].endswith(", 1 s left")
    assert shown[-1] == "1000 time steps, 0.24 s, 4167 steps/s, 41.7 × real time\n"


def test_progress_in_a_log_is_a_line_now_and_then():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(None, None, stream=stream, clock=clock)
    for _ in range(12):
        clock.now += 1
        progress.add(10)
    progress.close(progress.summary())
    assert stream.getvalue().splitlines() == [
        "50 time steps, 5.00 s, 10 steps/s",
        "100 time steps, 10.00 s, 10 steps/s",
        "120 time steps, 12.00 s, 10 steps/s",
    ]


def test_progress_leaves_a_terminal_to_the_output_that_is_written_there():
    clock, stream = Clock(), Terminal()
    progress = Progress(100, 10.0, crowded=True, stream=stream, clock=clock)
    progress.begin("live from host:, until Ctrl-C")
    for _ in range(4):
        clock.now += 1
        progress.add(25)
    progress.close("the end")
    assert stream.getvalue() == "\r\x1b[Klive from host:, until Ctrl-C\n\r\x1b[Kthe end\n"
    broken_off = Progress(100, 10.0, crowded=True, stream=Terminal(), clock=clock)
    broken_off.close()  # a last line without its end is the output's
    assert broken_off.stream.getvalue() == ""


def test_what_is_waited_for_is_told_on_a_terminal_alone():
    clock = Clock()
    for stream, shown in ((Terminal(), "\r\x1b[Klive from x"), (io.StringIO(), "")):
        Progress(None, None, stream=stream, clock=clock).begin("live from x")
        assert stream.getvalue() == shown


@pytest.mark.parametrize(
    ("steps", "seconds", "told"),
    [
        (1, 2, "1 time step, 2.00 s, 0.5 steps/s"),
        (19, 2, "19 time steps, 2.00 s, 9.5 steps/s"),
        (0, 1, "0 time steps, 1.00 s, 0 steps/s"),
    ],
)
def test_a_slow_run_is_told_as_exactly_as_a_fast_one(steps, seconds, told):
    clock = Clock()
    progress = Progress(None, None, stream=io.StringIO(), clock=clock)
    progress.add(steps)
    clock.now += seconds
    assert progress.summary() == told


def test_an_input_of_known_size_has_a_bar_though_nobody_counted_its_time_steps():
    """A table: its bytes are known, its rows are not. Time left is that of the speed so far."""
    clock, stream, read = Clock(), Terminal(), [0.0]
    progress = Progress(None, None, stream=stream, clock=clock, share=lambda: read[0])
    for seconds, share, told in (
        (60, 0.25, ", 3 m 00 s left"),
        (30, 0.5, ", 1 m 30 s left"),
        (9, 0.75, ", 33 s left"),
        (9901, 0.5, ", 2 h 46 m left"),
        (1, 1.0, "steps/s"),
    ):
        clock.now, read[0] = clock.now + seconds, share
        progress.add(10)
        shown = stream.getvalue().split("\r\x1b[K")[-1]
        assert f"{share:4.0%}" in shown
        assert shown.endswith(told)


def test_an_input_that_ends_before_its_bound_is_done_when_it_was_read():
    clock, stream = Clock(), Terminal()
    progress = Progress(1000, None, stream=stream, clock=clock, share=lambda: 0.9)
    clock.now += 1
    progress.add(100)
    assert " 90%" in stream.getvalue()


def test_a_source_of_no_known_size_has_no_bar():
    clock, stream = Clock(), Terminal()
    progress = Progress(None, None, stream=stream, clock=clock, share=lambda: None)
    clock.now += 1
    progress.add(100)
    assert "%" not in stream.getvalue()
    assert "left" not in stream.getvalue()


def test_how_much_of_a_table_was_read(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("x\n" + "1.25\n" * 100_000)
    with open_source(path, Signal((TensorSpec("x", "float32"),))) as source:
        shares = [source.share for _ in source.chunks(1000)]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.2
    assert len(set(shares)) > 5
    assert shares[-1] == 1.0
