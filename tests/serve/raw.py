"""ZMTP 3.1 by hand, to send what libzmq never would."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

MORE, LONG, COMMAND = 1, 2, 4


def greeting(mechanism: bytes = b"NULL") -> bytes:
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32)


def frame(body: bytes, flags: int = 0, length: int | None = None) -> bytes:
    """One frame; `length` is the length stated in its header."""
    said = len(body) if length is None else length
    if said > 255 or flags & LONG:
        return bytes([flags | LONG]) + said.to_bytes(8, "big") + body
    return bytes([flags, said]) + body


def ready(kind: bytes = b"DEALER", **properties: bytes) -> bytes:
    body = b"\x05READY"
    for name, value in {"Socket-Type": kind, **properties}.items():
        body += bytes([len(name)]) + name.encode() + len(value).to_bytes(4, "big") + value
    return frame(body, COMMAND)


def message(*frames: bytes) -> bytes:
    return b"".join(frame(f, MORE) for f in frames[:-1]) + frame(frames[-1])


@contextmanager
def connected(address: str) -> Iterator[socket.socket]:
    if address.startswith("tcp"):
        raw = socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])))
    else:
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(address.removeprefix("ipc://"))
    with raw:
        raw.settimeout(20)
        yield raw


@contextmanager
def shaken(address: str) -> Iterator[socket.socket]:
    """Complete the handshake. Before the daemon's own READY, libzmq takes a message for a command."""
    with connected(address) as raw:
        raw.sendall(greeting() + ready())
        seen = b""
        while b"READY" not in seen or not seen.endswith(bytes(4)):  # its last property is Identity, empty
            seen += _some(raw)
        yield raw


def tell(raw: socket.socket, data: bytes, end: bool = False) -> None:
    """Send data that the other end may not wait for; `end`: then end the connection."""
    with suppress(OSError):  # it has closed the connection already
        raw.sendall(data)
        if end:
            raw.shutdown(socket.SHUT_WR)


def rest(raw: socket.socket) -> bytes:
    """Everything received until the other end closes the connection; TimeoutError if it does not."""
    seen = b""
    try:
        while data := raw.recv(65536):
            seen += data
    except ConnectionError:  # closed with something of ours unread
        pass
    return seen


def read_message(raw: socket.socket) -> list[bytes]:
    """The next message."""
    parts: list[bytes] = []
    while True:
        flags, size = _exactly(raw, 1)[0], _exactly(raw, 1)
        if flags & LONG:
            size += _exactly(raw, 7)
        body = _exactly(raw, int.from_bytes(size, "big"))
        if not flags & COMMAND:
            parts.append(body)
            if not flags & MORE:
                return parts


def _exactly(raw: socket.socket, size: int) -> bytes:
    seen = b""
    while len(seen) < size:
        seen += _some(raw, size - len(seen))
    return seen


def _some(raw: socket.socket, most: int = 65536) -> bytes:
    data = raw.recv(most)
    assert data, "the daemon closed the connection"
    return data
