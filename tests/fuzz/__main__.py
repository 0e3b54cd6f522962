"""Fuzz the server: `python -m tests.fuzz [libFuzzer's flags]`, where atheris is installed.

It begins with the protocol page's messages and keeps what it finds in .fuzz/. An input that breaks it is
written to crash-*; `python -m tests.fuzz crash-...` shows it again.
"""

from __future__ import annotations

import sys
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("the fuzzer is not installed: pip install atheris (Linux, x86-64)")

with atheris.instrument_imports(include=["runnel", "runnel_plugins"]):
    from .corpus import tapes
    from .target import one_input

FOUND = Path(".fuzz")
MAX_BYTES = 16_384  # of one input: some tens of messages

FOUND.mkdir(exist_ok=True)
for number, tape in enumerate(tapes()):
    (FOUND / f"page-{number}").write_bytes(tape)
files = [word for word in sys.argv[1:] if not word.startswith("-")]
atheris.Setup([*sys.argv, f"-max_len={MAX_BYTES}", *([] if files else [str(FOUND)])], one_input)
atheris.Fuzz()
