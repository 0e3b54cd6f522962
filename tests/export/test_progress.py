"""How far an export is: shown where somebody sees it, and nowhere else."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from runnel.errors import ExportError
from runnel_export import export
from runnel_export.progress import PROVING, RUNNING, Line, stages


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def left_on_screen(written: str) -> str:
    """What a terminal's line shows in the end: a carriage return goes to its start, and text overwrites."""
    row: list[str] = []
    for part in written.split("\r"):
        row[: len(part)] = part
    return "".join(row).rstrip()


@pytest.mark.parametrize("screen", ["terminal", "notebook", "none"])
def test_an_export_shows_itself_where_it_is_seen(
    screen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = (io.StringIO(), Terminal() if screen == "terminal" else io.StringIO())
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    shell = SimpleNamespace(kernel=1) if screen == "notebook" else None
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    export(nn.GRU(2, 3, batch_first=True), torch.randn(1, 9, 2), tmp_path / "m.onnx", output_names=["y", "h"])
    written = {"terminal": err, "notebook": out, "none": err}[screen].getvalue()
    silent = {"terminal": out, "notebook": err, "none": out}[screen].getvalue()
    assert silent == ""
    if screen == "none":
        assert written == ""
        return
    percents = [int(p) for p in re.findall(r"(\d+)%", written)]
    assert len(percents) > 5
    assert percents == sorted(percents), "it never goes back"
    assert 0 <= percents[0] < 10
    assert 80 < percents[-1] <= 100
    assert left_on_screen(written) == ""


def test_it_can_be_turned_off_or_given_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    said: list[str] = []
    module, example = nn.Linear(2, 3), torch.randn(1, 9, 2)
    export(module, example, tmp_path / "m.onnx", progress=False)
    export(module, example, tmp_path / "m.onnx", progress=said.append)
    assert err.getvalue() == ""
    assert RUNNING in said
    assert PROVING in said


def test_nothing_of_it_is_left_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(ExportError):
        export(nn.GRU(2, 3), torch.randn(9, 2, 2), tmp_path / "m.onnx")
    assert "0%" in err.getvalue()
    assert left_on_screen(err.getvalue()) == ""


def test_the_time_left_is_said_as_soon_as_it_can_be_told() -> None:
    now, err = [0.0], Terminal()
    plan = stages(quantize=False, probe=False)
    line = Line(plan, err, clock=lambda: now[0])
    line(plan[0])
    assert "left" not in err.getvalue()
    now[0] = 10.0
    for text in (plan[1], "one", "two"):
        line(text)
    share = line.share
    assert 0.25 < share < 1
    last = err.getvalue().split("\r")[-1]
    assert f"{share:.0%}, about {round(10 * (1 - share) / share)} s left" in last


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("probe", [False, True])
def test_more_lines_than_expected_do_not_run_over(quantize: bool, probe: bool) -> None:
    plan = stages(quantize, probe)
    line = Line(plan, Terminal())
    before = 0.0
    for stage in plan:
        for text in (stage, *map(str, range(9))):
            line(text)
            assert before <= line.share <= 1
            before = line.share
    assert before == 1
