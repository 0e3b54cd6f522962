"""What a module imports, read from its source."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOTS = (ROOT / "engine", ROOT / "plugins", ROOT / "export")  # each holds a package


def read(source: str, module: str) -> set[str]:
    """Absolute names of all that a source imports, except what only types need. `module`: its own name."""
    found: set[str] = set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            full = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{full}.{a.name}" if _is_module(f"{full}.{a.name}") else full for a in node.names}
    return found


def _is_module(name: str) -> bool:
    paths = [root.joinpath(*name.split(".")) for root in ROOTS]
    return any(path.is_dir() or path.with_suffix(".py").exists() for path in paths)


def offences(names: set[str], forbidden: str) -> set[str]:
    """Those of the names that are the forbidden package, or lie in it."""
    return {name for name in names if name == forbidden or name.startswith(f"{forbidden}.")}
