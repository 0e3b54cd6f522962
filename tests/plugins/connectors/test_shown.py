"""Sinks that show the last values: Prometheus gauges over HTTP, and the plot."""

from __future__ import annotations

import io
import math
import os
import socket
import sys
import threading
import time
from urllib.request import urlopen

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runnel import Signal, TensorSpec
from runnel.errors import UsageError
from runnel_plugins.connectors import prometheus
from runnel_plugins.connectors.plot import Plot, envelope
from runnel_plugins.connectors.prometheus import Prometheus

Y = Signal((TensorSpec("y", "float32", (2,)), TensorSpec("w", "int64", (), ("yes", "no"))), 100.0)


def chunk(rows: int, start: int = 0) -> dict[str, np.ndarray]:
    t = np.arange(start, start + rows)
    y = np.stack([np.sin(t / 20), np.cos(t / 20)], axis=1).astype(np.float32)
    return {"y": y, "w": t}


def scraped(port: int) -> dict[str, float]:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    return {s.labels.get("column", s.name): s.value for f in families for s in f.samples}


def test_silent_connections_are_bounded_and_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prometheus, "REQUEST_SECONDS", 2.0)
    before = threading.active_count()
    sink = Prometheus(Y, port=0)
    silent = [socket.create_connection(("127.0.0.1", sink.port), 10) for _ in range(40)]
    try:
        for turned_away in silent[prometheus.MAX_CONNECTIONS :]:
            turned_away.settimeout(10)
            assert turned_away.recv(1) == b""
        assert threading.active_count() <= before + 1 + prometheus.MAX_CONNECTIONS
        for given_up in silent[: prometheus.MAX_CONNECTIONS]:
            given_up.settimeout(10)
            assert given_up.recv(1) == b""
        until = time.monotonic() + 30
        while threading.active_count() > before + 1 and time.monotonic() < until:
            time.sleep(0.01)  # their threads end after their connections
        assert math.isnan(scraped(sink.port)["y.0"])
    finally:
        for one in silent:
            one.close()
        sink.close(whole=True)


def test_gauges_are_the_last_values() -> None:
    sink = Prometheus(Y, port=0)
    try:
        before = scraped(sink.port)
        assert math.isnan(before["y.0"])
        assert before["runnel_output_rows_total"] == 0
        sink.write(chunk(7))
        sink.write(chunk(3, 7))
        sink.write(Y.empty())
        after = scraped(sink.port)
    finally:
        sink.close(True)
    last = chunk(10)["y"][-1]
    assert (after["y.0"], after["y.1"], after["w"]) == (last[0], last[1], 9)
    assert after["runnel_output_rows_total"] == 10
    assert after["runnel_output_time_seconds"] > 1.7e9
    with pytest.raises(OSError):
        urlopen(f"http://127.0.0.1:{sink.port}/metrics", timeout=1)


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"cannot listen at 127\.0\.0\.1:{port}: .*in use"):
            Prometheus(Y, port=port)
    with pytest.raises(UsageError, match=r"port must be 0 .* to 65535, not 70000"):
        Prometheus(Y, port=70000)
    with pytest.raises(UsageError, match="the pipeline gives 2000 columns; at most 1000"):
        Prometheus(Signal((TensorSpec("y", "float32", (2000,)),)))
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(UsageError, match=r"pip install 'runnel\[metrics\]'"):
        Prometheus(Y)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plotted(out: io.StringIO, monkeypatch: pytest.MonkeyPatch, **options: object) -> Plot:
    monkeypatch.setattr(sys, "stdout", out)
    return Plot(Y, **options)  # type: ignore[arg-type]


def test_without_a_terminal_there_is_one_picture_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    sink = plotted(out, monkeypatch, seconds=1.0)
    for start in range(0, 300, 10):
        sink.write(chunk(10, start))
    assert out.getvalue() == ""
    sink.close(True)
    lines = out.getvalue().splitlines()
    assert len(lines) == 36
    assert "\x1b" not in out.getvalue()
    assert max(map(len, lines)) <= 80
    titles = [line.strip() for line in lines if "(s)" in line]
    last = chunk(300)["y"][-1]
    assert titles == [f"y.0  {last[0]:.4g}  (s)", f"y.1  {last[1]:.4g}  (s)", "w  299  (s)"]
    ticks = lines[11].split()
    assert (float(ticks[0]), float(ticks[-1])) == (2.0, pytest.approx(2.99, abs=0.06)), "the last second"
    braille = sum(0x2800 < ord(c) <= 0x28FF for c in out.getvalue())
    assert braille > 150


def test_a_run_that_failed_has_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    sink = plotted(out, monkeypatch)
    sink.write(chunk(5))
    sink.close(False)
    assert out.getvalue() == ""


def test_on_a_terminal_it_is_redrawn_in_place_ten_times_a_second_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_, **__: os.terminal_size((60, 20)))
    out = Terminal()
    sink = plotted(out, monkeypatch)
    now = 0.0
    sink._clock = lambda: now
    for start in range(100):  # one second
        now = start / 100
        sink.write(chunk(1, start))
    frames = out.getvalue().split("\x1b[H")[1:]
    assert 9 <= len(frames) <= 11
    sink.close(True)
    last = out.getvalue().split("\x1b[H")[-1]
    lines = last.split("\n")
    assert len(lines) <= 20
    assert all(len(line.removesuffix("\x1b[K")) <= 60 for line in lines[:-1])
    assert "and 1 more, not shown: w" in last, "there is room for two panels"


def test_plot_refuses_bad_options(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"no column 'y.2' \(known: w, y.0, y.1\)"):
        Plot(Y, columns=["y.2"])
    with pytest.raises(UsageError, match="seconds must be above 0"):
        Plot(Y, seconds=0.0)
    monkeypatch.setitem(sys.modules, "plotext", None)
    with pytest.raises(UsageError, match=r"pip install 'runnel\[terminal\]'"):
        Plot(Y)
    monkeypatch.setitem(sys.modules, "plotext", sys)  # as version 5: without a figure
    with pytest.raises(UsageError, match="plotext 6 or later"):
        Plot(Y)


def test_chosen_columns_and_odd_values_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    sink = plotted(out, monkeypatch, columns=["y.1"])
    y = np.array([[0, np.nan], [0, np.inf], [0, 3]], np.float32)
    sink.write({"y": y[:1], "w": np.array([0])})
    assert "y.1  nan" in "\n".join(sink.picture(80, 10))
    sink.write({"y": y[1:], "w": np.array([0, 0])})
    sink.close(True)
    assert "y.1  3" in out.getvalue()
    assert "y.0" not in out.getvalue()


def test_a_peak_is_never_missed() -> None:
    values = np.zeros(100_000)
    values[12_345], values[77_777], values[50] = 1.0, -1.0, np.nan
    at, shown = envelope(values, 160)
    assert len(at) <= 320
    assert set(shown) == {0.0, 1.0, -1.0}
    assert at[np.argmax(shown)] == 12_345
    assert (np.diff(at) > 0).all()
