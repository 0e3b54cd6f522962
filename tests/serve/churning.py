"""A server's life in short: streams are opened, fed, flushed, left idle, resumed and closed.

Memory is watched in a process of its own. In a process that did other work, a leak would first fill the
memory that this work has freed, and would not show.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np

from runnel.daemon.protocol.server import ServerProtocol
from runnel.engine import Engine
from runnel.pipeline.pipeline import Pipeline
from runnel.stage import Chunk, State
from runnel.wire.messages import Request, decode_reply, encode_request
from runnel.wire.tensors import pack
from tests.growth import resident

from .support import Tally

STREAMS = 64  # open at a time
FEEDS = 15  # of each stream before it closes
STEP_SECONDS = 1.0  # between two batches: replies and idle streams last a few rounds
IDLE_SECONDS = 30.0

WARM_UP_STEPS = 20_000  # several times as long, in the server's time, as anything is remembered
SAMPLES = 40
LEAKED = 1024  # bytes a step: 39 MiB in 40,000 steps


class Leaking(Tally):
    """A stage that leaks."""

    def __init__(self) -> None:
        super().__init__()
        self.hoard: list[bytes] = []

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        self.hoard.append(bytes(LEAKED))
        return super().step(state, chunk)


def rounds(engine: Engine, chunks: list[Chunk]) -> Iterator[int]:
    """Rounds without end; each yields the number of chunks applied in it.

    Every round opens `STREAMS` streams with new names and feeds each `FEEDS` chunks. It flushes a third of
    them, closes a third, and leaves a third to the idle time-out. One feed of each stream is sent twice, and
    once wrongly, to exercise cached replies and errors. Raises AssertionError if the server answers wrongly.
    """
    server = ServerProtocol(engine, "churn", idle_seconds=IDLE_SECONDS)
    packed = [pack(chunk) for chunk in chunks]
    wrong = pack({name: array.astype("float64") for name, array in chunks[0].items()})
    now, number = 0.0, count()

    def ask(requests: list[tuple[Request, list[bytes]]]) -> list[str]:
        nonlocal now
        now += STEP_SECONDS
        for request, buffers in requests:
            assert not server.receive(b"peer", encode_request(request, buffers), now)
        codes = []
        while server.pending:
            for out in server.run(now):
                error = decode_reply(out.frames)[0].error
                codes.append(error.code if error else "")
            server.done(now)
        server.tick(now)
        return codes

    for turn in count():
        names = [f"stream-{next(number)}" for _ in range(STREAMS)]
        assert set(ask([(Request(v=1, op="open", sequence_id=name), []) for name in names])) == {""}
        for seq in range(1, FEEDS + 1):
            infos, buffers = packed[(turn + seq) % len(packed)]
            feeds = [
                (Request(v=1, op="feed", sequence_id=name, seq=seq, inputs=infos), buffers) for name in names
            ]
            assert set(ask(feeds)) == {""}
        assert set(ask(feeds)) == {""}  # repeats: answered, not applied
        bad = [
            (Request(v=1, op="feed", sequence_id=name, seq=FEEDS + 1, inputs=wrong[0]), wrong[1])
            for name in names[:3]
        ]
        assert set(ask(bad)) == {"BAD_CHUNK"}
        infos, buffers = packed[turn % len(packed)]
        ends = [
            (Request(v=1, op="feed", sequence_id=n, sequence_end=True, inputs=infos), buffers)
            for n in names[::3]
        ]
        closes = [(Request(v=1, op="close", sequence_id=name), []) for name in names[1::3]]
        assert set(ask(ends + closes)) == {""}
        yield STREAMS * FEEDS + len(ends)


def watched(engine: Engine, chunks: list[Chunk], steps: int) -> list[float]:
    """Resident bytes after each of `SAMPLES` equal parts of `steps` steps, after a warm-up."""
    work = rounds(engine, chunks)

    def run(wanted: int) -> None:
        done = 0
        while done < wanted:
            done += next(work)

    run(WARM_UP_STEPS)
    samples: list[float] = []
    for _ in range(SAMPLES):
        run(steps // SAMPLES)
        samples.append(resident())
    return samples


def watched_apart(model: Path | None, steps: int) -> list[float]:
    """`watched` in a process of its own, with this model, or with a leaking stage."""
    command = [sys.executable, "-m", "tests.serve.churning", str(model or ""), str(steps)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, stdout=subprocess.PIPE)
    samples: list[float] = json.loads(done.stdout)
    return samples


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    given, most = sys.argv[1:]
    if given:
        chunks: list[Chunk] = [{"x": rng.standard_normal((1, 3)).astype(np.float32)} for _ in range(7)]
        served = Engine.load(given, max_streams=20_000)
    else:
        chunks = [{"x": np.ones((1, 2), np.float32)}]
        served = Engine(Pipeline([Leaking()], None, {}), max_streams=20_000)
    print(json.dumps(watched(served, chunks, int(most))))
