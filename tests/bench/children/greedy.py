"""One client that asks for as much as it may, for so many seconds: `greedy.py WHAT ADDRESS SECONDS`.

Every request is legal. Prints how many were answered, and how many of those with an error.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import time
from collections import Counter

import msgspec
import numpy as np
import zmq

from runnel import Client, RunnelError
from runnel.wire import messages as wire
from runnel.wire.tensors import pack

MIB = 2**20


def chunks(client: Client, streams: int, mib: float) -> int:
    """Long chunks, of so many streams together."""
    [given] = client.describe().inputs.tensors
    row = np.dtype(given.dtype).itemsize * int(np.prod(given.shape))
    chunk = np.zeros((int(mib * MIB / row), *given.shape), given.dtype)
    opened = [client.open() for _ in range(streams)]
    answered = 0
    while time.monotonic() < until:
        for out in client.feed_many([(stream, chunk) for stream in opened]):
            errors[out.code if isinstance(out, RunnelError) else "ok"] += 1
            answered += 1
    return answered


def flood(messages: list[list[bytes]], replies: int) -> int:
    """The messages again and again; each time all replies are read."""
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.linger, socket.sndhwm, socket.rcvhwm = 0, 0, 0
    socket.connect(address)
    answered = 0
    while time.monotonic() < until:
        for message in messages:
            socket.send_multipart(message)
        heard = 0
        while heard < replies:
            frames = socket.recv_multipart()
            told = wire.decode_replies(frames) if wire.bundled(frames) else [wire.decode_reply(frames)]
            for reply, _ in told:
                errors[reply.error.code if reply.error else "ok"] += 1
            heard += len(told)
        answered += heard
    socket.close()
    return answered


def bundles(head: dict[str, object], count: int) -> list[list[bytes]]:
    """So many times the same request, in bundles of 250."""
    return [[msgspec.msgpack.encode([{"v": 1, "id": "g", **head}] * 250), b""]] * (count // 250)


def made_up(arrays: int) -> list[bytes]:
    """A restore of a snapshot that is none of this pipeline's, with a header as long as it may be."""
    entries = [["k", "bool", [0, 1]]] * arrays
    head = {"pipeline": "x", "seq": 0, "ended": False, "stages": [["a", entries]]}
    text = json.dumps(head, separators=(",", ":")).encode()
    body = struct.pack("<4sBI", b"RNLS", 1, len(text)) + text
    blob = body + hashlib.blake2b(body, digest_size=16).digest()
    infos = [wire.TensorInfo("snapshot", "UINT8", [len(blob)])]
    return wire.encode_request(wire.Request(v=1, op="restore", id="g", sequence_id="z", inputs=infos), [blob])


def repeats(client: Client) -> int:
    """One applied request of 16 MiB, said again and again: its reply is kept, or no longer."""
    [given] = client.describe().inputs.tensors
    row = np.dtype(given.dtype).itemsize * int(np.prod(given.shape))
    few = np.zeros((int(MIB / row), *given.shape), given.dtype)
    stream = client.open("repeated")
    stream.feed(few)
    infos, buffers = pack({given.name: np.zeros((int(16 * MIB / row), *given.shape), given.dtype)})
    request = wire.Request(v=1, op="feed", id="g", sequence_id="repeated", seq=1, inputs=infos)
    return flood([wire.encode_request(request, buffers)] * 2, 2)


what, address, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
errors: Counter[str] = Counter()
until = time.monotonic() + seconds
with Client(address, timeout=120) as home:
    if what == "one chunk of 16 MiB":
        count = chunks(home, 1, 16)
    elif what == "256 chunks of 1 MiB":
        count = chunks(home, 256, 1)
    elif what == "snapshots":
        home.open("g")
        count = flood(bundles({"op": "snapshot", "sequence_id": "g"}, 1000), 1000)
    elif what == "resets":
        home.open("g")
        count = flood(bundles({"op": "reset", "sequence_id": "g"}, 1000), 1000)
    elif what == "restores":
        count = flood([made_up(9000)] * 100, 100)
    elif what == "questions":
        count = flood(bundles({"op": "stats"}, 1000) + bundles({"op": "hello"}, 1000), 2000)
    else:
        count = repeats(home)
print(json.dumps({"answered": count, "errors": errors}))
