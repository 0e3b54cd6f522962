"""`runnel plugins`: what is installed and what is broken, in a table and in full; a package of one's own."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from runnel.cli.main import main
from runnel.loading.registry import installed
from tests.plugins.strangers import install

__all__ = ["install"]  # a fixture

MANY = """
    from pathlib import Path
    from typing import Literal
    import runnel

    class Odd(runnel.RowStage):
        '''Do something odd to every sample, whatever it is, for as long as it takes to fill a line.

        Units: none.
        '''
        def __init__(self, inputs, needed: int, mode: Literal["hold", "skip", "interpolate", "mark"] = "hold",
                     where: Path | None = None, sure: bool = False): ...
        def rows(self, arrays): ...

    class Well(runnel.Source):
        '''A source.'''
        def __init__(self, signal, path: Path, rate: float = 2.0): ...
        def chunks(self, block): ...

    class Sea(runnel.Sink):
        '''A sink.'''
        def __init__(self, signal): ...
        def write(self, chunk): ...

    def ear():
        return print

    @runnel.hookimpl
    def runnel_stages():
        return {"odd": Odd}

    @runnel.hookimpl
    def runnel_sources():
        return {"both": Well}

    @runnel.hookimpl
    def runnel_sinks():
        return {"both": Sea}

    @runnel.hookimpl
    def runnel_notices():
        return {"ear": ear}
"""


@pytest.fixture
def stranger(install):
    entries = "\n".join(f'{name} = "acme_odd"' for name in ("odd", "both", "ear"))
    install("acme_odd", textwrap.dedent(MANY), f"[project.entry-points.runnel]\n{entries}\n")
    install("acme_broken", "import no_such_library", '[project.entry-points.runnel]\nbad = "acme_broken"\n')


def listing(capsys, *words):
    assert main(["plugins", *words]) == 0
    return capsys.readouterr().out


def line_of(shown, name):
    return re.search(rf"^{name} .*$", shown, re.M)[0]


def test_the_table_has_a_line_for_each_name(stranger, capsys):
    shown = listing(capsys)
    assert shown.splitlines()[0].split() == ["NAME", "KIND", "PACKAGE"]
    names = [line.split()[0] for line in shown.split("\n\n")[0].splitlines()[1:]]
    assert names == installed()
    assert re.match(r"resample +stage +runnel +Resample to `rate` Hz", line_of(shown, "resample"))
    assert re.match(r"odd +stage +acme_odd +Do something odd .* fill a line\.$", line_of(shown, "odd"))
    assert re.match(r"both +source sink +acme_odd +A source\.$", line_of(shown, "both"))
    assert re.match(r"ear +notice +acme_odd$", line_of(shown, "ear"))
    assert re.match(r"bad +BROKEN +acme_broken +ModuleNotFoundError: \S", line_of(shown, "bad"))
    assert re.search(r"broken; why, in full: runnel plugins .*", shown)


def test_a_line_fits_the_terminal():
    program = f"import sys; sys.path[:0] = {sys.path!r}; from runnel.cli.main import main; main(['plugins'])"
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    child = subprocess.Popen([sys.executable, "-c", program], stdout=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # the other side is closed: Linux says it so
        pass
    assert child.wait(30) == 0
    os.close(ours)
    lines = shown.decode().split("\r\n")
    assert max(map(len, lines)) <= 80
    assert any(len(line) > 60 for line in lines)


def test_one_in_full(stranger, capsys):
    assert listing(capsys, "odd") == (
        "odd  (acme_odd 0.1)\n\n"
        "  stage\n"
        "    Do something odd to every sample, whatever it is, for as long as it takes to fill a line.\n\n"
        "    Units: none.\n\n"
        "    options:\n"
        "      needed  a whole number, required\n"
        "      mode    'hold' or 'skip' or 'interpolate' or 'mark', default 'hold'\n"
        "      where   a path, default none\n"
        "      sure    true or false, default false\n\n"
        '    in a pipeline:\n      [[before]]  # or [[after]]\n      use = "odd"\n      needed = …\n'
    )


def test_both_ends_of_a_name_in_full(stranger, capsys):
    shown = listing(capsys, "both", "ear")
    assert '      [source]\n      use = "both"\n      path = …\n' in shown
    assert '\n      runnel run PIPELINE "both:PATH?rate=…"\n' in shown
    assert "\n    It has no options.\n" in shown
    assert "\n      runnel run PIPELINE INPUT -o both:\n" in shown
    assert '      [[notice]]\n      use = "ear"\n' in shown


def test_a_broken_one_is_shown_with_its_whole_cause(stranger, capsys):
    shown = " ".join(listing(capsys, "bad").split())
    with pytest.raises(ModuleNotFoundError) as caught:
        import_module("no_such_library")
    assert shown == (
        "bad (acme_broken 0.1) BROKEN: plugin 'bad' of acme_broken 0.1 cannot be loaded: "
        f"ModuleNotFoundError: {caught.value} (install the package that has "
        "'no_such_library': acme_broken needs it)"
    )


@pytest.mark.parametrize(
    ("kind", "there"), [("stage", "odd"), ("source", "both"), ("sink", "both"), ("notice", "ear")]
)
def test_only_one_kind(stranger, capsys, kind, there):
    lines = listing(capsys, "--kind", kind).split("\n\n")[0].splitlines()[1:]
    kinds = {line.split()[0]: line for line in lines}
    assert {name for name in ("odd", "both", "ear") if name in kinds} == {there}
    assert "bad" in kinds, "it could be of any kind"


def test_none_of_a_kind_says_how_to_make_one(capsys):
    shown = listing(capsys, "resample", "--kind", "notice")
    assert shown == "no notice is installed; one to begin with: runnel plugins new NAME --kind notice\n"


def test_for_programs(stranger, capsys):
    found = {one["name"]: one for one in json.loads(listing(capsys, "--json"))}
    assert list(found) == installed()
    assert "no_such_library" in found["bad"]["error"]
    (odd,) = found["odd"]["offers"]
    assert (odd["kind"], found["odd"]["package"], found["odd"]["version"]) == ("stage", "acme_odd", "0.1")
    assert odd["options"][:3] == [
        {"name": "needed", "type": "a whole number", "required": True},
        {
            "name": "mode",
            "type": "'hold' or 'skip' or 'interpolate' or 'mark'",
            "required": False,
            "default": "hold",
        },
        {"name": "where", "type": "a path", "required": False, "default": None},
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["resampel"], "no plugin 'resampel' is installed (did you mean 'resample'?)"),
        (["new"], "takes one name"),
        (["new", "a", "b"], "takes one name"),
        (["resample", "--into", "."], "--into is for"),
        (["new", "my-stage"], "not 'my-stage'"),
        (["new", "My Stage"], "a letter first: 'my_stage', say"),
        (["new", "3d"], "a letter first; not '3d'"),
        (["new", "../x"], "'x', say"),
        (["new", "a" * 41], "1 to 40 characters"),
        (["new", "lambda"], "is a word of Python"),
        (["new", "model"], "is a word of pipeline files"),  # use = "model" is a model
        (["new", "new"], "is a word of this command"),
        (["new", "resample"], "is installed already, of runnel "),
        (["new", "plugins"], "there is a module runnel_plugins already"),
        (["new", "fine", "--into", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(capsys, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", *words]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(capsys, tmp_path):
    (tmp_path / "runnel-fine").mkdir()
    assert main(["plugins", "new", "fine", "--into", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert not list((tmp_path / "runnel-fine").iterdir())


NEW = {
    "my_stage": "stage",
    "path": "sink",
    "runnel": "notice",
    "iterator": "source",
}  # names that modules import


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A package of each kind, and where pip installed all of them."""
    root = tmp_path_factory.mktemp("new")
    for name, kind in NEW.items():
        words = ["--kind", kind] if kind != "stage" else []
        assert main(["plugins", "new", name, *words, "--into", str(root)]) == 0
    return root


def run(words, cwd, path=()):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, path), *filter(None, sys.path)])}
    environment.pop("PYTEST_ADDOPTS", None)  # they are for the run that this test belongs to
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_is_written_passes_its_own_tests_at_once(written):
    shown = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", *written.iterdir()], written)
    assert re.search(r"^8 passed in", shown, re.M), shown
    assert (
        "check_stage(lambda: MyStage("
        in (written / "runnel-my-stage" / "test_runnel_my_stage.py").read_text()
    )


def test_what_is_written_installs_and_is_listed(written, tmp_path):
    pip = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    run([*pip, "--no-build-isolation", "--target", tmp_path, *written.iterdir()], tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.py")) == sorted(f"runnel_{name}.py" for name in NEW)
    for name, kind in NEW.items():
        shown = run(["-m", "runnel.cli.main", "plugins", name], tmp_path, [tmp_path])
        package = f"runnel-{name.replace('_', '-')}"
        assert shown.startswith(f"{name}  ({package} 0.1.0)\n\n  {kind}\n"), shown


@pytest.mark.parametrize(("name", "kind"), NEW.items())
def test_its_readme_says_what_its_options_take(written, name, kind):
    folder = written / f"runnel-{name.replace('_', '-')}"
    entry = tomllib.loads(re.search(r"```toml\n(.*?)```", (folder / "README.md").read_text(), re.S)[1])
    ((_, part),) = entry.items()
    table = part[0] if isinstance(part, list) else part
    assert table.pop("use") == name
    source = (folder / f"runnel_{name}.py").read_text()
    assert all(f"{option}: " in source for option in table)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["runnel"] == {name: f"runnel_{name}"}
    assert f"A {kind} for Runnel" == project["description"]


def test_what_to_do_next_is_said(capsys, tmp_path):
    assert main(["plugins", "new", "fine", "--into", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(
        f"wrote {tmp_path / 'runnel-fine'}: pyproject.toml, README.md, runnel_fine.py, test"
    )
    assert "python -m pytest" in shown
    assert "pip install -e ." in shown
    assert "runnel plugins fine" in shown
    assert Path(tmp_path, "runnel-fine", "runnel_fine.py").exists()
