"""The front door: what is loaded, what is printed, and with which status it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from runnel import __version__
from runnel.cli import main as front
from runnel.cli.main import COMMANDS, main
from runnel.errors import UsageError


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"runnel {__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n    {name} " not in text] == []


def test_no_command_is_a_question_that_gets_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"runnel {name}" in capsys.readouterr().out.split("options:")[1]


def test_an_unknown_command_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exprot", "x"]) == 2
    assert "did you mean 'export'?" in capsys.readouterr().err


class Fake:
    HELP = "fails"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def add_arguments(self, parser: object) -> None:
        pass

    def run(self, args: object) -> int:
        raise self.error


def test_an_error_of_the_tree_is_one_line(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(front, "_load", lambda name: Fake(UsageError("the cup is empty")))
    assert main(["run"]) == 2
    assert capsys.readouterr().err == "runnel: the cup is empty\n"


@pytest.mark.parametrize("words", [["--traceback", "run"], ["run", "--traceback"]])
def test_a_traceback_on_request(words, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(front, "_load", lambda name: Fake(UsageError("the cup is empty")))
    assert main(words) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_ends_as_a_shell_expects(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(front, "_load", lambda name: Fake(KeyboardInterrupt()))
    assert main(["run"]) == 130
    assert capsys.readouterr().err == "runnel: stopped\n"


class Killed(Fake):
    """A command that is told to end while it runs."""

    def run(self, args: object) -> int:
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL, "it would end the tests"
        signal.raise_signal(signal.SIGTERM)
        return 0


def test_sigterm_unwinds_and_is_then_what_it_was(monkeypatch) -> None:
    monkeypatch.setattr(front, "_load", lambda name: Killed(UsageError("")))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["run"])
        assert ended.value.code == 143
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert main(["run"]) == 0, "who ignores it has said so"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch) -> None:
    monkeypatch.setattr(front, "_load", lambda name: Fake(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        main(["run"])


def test_a_reader_who_leaves_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from runnel.cli.main import main; sys.exit(main(['inspect', sys.argv[1], '--json']))"
    from tests.export.zoo import exported

    with os.fdopen(write, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-c", code, str(exported("lstm"))],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (141, "")


def test_serving_loads_no_torch() -> None:
    code = (
        "import sys; from runnel.cli import main, serve, run, feed, verify, inspect, export; "
        "print([m for m in ('torch', 'onnx') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
