"""The plugin of plugins/README.md, and the one in the hook's documentation, are whole: they are run here."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest

from runnel import Signal, TensorSpec, hookspecs
from runnel.checks import check_stage
from runnel.cli.main import main
from runnel.plugins import make_stage

README = Path(__file__).parents[2] / "plugins" / "README.md"
SIGNAL = Signal((TensorSpec("x", "float32"),))


@pytest.fixture
def install(tmp_path, monkeypatch):
    def make(module, source, entry_points):
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 0.1\n")
        lines = [line.replace('"', "") for line in entry_points.strip().splitlines()]
        (info / "entry_points.txt").write_text("\n".join(["[runnel]", *lines[1:]]) + "\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return make


def test_the_readmes_plugin_installs_runs_and_passes_its_own_test(tmp_path, monkeypatch, capsys):
    text = README.read_text()
    plugin, test = re.findall(r"```python\n(.*?)```", text, re.S)
    project, used = re.findall(r"```toml\n(.*?)```", text, re.S)
    for name, content in (
        ("runnel_smooth.py", plugin), ("test_runnel_smooth.py", test), ("pyproject.toml", project)
    ):  # fmt: skip
        (tmp_path / name).write_text(content)
    # As pip builds and unpacks it, with the backend that it names, without an environment of its own.
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, "wheel"], cwd=tmp_path, check=True)
    (wheel,) = (tmp_path / "wheel").glob("runnel_smooth-0.1.0-*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert {path.suffix for path in site.iterdir()} == {".py", ".dist-info"}
    assert [path.name for path in site.glob("*.py")] == ["runnel_smooth.py"], "not its test"
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "runnel_smooth", raising=False)
    assert used == '[[after]]\nuse = "smooth"\nweight = 0.3\n'
    assert main(["plugins", "smooth"]) == 0
    assert "weight" in capsys.readouterr().out
    stage = make_stage("smooth", SIGNAL, {"weight": 0.3}, "README")
    _, out = stage.step(stage.open(), {"x": np.ones(3, np.float32)})
    np.testing.assert_allclose(out["x"], [0.3, 0.51, 0.657], rtol=1e-6)
    names: dict[str, object] = {}
    exec(compile(test, "README", "exec"), names)
    names["test_smooth_keeps_the_laws"]()


def test_the_hooks_documentation_is_a_whole_plugin(install):
    blocks = re.findall(r"::\n\n((?:        .*\n|\n)+)", hookspecs.runnel_stages.__doc__ + "\n")
    plugin, entry, used = (textwrap.dedent(block) for block in blocks)
    install("runnel_gain", plugin, entry)
    assert used.split() == ["[[before]]", "use", "=", '"gain"', "factor", "=", "0.5"]
    check_stage(lambda: make_stage("gain", SIGNAL, {"factor": 0.5}, "docs"))
