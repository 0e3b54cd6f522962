"""Pipelines whose outputs are easy to compute by hand, and a spy on calls of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from runnel.daemon.protocol.outgoing import Outgoing
from runnel.daemon.protocol.server import ServerProtocol
from runnel.engine import Engine
from runnel.pipeline.pipeline import Pipeline
from runnel.spec import Array, Signal, TensorSpec
from runnel.stage import Arrays, Chunk, Stage, State
from runnel.wire.messages import Reply, Request, TensorInfo, decode_reply, encode_request
from runnel.wire.tensors import pack, unpack

UNLUCKY = -777.0  # a step on it fails
POISON = 1e6  # a flush after it fails


class Tally(Stage):
    """y[t] = x[0] + ... + x[t], exact for integers. Holds its last row back until the flush."""

    def __init__(self) -> None:
        self.name = "tally"
        self.inputs = Signal((TensorSpec("x", "float32", (2,)),), rate=100.0)
        self.outputs = Signal((TensorSpec("y", "float32", (2,)),), rate=100.0)
        self.latency = 1

    def initial(self) -> Arrays:
        return {"sum": np.zeros(2, "float32"), "held": np.zeros((0, 2), "float32")}

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        x = chunk["x"]
        if (x == UNLUCKY).any():
            raise ValueError("an unlucky number")
        sums = state["sum"] + np.cumsum(x, axis=0)
        rows = np.concatenate((state["held"], sums))
        return {"sum": rows[-1] if len(x) else state["sum"], "held": rows[-1:]}, {"y": rows[:-1]}

    def flush(self, state: State) -> tuple[State, Chunk]:
        if (state["sum"] >= POISON).any():
            raise ValueError("a poisoned flush")
        return {**state, "held": state["held"][:0]}, {"y": state["held"]}


class SpyEngine(Engine):
    """Records the size of each batch, and can fail as a whole."""

    def __init__(self, pipeline: Pipeline, max_streams: int = 1024) -> None:
        super().__init__(pipeline, max_streams)
        self.batches: list[int] = []
        self.broken = False

    def feed_many(self, pairs: Sequence[tuple[Any, Any]]) -> list[Any]:
        self.batches.append(len(pairs))
        assert len({stream.id for stream, _ in pairs}) == len(pairs), "a stream twice in a batch"
        if self.broken:
            raise MemoryError("the engine broke")
        return super().feed_many(pairs)


def plain_engine() -> Engine:
    """The oracle: an engine that only the test calls."""
    return Engine(Pipeline([Tally()], None, {}))


def tally_engine(max_streams: int = 1024) -> SpyEngine:
    return SpyEngine(Pipeline([Tally()], None, {}), max_streams)


def rows(*values: float) -> Array:
    """A chunk for Tally: one row for each value, in both columns."""
    return np.repeat(np.array(values, "float32")[:, None], 2, axis=1)


class Peer:
    """One client of a Server without sockets: sends requests, and stores the replies by id."""

    def __init__(self, server: ServerProtocol, name: bytes = b"peer") -> None:
        self.server, self.name = server, name
        self.replies: dict[str, tuple[Reply, dict[str, Array]]] = {}
        self._sent = 0

    def send(self, op: str, stream: str = "", x: Array | None = None, **fields: Any) -> str:
        self._sent += 1
        id = f"{self.name.decode()}/{self._sent}"
        infos, buffers = pack({"x": x}) if x is not None else ([], [])
        header = Request(v=1, op=op, id=id, sequence_id=stream, inputs=infos, **fields)  # type: ignore[arg-type]
        self.take(self.server.receive(self.name, encode_request(header, buffers), 0.0))
        return id

    def restore(self, stream: str, blob: bytes, **fields: Any) -> Reply:
        """Restore a stream from a snapshot."""
        self._sent += 1
        id = f"{self.name.decode()}/{self._sent}"
        inputs = [TensorInfo("snapshot", "UINT8", [len(blob)])]
        header = Request(v=1, op="restore", id=id, sequence_id=stream, inputs=inputs, **fields)
        self.take(self.server.receive(self.name, encode_request(header, [blob]), 0.0))
        while self.server.pending:
            self.take(self.server.run(0.0))
        return self.replies[id][0]

    def take(self, outgoing: list[Outgoing]) -> None:
        for out in outgoing:
            assert out.peer == self.name
            reply, buffers = decode_reply(out.frames)
            assert reply.id not in self.replies, "answered twice"
            self.replies[reply.id] = reply, unpack(reply.outputs, buffers)

    def ask(self, op: str, stream: str = "", x: Array | None = None, **fields: Any) -> tuple[Reply, Array]:
        """Send a request, run the server until it is idle, and return the reply and its y."""
        id = self.send(op, stream, x, **fields)
        while self.server.pending:
            self.take(self.server.run(0.0))
        reply, outputs = self.replies[id]
        return reply, outputs.get("y", np.zeros((0, 2), "float32"))


def code(reply: Reply) -> str:
    """The error's code, or 'ok'."""
    return reply.error.code if reply.error else "ok"


def model_pipeline(folder: Path) -> Path:
    """A pipeline file over a step model on disk: y[t] = x[0] + ... + x[t], one state, time free."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["time", "slot", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["time", "slot", 2])
    s = helper.make_tensor_value_info("s", TensorProto.FLOAT, [1, "slot", 2])
    s_next = helper.make_tensor_value_info("s_next", TensorProto.FLOAT, [1, "slot", 2])
    graph = helper.make_graph(
        [
            helper.make_node("CumSum", ["x", "zero"], ["sums"]),
            helper.make_node("Add", ["sums", "s"], ["y"]),
            helper.make_node("Slice", ["y", "last", "end", "zeros"], ["s_next"]),
        ],
        "tally",
        [x, s],
        [y, s_next],
        [
            helper.make_tensor("zero", TensorProto.INT64, [], [0]),
            helper.make_tensor("zeros", TensorProto.INT64, [1], [0]),
            helper.make_tensor("last", TensorProto.INT64, [1], [-1]),
            helper.make_tensor("end", TensorProto.INT64, [1], [2**31]),
        ],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, folder / "tally.onnx")
    path = folder / "tally.toml"
    path.write_text(
        '[model]\npath = "tally.onnx"\n'
        '[model.shapes]\nx = ["time", "slot", 2]\n'
        '[[model.state]]\ninput = "s"\noutput = "s_next"\nshape = [1, "slot", 2]\n'
    )
    return path
