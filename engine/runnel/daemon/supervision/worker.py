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
from ...wire.placement import Placement
from .. import logs
from . import control
from .lifecycle import LifecycleHooks, apply

if TYPE_CHECKING:
    from ..loop import Daemon
    from ..protocol.server import ServerProtocol

GRACE_SECONDS: Final = 20.0  # to stop in after the supervisor has ended: more than a daemon ever takes
OTHER_PIPELINE: Final = (
    "the pipeline or its model was changed, and the other workers serve what it was: put it back, or restart "
    "the daemon"
)
STATUS_FAILED: Final = 2  # it could not serve, and has sent the reason


class _EarlyStopError(Exception):
    """Stopped, or left without a supervisor, before it served."""


class _WorkerHooks(LifecycleHooks):
    """Lifecycle hooks of a worker, which report to the supervisor."""

    def __init__(self, wire: socket.socket, config: control.WorkerConfig) -> None:
        self.beat_seconds = config.beat_seconds
        self.daemon: Daemon | None = None
        self.pipeline = ""  # its fingerprint
        self._channel = wire
        self._index = config.index
        self._settings = config.settings

    def bound_to(self, address: str) -> Placement:
        """Report the bound address, and wait for all others, which each HELLO must name."""
        control.send(self._channel, {"bound": address, "pipeline": self.pipeline})
        packet = control.receive(self._channel)
        if packet is None or "stop" in packet:
            raise _EarlyStopError
        return Placement(self._index, tuple(packet["workers"]))

    def ready(self, address: str) -> None:
        threading.Thread(target=self._obey_supervisor, name="link", daemon=True).start()
        control.send(self._channel, {"ready": True})

    def beat(self) -> None:
        control.send(self._channel, {"beat": True})

    def reload(self, server: ServerProtocol) -> bool:
        apply(self._settings, server)
        return True

    def _obey_supervisor(self) -> None:
        """Carry out the supervisor's packets until the supervisor ends."""
        assert self.daemon is not None
        while (packet := control.receive(self._channel)) is not None:
            if "stop" in packet:
                self.daemon.stop()
            elif "settings" in packet:
                self._settings = control.settings(packet["settings"])
                self.daemon.reload()
        self.daemon.stop()
        time.sleep(GRACE_SECONDS)
        os._exit(1)  # the loop hangs, and no supervisor is left to end it


def main(fd: int) -> int:
    """Exit status 0: everything that had arrived was answered; 1: not everything; 2: it could not serve."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=fd) as wire:
        packet = control.receive(wire)
        if packet is None:
            return STATUS_FAILED
        try:
            config = control.worker_config(packet)
            with logs.written(
                sys.stderr, config.settings.log_format, config.settings.log_level, worker=config.index
            ):
                return 0 if _serve(wire, config) else 1
        except _EarlyStopError:
            return 0
        except RunnelError as error:
            control.send(wire, {"failed": error.message})
            return STATUS_FAILED


def _serve(wire: socket.socket, config: control.WorkerConfig) -> bool:
    from .. import process
    from ..authenticator import authenticator_for
    from ..loop import Daemon

    settings = config.settings
    authenticator = authenticator_for(settings)
    with process.load(config.pipeline, settings, config.trust) as engine:
        hooks = _WorkerHooks(wire, config)
        hooks.pipeline = engine.pipeline.fingerprint
        if config.fingerprint not in ("", hooks.pipeline):
            raise UsageError(OTHER_PIPELINE)
        hooks.daemon = Daemon(
            engine,
            config.address,
            idle_seconds=settings.idle_seconds,
            hooks=hooks,
            authenticator=authenticator,
            user_streams=settings.user_streams,
        )
        return hooks.daemon.serve()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
