"""Host sensors: the definition for the test's own counters; the pace; the real sensors."""

from __future__ import annotations

from collections import namedtuple
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from runnel import Signal, TensorSpec
from runnel.errors import UsageError
from runnel_plugins.connectors import host

Times = namedtuple("Times", "user system idle iowait guest")
Net = namedtuple("Net", "bytes_sent bytes_recv")


def signal(width: int, rate: float | None = None, *more: TensorSpec) -> Signal:
    return Signal((TensorSpec("x", "float64", (width,)), *more), rate)


class Machine:
    """A psutil and a clock: each reading returns the next of the given values."""

    def __init__(self, **series: list[Any]) -> None:
        self.series = {name: iter(values) for name, values in series.items()}
        self.now = 1000.0
        self.slow: list[float] = []  # seconds that the readings after a sleep take

    def cpu_count(self) -> int:
        return 2

    def __getattr__(self, name: str) -> Any:
        return lambda percpu=False: next(self.series["cores" if percpu else name])

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.slow:
            self.now += self.slow.pop(0)


def opened(monkeypatch: pytest.MonkeyPatch, machine: Machine, width: int, **options: Any) -> host.Host:
    monkeypatch.setattr(host, "library", lambda *_: machine)
    source = host.Host(signal(width), **options)
    source._clock, source._sleep = machine.clock, machine.sleep
    return source


def test_percentages_and_rates_are_first_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10 s: 3 busy, 1 waiting for a disk, 6 idle; a guest's second counts once. 500 bytes in 0.5 s."""
    machine = Machine(
        cpu_times=[Times(10, 5, 100, 2, 1), Times(12, 6, 106, 3, 2), Times(12, 6, 106, 3, 2)],
        cores=[
            [Times(0, 0, 0, 0, 0), Times(5, 0, 0, 0, 0)],
            [Times(1, 0, 3, 0, 0), Times(6, 0, 0, 0, 0)],
            [Times(1, 0, 3, 0, 0)],
        ],
        net_io_counters=[Net(0, 1000), Net(0, 1500), Net(0, 400)],
        disk_io_counters=[None, None, None],
        virtual_memory=[SimpleNamespace(percent=p) for p in (1.0, 2.0, 3.0)],
    )
    names = ["net_received", "cpu", "cpu0", "cpu1", "memory", "disk_read"]
    source = opened(monkeypatch, machine, 6, metrics=names, rate=2.0)
    first, second = [chunk["x"] for chunk in islice(source.chunks(10), 2)]
    np.testing.assert_allclose(first, [[1000.0, 30.0, 25.0, 100.0, 2.0, 0.0]])
    # No time passed; a core that was switched off; a counter that was reset.
    np.testing.assert_allclose(second, [[0.0, 0.0, 0.0, 0.0, 3.0, 0.0]])


def test_the_pace_is_the_clocks_and_does_not_drift(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each reading is 30 ms late, one 2.5 s: the next is on time, and missed ticks are reported."""
    machine = Machine(getloadavg=[(n, 0, 0) for n in range(100)])
    machine.slow = [0.03, 0.03, 0.03, 2.5, 0.03, 0.03]
    source = opened(monkeypatch, machine, 1, metrics=["load"], rate=2.0)
    at = [machine.now - 1000 for _ in islice(source.chunks(1), 6)]
    source.close()
    np.testing.assert_allclose(at, [0.53, 1.03, 1.53, 4.5, 5.03, 5.53])
    assert "host: 5 ticks were missed" in capsys.readouterr().err


def test_rows_are_paced_and_real() -> None:
    """The real sensors of this machine: psutil's own numbers are the oracle for current values."""
    source = host.Host(signal(2, None, TensorSpec("time", "float64")), ["memory", "cpu"], rate=20.0)
    rows = list(islice(source.chunks(1), 4))
    x = np.concatenate([row["x"] for row in rows])
    assert abs(x[-1, 0] - psutil.virtual_memory().percent) < 10
    assert ((x[:, 1] >= 0) & (x[:, 1] <= 100)).all()
    stamps = np.concatenate([row["time"] for row in rows])
    assert (np.diff(stamps) > 0.01).all()
    assert source.live
    assert source.rate == 20.0


def test_every_metric_has_a_value() -> None:
    known = [*host.ORDER, "cpu0"]
    (row,) = islice(host.Host(signal(len(known)), known, rate=50.0).chunks(1), 1)
    assert np.isfinite(row["x"]).all()
    assert host.Host(signal(3, 7.0)).rate == 7.0


@pytest.mark.parametrize(
    ("given", "options", "says"),
    [
        (signal(1), {"metrics": ["cup"]}, r"no metric 'cup' \(did you mean 'cpu'\?\)|no metric 'cup'"),
        (signal(2), {"metrics": ["cpu"]}, r"1 metrics are named, but the pipeline takes 2 numbers"),
        (signal(9), {}, r"takes 9 numbers .*say which, as in host:cpu,memory"),
        (signal(1, 5.0), {"rate": 4.0}, "rate is 4 Hz, but the pipeline takes 5 Hz"),
        (signal(1), {"rate": 1000.0}, "rate must be 0.00028 to 100 Hz, not 1000"),
        (signal(1), {"rate": -1.0}, "rate must be"),
        (signal(1), {"rate": 0.0}, "rate must be"),
        (signal(1, 5.0), {"rate": 0.0}, "rate is 0 Hz, but"),
        (Signal((TensorSpec("x", "int64"),)), {}, "sensors give fractions, but the pipeline takes x: int64"),
    ],
)
def test_invalid_options_are_refused(given: Signal, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        host.Host(given, **options)


def test_error_without_psutil_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psutil", None)
    with pytest.raises(UsageError, match=r"need the package psutil .*pip install 'runnel\[sensors\]'"):
        host.Host(signal(1))
