"""Write the generated parts of the protocol page: `python -m tests.serve.protocol_page`.

Each part is in engine/protocol.md between two comments with its name. A test compares.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from runnel import errors
from runnel.daemon.protocol import intake, jobs, streamtable
from runnel.daemon.protocol.server import ServerProtocol
from runnel.daemon.protocol.transitions import TRANSITIONS, VERDICTS, Event, Phase
from runnel.spec import Array
from runnel.wire import messages, tensors
from runnel.wire.placement import Placement

from .support import rows, tally_engine

SHOWN = 8  # entries of a list that is shown in full
PAGE = Path(__file__).parents[2] / "engine" / "protocol.md"


def transitions() -> str:
    lines = ["| request | " + " | ".join(p.value for p in Phase) + " |", "|---|" + "---|" * len(Phase)]
    for event in Event:
        cells = (TRANSITIONS[phase][event] for phase in Phase)
        shown = (f"→ {c.value}" if isinstance(c, Phase) else f"`{c.code}`" for c in cells)
        lines.append(f"| {event.value} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def verdicts() -> str:
    lines = ["| the seq stated | what happens |", "|---|---|"]
    for verdict, outcome in VERDICTS.items():
        shown = outcome if isinstance(outcome, str) else f"`{outcome.code}`"
        lines.append(f"| {verdict.value} | {shown} |")
    return "\n".join(lines)


def bounds() -> str:
    told = {
        "bytes of the header": messages.MAX_HEADER,
        "tensors in a message": messages.MAX_TENSORS,
        "steps of a feed without input": messages.MAX_STEPS,
        "axes of a tensor": messages.MAX_RANK,
        "bytes of a tensor": messages.MAX_TENSOR_BYTES,
        "bytes of a message": messages.MAX_MESSAGE_BYTES,
        "requests in a bundle": messages.MAX_BUNDLE,
        "bytes of a bundle's header": messages.MAX_BUNDLE_HEADER,
        "characters of `id` and `sequence_id`": messages.MAX_ID,
        "characters of a tensor's name": messages.MAX_NAME,
        "requests of one client that wait": intake.MAX_PENDING_PER_PEER,
        "requests of all clients that wait": intake.MAX_PENDING,
        "bytes of one client's tensors that wait": intake.MAX_PEER_BYTES,
        "bytes of tensors that wait (libzmq holds more before that)": intake.MAX_PENDING_BYTES,
        "bytes of a reply's tensors": jobs.MAX_REPLY_BYTES,
        "replies kept of one stream": streamtable.CACHED_REPLIES,
        "seconds that a reply is kept, and the end of a closed stream": int(streamtable.CACHED_SECONDS),
        "bytes of all replies kept": streamtable.MAX_CACHED_BYTES,
        "closed streams whose end is remembered": streamtable.MAX_CLOSED,
    }
    return "\n".join(["| what | at most |", "|---|---|", *(f"| {k} | {v:,} |" for k, v in told.items())])


SERVER = {
    "version": "of runnel",
    "boot_id": "another one each time the worker starts: then its streams are gone",
    "worker": "which of `workers` answered",
    "workers": "the addresses of all, as they are bound",
    "pipeline": "a fingerprint: a snapshot fits the pipeline that it was taken from",
    "stages": "for people: each with what it takes and gives",
    "state_bytes": "of one stream, in its models",
    "inputs": "`{name, datatype, shape}` of each tensor that a feed needs; -1: the time axis; `labels`, "
    "where there are any: what its numbers 0, 1, 2 … stand for",
    "outputs": "the same of each tensor that it gives",
    "input_rate": "time steps a second that go in; 0: not known",
    "output_rate": "and that come out",
    "latency": "input time steps: at stream time t, outputs describe t - latency",
    "limits": "`streams`, `pending_per_peer` (requests of one client that wait), `kept_replies`, "
    "`pending_bytes` (of one client's tensors on their way; one message more may pass it), `reply_bytes` (of "
    "one reply's tensors: a feed or snapshot that makes more is `TOO_LARGE`, and nothing is done), "
    "`user_streams`, `user_pending`, `user_pending_bytes` (what a user can count on, whatever others do: "
    "streams, requests that wait, bytes of their tensors), "
    "`idle_seconds` (0: never); `header_bytes`, `tensors`, `tensor_bytes`, `message_bytes` of a request",
}
"""What a description tells, in order."""


def server() -> str:
    return "\n".join(["| `server` | |", "|---|---|", *(f"| `{k}` | {v} |" for k, v in SERVER.items())])


STATS = {
    "worker, boot_id": "as in `hello`",
    "streams, max_streams": "open, and the most that may be",
    "pending, pending_bytes": "requests taken and not yet run; bytes of their tensors",
    "kept_bytes": "of all replies that are kept",
    "stopping": "whether the daemon is: `stats` is answered to the end",
    "requests": "by op; one that could not be read, or was refused unread, has the op ''",
    "errors": "answered, by code",
    "chunks, repeats": "applied; requests answered with a reply that was kept",
    "batches": "run; each steps a stream at most once",
    "opened, resumed": "streams",
    "closed": "streams, by reason: `closed`, `ended` (a feed with `sequence_end`), `idle`, `failed` (their "
    "first feed did)",
    "batch_sizes": "histogram: streams in a batch",
    "batch_seconds": "histogram: how long a batch took",
    "latency": "histogram: seconds from a request's arrival until its reply was on its way",
    "dropped_replies, dropped_peers": "to peers that are gone or do not read; peers that did not read",
    "stage_seconds, stage_chunks": "by stage, as `position: name`: what it took; what it stepped",
    "looks, look_failures": "looks at the states of streams, and those that failed themselves",
    "unhealthy": "streams now, by condition: `died`, `blown_up`",
    "state_events": "by event: `died`, `blown_up`, `recovered`",
    "non_finite": "chunks refused, by the state, `stage.name`, that was not finite any more",
    "state_rms, state_distance": "histograms by state: its root mean square at each look; the same of its "
    "distance from the initial state",
    "gate_units, gate_units_shut, gate_units_open": "by gate, `stage.layer.letter`, where the model shows "
    "them: units looked at; those below 0.1; those above 0.9",
    "cpu_seconds, started": "of the process: user and system time; its start, in seconds since 1970",
    "resident_bytes, virtual_bytes": "its memory",
    "open_files, max_files": "its descriptors, and the most that it may have",
    "log_lost": "lines of its log that could not be written",
}
"""What a stats document tells: the process's own where the system tells it."""


def stats() -> str:
    lines = ["| `stats` | since the start, of the worker that was asked |", "|---|---|"]
    return "\n".join([*lines, *(f"| {_quoted(names)} | {told} |" for names, told in STATS.items())])


def _quoted(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def datatypes() -> str:
    lines = ["| datatype | bytes | numpy |", "|---|---|---|"]
    lines += [f"| {d} | {messages.ITEM_BYTES[d]} | {name} |" for name, d in tensors.DATATYPES.items()]
    return "\n".join(lines)


CODES = [
    errors.WireError,
    errors.TooLargeError,
    errors.AccessError,
    errors.LimitError,
    errors.ChunkError,
    errors.EmptyChunkError,
    errors.NonFiniteError,
    errors.UnknownStreamError,
    errors.StreamExistsError,
    errors.StreamEndedError,
    errors.StreamError,
    errors.GapError,
    errors.ConflictError,
    errors.AlreadyAppliedError,
    errors.FencedError,
    errors.WrongWorkerError,
    errors.SnapshotError,
    errors.StageError,
    errors.SlowStageError,
    errors.ShutdownError,
]


def codes() -> str:
    lines = ["| code | retry | meaning |", "|---|---|---|"]
    lines += [f"| `{e.code}` | {'yes' if e.retry else 'no'} | {_line(e)} |" for e in CODES]
    return "\n".join(lines)


def _line(error: type[errors.RunnelError]) -> str:
    return (error.__doc__ or "").strip().splitlines()[0].replace("``", "`")


def examples() -> str:
    """A whole exchange, byte for byte."""
    placement = Placement(0, ("ipc:///run/runnel.sock",))
    engine = tally_engine(max_streams=1024)
    server = ServerProtocol(
        engine, "0123456789abcdef", first_epoch=7, idle_seconds=3600.0, placement=placement
    )
    parts: list[str] = []

    def say(title: str, op: Any, x: Array | None = None, **fields: Any) -> list[bytes]:
        infos, buffers = tensors.pack({"x": x}) if x is not None else ([], [])
        return send(title, messages.Request(v=1, op=op, inputs=infos, **fields), buffers)

    def clip(id: str, x: Array) -> list[bytes]:
        infos, buffers = tensors.pack({"x": x})
        whole = {"sequence_start": True, "sequence_end": True}
        request = messages.Request(v=1, op="feed", id=id, inputs=infos, **whole)
        return messages.encode_request(request, buffers)

    def send(title: str, request: messages.Request, buffers: Sequence[bytes]) -> list[bytes]:
        return exchange(title, messages.encode_request(request, buffers))

    def exchange(title: str, frames: list[bytes]) -> list[bytes]:
        [reply] = server.receive(b"peer", frames, 0.0) or server.run(0.0)
        parts.append(
            f"{title}\n\n```\n" + "\n".join([*_show("→", frames), *_show("←", reply.frames)]) + "\n```"
        )
        return reply.frames

    say("**hello**: what is served here?", "hello", id="1")
    say("**open** a stream, in an epoch of the client's choice.", "open", id="2", sequence_id="mic", epoch=5)
    fed = {"id": "3", "sequence_id": "mic", "epoch": 5, "seq": 1}
    say(
        "**feed** two time steps of `x`, FP32 (T, 2). This pipeline's latency is 1, so one comes back.",
        "feed", rows(1, 2), **fed,
    )  # fmt: skip
    say("The same again, since its reply was lost: the kept reply, and nothing is done.", "feed",
        rows(1, 2), **fed)  # fmt: skip
    say("The same `seq` with another payload.", "feed", rows(3), **fed)
    say(
        "**feed** with a `seq` beyond the next: an error, and nothing was applied.",
        "feed", rows(3), id="4", sequence_id="mic", epoch=5, seq=5,
    )  # fmt: skip
    say(
        "**resume**: on another connection, if the stream is still in epoch 5. It goes on in a new one.",
        "resume", id="5", sequence_id="mic", epoch=5, new_epoch=8,
    )  # fmt: skip
    say(
        "A **feed** in the old epoch: whoever sent it no longer speaks for the stream.",
        "feed", rows(3), id="6", sequence_id="mic", epoch=5, seq=2,
    )  # fmt: skip
    taken = say("**snapshot**: the stream as bytes.", "snapshot", id="7", sequence_id="mic", epoch=8)
    say(
        "**flush**: the end of the stream; what was still inside.",
        "flush", id="8", sequence_id="mic", epoch=8, seq=2,
    )  # fmt: skip
    say("**reset**: as new.", "reset", id="9", sequence_id="mic", epoch=8, seq=3)
    say("**close**.", "close", id="10", sequence_id="mic", epoch=8, seq=4)
    send(
        "**restore**: a stream that goes on from the snapshot; its `applied_seq` is the snapshot's chunks.",
        messages.Request(
            v=1, op="restore", id="11", sequence_id="mic-2", epoch=6,
            inputs=[messages.TensorInfo("snapshot", "UINT8", [len(taken[1])])],
        ),
        [taken[1]],
    )  # fmt: skip
    say(
        "A whole stream in one message: **feed** with `sequence_start` and `sequence_end`.",
        "feed", rows(1, 2, 3), id="12", sequence_id="clip", sequence_start=True, sequence_end=True,
    )  # fmt: skip
    clips = (("13", rows(1)), ("14", rows(2)))
    exchange(
        "A **bundle**: two requests as one message, and so their replies.",
        messages.bundle([clip(id, x) for id, x in clips]),
    )
    engine.pipeline.runners[0].seconds = 0.000125  # so that the page is the same at each run
    say("**stats**: what the worker has counted. (Long lists are cut off here, not below.)", "stats", id="15")
    [told] = server.tick(3600.0)
    parts.append(
        "A **notice**, an hour later: nobody asked, so it has no `id`. The daemon closed the stream.\n\n"
        "```\n" + "\n".join(_show("←", told.frames)) + "\n```"
    )
    return "\n\n".join(parts)


def _show(arrow: str, frames: list[bytes]) -> Iterator[str]:
    """A message's header as text and bytes, then its tensors' bytes."""
    text = json.dumps(_cut(msgspec.msgpack.decode(frames[0])), ensure_ascii=False)
    yield from textwrap.wrap(
        text, 98, initial_indent=f"{arrow} ", subsequent_indent="  ", break_on_hyphens=False
    )
    for name, frame in zip(["header", *["tensor"] * (len(frames) - 1)], frames, strict=True):
        for i in range(0, len(frame), 40):
            yield f"  {name if not i else '      '} {frame[i : i + 40].hex()}"


def _cut(value: Any) -> Any:
    """Shorten long lists."""
    if isinstance(value, dict):
        return {key: _cut(held) for key, held in value.items()}
    if isinstance(value, list):
        return [*map(_cut, value[:2]), "…"] if len(value) > SHOWN else list(map(_cut, value))
    return value


PARTS: dict[str, Callable[[], str]] = {
    "transitions": transitions,
    "verdicts": verdicts,
    "bounds": bounds,
    "server": server,
    "stats": stats,
    "datatypes": datatypes,
    "codes": codes,
    "examples": examples,
}


def render(page: str) -> str:
    """The page with every part generated anew."""
    for name, make in PARTS.items():
        head, _, rest = page.partition(f"<!-- made: {name} -->\n")
        old, _, tail = rest.partition("<!-- end -->")
        if not tail or "<!-- made" in old:
            raise ValueError(f"{PAGE}: no part {name!r} between its two comments")
        page = f"{head}<!-- made: {name} -->\n{make()}\n<!-- end -->{tail}"
    return page


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
