"""Raw peers of a daemon, and a daemon run by the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import zmq

from runnel.daemon import loop
from runnel.daemon.loop import Daemon
from runnel.errors import RunnelError, UsageError
from runnel.wire import messages
from runnel.wire.tensors import pack

from .support import SpyEngine, rows


@contextmanager
def dealer(address: str, queued: int = 1000) -> Iterator[zmq.Socket[bytes]]:
    sock: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    sock.linger = 0
    sock.rcvhwm = queued
    sock.connect(address)
    try:
        yield sock
    finally:
        sock.close()


def knock(sock: zmq.Socket[bytes], frames: list[bytes]) -> None:
    """Send to a daemon that may refuse us. libzmq then drops the connection; a normal send would hang."""
    with suppress(zmq.Again):
        sock.send_multipart(frames, zmq.NOBLOCK)


def reply_of(sock: zmq.Socket[bytes], within: int = 10_000) -> messages.Reply:
    assert sock.poll(within), "no reply"
    return messages.decode_reply(sock.recv_multipart())[0]


def replies_of(sock: zmq.Socket[bytes], count: int, within: int = 10_000) -> list[messages.Reply]:
    """The next `count` replies, in bundles or not."""
    replies: list[messages.Reply] = []
    while len(replies) < count:
        assert sock.poll(within), f"{len(replies)} replies of {count}"
        frames = sock.recv_multipart()
        told = (
            messages.decode_replies(frames) if messages.bundled(frames) else [messages.decode_reply(frames)]
        )
        replies += [reply for reply, _ in told]
    return replies


def feed(stream: str, *values: float, **fields: Any) -> list[bytes]:
    infos, buffers = pack({"x": rows(*values)})
    header = messages.Request(v=1, op="feed", sequence_id=stream, inputs=infos, **fields)
    return messages.encode_request(header, buffers)


def ask(sock: zmq.Socket[bytes], op: Any, stream: str = "") -> messages.Reply:
    sock.send_multipart(messages.encode_request(messages.Request(v=1, op=op, sequence_id=stream)))
    return reply_of(sock)


def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for a condition that comes true soon, however busy the machine is."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def as_arrived(patch: pytest.MonkeyPatch, count: int) -> None:
    """From now on the daemon's loop finds so many messages as if all of them had arrived already.

    If the loop looks for one of them too early, it waits for it. So the speed of libzmq's threads does not
    decide the outcome.
    """
    receive, left = loop._receive, count

    def waiting(router: zmq.Socket[bytes]) -> Any:
        nonlocal left
        assert left <= 0 or router.poll(30_000), f"{left} messages of {count} never arrived"
        left -= 1
        return receive(router)

    patch.setattr(loop, "_receive", waiting)


class Gate:
    """Holds the engine inside its next batch, so that more requests can arrive."""

    def __init__(self, engine: SpyEngine) -> None:
        self.entered, self.go = threading.Event(), threading.Event()

        def gated(inner: Callable[[Any], Any]) -> Callable[[Any], Any]:
            def call(parts: Any) -> Any:
                self.entered.set()
                assert self.go.wait(60)
                return inner(parts)

            return call

        engine.feed_many = gated(engine.feed_many)  # type: ignore[method-assign]
        engine.advance = gated(engine.advance)  # type: ignore[method-assign]


@contextmanager
def served(daemon: Daemon) -> Iterator[Daemon]:
    """Serve the daemon in a thread of the test."""
    thread = threading.Thread(target=daemon.serve)
    thread.start()
    assert daemon.started.wait(10)
    try:
        yield daemon
    finally:
        daemon.stop()
        thread.join(15)
        assert not thread.is_alive()


def run(daemon: Daemon) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []

    def target() -> None:
        try:
            results.append(daemon.serve())
        except RunnelError as error:
            results.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    return thread, results


def refusal(daemon: Daemon) -> str:
    """Why a daemon did not start."""
    thread, results = run(daemon)
    thread.join(10)
    daemon.stop()
    thread.join(10)
    assert isinstance(results[0], UsageError), "it started"
    return results[0].message
