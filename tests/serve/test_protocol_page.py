"""The protocol page in engine/README.md: its tables and bytes are those of the code, and a client that
was written from it alone, with pyzmq and msgpack, works."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import msgspec
import pytest
import zmq

from runnel import errors
from runnel.serve.daemon import Daemon

from . import protocol_page


def test_the_page_is_what_the_code_says() -> None:
    page = protocol_page.PAGE.read_text()
    assert protocol_page.render(page) == page, "run: python -m tests.serve.protocol_page"


def test_every_error_of_streams_chunks_and_messages_is_on_the_page() -> None:
    families = (errors.WireError, errors.ChunkError, errors.StreamError)
    known = {error for family in families for error in (family, *family.__subclasses__())}
    assert known - {errors.StreamClosedError} <= set(protocol_page.CODES)


class ForeignClient:
    """Knows nothing of runnel: written from the page."""

    def __init__(self, address: str) -> None:
        self.sock: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.sock.setsockopt(zmq.LINGER, 0)
        self.sock.connect(address)
        self.ids = itertools.count(1)

    def send(self, op: str, tensors: dict[str, list[list[float]]] | None = None, **fields: Any) -> str:
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
