"""The registry of public models and their table, without the packages."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn

import runnel
import runnel_export

from .case import GROUPS, Built
from .checking import WrongError, check, rows_due
from .families import CASES, FAMILIES
from .left_out import LEFT_OUT
from .outcome import Outcome
from .report import HEAD, NOTES, STEP, page, row, rows_of

HERE = Path(__file__).parent
RESULTS = ("certified", "refused", "fault", "absent")


def normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def test_each_case_has_a_name_of_its_own() -> None:
    assert len(CASES) == sum(len(family.CASES) for family in FAMILIES)
    assert not any(set("|\n") & set(case.name + case.wrapper) for case in CASES.values())
    assert {case.needs for case in CASES.values()} == set(GROUPS)


def test_each_package_is_pinned_once_and_without_an_address() -> None:
    lines = [line for line in (HERE / "packages.txt").read_text().splitlines() if line and line[0] != "#"]
    pinned = [re.fullmatch(r"([a-z0-9-]+)==[\w.+!]+", line) for line in lines]
    names = [found[1] for found in pinned if found]
    assert len(names) == len(lines) == len(set(names))
    assert {normal(case.package) for case in CASES.values()} <= set(names)


def test_the_page_has_the_rows_that_it_was_made_of() -> None:
    case = next(iter(CASES.values()))
    outcome = Outcome(case.name, "1.0", "refused", "a | b\nc" + "d" * 500, parameters=10, seconds=1.0)
    made = {case.name: row(case, outcome)}
    assert rows_of(page([("date", "today")], CASES, made, LEFT_OUT)) == made
    assert len(made[case.name]) == len(HEAD)


def test_a_page_without_times_has_no_column_for_them() -> None:
    case = next(iter(CASES.values()))
    outcome = Outcome(case.name, "1.0", "certified", error=1e-7, rate="1", latency=0, nodes=3)
    timed = replace(outcome, ratio=0.5, step_us=10.0)
    pages = [page([], CASES, {case.name: row(case, made)}, {}) for made in (outcome, timed)]
    assert [STEP in text.replace(NOTES, "") for text in pages] == [False, True]
    assert rows_of(pages[0]) == {case.name: row(case, outcome)}


def test_the_committed_table_fits_the_registry() -> None:
    text = (HERE / "RESULTS.md").read_text("utf-8")
    found = rows_of(text)
    assert set(found) <= set(CASES)
    for name, cells in found.items():
        at = dict(zip(HEAD, cells, strict=True))
        assert at["package"].split()[0] == CASES[name].package
        assert at["wrapper"] == (CASES[name].wrapper or "none")
        assert at["result"].startswith(RESULTS)
        if at["result"] == "certified":
            assert float(at["error"]) <= 1e-4
            assert at["rate"]
            assert at["latency"].isdigit()
            assert int(at["nodes"]) > 0
    for group in GROUPS:
        rows = [cells for name, cells in found.items() if CASES[name].needs == group]
        certified = sum(cells[HEAD.index("result")] == "certified" for cells in rows)
        assert f"| {certified} of {len(rows)} |" in text


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.gru(x)[0]
        return y


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Path]:
    torch.manual_seed(0)
    built = Built(_Layer().eval(), torch.randn(1, 10, 3))
    path = tmp_path_factory.mktemp("public") / "model.onnx"
    runnel_export.export(built.module, built.example, path, progress=False)
    return built, path


def test_the_independent_check_passes_an_equal_file(made: tuple[Built, Path]) -> None:
    built, path = made
    with runnel.Engine.load(path) as engine:
        found = check(engine, built, 1)
    assert found.error < 1e-5
    assert (found.rate, found.latency) == (1, 0)


def test_the_independent_check_finds_another_module(made: tuple[Built, Path]) -> None:
    built, path = made
    other = _Layer().eval()
    other.load_state_dict({name: 1.01 * value for name, value in built.module.state_dict().items()})
    with runnel.Engine.load(path) as engine, pytest.raises(WrongError, match="differs from torch"):
        check(engine, replace(built, module=other), 1)


def test_the_independent_check_finds_a_missing_row(made: tuple[Built, Path]) -> None:
    class Longer(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = built.module(x)
            return torch.cat([y, y[:, -1:]], 1)

    built, path = made
    with runnel.Engine.load(path) as engine, pytest.raises(WrongError, match="rows of"):
        check(engine, replace(built, module=Longer()), 1)


@pytest.mark.parametrize(
    ("rate", "latency", "due"),
    [
        ("1", 0, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("1", 2, [0, 0, 0, 1, 2, 3, 4, 5, 6]),
        ("1/4", 0, [0] * 4 + [1] * 4 + [2]),
    ],
)
def test_rows_are_due_as_rate_and_latency_say(rate: str, latency: int, due: list[int]) -> None:
    assert [rows_due(ticks, Fraction(rate), latency) for ticks in range(9)] == due
