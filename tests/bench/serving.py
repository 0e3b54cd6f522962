"""What the rows on the daemon share: it and its bare counterpart in processes of their own, and messages."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, cycle
from pathlib import Path
from typing import Any

import zmq

from runnel import Client
from runnel.errors import TimeoutError
from runnel.spec import Array
from runnel.wire import messages as wire
from runnel.wire.tensors import pack

from .kit import Kit
from .measure import Loop

START_SECONDS = 20.0
_numbers = count(1)
_CHILDREN = Path(__file__).parent / "children"


def new_address(kit: Kit) -> str:
    return f"ipc://{kit.folder}/{next(_numbers)}.sock"


def free_port() -> int:
    """A tcp port of this machine that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def serving(kit: Kit, pipeline: Path, *options: str) -> Iterator[tuple[str, int]]:
    """The address and process id of a fresh `runnel serve`, once it answers; stopped on the way out."""
    address = new_address(kit)
    process = subprocess.Popen(serve_command(pipeline, address, *options), stderr=subprocess.DEVNULL)
    try:
        _await(process, address)
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(timeout=20)


def serve_command(pipeline: Path, address: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "runnel.cli.main", "serve", str(pipeline), "--bind", address, *options]


def _await(process: subprocess.Popen[bytes], address: str) -> None:
    """Until the daemon answers; RuntimeError if it ends, or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"runnel serve ended with {process.returncode}")
        try:
            with Client(address, timeout=0.2) as client:
                client.describe()
                return
        except TimeoutError:
            continue
    raise RuntimeError(f"runnel serve does not answer after {START_SECONDS:g} s")


def bench(address: str | Path, *options: str) -> dict[str, Any]:
    """What `runnel bench --json` finds, in a process of its own; RuntimeError where it finds nothing."""
    command = [sys.executable, "-m", "runnel.cli.main", "bench", str(address), *options, "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"runnel bench ended with {done.returncode}: {last[0]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def request_frames(chunk: dict[str, Array], seq: int = 1) -> list[bytes]:
    """A feed as a client sends it in the middle of a stream's life."""
    infos, buffers = pack(chunk)
    header = wire.Request(
        v=wire.VERSION, op="feed", id="123456", sequence_id="stream-123", epoch=2**40, seq=seq, inputs=infos
    )
    return wire.encode_request(header, buffers)


def reply_frames(outputs: dict[str, Array]) -> list[bytes]:
    """The answer to it."""
    infos, buffers = pack(outputs)
    header = wire.Reply(
        v=wire.VERSION, op="feed", id="123456", sequence_id="stream-123", epoch=2**40, applied_seq=12345,
        outputs=infos,
    )  # fmt: skip
    return wire.encode_reply(header, buffers)


@contextmanager
def echoing(kit: Kit, reply: Sequence[bytes]) -> Iterator[zmq.Socket[bytes]]:
    """A DEALER connected to a bare echo in a process of its own, which answers with `reply`."""
    address = new_address(kit)
    command = [sys.executable, str(_CHILDREN / "echo.py"), address, *(frame.hex() for frame in reply)]
    process = subprocess.Popen(command)
    try:
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(address)
            socket.send(b"are you there?")
            if not socket.poll(int(START_SECONDS * 1000)):
                raise RuntimeError("the bare echo does not answer")
            socket.recv_multipart()
            yield socket
    finally:
        process.kill()
        process.wait()


def one_by_one(socket: zmq.Socket[bytes], messages: Sequence[Sequence[bytes]]) -> Loop:
    """A message there and its reply back, again and again."""
    given = cycle(messages)

    def loop(calls: int) -> Any:
        for _ in range(calls):
            socket.send_multipart(next(given))
            y = socket.recv_multipart()
        return y

    return loop


def windowed(socket: zmq.Socket[bytes], messages: Sequence[Sequence[bytes]], window: int) -> Loop:
    """As many messages, `window` of them on their way at any time; none when a call returns."""
    given = cycle(messages)

    def loop(calls: int) -> Any:
        flying: deque[None] = deque()
        for _ in range(calls):
            if len(flying) == window:
                socket.recv_multipart()
                flying.popleft()
            socket.send_multipart(next(given))
            flying.append(None)
        while flying:
            y = socket.recv_multipart()
            flying.popleft()
        return y

    return loop
