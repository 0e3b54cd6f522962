"""The client against a daemon, over ipc and loopback tcp: the rules of an engine's own streams."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

import runnel
from runnel import errors
from runnel.client import common as remote
from runnel.client.client import Client
from runnel.client.protocol import failure
from runnel.daemon.loop import Daemon
from runnel.daemon.protocol import intake
from runnel.daemon.protocol import server as protocol
from runnel.wire import messages

from .support import UNLUCKY, SpyEngine, plain_engine, rows, tally_engine


def test_a_remote_stream_behaves_as_a_local_one(client: Client) -> None:
    local = plain_engine().open("a")
    remote = client.open("a")
    for chunk in (rows(1, 2, 3), rows(4), {"x": rows(5, 6)}):
        ours, theirs = remote.feed(chunk), local.feed(chunk)
        assert type(ours) is type(theirs)
        if isinstance(ours, dict):
            ours, theirs = ours["y"], theirs["y"]
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
        assert remote.seq == local.seq
    np.testing.assert_array_equal(remote.flush(), local.flush())
    for stream in (remote, local):
        with pytest.raises(errors.StreamEndedError, match="'a' was flushed"):
            stream.feed(rows(1))
        stream.reset()
    assert local.seq == 0
    assert remote.seq == 5  # every request that changes the stream counts: 3 chunks, flush, reset
    np.testing.assert_array_equal(remote.feed(rows(1, 1)), local.feed(rows(1, 1)))
    remote.close()
    remote.close()
    with pytest.raises(errors.StreamClosedError):
        remote.feed(rows(1))


def test_the_client_is_a_public_name() -> None:
    assert runnel.Client is Client


def test_describe_gives_the_pipelines_signals(client: Client, engine: SpyEngine) -> None:
    served = client.describe()
    assert served.inputs == engine.pipeline.inputs
    assert served.outputs == engine.pipeline.outputs
    assert served.latency == engine.pipeline.latency
    assert served.version == runnel.__version__
    assert served.limits["streams"] == 64


@pytest.mark.parametrize(
    ("chunk", "error"),
    [
        (rows(1).astype("float64"), errors.ChunkError),
        (np.zeros((3, 5), "float32"), errors.ChunkError),
        (np.zeros((), "float32"), errors.ChunkError),
        (np.zeros((0, 2), "float32"), errors.EmptyChunkError),
        ({"z": rows(1)}, errors.ChunkError),
        ({}, errors.ChunkError),
        ([1.0, 2.0], errors.ChunkError),
        ({"x": [1.0]}, errors.ChunkError),
        (rows(1).astype("complex64"), errors.ChunkError),
        (rows(UNLUCKY), errors.StageError),
        (np.zeros((2**21 + 1, 2), "float32"), errors.TooLargeError),
    ],
)
def test_a_refused_chunk_changes_nothing(client: Client, chunk: Any, error: type[Exception]) -> None:
    stream = client.open()
    stream.feed(rows(1))
    with pytest.raises(error) as caught:
        stream.feed(chunk)
    assert type(caught.value) is error
    assert stream.seq == 1
    assert stream.feed(rows(2))[:, 0].tolist() == [1]
    assert stream.flush()[:, 0].tolist() == [3]


def test_errors_come_as_the_engines_classes(client: Client) -> None:
    client.open("a")
    with pytest.raises(errors.StreamExistsError, match="'a' is open already"):
        client.open("a")
    with pytest.raises(errors.StreamError, match="printable"):
        client.open("a\n")
    for _ in range(63):
        client.open()
    with pytest.raises(errors.LimitError, match="64 streams are open"):
        client.open()


def test_requests_in_flight_stay_within_the_daemons_limit(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_PENDING_PER_PEER", 4)  # what it tells
    monkeypatch.setattr(intake, "MAX_PENDING_PER_PEER", 4)  # what it refuses more than
    with Client(daemon.address, timeout=10.0) as client:
        streams = [client.open() for _ in range(40)]
        for made in client.feed_many([(stream, rows(1, 2)) for stream in streams]):
            assert isinstance(made, np.ndarray), made
            assert made[:, 0].tolist() == [1]


def test_an_unknown_code_is_still_an_error() -> None:
    failed = failure(messages.ErrorInfo("BRAND_NEW", "something"))
    assert type(failed) is errors.RunnelError
    assert failed.message == "BRAND_NEW: something"


def test_feed_many_behaves_as_the_engines(client: Client, engine: SpyEngine) -> None:
    ours = [client.open(f"s{i}") for i in range(5)]
    local = plain_engine()
    theirs = [local.open() for _ in range(5)]
    plan: list[tuple[int, Any]] = [
        (0, rows(1, 2)), (1, rows(3)), (0, rows(4)), (2, rows(UNLUCKY)), (2, rows(5, 6)),
        (3, np.zeros((2, 9), "float32")), (4, {"x": rows(7, 8)}), (3, rows(1)), (2, rows(9)),
    ]  # fmt: skip
    got = client.feed_many([(ours[i], chunk) for i, chunk in plan])
    want = local.feed_many([(theirs[i], chunk) for i, chunk in plan])
    for a, b in zip(got, want, strict=True):
        if isinstance(b, errors.RunnelError):
            assert isinstance(a, type(b))
            continue
        np.testing.assert_array_equal(*((x["y"] if isinstance(x, dict) else x) for x in (a, b)))
    assert [s.seq for s in ours] == [s.seq for s in theirs] == [2, 1, 0, 0, 1]
    assert [type(got[i]) for i in (4, 7, 8)] == [errors.GapError] * 3


def test_more_than_a_window_of_chunks(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "IN_FLIGHT", 7)
    streams = [client.open() for _ in range(3)]
    results = client.feed_many([(streams[i % 3], rows(i)) for i in range(100)])
    for k, stream in enumerate(streams):
        got = np.concatenate([*results[k::3], stream.flush()])[:, 0].tolist()
        assert got == np.cumsum(range(k, 100, 3)).tolist()
    assert nothing_kept(client)


def test_two_clients_share_a_daemon_and_get_their_own_replies(client: Client, daemon: Daemon) -> None:
    totals: dict[str, list[float]] = {}

    def work(name: str, value: float) -> None:
        with Client(daemon.address) as own, own.open(name) as stream:
            out = [stream.feed(rows(value)) for _ in range(50)]
            totals[name] = np.concatenate([*out, stream.flush()])[:, 0].tolist()

    threads = [threading.Thread(target=work, args=(n, v)) for n, v in (("a", 1), ("b", 100))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert totals["a"] == list(range(1, 51))
    assert totals["b"] == list(range(100, 5001, 100))


def test_a_stream_outlives_its_client(client: Client, daemon: Daemon) -> None:
    client.open("a").feed(rows(1))
    with Client(daemon.address) as other, pytest.raises(errors.StreamExistsError):
        other.open("a")


def test_no_daemon(tmp_path: Path) -> None:
    start = time.monotonic()
    with Client(f"ipc://{tmp_path}/nobody.sock", timeout=0.2) as client:
        with pytest.raises(errors.TimeoutError, match="is the daemon running there") as caught:
            client.open()
        assert caught.value.retry
    assert time.monotonic() - start < 5


def nothing_kept(client: Client) -> bool:
    """Whether no request is in flight or stored for a repeat."""
    protocols = [shared.connection.protocol for shared in client._connections.values()]
    return not any(p.in_flight or p._by_id or p.outbox for p in protocols)


class SlowDaemon:
    """A ROUTER that answers when the test says."""

    def __init__(self, folder: Path) -> None:
        self.address = f"ipc://{folder}/slow.sock"
        self.router: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 0)
        self.router.bind(self.address)
        description = messages.Description(
            version="9", boot_id="b", input_rate=0.0, output_rate=0.0, latency=0,
            inputs=[messages.TensorMetadata("x", "FP32", [-1, 2])],
            outputs=[messages.TensorMetadata("y", "FP32", [-1, 2])],
            limits=messages.Limits(streams=1, pending_per_peer=8),
        )  # fmt: skip
        self.description = description

    def answer(self, **fields: Any) -> messages.Request:
        assert self.router.poll(20_000)
        peer, *frames = self.router.recv_multipart()
        [(request, _)] = messages.decode_requests(frames)
        if request.op == "hello":
            fields["server"] = self.description
        reply = messages.Reply(
            **{"v": 1, "op": request.op, "id": request.id, "sequence_id": request.sequence_id, **fields}
        )
        self.router.send_multipart([peer, *messages.encode_reply(reply)])
        return request


@pytest.fixture
def slow(tmp_path: Path) -> Any:
    daemon = SlowDaemon(tmp_path)
    yield daemon
    daemon.router.close()


def opened(slow: SlowDaemon) -> tuple[Client, Any]:
    client = Client(slow.address, timeout=20)
    answers = threading.Thread(target=lambda: (slow.answer(), slow.answer(epoch=1)))
    answers.start()
    stream = client.open("a")
    answers.join()
    return client, stream


def test_a_late_reply_is_not_taken_for_the_next_one(slow: SlowDaemon) -> None:
    """A chunk fed again after a time-out has the same seq, under an id of its own."""
    client, stream = opened(slow)
    with client:
        client.timeout = 0.3
        with pytest.raises(errors.TimeoutError):
            stream.feed(rows(1))
        client.timeout = 20
        first = slow.answer(epoch=1, applied_seq=1, error=messages.ErrorInfo("STAGE_FAILED", "too late"))
        seconds: list[messages.Request] = []
        answers = threading.Thread(target=lambda: seconds.append(slow.answer(epoch=1, applied_seq=1)))
        answers.start()
        assert stream.feed(rows(1)) == {}
        answers.join()
        assert first.seq == seconds[0].seq == 1
        assert first.id != seconds[0].id
        assert stream.seq == 1
        assert nothing_kept(client)


def test_feed_many_waits_once_for_a_daemon_that_is_silent(slow: SlowDaemon) -> None:
    client, stream = opened(slow)
    with client:
        client.timeout = 0.3
        start = time.monotonic()
        results = client.feed_many([(stream, rows(i)) for i in range(100)])
        assert time.monotonic() - start < 15, "a time-out for each would be 30 s"
        assert [type(r) for r in results] == [errors.TimeoutError] * 100
        assert nothing_kept(client)


def test_a_closed_client_raises(client: Client) -> None:
    stream = client.open()
    client.close()
    client.close()
    with pytest.raises(errors.UsageError, match="closed"):
        stream.feed(rows(1))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("localhost:5555", "expected ipc"),
        ("tcp://127.0.0.1", "expected ipc"),
        ("tcp://127.0.0.1:70000", "at most 65535"),
        ("tcp://0.0.0.0:5555", "other machines"),
        ("tcp://*:5555", "other machines"),
        ("tcp://eth0:5555", "other machines"),
        ("tcp://192.168.1.4:5555", "other machines"),
        ("tcp://[::]:5555", "other machines"),
        ("inproc://x", "expected ipc"),
        ("ipc://", "socket file"),
        ("ipc://@abstract", "socket file"),
        ("ipc:///" + "x" * 107, "at most 107 bytes"),
        ("", "expected ipc"),
    ],
)
def test_an_invalid_address(address: str, words: str) -> None:
    for make in (lambda: Client(address), lambda: Daemon(tally_engine(), address)):
        with pytest.raises(errors.UsageError, match=words):
            make()


def test_an_invalid_timeout() -> None:
    for timeout in (0, -1, float("nan"), float("inf"), 1e10, None):
        with pytest.raises(errors.UsageError, match="positive"):
            Client("ipc:///run/x.sock", timeout=timeout)  # type: ignore[arg-type]
    with pytest.raises(errors.UsageError, match="needs the port"):
        Client("tcp://127.0.0.1:*")
