"""What the fuzzer begins with: every request of the protocol page, byte for byte, and a few more."""

from __future__ import annotations

import re
from pathlib import Path

from runnel.wire.messages import Request, TensorInfo, bundle, encode_request
from runnel.wire.tensors import pack
from tests.serve.support import rows

from .target import DIGEST, Item, Tape, fuzzed_engine

PAGE = Path(__file__).parents[2] / "engine" / "protocol.md"
_BLOCK = re.compile(r"^→.*?(?=^←|^```)", re.M | re.S)
_FRAME = re.compile(r"^ +(?:header|tensor) ([0-9a-f]+(?:\n +[0-9a-f]+$)*)", re.M)


def page_messages() -> list[list[bytes]]:
    """The requests of the page, as an author in another language would type them in."""
    blocks = _BLOCK.findall(PAGE.read_text("utf-8"))
    return [[bytes.fromhex(hexes) for hexes in _FRAME.findall(block)] for block in blocks]


def messages() -> list[list[bytes]]:
    """Every op, with the fields that it may have; bundles; a restore is last."""
    engine = fuzzed_engine()
    stream = engine.open("mic")
    stream.feed(rows(1, 2, 3))
    infos, buffers = pack({"x": rows(1, 2)})
    blob = stream.snapshot()[:-DIGEST]  # the tape signs it
    made = [
        Request(v=1, op="hello", id="1"),
        Request(v=1, op="stats", id="2"),
        Request(v=1, op="open", id="3", sequence_id="mic", epoch=5),
        Request(v=1, op="flush", id="5", sequence_id="mic", epoch=5, seq=2),
        Request(v=1, op="reset", id="6", sequence_id="mic", seq=3),
        Request(v=1, op="resume", id="7", sequence_id="mic", epoch=5),
        Request(v=1, op="snapshot", id="8", sequence_id="mic"),
        Request(v=1, op="feed", id="10", sequence_id="mic", steps=3),
        Request(v=1, op="close", id="9", sequence_id="mic", seq=4),
    ]
    feeds = [
        Request(v=1, op="feed", id="4", sequence_id="mic", epoch=5, seq=1, inputs=infos),
        Request(v=1, op="feed", sequence_id="clip", sequence_start=True, sequence_end=True, inputs=infos),
        Request(v=1, op="feed", sequence_start=True, inputs=infos),
    ]
    size = [len(blob) + DIGEST]
    restore = Request(v=1, op="restore", sequence_id="old", inputs=[TensorInfo("snapshot", "UINT8", size)])
    signed = encode_request(restore, [blob + bytes(DIGEST)])
    short = [encode_request(request) for request in made]
    fed = [encode_request(request, buffers) for request in feeds]
    together = [bundle(short + fed), bundle(fed[:1]), bundle(fed[:1] * 3)]
    return [*page_messages(), *short, *fed, *together, signed]


def tapes() -> list[bytes]:
    """Each message alone, and all of them one after the other."""
    laid = [
        [Item(frame, last=i == len(frames) - 1) for i, frame in enumerate(frames)] for frames in messages()
    ]
    *_, restore = laid
    restore[-1] = restore[-1]._replace(body=restore[-1].body[:-DIGEST], sign=True)
    return [Tape.write(items) for items in [*laid, [item for items in laid for item in items]]]
