"""A call that may never end, or may fill the memory: bounded in both.

For code of others that is tried once, while a model is loaded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from resource import getpagesize
from typing import Final, TypeVar

MAX_SECONDS: Final = 10.0  # for one step of a model; a large one takes a tenth of a second
MAX_BYTES: Final = 2**30  # that the process may grow by meanwhile
_LOOK_SECONDS: Final = 0.02  # between two looks: what is made from one to the next is some 100 MB

_T = TypeVar("_T")


def briefly(call: Callable[[], _T], stop: Callable[[], object]) -> _T:
    """What `call` returns. If it takes too long or too much memory, `stop` is called from another thread.

    `stop` must make the call raise, soon; then this raises RuntimeError, which says what was too much.
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
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()
    except (OSError, ValueError, IndexError):
        return 0
