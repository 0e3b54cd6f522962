"""Messages between a supervisor and its workers: JSON packets over a socket pair.

A packet socket keeps packets apart, and an end of file shows that the other side has ended.

To a worker:    a `WorkerConfig`; {"workers": [address]}; {"settings": {…}}; {"stop": true}
From a worker:  {"bound": address, "pipeline": fingerprint}; {"ready": true}; {"beat": true}; {"failed": text}
"""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass
from typing import Any, Final

from ..settings import Settings

MAX_PACKET: Final = 128 * 1024  # bytes: an order, or the addresses of all workers that there may be

Packet = dict[str, Any]


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Configuration of a worker."""

    index: int
    pipeline: str  # a file
    address: str  # to bind
    trust: bool
    settings: Settings
    beat_seconds: float
    fingerprint: str = ""  # of the pipeline that the other workers serve; empty for the first workers

    def packet(self) -> Packet:
        return asdict(self)


def worker_config(packet: Packet) -> WorkerConfig:
    """Inverse of `WorkerConfig.packet`."""
    return WorkerConfig(**{**packet, "settings": settings(packet["settings"])})


def settings(laid: Packet) -> Settings:
    """Inverse of `asdict`."""
    return Settings(**{**laid, "providers": tuple(laid["providers"])})  # JSON has no tuples


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(to: socket.socket, packet: Packet) -> bool:
    """Send without waiting. Return False if the other side is gone or does not read."""
    try:
        to.send(json.dumps(packet).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        return False
    return True


def receive(channel: socket.socket) -> Packet | None:
    """Wait for the next packet; None if the other side is gone."""
    try:
        data = channel.recv(MAX_PACKET)
    except OSError:
        return None
    return json.loads(data) if data else None
