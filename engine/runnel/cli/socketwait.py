"""Wait for a daemon's socket."""

from __future__ import annotations

import sys
import time
from typing import Final

from ..daemon.socketfile import missing, require

_POLL_SECONDS: Final = 0.05  # seconds between two checks: a start takes a second


def await_socket(address: str, timeout: float, quiet: bool) -> None:
    """Wait for the socket of an ipc address, as after ``runnel serve … &``; print a note unless `quiet`.

    Raises UsageError if there is none after `timeout` seconds; at once if the path is not a socket.
    """
    if missing(address) and not quiet:
        print(
            f"runnel: {address}: there is no socket yet; waiting {timeout:g} s for a daemon to bind it",
            file=sys.stderr,
        )
    deadline = time.monotonic() + timeout
    while missing(address) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    require(address)
