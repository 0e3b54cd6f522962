"""A ROUTER with the sans-IO server behind it, which records every message."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import zmq

from runnel.daemon.protocol.server import ServerProtocol

from .support import tally_engine


class Recorder:
    """The messages that clients sent, in order, as their frames."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.messages: list[list[bytes]] = []
        self.answers: list[list[bytes]] = []
        self.go = threading.Event()  # while it is not set, nothing is answered
        self.go.set()

    def sizes(self, op: str) -> list[int]:
        """Number of requests in each message with this op; 0 for a message that was no bundle."""
        headers = [msgspec.msgpack.decode(frames[0]) for frames in self.messages]
        return [
            len(header) if isinstance(header, list) else 0
            for header in headers
            if (header[0] if isinstance(header, list) else header)["op"] == op
        ]


@contextmanager
def recording(folder: Path) -> Iterator[Recorder]:
    recorder = Recorder(f"ipc://{folder}/recorder.sock")
    server = ServerProtocol(tally_engine(), "boot")
    stopped = threading.Event()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    router.bind(recorder.address)

    def serve() -> None:
        while not stopped.is_set():
            if not router.poll(20):
                continue
            peer, *frames = router.recv_multipart()
            recorder.messages.append(frames)
            assert recorder.go.wait(30)
            outgoing = server.receive(peer, frames, 0.0)
            while server.pending:
                outgoing += server.run(0.0)
            for out in outgoing:
                recorder.answers.append(list(out.frames))
                router.send_multipart([out.peer, *out.frames])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield recorder
    finally:
        stopped.set()
        thread.join(10)
        assert not thread.is_alive()
        router.close()
        context.term()
