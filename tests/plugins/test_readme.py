"""plugins/README.md is true: its plugin runs, and its tables list what is shipped and checked."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from runnel import Signal, TensorSpec
from runnel.checks import LAWS, check_stage
from runnel.cli.main import main
from runnel.loading.registry import make_stage, offers

ROOT = Path(__file__).parents[2]
README = ROOT / "plugins" / "README.md"
SIGNAL = Signal((TensorSpec("x", "float32"),))
ENTRIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["runnel"]


def tabled():
    """Return the kinds of each name in the tables of shipped plugins."""
    kinds = {}
    for table in re.findall(r"(?:^\|.*\n)+", README.read_text(), re.M):
        head, _, *rows = [
            [cell.strip() for cell in row.strip("|\n").split("|")] for row in table.splitlines()
        ]
        if not head[0].startswith(("stage,", "connector")):
            continue
        for row in rows:
            marks = zip(head[1:4], row[1:4], strict=True) if head[0] == "connector" else [("stage", "✓")]
            of = {kind for kind, mark in marks if mark}
            for name in re.findall(r"`(\w+)`", row[0]):
                assert name not in kinds, f"{name} has two rows"
                kinds[name] = of
    return kinds


def test_readmes_tables_list_exactly_the_shipped_plugins():
    assert sorted(tabled()) == sorted(ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_shipped_plugins_load_match_their_row_and_have_a_docstring(name):
    found = offers(name)
    assert {plugin.kind for plugin in found} == tabled()[name]
    assert all(plugin.doc.endswith((".", ":")) for plugin in found), [plugin.doc for plugin in found]


def test_readme_lists_the_laws_that_are_checked():
    section = README.read_text().partition("## The laws")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.M) == list(LAWS)


def test_the_row_stage_keeps_the_laws():
    names: dict[str, object] = {}
    exec(compile(re.findall(r"```python\n(.*?)```", README.read_text(), re.S)[0], "README", "exec"), names)
    decibels = names["Decibels"]
    check_stage(lambda: decibels(Signal((TensorSpec("x", "float32", (3,)),))))
    out = decibels(SIGNAL).rows({"x": np.array([1, 100, 0], np.float32)})["x"]
    np.testing.assert_allclose(out, [0, 20, -100], atol=1e-4)


def test_the_readmes_plugin_installs_runs_and_passes_its_own_test(tmp_path, monkeypatch, capsys):
    text = README.read_text()
    _, plugin, test = re.findall(r"```python\n(.*?)```", text, re.S)
    project, used = re.findall(r"```toml\n(.*?)```", text, re.S)
    for name, content in (
        ("runnel_leaky.py", plugin), ("test_runnel_leaky.py", test), ("pyproject.toml", project)
    ):  # fmt: skip
        (tmp_path / name).write_text(content)
    # As pip builds and unpacks it, with its build backend, but without a separate environment.
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, "wheel"], cwd=tmp_path, check=True)
    (wheel,) = (tmp_path / "wheel").glob("runnel_leaky-0.1.0-*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert {path.suffix for path in site.iterdir()} == {".py", ".dist-info"}
    assert [path.name for path in site.glob("*.py")] == ["runnel_leaky.py"], "not its test"
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "runnel_leaky", raising=False)
    assert used == '[[after]]\nuse = "leaky"\nweight = 0.3\n'
    assert main(["plugins", "leaky"]) == 0
    assert "weight" in capsys.readouterr().out
    stage = make_stage("leaky", SIGNAL, {"weight": 0.3}, "README")
    _, out = stage.step(stage.open(), {"x": np.ones(3, np.float32)})
    np.testing.assert_allclose(out["x"], [0.3, 0.51, 0.657], rtol=1e-6)
    names: dict[str, object] = {}
    exec(compile(test, "README", "exec"), names)
    names["test_leaky_keeps_the_laws"]()
