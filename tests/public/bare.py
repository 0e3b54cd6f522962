"""Import one module file of a package without running the package's `__init__`.

Some packages import a whole ecosystem at the top, and need none of it for their models.
"""

from __future__ import annotations

import sys
import sysconfig
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


def bare(module: str, *, below: str = "") -> Any:
    """Import `module` with empty parents; those down to `below` are imported as usual."""
    parts = module.split(".")
    for count in range(1, len(parts)):
        name = ".".join(parts[:count])
        if name not in sys.modules and len(name) > len(below):
            parent = ModuleType(name)
            parent.__path__ = [str(Path(sysconfig.get_path("purelib"), *parts[:count]))]
            parent.__spec__ = ModuleSpec(name, None, is_package=True)
            sys.modules[name] = parent
    return import_module(module)
