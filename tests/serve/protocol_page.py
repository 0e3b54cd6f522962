"""Makes the parts of the protocol page that must not go stale: `python -m tests.serve.protocol_page`.

Each part stands in engine/README.md between two comments that name it. A test compares.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from runnel import errors
from runnel.serve import protocol, tensors, wire
from runnel.serve.protocol import Server
from runnel.serve.transitions import TRANSITIONS, Event, Phase
from runnel.spec import Array

from .support import rows, tally_engine

PAGE = Path(__file__).parents[2] / "engine" / "README.md"


def transitions() -> str:
    lines = ["| request | " + " | ".join(p.value for p in Phase) + " |", "|---|" + "---|" * len(Phase)]
    for event in Event:
        cells = (TRANSITIONS[phase][event] for phase in Phase)
        shown = (f"→ {c.value}" if isinstance(c, Phase) else f"`{c.code}`" for c in cells)
        lines.append(f"| {event.value} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def bounds() -> str:
    told = {
        "bytes of the header": wire.MAX_HEADER,
        "tensors in a message": wire.MAX_TENSORS,
        "axes of a tensor": wire.MAX_RANK,
        "bytes of a tensor": wire.MAX_TENSOR_BYTES,
        "bytes of a message": wire.MAX_MESSAGE_BYTES,
        "characters of `id` and `sequence_id`": wire.MAX_ID,
        "characters of a tensor's name": wire.MAX_NAME,
        "requests of one client that wait": protocol.MAX_PENDING_PER_PEER,
        "requests of all clients that wait": protocol.MAX_PENDING,
        "bytes of tensors that wait (libzmq holds more before that)": protocol.MAX_PENDING_BYTES,
    }
    return "\n".join(["| what | at most |", "|---|---|", *(f"| {k} | {v:,} |" for k, v in told.items())])


def datatypes() -> str:
    lines = ["| datatype | bytes | numpy |", "|---|---|---|"]
    lines += [f"| {d} | {wire.ITEM_BYTES[d]} | {name} |" for name, d in tensors.DATATYPES.items()]
    return "\n".join(lines)


CODES = [
    errors.WireError,
    errors.TooLargeError,
    errors.LimitError,
    errors.ChunkError,
    errors.EmptyChunkError,
    errors.NonFiniteError,
    errors.UnknownStreamError,
    errors.StreamExistsError,
    errors.StreamEndedError,
    errors.StreamError,
    errors.GapError,
    errors.FencedError,
    errors.StageError,
    errors.ShutdownError,
]


def codes() -> str:
    lines = ["| code | retry | meaning |", "|---|---|---|"]
    lines += [f"| `{e.code}` | {'yes' if e.retry else 'no'} | {_line(e)} |" for e in CODES]
    return "\n".join(lines)


def _line(error: type[errors.RunnelError]) -> str:
    return (error.__doc__ or "").strip().splitlines()[0].replace("``", "`")


def examples() -> str:
    """A whole conversation, byte for byte."""
    server = Server(tally_engine(max_streams=1024), "0123456789abcdef")
    parts: list[str] = []

    def say(title: str, op: Any, x: Array | None = None, **fields: Any) -> None:
        infos, buffers = tensors.pack({"x": x}) if x is not None else ([], [])
        request = wire.Request(v=1, op=op, inputs=infos, **fields)
        frames = wire.encode_request(request, buffers)
        [reply] = server.receive(b"peer", frames, 0.0) or server.run(0.0)
        parts.append(
            f"{title}\n\n```\n" + "\n".join([*_show("→", frames), *_show("←", reply.frames)]) + "\n```"
        )

    say("**hello**: what is served here?", "hello", id="1")
    say("**open** a stream.", "open", id="2", sequence_id="mic")
    say(
        "**feed** two time steps of `x`, FP32 (T, 2). This pipeline's latency is 1, so one comes back.",
        "feed", rows(1, 2), id="3", sequence_id="mic", seq=1,
    )  # fmt: skip
    say(
        "**feed** with a `seq` that is not the next: an error, and nothing was applied.",
        "feed", rows(3), id="4", sequence_id="mic", seq=5,
    )  # fmt: skip
    say("**flush**: the end of the stream; what was still inside.", "flush", id="5", sequence_id="mic")
    say("**reset**: as new.", "reset", id="6", sequence_id="mic")
    say("**close**.", "close", id="7", sequence_id="mic")
    say(
        "A whole stream in one message: **feed** with `sequence_start` and `sequence_end`.",
        "feed", rows(1, 2, 3), id="8", sequence_id="clip", sequence_start=True, sequence_end=True,
    )  # fmt: skip
    return "\n\n".join(parts)


def _show(arrow: str, frames: list[bytes]) -> Iterator[str]:
    """A message's header as text and bytes, then its tensors' bytes."""
    text = json.dumps(msgspec.msgpack.decode(frames[0]), ensure_ascii=False)
    yield from textwrap.wrap(
        text, 98, initial_indent=f"{arrow} ", subsequent_indent="  ", break_on_hyphens=False
    )
    for name, frame in zip(["header", *["tensor"] * (len(frames) - 1)], frames, strict=True):
        for i in range(0, len(frame), 40):
            yield f"  {name if not i else '      '} {frame[i : i + 40].hex()}"


PARTS: dict[str, Callable[[], str]] = {
    "transitions": transitions,
    "bounds": bounds,
    "datatypes": datatypes,
    "codes": codes,
    "examples": examples,
}


def render(page: str) -> str:
    """The page with every part made anew."""
    for name, make in PARTS.items():
        head, _, rest = page.partition(f"<!-- made: {name} -->\n")
        old, _, tail = rest.partition("<!-- end -->")
        if not tail or "<!-- made" in old:
            raise ValueError(f"{PAGE}: no part {name!r} between its two comments")
        page = f"{head}<!-- made: {name} -->\n{make()}\n<!-- end -->{tail}"
    return page


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
