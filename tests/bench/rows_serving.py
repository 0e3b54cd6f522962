"""The serving core: beside a bare echo, under live load, with very many streams, at its start."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from math import inf

import numpy as np
import zmq

from runnel import Client, Engine
from runnel.daemon.protocol.server import ServerProtocol
from runnel.spec import Array
from runnel.wire.messages import Request, encode_request
from tests import silero
from tests.deploy import sizing

from . import loops, serving
from .kit import LARGE, SMALL, Kit
from .measure import Loop, Spread, alone, paired, undisturbed
from .report import Measured, Row, micros
from .rows_process import child
from .rows_silero import recorded
from .run import hottest

STREAMS = 256
WINDOW = 256
TOGETHER = 8  # ticks of all streams in one call, so that it seldom waits for the last of them
HZ = 50
SPEECH_SECONDS = 120  # of recordings, through which the streams go from places of their own
MANY = 100_000


# Beside a bare echo


def _chunks(kit: Kit) -> list[Array]:
    return kit.large.ticks()


def _echo_frames(kit: Kit) -> tuple[list[list[bytes]], list[bytes]]:
    """Requests as a client sends them, and a reply as the daemon answers."""
    name = kit.large.spec.outputs[0].name
    reply = serving.reply_frames({name: np.zeros((1, 29), np.float32)})
    return [serving.request_frames({"x": chunk}) for chunk in _chunks(kit)], reply


def _throughput(kit: Kit) -> Measured:
    requests, reply = _echo_frames(kit)
    ticks = kit.large.ticks(STREAMS)
    with (
        serving.serving(kit, kit.large.path) as (address, _),
        Client(address, window=1) as client,  # of each stream: so as many as streams on their way in all
        serving.echoing(kit, reply) as socket,
    ):
        streams = [client.open() for _ in range(STREAMS)]
        given = cycle(
            [
                [pair for tick in some for pair in zip(streams, np.split(tick, STREAMS), strict=True)]
                for some in zip(*[iter(ticks)] * TOGETHER, strict=False)
            ]
        )

        def ours(calls: int) -> object:
            return [client.feed_many(next(given)) for _ in range(calls)]

        bare = serving.windowed(socket, requests, WINDOW)
        steps = STREAMS * TOGETHER
        few = replace(kit.effort, turns=3)  # a block takes half a second, far longer than any disturbance
        found = paired(ours, lambda calls: bare(calls * steps), few, a_steps=steps, b_steps=steps)
        hot = ["The client:", "", *hottest(ours), "", "The server without sockets:", ""]
    inside = _served(kit, STREAMS)
    hot += hottest(inside)
    ratio = found.ratio
    beside = [
        ("the daemon, a step, with the client's own work", micros(found.a)),
        ("the bare echo, a message there and back", micros(found.b)),
        ("steps/s", f"{1 / found.a.median:.0f} of {1 / found.b.median:.0f}"),
        ("the server without sockets, a step", micros(alone(inside, kit.effort, steps=STREAMS))),
    ]
    return Measured(Spread(1 / ratio.median, 1 / ratio.high, 1 / ratio.low), beside, hot=hot)


def _round_trip(kit: Kit) -> Measured:
    """Rounds of three blocks: the daemon, the echo, the step; the ratio is of each round's medians."""
    requests, reply = _echo_frames(kit)
    file = kit.large
    step = loops.hand_for(file.path, file.spec, file.ticks())
    rounds = max(3, kit.effort.messages // 200)
    ours_p50, echo_p50, step_p50 = [], [], []
    with (
        serving.serving(kit, file.path) as (address, _),
        Client(address) as client,
        serving.echoing(kit, reply) as socket,
    ):
        stream, chunks = client.open(), cycle(_chunks(kit))
        ours: Loop = lambda calls: [stream.feed(chunk) for chunk in islice(chunks, calls)]  # noqa: E731
        bare = serving.one_by_one(socket, requests)
        with undisturbed():
            for loop in (ours, bare, step):
                loop(100)
            for _ in range(rounds):
                ours_p50.append(_median(ours))
                echo_p50.append(_median(bare))
                step_p50.append(_median(step))
        hot = hottest(ours)
    ratios = [a / (b + c) for a, b, c in zip(ours_p50, echo_p50, step_p50, strict=True)]
    beside = [
        ("`feed` over ipc and back, p50", micros(Spread.of(ours_p50))),
        ("the bare echo, p50", micros(Spread.of(echo_p50))),
        ("a bare step, p50", micros(Spread.of(step_p50))),
    ]
    return Measured(Spread.of(ratios), beside, hot=hot)


def _median(loop: Loop, calls: int = 100) -> float:
    """Of so many calls, each timed by itself."""
    took = []
    for _ in range(calls):
        start = time.perf_counter()
        loop(1)
        took.append(time.perf_counter() - start)
    return float(np.median(took))


# Live


def _live(kit: Kit) -> Measured:
    seconds = min(10.0, kit.effort.messages / 300)
    p99, failed = [], 0
    with serving.serving(kit, kit.large.path) as (address, _):
        for _ in range(3):
            found = serving.bench(
                address, "--streams", str(STREAMS), "--rate", str(HZ), "--chunk", "1",
                "--seconds", str(seconds),
            )  # fmt: skip
            p99.append(found["latency"]["p99"] * 1e3)
            failed += found["due"] - found["answered"]
    beside = [*_of_a_run(found), ("chunks refused or without an answer", str(failed))]
    # A chunk that is never answered is later than any deadline.
    figure = Spread(inf, inf, inf) if failed else Spread.of(p99)
    return Measured(figure, beside, _served(kit, STREAMS))


def _of_a_run(found: dict[str, dict[str, float]]) -> list[tuple[str, str]]:
    """Latencies of one run of `runnel bench`, and how late it was itself."""

    def told(figures: dict[str, float]) -> str:
        return (
            ", ".join(f"{name} {figures[name] * 1e3:.2f}" for name in ("p50", "p99", "p99.9", "max")) + " ms"
        )

    return [
        ("the last run, from the due time", told(found["latency"])),
        ("of that the generator's own lag", told(found["generator_lag"])),
    ]


def _silero(which: str, kit: Kit) -> Measured:
    speech = kit.folder / "speech.npy"
    np.save(speech, recorded(SPEECH_SECONDS * 16000))
    path = silero.pipeline(kit.folder) if which == "vendor" else kit.silero.path
    quick = kit.effort.messages < 1000
    with serving.serving(kit, path, "--max-streams", "4096") as (address, _):
        found = serving.bench(
            address, "--ramp", "--deadline", "32ms", "--chunk", str(silero.HOP), "--input", str(speech),
            *(("--seconds", "0.5", "--streams", "32") if quick else ("--seconds", "5")),
        )  # fmt: skip
    held, missed = found["held"], found["missed"]
    beside = [(f"{held['streams']} streams: {what}", figure) for what, figure in _of_a_run(held)]
    if missed:
        beside.append((f"{missed['streams']} streams: p99", f"{missed['latency']['p99'] * 1e3:.1f} ms"))
    hops = np.load(speech)[: 64 * silero.HOP].reshape(64, silero.HOP)
    profile = loops.feed_many(Engine.load(path), [list(hops)])
    return Measured(Spread.of([float(found["capacity"])]), beside, profile)


def _sizing(kit: Kit) -> Measured:
    """What deploy/sizing.md says of the daemon, from a ramp in process, and a ramp on the daemon."""
    quick = kit.effort.messages < 1000
    asked = ("--ramp", "--deadline", "20ms", "--rate", str(HZ), "--chunk", "1")
    asked += ("--seconds", "0.5", "--streams", "64") if quick else ("--seconds", "3")
    inside = serving.bench(kit.large.path, *asked)["capacity"]
    with serving.serving(kit, kit.large.path, "--max-streams", "8192") as (address, _):
        held = serving.bench(address, *asked)["capacity"]
    predicted = sizing.streams(HZ, inside)
    message = 1 / (HZ * held) - 1 / (HZ * inside)
    beside = [
        ("streams in process", str(inside)),
        ("streams of a worker", f"{held}; by the formula {predicted:.0f}"),
        ("`message`, as these two figures have it", f"{message * 1e6:.0f} µs"),
    ]
    return Measured(Spread.of([predicted / held]), beside)


# Very many streams


def _many(kit: Kit) -> Measured:
    quick = kit.effort.messages < 1000
    many = 4096 if quick else MANY
    crowded, sparse = (_served(kit, count) for count in (many, STREAMS))
    found = paired(crowded, sparse, kit.effort, a_steps=STREAMS, b_steps=STREAMS)
    beside = [(f"{many} open, a step", micros(found.a)), (f"{STREAMS} open, a step", micros(found.b))]
    return Measured(found.ratio, beside, crowded)


def _served(kit: Kit, opened: int) -> Loop:
    """Feeds of `STREAMS` streams, spread over so many open ones, through a server without sockets."""
    server = ServerProtocol(Engine.load(kit.large.path, max_streams=opened), "bench")
    names = [f"stream-{i}" for i in range(opened)]
    for low in range(0, opened, STREAMS):
        for name in names[low : low + STREAMS]:
            server.receive(b"peer", encode_request(Request(v=1, op="open", sequence_id=name)), 0.0)
        while server.pending:
            server.run(0.0)
            server.done(0.0)
    active = names[:: opened // STREAMS][:STREAMS]
    ticks = [serving.request_frames({"x": tick})[1] for tick in kit.large.ticks(count=5)]
    [info] = serving.pack({"x": kit.large.ticks(count=1)[0]})[0]
    rounds = cycle(
        [
            [
                encode_request(Request(v=1, op="feed", id="1", sequence_id=name, inputs=[info]), [tick])
                for name in active
            ]
            for tick in ticks
        ]
    )
    clock = time.perf_counter

    def loop(calls: int) -> object:
        for frames in islice(rounds, calls):
            now = clock()
            for message in frames:
                server.receive(b"peer", message, now)
            y = []
            while server.pending:  # a turn may take a part of them
                y += server.run(now)
                server.done(clock())
            server.tick(now)
        return y

    assert len(loop(1)) == STREAMS  # type: ignore[arg-type]
    return loop


def _idle_memory(kit: Kit) -> Measured:
    file, streams = kit.small, 10_000 if kit.effort.messages < 1000 else MANY
    found = [
        json.loads(child("idle_memory.py", file.path, str(file.features), str(streams)))
        for _ in range(max(1, kit.effort.children // 5))
    ]
    opened = Spread.of([run["opened"] for run in found])
    return Measured(
        Spread.of([run["idle"] for run in found]),
        [
            ("opened and never fed", f"{opened.median:.0f} bytes"),
            (
                "fed all at once",
                f"{found[0]['burst']:.0f} bytes, most of them free memory of the process's own",
            ),
            ("its two state rows, not counted", f"{found[0]['rows']} bytes"),
        ],
    )


def _growth(kit: Kit) -> Measured:
    file = kit.small
    steps = kit.effort.messages * 1000
    found = json.loads(child("growth.py", file.path, str(file.features), str(steps)))
    if not found["caught"]:
        raise AssertionError("the check does not see a stage that leaks 1 KiB a step")
    leaking = f"{found['leaking']:.1f} MiB over {steps // 100} steps: caught"
    return Measured(
        Spread.of([found["grown"]]), [("the same check on a stage that leaks 1 KiB a step", leaking)]
    )


# The start


def _cold_start(kit: Kit) -> Measured:
    _first_reply(kit)  # fills the caches
    return Measured(Spread.of([_first_reply(kit) for _ in range(kit.effort.children)]))


def _first_reply(kit: Kit) -> float:
    """Seconds from starting the process until a chunk is answered that waited for the daemon."""
    address = serving.new_address(kit)
    [info], [tick] = serving.pack({"x": _chunks(kit)[0]})
    request = Request(v=1, op="feed", id="1", sequence_id="first", sequence_start=True, inputs=[info])
    start = time.perf_counter()
    process = subprocess.Popen(serving.serve_command(kit.large.path, address), stderr=subprocess.DEVNULL)
    try:
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RECONNECT_IVL, 1)  # ms: else up to 100 of them are libzmq's own wait
            socket.connect(address)
            socket.send_multipart(encode_request(request, [tick]))
            if not socket.poll(int(serving.START_SECONDS * 1000)):
                raise RuntimeError("no reply after the start")
            took = time.perf_counter() - start
            if b"STREAM" in socket.recv():
                raise RuntimeError("the first reply is an error")
            return took
    finally:
        process.terminate()
        process.wait(timeout=20)


_OPEN_LOOP = "`runnel bench` in a process of its own; latency counts from when a chunk was due."


def _silero_row(which: str, file: str) -> Row:
    return Row(
        f"live-silero-{which}",
        f"Silero on recorded speech: live streams that one worker holds at p99 < 32 ms, {file}",
        f"{_OPEN_LOOP} A chunk every 32 ms; doubling, then bisecting; five seconds a trial.",
        partial(_silero, which),
        250,
        "streams",
        digits=0,
        least=True,
    )


ROWS = (
    Row(
        "serve-throughput",
        f"steps/s over ipc, one client, {STREAMS} streams, {LARGE} ÷ bare pyzmq echo of the same bytes",
        f"`Client.feed_many`, {TOGETHER} ticks of each stream a call; the echo: a ROUTER in a process of its "
        f"own that answers each request with a reply's very frames, and a DEALER with {WINDOW} on their way.",
        _throughput,
        0.7,
        least=True,
    ),
    Row(
        "serve-round-trip",
        f"round trip p50 over ipc, one stream, one outstanding ÷ (bare echo p50 + one bare step), {LARGE}",
        "`feed` of one tick; the same echo, one message at a time; `session.run` by hand in this process.",
        _round_trip,
        1.5,
    ),
    Row(
        "live-256",
        f"{STREAMS} live streams at {HZ} Hz over ipc, one worker: p99 from the due time, {LARGE}",
        f"{_OPEN_LOOP} One tick a chunk; three runs.",
        _live,
        5,
        "ms",
        digits=2,
    ),
    _silero_row("reexport", "our file"),
    _silero_row("vendor", "the vendor's file"),
    Row(
        "sizing",
        f"streams of a worker by the formula of deploy/sizing.md ÷ measured, {LARGE} at {HZ} Hz",
        f"{_OPEN_LOOP} Ramps to p99 < 20 ms, in process and on a daemon; the formula makes the second figure "
        "of the first.",
        _sizing,
        1.25,
    ),
    Row(
        "many-open",
        f"cost of a step with {MANY} streams open and {STREAMS} fed ÷ with {STREAMS} open, {LARGE}",
        f"Through the server without sockets; the {STREAMS} are spread over all that are open.",
        _many,
        1.1,
    ),
    Row(
        "idle-memory",
        "memory of an open idle stream beyond its two state rows",
        f"{MANY} streams in a server without sockets, in a fresh process, {SMALL}: resident memory, after "
        "each was fed once, all within some minutes, and was then idle for longer than replies are kept.",
        _idle_memory,
        1024,
        "bytes",
        digits=0,
    ),
    Row(
        "growth",
        "memory growth over 5 million steps with streams opening and closing",
        "Through the server without sockets, in a fresh process: streams open, are fed, repeat themselves, "
        "fail, end, close or are left to the idle time-out. Resident memory after a warm-up: the median of "
        "the last quarter of 40 samples less that of the first.",
        _growth,
        1,
        "MiB",
        digits=2,
    ),
    Row(
        "cold-start",
        f"`runnel serve` from its start to the first reply, {LARGE}",
        "Files cached; the first chunk waits for the daemon, and its answer ends the time.",
        _cold_start,
        1,
        "s",
        digits=2,
    ),
)
