"""A proxy between client and daemon that can cut connections in the middle of a message."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from pathlib import Path

PIECE = 4096  # bytes


class Proxy:
    """Forwards bytes between a socket file or a loopback port of its own and the daemon's socket file.

    `cut` ends all connections; bytes in flight are lost. With `every`, it cuts itself after a random number
    of bytes, so that messages end in their middle. `freeze` keeps the connections open but forwards nothing
    more, like a pulled cable.
    """

    def __init__(self, folder: Path, target: str, every: int = 0, seed: int = 0, tcp: bool = False) -> None:
        self.cuts = 0
        self.replies = threading.Event()  # while it is not set, nothing comes back from the daemon
        self.replies.set()
        self.target = target.removeprefix("ipc://")
        self.every = every
        self._random = random.Random(seed)
        self._left = self._next()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._frozen: set[socket.socket] = set()
        self._listener = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
        self._listener.bind(("127.0.0.1", 0) if tcp else f"{folder}/proxy.sock")
        self._listener.listen()
        name = self._listener.getsockname()
        self.address = f"tcp://127.0.0.1:{name[1]}" if tcp else f"ipc://{name}"
        self._start(self._accept)

    def cut(self) -> None:
        with self._lock:
            self.cuts += 1
            ends, self._open = self._open, set()
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def freeze(self) -> None:
        with self._lock:
            self._frozen |= self._open

    def close(self) -> None:
        self.replies.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            try:
                far.connect(self.target)
            except OSError:  # no daemon: the client must come again
                near.close()
                continue
            with self._lock:
                self._open |= {near, far}
            self._start(self._forward, near, far, None)
            self._start(self._forward, far, near, self.replies)

    def _forward(self, source: socket.socket, sink: socket.socket, gate: threading.Event | None) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(PIECE):
                if gate is not None:
                    gate.wait(30)
                if source in self._frozen:
                    continue
                if self.every and self._spend(len(piece)):
                    with contextlib.suppress(OSError):
                        sink.send(piece[: self._random.randrange(len(piece) + 1)])
                    self.cut()
                    break
                sink.sendall(piece)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()  # each direction closes the socket that only it reads

    def _spend(self, n: int) -> bool:
        with self._lock:
            self._left -= n
            if self._left > 0:
                return False
            self._left = self._next()
            return True

    def _next(self) -> int:
        return self._random.randrange(1, 2 * self.every) if self.every else 0
