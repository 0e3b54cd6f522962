"""The table stays true: each mutant applies to the code as it is, and the tests that it names are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import __main__ as program
from .table import ROOT, Mutant, read

MUTANTS = read()


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.promise for mutant in MUTANTS])
def test_a_mutant_applies_to_the_code_and_its_tests_exist(mutant: Mutant) -> None:
    assert "tests" not in Path(mutant.file).parts
    assert mutant.text != mutant.replacement
    compile(mutant.applied(), mutant.file, "exec")
    for name in mutant.tests:
        path, _, function = name.partition("::")
        assert (ROOT / path).exists(), name
        assert not function or f"def {function}(" in (ROOT / path).read_text(), name


def test_no_promise_is_named_twice() -> None:
    promises = [mutant.promise for mutant in MUTANTS]
    assert len(set(promises)) == len(promises)


def test_a_mutant_that_no_longer_applies_or_is_not_one_place_is_an_error() -> None:
    for text in ("no such text", "import"):
        with pytest.raises(ValueError, match="not once"):
            Mutant("p", "engine/runnel/model/session.py", text, "pass", ("tests/engine",)).applied()


def test_a_row_with_a_column_too_few_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "table.txt").write_text("# a comment\n\nname | file | text | replacement\n")
    with pytest.raises(ValueError, match=r"table\.txt:3: 4 columns, not 5"):
        read(tmp_path / "table.txt")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one function and one test, in place of Runnel."""
    for part in program.PARTS:
        (tmp_path / part).mkdir()
    (tmp_path / "engine" / "half.py").write_text("def half(x):\n    return x / 2  # exact\n")
    (tmp_path / "tests" / "test_half.py").write_text(
        "from half import half\n\ndef test_half():\n    assert half(4) == 2\n"
    )
    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take most of the time
    return tmp_path


def test_a_mutant_is_noticed_or_the_program_fails(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [("x / 2", "x / 3"), ("exact", "inexact"), ("gone", "there"), ("return x / 2", "return (")]
    mutants = [Mutant(a, "engine/half.py", a, b, ("tests/test_half.py",)) for a, b in changes]
    monkeypatch.setattr(program, "read", lambda: mutants)
    assert program.main(["x / 3", *(a for a, _ in changes)]) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("noticed  x / 2\nNOT OK   exact: not noticed by tests/test_half.py\n")
    assert "NOT OK   gone: no longer applies: " in shown.out
    assert "NOT OK   return x / 2: pytest ended with status 2" in shown.out
    assert "3 of 4 mutants" in shown.err
    assert "x / 2  # exact" in (small / "engine" / "half.py").read_text(), "only copies are changed"


def test_tests_that_fail_without_a_mutant_notice_nothing(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (small / "tests" / "test_half.py").write_text("def test_half():\n    assert False\n")
    mutant = Mutant("it halves", "engine/half.py", "x / 2", "x / 3", ("tests/test_half.py",))
    monkeypatch.setattr(program, "read", lambda: [mutant])
    assert program.main([]) == 1
    assert "without a mutant, status 1" in capsys.readouterr().err


def test_words_choose_mutants(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["no such promise"]) == 1
    assert "no mutant has any of no such promise" in capsys.readouterr().err
