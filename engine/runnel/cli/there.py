"""A daemon that is not there, told at once: its socket is missing."""

from __future__ import annotations

import sys
import time
from typing import Final

from ..daemon.socketfile import missing, require

_LOOK: Final = 0.05  # seconds between two looks: a start takes a second


def await_socket(address: str, timeout: float, quiet: bool) -> None:
    """Wait for the socket of an ipc address, as after ``runnel serve … &``, and say so unless `quiet`.

    Raises UsageError if there is none in `timeout` seconds; at once if what is there is no socket.
    """
    if missing(address) and not quiet:
        print(
            f"runnel: {address}: there is no socket yet; waiting {timeout:g} s for a daemon to bind it",
            file=sys.stderr,
        )
    deadline = time.monotonic() + timeout
    while missing(address) and time.monotonic() < deadline:
        time.sleep(_LOOK)
    require(address)
