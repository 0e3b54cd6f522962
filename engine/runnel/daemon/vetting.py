"""Checks before a model is loaded, used by `serve` at start and at reload, and by `check`."""

from __future__ import annotations

from pathlib import Path

from ..errors import UsageError
from ..wire.keys import client_keys, read_secret, read_users
from .settings import Settings


def vet(settings: Settings, what: str) -> None:
    """Raise UsageError unless `what` can be served with these settings.

    Reads the key files that they name.
    """
    from .supervision.supervisor import addresses

    if not settings.bind:
        raise UsageError(
            f"where is {what} to be served? --bind ipc:///path/to.sock, or bind in its [serve] table"
        )
    addresses(settings.bind, settings.workers, keyed=bool(settings.keys))
    if settings.metrics:
        from .metrics import http as metrics  # the libraries of an HTTP server take 5 MB

        metrics.parse(settings.metrics)
    if settings.keys:
        read_secret(Path(settings.keys))
        read_users(Path(settings.authorised))
    if settings.metrics_keys:
        client_keys(settings.metrics_keys)
