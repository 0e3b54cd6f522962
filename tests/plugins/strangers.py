"""A third-party package, installed into its own folder as by pip."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(module, source, project) puts `module`.py on the path with the entry points of a pyproject."""

    def make(module: str, source: str, project: str) -> Path:
        root = tmp_path / "site" / module
        info = root / f"{module}-0.1.dist-info"
        info.mkdir(parents=True)
        (root / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 0.1\n")
        entries = tomllib.loads(project)["project"]["entry-points"]["runnel"]
        lines = [f"{name} = {value}" for name, value in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(["[runnel]", *lines]) + "\n")
        monkeypatch.syspath_prepend(root)
        monkeypatch.delitem(sys.modules, module, raising=False)
        return root

    return make
