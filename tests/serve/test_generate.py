"""Steps without input over the wire: exactly once, as a feed; and labels of outputs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from runnel import AsyncClient, Engine, Signal, TensorSpec, errors, stage
from runnel.batch import StackedStage
from runnel.cli.main import main
from runnel.client.client import Client
from runnel.daemon.loop import Daemon
from runnel.daemon.protocol.jobs import MAX_REPLY_BYTES
from runnel.daemon.protocol.server import ServerProtocol
from runnel.pipeline.feedback import Feedback, LoopInput
from runnel.pipeline.pipeline import Pipeline
from runnel.wire import messages, tensors
from runnel.wire.tensors import describe, undescribe, unpack

from .peers import served
from .proxy import Proxy
from .support import tally_engine
from .test_client_protocol import Link, opened

LABELS = ("zero", "one", "two")
UNLUCKY = 404


class Next(StackedStage):
    """n[t+1] = n[t] + 1 + the steps so far, and a row of `width` floats beside it; fails at `UNLUCKY`."""

    name = "next"

    def __init__(self, width: int = 1) -> None:
        self.inputs = Signal((TensorSpec("n", "int64"),))
        self.width = width
        made = TensorSpec("n", "int64", labels=LABELS), TensorSpec("row", "float32", (width,))
        self.outputs = Signal(made)

    def initial(self) -> Any:
        return {"steps": np.zeros((), np.int64)}

    def advance(self, state: Any, chunk: Any) -> Any:
        n = chunk["n"]
        if (n == UNLUCKY).any():
            raise ValueError("an unlucky number")
        made = n + 1 + state["steps"][:, None] + np.arange(n.shape[1])
        row = np.zeros((*n.shape, self.width), np.float32)
        return {"steps": state["steps"] + n.shape[1]}, {"n": made, "row": row}


def loop_engine(width: int = 1, max_streams: int = 100) -> Engine:
    inner = Pipeline([Next(width)], None, {})
    loop = Feedback(inner, [LoopInput(inner.inputs.tensors[0], "n", np.array(5))])
    return Engine(Pipeline([loop], None, {}), max_streams)


def told(n: int, start: int = 5) -> list[int]:
    """By hand: the output of the first n steps."""
    made = []
    for step in range(n):
        start += 1 + step
        made.append(start)
    return made


# The server protocol


class Talk:
    """One peer of a server, a request at a time."""

    def __init__(self, engine: Engine) -> None:
        self.server = ServerProtocol(engine, "boot")

    def ask(self, op: str, chunk: Any = None, **fields: Any) -> tuple[messages.Reply, dict[str, Any]]:
        infos, buffers = tensors.pack(chunk or {})
        frames = [msgspec.msgpack.encode({"v": 1, "op": op, "inputs": infos, "id": "i", **fields}), *buffers]
        told = self.server.receive(b"p", frames, 0.0)
        while self.server.pending:
            told += self.server.run(0.0)
        [out] = told
        reply, payload = messages.decode_reply(out.frames)
        return reply, unpack(reply.outputs, payload)


def code(reply: messages.Reply) -> str:
    return reply.error.code if reply.error else "ok"


def test_repeats_are_applied_once() -> None:
    """The number of steps is the payload: a different one under the same seq is a conflict."""
    talk = Talk(loop_engine())
    talk.ask("open", sequence_id="s", epoch=7)
    stated = {"sequence_id": "s", "epoch": 7}
    for _ in range(3):
        reply, out = talk.ask("feed", steps=4, seq=1, **stated)
        assert (reply.applied_seq, out["n"].tolist()) == (1, told(4))
    assert code(talk.ask("feed", steps=5, seq=1, **stated)[0]) == "CONFLICT"
    assert code(talk.ask("feed", {"n": np.array([1])}, seq=1, **stated)[0]) == "CONFLICT"
    assert code(talk.ask("feed", steps=2, seq=3, **stated)[0]) == "GAP"
    assert talk.ask("feed", steps=2, seq=2, **stated)[1]["n"].tolist() == told(6)[4:]
    reply, out = talk.ask("feed", {"n": np.array([0, UNLUCKY])}, seq=3, **stated)
    assert (code(reply), reply.applied_seq, out) == ("STAGE_FAILED", 2, {})
    assert talk.ask("feed", steps=1, seq=3, **stated)[1]["n"].tolist() == told(7)[6:]


def test_a_whole_stream_in_one_message() -> None:
    talk = Talk(loop_engine())
    out = talk.ask("feed", steps=3, sequence_start=True, sequence_end=True)[1]
    assert out["n"].tolist() == told(3)
    assert not talk.server._engine.streams


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"op": "feed", "steps": messages.MAX_STEPS + 1}, "BAD_MESSAGE"),
        ({"op": "feed", "steps": -1}, "BAD_MESSAGE"),
        ({"op": "feed", "steps": 1.5}, "BAD_MESSAGE"),
        ({"op": "feed", "steps": "1"}, "BAD_MESSAGE"),
        ({"op": "feed", "steps": 1, "chunk": {"n": np.array([1])}}, "BAD_MESSAGE"),
        ({"op": "flush", "steps": 1}, "BAD_MESSAGE"),
        ({"op": "open", "steps": 1}, "BAD_MESSAGE"),
        ({"op": "feed", "steps": 0}, "BAD_CHUNK"),
    ],
)
def test_invalid_requests(fields: dict[str, Any], says: str) -> None:
    talk = Talk(loop_engine())
    talk.ask("open", sequence_id="s")
    reply, _ = talk.ask(**fields, sequence_id="s")
    assert code(reply) == says
    assert talk.ask("feed", steps=1, sequence_id="s", seq=1)[1]["n"].tolist() == told(1)


def test_a_reply_is_bounded() -> None:
    """A request of a hundred bytes must not make a reply of gigabytes."""
    talk = Talk(loop_engine(width=2**16))
    talk.ask("open", sequence_id="s")
    row = 4 * 2**16 + 8
    most = MAX_REPLY_BYTES // row
    reply, _ = talk.ask("feed", steps=most + 1, sequence_id="s")
    assert reply.error is not None
    assert (reply.error.code, reply.applied_seq) == ("TOO_LARGE", 0)
    assert f"send at most {most} time steps" in reply.error.message
    assert len(talk.ask("feed", steps=most, sequence_id="s")[1]["n"]) == most


def test_a_pipeline_that_does_not_feed_itself() -> None:
    talk = Talk(tally_engine())
    talk.ask("open", sequence_id="s")
    reply, _ = talk.ask("feed", steps=3, sequence_id="s")
    assert reply.error is not None
    assert (reply.error.code, reply.applied_seq) == ("BAD_CHUNK", 0)
    assert "cannot step without input" in reply.error.message


def test_the_bound_is_the_engines() -> None:
    assert messages.MAX_STEPS == stage.MAX_STEPS


# Clients


def test_a_request_is_repeated_over_a_new_connection() -> None:
    """The connection is cut with the reply in flight: the same steps, the same seq, done once."""
    link = Link(ServerProtocol(loop_engine(), "boot"), "a")
    stream = opened(link, "s")
    pendings = [link.protocol.post(stream, "feed", steps=n) for n in (3, 2, 4)]
    link.send()
    link.arrive(2)
    link.run()
    link.cut(0, 0)
    link.finish()
    made = [unpack(t.answer().outputs, t.payload)["n"].tolist() for t in pendings]
    assert made == [told(3), told(5)[3:], told(9)[5:]]
    assert stream.applied == 3


def test_a_client_generates(tmp_path: Path) -> None:
    with (
        served(Daemon(loop_engine(), f"ipc://{tmp_path}/d.sock")) as daemon,
        Client(daemon.address, 20) as client,
    ):
        assert client.describe().outputs.tensors[0].labels == LABELS
        stream = client.open("s")
        assert stream.generate(4)["n"].tolist() == told(4)
        assert stream.feed(np.array([0]))["n"].tolist() == [5]
        assert stream.generate(1)["n"].tolist() == [5 + 6]
        assert stream.seq == 3
        for wrong in (0, messages.MAX_STEPS + 1, 1.5, None, True):
            with pytest.raises(errors.ChunkError, match=r"a whole number in 1\.\."):
                stream.generate(wrong)  # type: ignore[arg-type]
        assert len(stream.generate(messages.MAX_STEPS)["n"]) == messages.MAX_STEPS
        copy = client.restore(stream.snapshot(), "copy")
        assert copy.generate(5)["n"].tolist() == stream.generate(5)["n"].tolist()
        stream.close()
        with pytest.raises(errors.StreamClosedError):
            stream.generate(1)


def test_tasks_that_generate_are_batched(tmp_path: Path) -> None:
    """64 streams at once; requests made together are stepped together."""
    engine = loop_engine()
    with served(Daemon(engine, f"ipc://{tmp_path}/d.sock")) as daemon:

        async def one(client: AsyncClient, k: int) -> list[int]:
            stream = await client.open(f"s{k}")
            await stream.feed(np.array([k]))
            made = [await stream.generate(n) for n in (1 + k % 7, 20)]
            return [int(n) for out in made for n in out["n"]]

        async def scene() -> list[list[int]]:
            async with AsyncClient(daemon.address, 20) as client:
                return await asyncio.gather(*(one(client, k) for k in range(64)))

        for k, made in enumerate(asyncio.run(scene())):
            assert made == told(1 + 1 + k % 7 + 20, k)[1:]


@pytest.mark.parametrize("seed", range(2))
def test_a_connection_that_is_cut_again_and_again(tmp_path: Path, seed: int) -> None:
    with served(Daemon(loop_engine(), f"ipc://{tmp_path}/d.sock")) as daemon:
        proxy = Proxy(tmp_path, daemon.address, 3_000, seed=seed)
        with Client(proxy.address, timeout=20) as client, client.open("s") as stream:
            made = [int(n) for k in range(150) for n in stream.generate(1 + k % 5)["n"]]
        proxy.close()
        assert proxy.cuts > 1
    assert made == told(len(made))


# Labels


def signal(*labels: str) -> Signal:
    return Signal((TensorSpec("n", "int64", (), labels),))


def test_labels_are_sent_and_read_back() -> None:
    there = undescribe(describe(signal("a", "b")), 0.0)
    assert there.tensors[0].labels == ("a", "b")
    assert undescribe(describe(signal()), 0.0).tensors[0].labels == ()
    assert b"labels" not in msgspec.msgpack.encode(describe(signal()))


def test_too_many_labels_are_not_sent() -> None:
    """All labels or none: a part would pass for the whole."""
    for labels in (["a"] * (messages.MAX_LABELS + 1), ["a" * messages.MAX_LABEL_CHARACTERS, "b"]):
        assert describe(signal(*labels))[0].labels == []
        assert len(describe(signal(*labels[:1]))[0].labels) == 1


def test_an_older_daemon_sends_no_labels() -> None:
    old = {"name": "n", "datatype": "INT64", "shape": [-1], "from_the_future": 1}
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=messages.TensorMetadata)
    assert undescribe([read], 0.0).tensors[0].labels == ()


def test_inspect_shows_a_daemon_with_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(Daemon(loop_engine(), f"ipc://{tmp_path}/d.sock")) as daemon:
        assert main(["inspect", daemon.address, "--json"]) == 0
    assert '"two"' in capsys.readouterr().out
