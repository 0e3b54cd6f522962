"""Run a call with bounds on its time and memory.

For foreign code that is tried once, while a model is loaded: it may never end, or may fill the memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from resource import getpagesize
from typing import Final, TypeVar

MAX_SECONDS: Final = 10.0  # for one step of a model; a large model takes a tenth of a second
MAX_BYTES: Final = 2**30  # by which the process may grow meanwhile
_LOOK_SECONDS: Final = 0.02  # between two checks: a call can allocate about 100 MB in that time

_T = TypeVar("_T")


def bounded_call(call: Callable[[], _T], stop: Callable[[], object]) -> _T:
    """Return what `call` returns. Above a bound, call `stop` from another thread and raise RuntimeError.

    `stop` must make the call raise soon. The error says which bound was exceeded.
    """
    ended = threading.Event()
    why: list[str] = []
    began = _resident()

    def watch() -> None:
        deadline = time.monotonic() + MAX_SECONDS
        while not ended.wait(_LOOK_SECONDS):
            if time.monotonic() > deadline:
                why.append(f"one step takes longer than {MAX_SECONDS:g} s: does a loop in it never end?")
            elif _resident() - began > MAX_BYTES:
                why.append(f"one step takes more than {MAX_BYTES} bytes: does a loop in it never end?")
            if why:
                stop()
                return

    watcher = threading.Thread(target=watch, name="runnel-trial", daemon=True)
    watcher.start()
    try:
        return call()
    except Exception as error:
        if why:
            raise RuntimeError(why[0]) from error
        raise
    finally:
        ended.set()
        watcher.join()


def _resident() -> int:
    """Resident bytes of this process; 0 if the system does not report them."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()
    except (OSError, ValueError, IndexError):
        return 0
