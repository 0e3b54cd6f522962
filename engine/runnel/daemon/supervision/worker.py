"""One worker process, started and controlled by a supervisor through a socket pair.

``python -m runnel.daemon.supervision.worker FD``. Only the supervisor handles the signals of a terminal or a
service manager. It sends them here as packets, so that a worker never gets one twice. If the socket pair
ends, the supervisor has ended: then the worker answers what has arrived, and stops.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from ...errors import RunnelError, UsageError
from ...wire.placement import Place
from .. import logs
from . import control as link
from .lifecycle import Keeper, apply

if TYPE_CHECKING:
    from ..loop import Daemon
    from ..protocol.server import Server

GRACE_SECONDS: Final = 20.0  # to stop in after the supervisor has ended: more than a daemon ever takes
OTHER_PIPELINE: Final = (
    "the pipeline or its model was changed, and the other workers serve what it was: put it back, or restart "
    "the daemon"
)
STATUS_FAILED: Final = 2  # it could not serve, and has sent the reason


class _EarlyStopError(Exception):
    """Stopped, or left without a supervisor, before it served."""


class _Steered(Keeper):
    """Lifecycle hooks of a worker, which report to the supervisor."""

    def __init__(self, wire: socket.socket, order: link.Order) -> None:
        self.beat_seconds = order.beat_seconds
        self.daemon: Daemon | None = None
        self.pipeline = ""  # its fingerprint
        self._link = wire
        self._index = order.index
        self._settings = order.settings

    def meet(self, address: str) -> Place:
        """Report the bound address, and wait for those of the others: HELLO names all workers or is not
        answered.
        """
        link.send(self._link, {"bound": address, "pipeline": self.pipeline})
        packet = link.receive(self._link)
        if packet is None or "stop" in packet:
            raise _EarlyStopError
        return Place(self._index, tuple(packet["workers"]))

    def ready(self, address: str) -> None:
        threading.Thread(target=self._steer, name="link", daemon=True).start()
        link.send(self._link, {"ready": True})

    def beat(self) -> None:
        link.send(self._link, {"beat": True})

    def reload(self, server: Server) -> bool:
        apply(self._settings, server)
        return True

    def _steer(self) -> None:
        """Carry out the supervisor's packets until the supervisor ends."""
        assert self.daemon is not None
        while (packet := link.receive(self._link)) is not None:
            if "stop" in packet:
                self.daemon.stop()
            elif "settings" in packet:
                self._settings = link.settings(packet["settings"])
                self.daemon.reload()
        self.daemon.stop()
        time.sleep(GRACE_SECONDS)
        os._exit(1)  # the loop hangs, and no supervisor is left to end it


def main(fd: int) -> int:
    """Exit status 0: everything that had arrived was answered; 1: not everything; 2: it could not serve."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=fd) as wire:
        packet = link.receive(wire)
        if packet is None:
            return STATUS_FAILED
        try:
            order = link.order(packet)
            with logs.written(
                sys.stderr, order.settings.log_format, order.settings.log_level, worker=order.index
            ):
                return 0 if _serve(wire, order) else 1
        except _EarlyStopError:
            return 0
        except RunnelError as error:
            link.send(wire, {"failed": error.message})
            return STATUS_FAILED


def _serve(wire: socket.socket, order: link.Order) -> bool:
    from .. import process
    from ..guard import guard_of
    from ..loop import Daemon

    settings = order.settings
    guard = guard_of(settings)
    with process.load(order.pipeline, settings, order.trust) as engine:
        keeper = _Steered(wire, order)
        keeper.pipeline = engine.pipeline.fingerprint
        if order.fingerprint not in ("", keeper.pipeline):
            raise UsageError(OTHER_PIPELINE)
        keeper.daemon = Daemon(
            engine,
            order.address,
            idle_seconds=settings.idle_seconds,
            keeper=keeper,
            guard=guard,
            user_streams=settings.user_streams,
        )
        return keeper.daemon.serve()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
