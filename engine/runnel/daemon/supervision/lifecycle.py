"""Who looks after a daemon: nobody, systemd, or a supervisor of several workers.

A `Keeper` is called by the daemon's loop, in its thread: so a loop that hangs sends no beat. `Service` is
systemd's side of a daemon that is one process; `worker` has that of a worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

from ...errors import RunnelError
from ...wire.placement import Place
from .. import logs
from ..logs import Log
from ..settings import Settings, Source, renewed
from ..vetting import vet
from . import systemd

if TYPE_CHECKING:
    from ..protocol.server import Server

Observe = Callable[[Settings, Sequence[str]], AbstractContextManager[object]]

log = Log("runnel.serve")


class Keeper:
    """Nobody. `beat_seconds`: how often `beat` is to be called, at least; 0.0 for never."""

    beat_seconds = 0.0

    def meet(self, address: str) -> Place:
        """The daemon is bound to the address, and serves once it knows its place."""
        return Place(0, (address,))

    def ready(self, address: str) -> None:
        """It serves."""

    def beat(self) -> None:
        """Its loop turns."""

    def reload(self, server: Server) -> bool:
        """It was told to read its settings again. False: something is wrong, and nothing is to change."""
        return True

    def stopping(self) -> None:
        """It was told to stop, and answers what has arrived."""


class Service(Keeper):
    """A service of one process, under systemd or not.

    `observe(settings, addresses)` is entered once it serves, and left at the end of the keeper's context.
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

    def reload(self, server: Server) -> bool:
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
    """The settings after a new reading, what is found logged. None if anything in them is wrong."""
    try:
        if source.path.suffix != ".toml":
            vet(now, str(source.path))
            log.info("nothing to reload: a model has no settings", path=source.path)
            return now
        read, other_pipeline = source.read()
        vet(read, str(source.path))
        vet(now, str(source.path))  # its list of users is the one that will be read again
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


def apply(settings: Settings, server: Server) -> None:
    """Put into effect what can change while the daemon runs."""
    server.idle_seconds = settings.idle_seconds
    logs.set_level(settings.log_level)
