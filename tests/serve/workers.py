"""Workers of one daemon in threads of the test, which can be stalled."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import zmq

from runnel.daemon import process
from runnel.daemon.protocol.server import ServerProtocol
from runnel.wire.placement import Placement

from .support import tally_engine


class Worker:
    """One worker at an address; while `turning` is cleared, its loop is stuck."""

    def __init__(self, address: str, placement: Placement, boot_id: str) -> None:
        self.address = address
        self.turning = threading.Event()
        self.turning.set()
        self.server = ServerProtocol(tally_engine(), boot_id, placement=placement)
        self.server.gauges = process.gauges
        self._ended = threading.Event()
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._bound.wait(10)

    def _run(self) -> None:
        router: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        router.bind(self.address)
        self._bound.set()
        while not self._ended.is_set():
            if not self.turning.wait(0.01) or not router.poll(10):
                continue
            peer, *frames = router.recv_multipart()
            now = time.monotonic()
            for out in [*self.server.receive(peer, frames, now), *self.server.run(now)]:
                router.send_multipart([out.peer, *out.frames])
            self.server.done(time.monotonic())
        router.close(linger=0)

    def end(self) -> None:
        self._ended.set()
        self._thread.join(10)
        assert not self._thread.is_alive()


@contextmanager
def workers(folder: Path, boots: Sequence[str] = ("first", "second")) -> Iterator[list[Worker]]:
    """One worker for each boot id, with each other's addresses in their HELLO."""
    addresses = [f"ipc://{folder}/w{at}.sock" for at in range(len(boots))]
    with ExitStack() as stack:
        made = []
        for at, boot in enumerate(boots):
            made.append(Worker(addresses[at], Placement(at, addresses), boot))
            stack.callback(made[-1].end)
        yield made
