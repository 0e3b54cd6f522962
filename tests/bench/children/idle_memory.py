"""Bytes a stream beyond its state rows, as JSON. Arguments: model, features, streams.

"opened": opened and never fed. "idle": fed once each, over some minutes, and then idle for longer than
replies are kept. "burst": the same again, all fed within a few seconds: what is kept at the peak is let go
after it, but a process does not give all of it back.
"""

import gc
import json
import sys
from pathlib import Path

import numpy as np

from runnel.daemon.protocol.replycache import CACHED_SECONDS
from runnel.daemon.protocol.server import ServerProtocol
from runnel.engine import Engine
from runnel.wire.messages import Request, decode_reply, encode_request
from runnel.wire.tensors import pack

TOGETHER = 256  # requests in a batch
SPREAD_SECONDS = 600.0  # of the server's time, in which all streams are fed once

path, features, streams = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
now = 0.0


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def ask(server: ServerProtocol, op: str, first: int, last: int, pause: float = 0.01) -> None:
    """One request for each of these streams; all must succeed."""
    global now
    infos, buffers = pack({"x": np.zeros((1, features), np.float32)}) if op == "feed" else ([], [])
    for low in range(first, last, TOGETHER):
        now += pause
        numbers = range(low, min(low + TOGETHER, last))
        for i in numbers:
            request = Request(v=1, op=op, id=str(i), sequence_id=f"stream-{i:07}", inputs=infos)
            assert not server.receive(b"peer", encode_request(request, buffers), now)
        replies = server.run(now)
        server.done(now)
        server.tick(now)
        assert len(replies) == len(numbers)
        assert not any(decode_reply(out.frames)[0].error for out in replies)


def let_go(server: ServerProtocol) -> None:
    """Past the time that replies are kept."""
    global now
    now += CACHED_SECONDS + 1
    server.tick(now)


engine = Engine.load(path, max_streams=streams + TOGETHER)
server = ServerProtocol(engine, "memory")
rows = 2 * engine.pipeline.stages[0].arena.row_bytes
ask(server, "open", 0, TOGETHER)  # the first ones pay for what is made once
ask(server, "feed", 0, TOGETHER)
let_go(server)
before = resident()
ask(server, "open", TOGETHER, TOGETHER + streams)
opened = resident()
ask(server, "feed", TOGETHER, TOGETHER + streams, pause=SPREAD_SECONDS * TOGETHER / streams)
let_go(server)
idle = resident()
ask(server, "feed", TOGETHER, TOGETHER + streams)
let_go(server)
burst = resident()
found = {"opened": opened, "idle": idle, "burst": burst}
json.dump({"rows": rows} | {k: (v - before) / streams - rows for k, v in found.items()}, sys.stdout)
