"""What `serve` refuses before it loads a model: looked at when it starts, when it reloads, and by `check`."""

from __future__ import annotations

from pathlib import Path

from ..errors import UsageError
from ..wire.keys import client_keys, read_secret, read_users
from .settings import Settings


def vet(settings: Settings, what: str) -> None:
    """Raise UsageError unless a daemon can have these settings; `what` is to be served.

    Reads the files of keys that they name.
    """
    from .supervision.supervisor import addresses

    if not settings.bind:
        raise UsageError(
            f"where is {what} to be served? --bind ipc:///path/to.sock, or bind in its [serve] table"
        )
    addresses(settings.bind, settings.workers, keyed=bool(settings.keys))
    if settings.metrics:
        from .metrics import http as metrics  # an HTTP server's libraries take 5 MB

        metrics.parse(settings.metrics)
    if settings.keys:
        read_secret(Path(settings.keys))
        read_users(Path(settings.authorised))
    if settings.metrics_keys:
        client_keys(settings.metrics_keys)
