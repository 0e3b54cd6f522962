"""Lifecycle hooks of a daemon: for systemd, or for a supervisor of several workers.

The daemon's loop calls them in its own thread, so a loop that hangs sends no beat. `Service` is for a daemon
of one process; the hooks of a worker are in `worker`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

from ...errors import RunnelError
from ...wire.placement import Placement
from .. import logs
from ..logs import Log
from ..settings import Settings, Source, renewed
from ..vetting import vet
from . import systemd

if TYPE_CHECKING:
    from ..protocol.server import ServerProtocol

Observe = Callable[[Settings, Sequence[str]], AbstractContextManager[object]]

log = Log("runnel.serve")


class LifecycleHooks:
    """Lifecycle hooks that do nothing. `beat_seconds`: how often to call `beat`, at least; 0.0 for never."""

    beat_seconds = 0.0

    def bound_to(self, address: str) -> Placement:
        """The daemon is bound to the address. Return its place among the workers; it serves after that."""
        return Placement(0, (address,))

    def ready(self, address: str) -> None:
        """The daemon serves."""

    def beat(self) -> None:
        """The daemon's loop runs."""

    def reload(self, server: ServerProtocol) -> bool:
        """Read the settings again. If they are wrong, return False and change nothing."""
        return True

    def stopping(self) -> None:
        """The daemon stops, and answers what has arrived."""


class Service(LifecycleHooks):
    """A service of one process, with or without systemd.

    `observe(settings, addresses)` is entered once the daemon serves, and left at the end of this context.
    """

    def __init__(
        self, notifier: systemd.Notifier, source: Source, settings: Settings, observe: Observe
    ) -> None:
        self.beat_seconds = notifier.watchdog_seconds
        self._notifier = notifier
        self._source = source
        self._settings = settings
        self._observe = observe
        self._stack = ExitStack()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ready(self, address: str) -> None:
        self._stack.enter_context(self._observe(self._settings, [address]))
        self._notifier.send(systemd.READY, systemd.status(f"serving on {address}"))

    def beat(self) -> None:
        self._notifier.send(systemd.WATCHDOG)

    def reload(self, server: ServerProtocol) -> bool:
        self._notifier.send(systemd.reloading(time.monotonic()))
        settings = reread(self._source, self._settings)
        if settings is not None:
            self._settings = settings
            apply(settings, server)
        self._notifier.send(systemd.READY)
        return settings is not None

    def stopping(self) -> None:
        self._notifier.send(systemd.STOPPING, systemd.status("answering what has arrived"))


def reread(source: Source, now: Settings) -> Settings | None:
    """Read the settings again and log the changes. Return None if anything in them is wrong."""
    try:
        if source.path.suffix != ".toml":
            vet(now, str(source.path))
            log.info("nothing to reload: a model has no settings", path=source.path)
            return now
        read, other_pipeline = source.read()
        vet(read, str(source.path))
        vet(now, str(source.path))  # its list of users is the one that is read again
    except RunnelError as error:
        log.error("reload failed: nothing was changed", path=source.path, error=error.message)
        return None
    after, changed, fixed = renewed(now, read)
    for name in changed:
        log.info("setting changed", name=name, value=getattr(after, name))
    for name in [*fixed, *(["pipeline"] if other_pipeline else [])]:
        log.warning("setting not changed: that needs a restart", name=name, path=source.path)
    if not changed and not fixed and not other_pipeline:
        log.info("nothing to reload: nothing is new", path=source.path)
    return after


def apply(settings: Settings, server: ServerProtocol) -> None:
    """Apply the settings that may change while the daemon runs."""
    server.idle_seconds = settings.idle_seconds
    logs.set_level(settings.log_level)
