"""The protocol page: its tables and bytes are those of the code, and a client written only from it works.

That client uses pyzmq and msgpack.
"""

from __future__ import annotations

import itertools
import random
import struct
import time
import tomllib
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from runnel import errors
from runnel.daemon import process
from runnel.daemon.loop import Daemon
from runnel.daemon.protocol.server import ServerProtocol
from runnel.wire import messages

from . import protocol_page
from .site import Site, guarded, here
from .support import tally_engine
from .workers import workers

Table = list[list[float]]


def test_the_page_agrees_with_the_code() -> None:
    page = protocol_page.PAGE.read_text()
    assert protocol_page.render(page) == page, "run: python -m tests.serve.protocol_page"


def test_every_error_of_streams_chunks_and_messages_is_on_the_page() -> None:
    families = (errors.WireError, errors.ChunkError, errors.StreamError)
    known = {error for family in families for error in (family, *family.__subclasses__())}
    assert known - {errors.StreamClosedError} <= set(protocol_page.CODES)


def test_every_field_of_a_description_is_on_the_page() -> None:
    assert list(protocol_page.SERVER) == list(messages.Description.__struct_fields__)
    for limit in messages.Limits.__struct_fields__:
        assert f"`{limit}`" in protocol_page.SERVER["limits"]


def test_every_field_of_the_stats_is_on_the_page() -> None:
    server = ServerProtocol(tally_engine(), "boot")
    server.gauges = process.gauges
    assert set(", ".join(protocol_page.STATS).split(", ")) == server.document().keys()


class ForeignClient:
    """A client without runnel, written from the page."""

    def __init__(self, address: str, keys: tuple[bytes, bytes, bytes] | None = None) -> None:
        self.address, self.keys = address, keys
        self.ids = itertools.count(1)
        self.connect()

    def connect(self) -> None:
        """Connect a new socket, so that nothing old is sent."""
        self.sock: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.sock.setsockopt(zmq.LINGER, 0)
        if self.keys:
            self.sock.curve_serverkey, self.sock.curve_publickey, self.sock.curve_secretkey = self.keys
        self.sock.connect(self.address)

    def send(self, op: str, tensors: dict[str, Table] | None = None, **fields: Any) -> str:
        id = f"f{next(self.ids)}"
        header = {"v": 1, "op": op, "id": id, **fields}
        frames = []
        for name, table in (tensors or {}).items():
            header.setdefault("inputs", []).append(
                {"name": name, "datatype": "FP32", "shape": [len(table), len(table[0])]}
            )
            flat = [x for row in table for x in row]
            frames.append(struct.pack(f"<{len(flat)}f", *flat))
        self.sock.send_multipart([msgspec.msgpack.encode(header), *frames])
        return id

    def receive(self) -> tuple[dict[str, Any], dict[str, list[tuple[float, ...]]]]:
        assert self.sock.poll(10_000)
        head, *frames = self.sock.recv_multipart()
        header = msgspec.msgpack.decode(head)
        tensors = {}
        for info, frame in zip(header.get("outputs", []), frames, strict=True):
            assert info["datatype"] == "FP32"
            tensors[info["name"]] = list(struct.iter_unpack(f"<{info['shape'][1]}f", frame))
            assert len(tensors[info["name"]]) == info["shape"][0]
        return header, tensors

    def ask(self, op: str, *args: Any, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        id = self.send(op, *args, **fields)
        header, tensors = self.receive()
        assert header["id"] == id
        return header, tensors


@pytest.fixture
def foreign(daemon: Daemon) -> Any:
    client = ForeignClient(daemon.address)
    yield client
    client.sock.close()


def test_a_foreign_client_streams(foreign: ForeignClient) -> None:
    server = foreign.ask("hello")[0]["server"]
    assert server["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    assert server["latency"] == 1
    assert "error" not in foreign.ask("open", sequence_id="mic", epoch=77)[0]
    for _ in range(2):  # the second time as if the reply had been lost
        header, out = foreign.ask("feed", {"x": [[1, 10], [2, 20]]}, sequence_id="mic", epoch=77, seq=1)
        assert out == {"y": [(1, 10)]}
        assert header["applied_seq"] == 1
    header, out = foreign.ask("feed", {"x": [[3, 30]]}, sequence_id="mic", seq=1)  # by mistake
    assert header["error"]["code"] == "CONFLICT"
    assert header["error"]["retry"] is False
    assert header["applied_seq"] == 1
    epoch = foreign.ask("resume", sequence_id="mic", epoch=77)[0]["epoch"]
    header, _ = foreign.ask("feed", {"x": [[3, 30]]}, sequence_id="mic", epoch=77, seq=2)
    assert header["error"]["code"] == "FENCED"
    header, out = foreign.ask("feed", {"x": [[3, 30]]}, sequence_id="mic", epoch=epoch, seq=2)
    assert out == {"y": [(3, 30)]}
    assert foreign.ask("flush", sequence_id="mic", epoch=epoch, seq=3)[1] == {"y": [(6, 60)]}
    assert "error" not in foreign.ask("close", sequence_id="mic")[0]
    assert foreign.ask("feed", {"x": [[1, 1]]}, sequence_id="mic")[0]["error"]["code"] == "UNKNOWN_STREAM"


def test_a_foreign_client_need_not_wait(foreign: ForeignClient) -> None:
    sent = [
        foreign.send("feed", {"x": [[1, 1], [1, 1]]}, sequence_start=True, sequence_end=True)
        for _ in range(10)
    ]
    got = {header["id"]: tensors for header, tensors in (foreign.receive() for _ in sent)}
    assert got == {id: {"y": [(1, 1), (2, 2)]} for id in sent}


def test_a_foreign_client_sends_a_bundle(foreign: ForeignClient) -> None:
    """One of its requests fails, the others do not; one is answered before the rest is run."""
    clip = {"v": 1, "op": "feed", "sequence_start": True, "sequence_end": True}
    info = {"name": "x", "datatype": "FP32", "shape": [1, 2]}
    headers = [
        {**clip, "id": "a", "inputs": [info]},
        {"v": 1, "op": "feed", "id": "b", "sequence_id": "none", "inputs": [info]},
        {"v": 1, "op": "hello", "id": "c"},
        {**clip, "id": "d", "inputs": [info]},
    ]
    foreign.sock.send_multipart([msgspec.msgpack.encode(headers), struct.pack("<6f", 1, 1, 5, 5, 2, 2)])
    got: dict[str, Any] = {}
    while len(got) < len(headers):
        assert foreign.sock.poll(10_000)
        head, *frames = foreign.sock.recv_multipart()
        found, body = msgspec.msgpack.decode(head), b"".join(frames)
        for header in found if isinstance(found, list) else [found]:
            size = 4 * sum(info["shape"][0] * info["shape"][1] for info in header.get("outputs", []))
            got[header["id"]], body = (header, body[:size]), body[size:]
        assert not body
    assert (got["a"][1], got["d"][1]) == (struct.pack("<2f", 1, 1), struct.pack("<2f", 2, 2))
    assert got["b"][0]["error"]["code"] == "UNKNOWN_STREAM"
    assert "server" in got["c"][0]


@pytest.mark.parametrize("header", [b"\x90", b"\x91\xc0", b"\xdc\xff\xff"])
def test_an_invalid_bundle_is_answered(foreign: ForeignClient, header: bytes) -> None:
    """Empty, without a map, or cut off: an error without an id, since none could be read."""
    foreign.sock.send_multipart([header, b""])
    assert foreign.receive()[0]["error"]["code"] == "BAD_MESSAGE"


class ForeignStream:
    """Pipelined requests, repeated after a lost connection: written from the page."""

    def __init__(self, client: ForeignClient, name: str) -> None:
        self.client, self.name = client, name
        self.epoch = random.getrandbits(62) + 1
        self.most = client.ask("hello")[0]["server"]["limits"]["kept_replies"]
        assert "error" not in client.ask("open", sequence_id=name, epoch=self.epoch)[0]
        self.seq = 0
        self.unanswered: dict[int, tuple[str, dict[str, Table] | None]] = {}
        self.sent: dict[str, int] = {}  # the last sending of each: its id, its seq
        self.made: list[tuple[float, ...]] = []

    def request(self, op: str, tensors: dict[str, Table] | None = None) -> None:
        while len(self.unanswered) >= self.most:
            self.receive()
        self.seq += 1
        self.unanswered[self.seq] = op, tensors
        self.say(self.seq)

    def say(self, seq: int) -> None:
        op, tensors = self.unanswered[seq]
        self.sent[self.client.send(op, tensors, sequence_id=self.name, epoch=self.epoch, seq=seq)] = seq

    def receive(self) -> None:
        header, tensors = self.client.receive()
        seq = self.sent.pop(header["id"], None)
        if seq is None:
            return  # to an earlier sending
        assert "error" not in header
        del self.unanswered[seq]
        self.made += tensors.get("y", [])

    def lose(self) -> None:
        """Lose the connection and everything in flight, then continue over another."""
        self.client.sock.close()
        self.client.connect()
        header, _ = self.client.ask("resume", sequence_id=self.name, epoch=self.epoch)
        self.epoch = header["epoch"]
        self.sent.clear()
        for seq in self.unanswered:
            self.say(seq)


def test_a_foreign_client_loses_its_connection_and_nothing_else(daemon: Daemon) -> None:
    """Every other time, all was applied and only the replies are lost; else everything in flight is lost."""
    chosen = random.Random(7)
    values = [float(chosen.randrange(100)) for _ in range(600)]
    watcher, client = ForeignClient(daemon.address), ForeignClient(daemon.address)
    stream = ForeignStream(client, "mic")
    cuts, chunks, at = 0, 0, 0
    while at < len(values):
        size = chosen.randrange(1, 5)
        stream.request("feed", {"x": [[value, value] for value in values[at : at + size]]})
        at, chunks = at + size, chunks + 1
        if chosen.random() < 0.1:
            applied = time.monotonic() + 10
            while cuts % 2 and watcher.ask("stats")[0]["stats"]["chunks"] < chunks:
                assert time.monotonic() < applied
            stream.lose()
            cuts += 1
        elif chosen.random() < 0.3:
            stream.receive()
    stream.request("flush")
    stream.request("close")
    while stream.unanswered:
        stream.receive()
    counted = watcher.ask("stats")[0]["stats"]
    client.sock.close()
    watcher.sock.close()
    assert stream.made == [(total, total) for total in itertools.accumulate(values)]
    assert counted["chunks"] == chunks
    assert counted["resumed"] == cuts > 10
    assert counted["repeats"] > 10, "replies were lost, and given again"
    assert (counted["streams"], counted["closed"]) == (0, {"closed": 1})


def test_a_foreign_client_with_keys(site: Site) -> None:
    user = tomllib.loads(site.key_file("alice").read_text())
    [(_, public)] = tomllib.loads(site.key_file("alice").with_suffix(".pub").read_text()).items()
    keys = user["server"].encode(), public.encode(), user["secret"].encode()
    with guarded(tally_engine(), site) as daemon:
        client = ForeignClient(here(daemon), keys)
        assert "error" not in client.ask("open", sequence_id="mic")[0]
        assert client.ask("feed", {"x": [[1, 1], [2, 2]]}, sequence_id="mic", seq=1)[1] == {"y": [(1, 1)]}
        client.sock.close()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.user("alice")
    return site


def test_a_foreign_client_finds_the_worker_of_a_stream(tmp_path: Path) -> None:
    with workers(tmp_path) as two:
        clients = [ForeignClient(worker.address) for worker in two]
        told = clients[0].ask("hello")[0]["server"]["workers"]
        assert told == [worker.address for worker in two]
        assert f"of `mic` {zlib.crc32(b'mic')}: worker {zlib.crc32(b'mic') % 2} of two" in " ".join(
            protocol_page.PAGE.read_text().split()
        )
        for name in ("mic", "ärger", "s3"):
            right = zlib.crc32(name.encode()) % 2
            assert "error" not in clients[right].ask("open", sequence_id=name)[0]
            assert clients[1 - right].ask("open", sequence_id=name)[0]["error"]["code"] == "WRONG_WORKER"
        for client in clients:
            client.sock.close()
