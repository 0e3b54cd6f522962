"""ZeroMQ connectors on real sockets: PUB to SUB, and messages of other programs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from runnel import Signal, TensorSpec
from runnel.errors import UsageError
from runnel_plugins.connectors import zeromq
from runnel_plugins.connectors.zeromq import Pub, Sub

X = Signal((TensorSpec("x", "float32", (2,)),))
TWO = Signal((TensorSpec("n", "int64"), TensorSpec("x", "float32", (2,))))


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/s"


@pytest.fixture
def publisher(address: str) -> Iterator[Any]:
    """Another program's PUB socket: an XPUB, which receives subscriptions."""
    context = zmq.Context()
    socket = context.socket(zmq.XPUB)
    socket.setsockopt(zmq.RCVTIMEO, 10_000)
    socket.bind(address)
    yield socket
    socket.close(linger=0)
    context.term()


def hear(source: Sub, publisher: Any, *messages: list[bytes], rows: int, block: int = 100) -> dict[str, Any]:
    publisher.recv()  # the subscription
    for message in messages:
        publisher.send_multipart(message)
    held: list[Any] = []
    with closing(source):
        for chunk in source.chunks(block):
            held.append(chunk)
            if sum(len(c[source._signal.names[0]]) for c in held) >= rows:
                break
    return {name: np.concatenate([c[name] for c in held]) for name in source._signal.names}


def test_json_with_and_without_a_topic(address: str, publisher: Any) -> None:
    source = Sub(X, address, topic="a")
    got = hear(
        source,
        publisher,
        [b"a", b'{"x": [1, 2]}'],
        [b"b", b'{"x": [0, 0]}'],  # another topic
        [b"a/b", b'[{"x": [3, 4]}, {"x": [5, 6]}]'],
        [b"a", b"[7, 8]"],
        rows=4,
    )
    assert got["x"].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_raw_numbers_of_several_tensors(address: str, publisher: Any) -> None:
    n, x = np.arange(5, dtype="<i8"), np.arange(10, dtype="<f4").reshape(5, 2)
    frames = [[b"t", n[:3].tobytes(), x[:3].tobytes()], [n[3:].tobytes(), x[3:].tobytes()]]
    got = hear(Sub(TWO, address, format="raw"), publisher, *frames, rows=5, block=2)
    np.testing.assert_array_equal(got["n"], n)
    np.testing.assert_array_equal(got["x"], x)


def test_times_and_columns_of_json(address: str, publisher: Any) -> None:
    source = Sub(X, address, columns=["b", "a"], time="at")
    got = hear(source, publisher, [b'{"a": 1, "b": 2, "at": "1970-01-01T00:01:00"}'], rows=1)
    assert got["x"].tolist() == [[2, 1]]
    assert source.stamp == 60.0


def test_messages_at_another_rate_end_the_run(address: str, publisher: Any) -> None:
    rows = [{"x": [n, n], "at": 40 * n} for n in range(100)]
    messages = [[json.dumps(rows[at : at + 5]).encode()] for at in range(0, 100, 5)]
    signal = Signal(X.tensors, 100.0)
    with pytest.raises(UsageError, match="the rows come at 25 Hz, but the pipeline takes 100 Hz"):
        hear(Sub(signal, address, time="at", unit="ms"), publisher, *messages, rows=100)


def test_messages_at_the_rate_and_at_any(address: str, publisher: Any) -> None:
    rows = [{"x": [n, n], "at": 40 * n} for n in range(100)]
    messages = [[json.dumps(rows[at : at + 5]).encode()] for at in range(0, 100, 5)]
    for rate, how in ((25.0, "check"), (100.0, "any")):
        source = Sub(Signal(X.tensors, rate), address, time="at", unit="ms", rate=how)
        assert hear(source, publisher, *messages, rows=100)["x"][:, 0].tolist() == list(range(100))
        assert source.stamp == pytest.approx(3.96)
        publisher.recv()  # the end of the subscription


def test_malformed_messages_are_left_out_and_reported(
    address: str, publisher: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [
        [b"{"],
        [b"a", b"b", b"[1, 2]"],
        [b'{"x": [1, NaN]}'],
        [b"\xff"],
        [b"[1, 1e400]"],
        [b"[" * 100_000],
    ]
    got = hear(Sub(X, address), publisher, *bad, [b"[1, 2]"], rows=1)
    assert got["x"].tolist() == [[1, 2]]
    at_once, *_, at_the_end = capsys.readouterr().err.splitlines()
    assert "a message was left out; such messages are counted. message 1, b'{': " in at_once
    assert "6 of 7 messages were left out; the first: message 1, b'{': " in at_the_end


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ([bytes(24), bytes(16)], "its tensors have 2 and 3 time steps"),
        ([bytes(24), bytes(23)], "23 bytes are no whole number of time steps of 8"),
        ([b"", b""], "0 bytes are no whole number"),
        ([bytes(8)], "1 frames, not a topic and 2 of numbers"),
    ],
)
def test_malformed_raw_numbers_end_the_run_if_requested(
    address: str, publisher: Any, message: list[bytes], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        hear(Sub(TWO, address, format="raw", malformed="refuse"), publisher, message, rows=1)


def test_messages_before_a_refused_one_count(address: str, publisher: Any) -> None:
    source = Sub(X, address, malformed="refuse")
    publisher.recv()
    publisher.send_multipart([b"[1, 2]"])
    publisher.send_multipart([b"what"])
    chunks = source.chunks(100)
    assert next(chunks)["x"].tolist() == [[1, 2]]
    with pytest.raises(UsageError, match="message 2, b'what'"):
        next(chunks)
    source.close()


def until_heard(subscriber: Any, publish: Callable[[], None]) -> None:
    """Publish again and again until the subscriber has something to read: PUB does not say who subscribes."""
    for _ in range(600):
        publish()
        if subscriber.poll(50):
            return
    raise AssertionError("nobody subscribed")


@pytest.mark.parametrize("form", ["json", "raw"])
def test_sub_receives_what_pub_sends(address: str, form: Any) -> None:
    source = Sub(TWO, address, topic="out", format=form, bind=True)
    sink = Pub(TWO, address, topic="out", format=form, connect=True)
    n, x = np.array([2**60 + 1, 2, 3]), np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
    sink.write({"n": n[:0], "x": x[:0]})
    until_heard(source._socket, lambda: sink.write({"n": np.zeros(1, np.int64), "x": x[:1]}))
    sink.write({"n": n, "x": x})
    sink.close(True)  # messages that are being sent still arrive
    held: list[Any] = []
    for chunk in source.chunks(2):
        held.append({name: values[chunk["n"] != 0] for name, values in chunk.items()})
        if sum(len(c["n"]) for c in held) == 3:
            break
    source.close()
    np.testing.assert_array_equal(np.concatenate([c["n"] for c in held]), n)
    np.testing.assert_array_equal(np.concatenate([c["x"] for c in held]), x)


def test_json_of_a_pub_is_a_line_of_json_lines(address: str) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.RCVTIMEO, 10_000)
    socket.subscribe(b"")
    socket.bind(address)
    sink = Pub(Signal((TensorSpec("w", "int64", (), ("yes", "no")),)), address, connect=True)
    until_heard(socket, lambda: sink.write({"w": np.array([0])}))
    sink.write({"w": np.array([1, 5])})
    while (first := json.loads(socket.recv())) == {"w": "yes"}:
        pass
    assert [first, json.loads(socket.recv())] == [{"w": "no"}, {"w": None}]
    sink.close(True)
    socket.close(linger=0)
    context.term()


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("tcp://10.1.2.3:5556", "leads to other machines, .*ssh -L"),
        ("tcp://*:5556", "leads to other machines"),
        ("tcp://example.com:5556", "leads to other machines"),
        ("tcp://127.0.0.1", r"expected tcp://127.0.0.1:port or ipc:///path"),
        ("tcp://127.0.0.1:http", "expected tcp"),
        ("ipc://@abstract", "expected tcp"),
        ("inproc://x", "expected tcp"),
        ("udp://127.0.0.1:1", "expected tcp"),
    ],
)
def test_an_address_that_is_not_this_machines(address: str, says: str) -> None:
    for kind in (Sub, Pub):
        with pytest.raises(UsageError, match=says):
            kind(X, address)


def test_socket_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"pub: cannot listen at ipc://.*no/such"):
        Pub(X, f"ipc://{tmp_path}/no/such/socket")
    with pytest.raises(UsageError, match="queue must be 1 to 1000000, not 0"):
        Sub(X, f"ipc://{tmp_path}/s", queue=0)
    with pytest.raises(UsageError, match="columns and time are for JSON"):
        Sub(X, f"ipc://{tmp_path}/s", format="raw", time="t")


def test_a_message_past_the_bound_ends_a_connection_and_not_the_run(
    address: str, publisher: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """libzmq ends such a connection and does not retry: the run would wait for ever."""
    monkeypatch.setattr(zeromq, "MAX_MESSAGE", 10_000)
    heard: list[float] = []
    with closing(Sub(X, address)) as source:

        def hear_two() -> None:
            for chunk in source.chunks(10):
                heard.extend(chunk["x"][:, 0].tolist())
                if len(heard) == 2:
                    break

        thread = threading.Thread(target=hear_two)
        thread.start()
        publisher.setsockopt(zmq.XPUB_VERBOSE, 1)  # report each subscription, even a known one
        assert publisher.recv() == b"\x01"
        publisher.send(b"[1, 0]")
        publisher.send(b" " * 10_001)
        while publisher.recv() != b"\x01":  # the subscriber that was cut off subscribes again
            pass
        publisher.send(b"[2, 0]")
        thread.join(10)
        assert not thread.is_alive()
    assert heard == [1, 2]
    assert "a message of more than 10000 bytes ended a connection" in capsys.readouterr().err


def test_reconnected_publisher_is_received_again(
    address: str, publisher: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """libzmq reconnects then; the source must not confuse the two cases."""
    heard: list[float] = []
    with closing(Sub(X, address)) as source:
        chunks = source.chunks(10)
        publisher.recv()
        publisher.send(b"[1, 0]")
        heard.append(next(chunks)["x"][0, 0])
        publisher.unbind(address)
        publisher.close(linger=0)
        with zmq.Context() as context, context.socket(zmq.XPUB) as back:
            back.setsockopt(zmq.RCVTIMEO, 10_000)
            back.bind(address)
            sender = threading.Thread(target=lambda: (back.recv(), back.send(b"[2, 0]")))
            sender.start()
            heard.append(next(chunks)["x"][0, 0])
            sender.join()
    assert heard == [1, 2]
    assert capsys.readouterr().err == ""
