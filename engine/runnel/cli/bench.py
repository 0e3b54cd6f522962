"""`runnel bench`: latency of a pipeline or a daemon under live load, and its capacity in streams."""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TextIO

from ..errors import UsageError
from ..shown import bare

if TYPE_CHECKING:
    from ..loadgen.trial import Plan, Result, Target
    from ..spec import Signal
    from ..stage import Chunk

HELP = "measure latency under live load, and how many streams are held"

_EXAMPLE = """examples:
  runnel bench vad.toml --streams 64 --chunk 32ms
  runnel bench ipc:///run/runnel.sock --streams 256 --rate 50 --chunk 1 --seconds 30
  runnel bench ipc:///run/runnel.sock --ramp --deadline 32ms --chunk 32ms --input speech.wav

Chunks are sent when they are due, whether or not earlier ones were answered, and latency counts from then:
a daemon that stalls cannot slow the load down and hide it. --ramp doubles the streams until the deadline is
missed twice, then bisects. Exit status 1: chunks failed or had no answer, or --ramp held no stream.
"""

_ADDRESS: Final = re.compile(r"[a-z]+://")
MAX_STREAMS: Final = 1_000_000
_MOST_LOCAL: Final = 65536  # streams of a ramp in process; memory for unused rows is only reserved
_FIRST: Final = 8  # streams of a ramp's first trial
_RAMP_SECONDS: Final = 5.0  # length of a trial: some thousand chunks, so that a hundredth is many
_SECONDS: Final = 10.0
_MAX_SECONDS: Final = 86400.0
_SHOWN_EVERY: Final = 0.5  # seconds
_RAMP_PATIENCE: Final = 10  # deadlines: with a longer mean wait, a trial cannot recover
_LEAST_PATIENCE: Final = 0.25  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLE
    parser.add_argument(
        "target", metavar="TARGET",
        help="a pipeline (.toml) or model (.onnx), run in this process; or a daemon's address, ipc:// or tcp://",
    )  # fmt: skip
    parser.add_argument(
        "--streams", type=int, metavar="N", help="live streams (1); with --ramp: the most to try"
    )
    parser.add_argument(
        "--rate", type=float, metavar="HZ", help="chunks a second of each stream (the input's rate ÷ chunk)"
    )
    parser.add_argument("--chunk", metavar="N", help="time steps a chunk: 160, or 20ms (0.1s, or 1 step)")
    parser.add_argument(
        "--seconds", type=float, metavar="S",
        help=f"length of the run after its warm-up ({_SECONDS:g}), or of each trial ({_RAMP_SECONDS:g})",
    )  # fmt: skip
    parser.add_argument(
        "--warm-up", type=float, default=1.0, metavar="S", help="seconds of warm-up, not measured (1)"
    )
    parser.add_argument("--poisson", action="store_true", help="random arrivals instead of even ones")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of random input and arrivals (0)"
    )
    parser.add_argument(
        "--input", metavar="FILE",
        help="feed this sound, table or array instead of random numbers; each stream begins elsewhere in it",
    )  # fmt: skip
    parser.add_argument("--ramp", action="store_true", help="find how many streams meet --deadline")
    parser.add_argument("--deadline", metavar="T", help="for --ramp: 32ms, 0.1s")
    parser.add_argument(
        "--percentile",
        type=float,
        default=99.0,
        metavar="P",
        help="percentile that must meet the deadline (99)",
    )
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="threads of onnxruntime, in process (1)"
    )
    parser.add_argument(
        "--timeout", type=float, default=5.0, metavar="S", help="seconds to wait for a late answer (5)"
    )
    parser.add_argument(
        "--keys", metavar="FILE", help="your key file, for a daemon with keys: see runnel keys"
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON on standard output")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 if every chunk was answered, else 1. Raises UsageError, and as the target does."""
    from ..loadgen import report

    deadline = _check(args)
    with ExitStack() as stack:
        bench = _bench(args, stack)
        plan = _plan(args, bench.signal, deadline)
        meter = _Meter(args.quiet)
        stack.callback(meter.close)
        if deadline is None:
            result = _trial(bench, plan, meter)
            meter.close()
            print(json.dumps(report.document(result)) if args.json else report.text(result, bench.remote))
            return 1 if result.failed or result.behind else 0
        return _ramp(args, bench, plan, meter, deadline)


def _ramp(args: argparse.Namespace, bench: _Bench, plan: Plan, meter: _Meter, deadline: float) -> int:
    from ..loadgen import report
    from ..loadgen.ramp import ramp

    found = ramp(
        lambda streams: _trial(bench, replace(plan, streams=streams), meter),
        lambda result: result.meets(deadline, args.percentile),
        _FIRST,
        min(args.streams or MAX_STREAMS, bench.most),
    )
    meter.close()
    if args.json:
        print(json.dumps(report.capacity_document(found, deadline, args.percentile)))
    else:
        print(report.capacity_text(found, deadline, args.percentile, bench.remote))
    return 0 if found.streams else 1


@dataclass(frozen=True, slots=True)
class _Bench:
    """The system under test; `target` makes a target with the given number of streams."""

    signal: Signal
    chunks: list[Chunk]
    most: int  # streams
    remote: bool
    target: Callable[[int], Any]  # a Target that is a context manager


def _bench(args: argparse.Namespace, stack: ExitStack) -> _Bench:
    if _ADDRESS.match(args.target):
        from ..loadgen.remote import RemoteTarget, hello
        from ..wire.keys import client_keys
        from ..wire.tensors import undescribe
        from .socketwait import await_socket

        await_socket(args.target, args.timeout, args.quiet)
        keys = client_keys(args.keys) if args.keys else None
        served = hello(args.target, args.timeout, keys)
        signal = undescribe(served.inputs, served.input_rate)
        chunks = _chunks(args, signal)
        return _Bench(
            signal, chunks, served.limits.streams * max(1, len(served.workers)), True,
            lambda streams: RemoteTarget(args.target, served, chunks, streams, args.timeout, keys),
        )  # fmt: skip
    from ..engine import Engine
    from ..loadgen.local import LocalTarget

    most = _MOST_LOCAL if args.ramp else args.streams or 1
    engine = stack.enter_context(Engine.load(args.target, max_streams=most, threads=args.threads))
    signal = engine.pipeline.inputs
    chunks = _chunks(args, signal)
    return _Bench(signal, chunks, most, False, lambda streams: LocalTarget(engine, chunks, streams))


def _chunks(args: argparse.Namespace, signal: Signal) -> list[Chunk]:
    """The input chunks: read from the file, or random."""
    from ..loadgen.inputs import MOST_BYTES, random_chunks
    from .connectors import parse_connector, source_of

    steps = _steps(args, signal)
    if args.input is None:
        return random_chunks(signal, steps, args.seed)
    chunks: list[Chunk] = []
    held = 0
    with source_of(parse_connector("source", args.input), signal) as source:
        for chunk in source.chunks(steps):
            if len(next(iter(chunk.values()))) < steps:
                break  # the rest of the file is not a whole chunk
            held += sum(array.nbytes for array in chunk.values())
            if held > MOST_BYTES:
                raise UsageError(f"{args.input}: more than {MOST_BYTES} bytes of input: give a part of it")
            chunks.append(chunk)
    if not chunks:
        raise UsageError(f"{args.input}: shorter than one chunk of {steps} time steps (--chunk)")
    return chunks


def _steps(args: argparse.Namespace, signal: Signal) -> int:
    from .pace import chunk_steps

    return chunk_steps(args.chunk, signal.rate, realtime=True)


def _plan(args: argparse.Namespace, signal: Signal, deadline: float | None) -> Plan:
    from ..loadgen.trial import Plan

    rate = args.rate
    if rate is None:
        if not signal.rate:
            raise UsageError("--rate is needed: the pipeline states no input rate")
        rate = signal.rate / _steps(args, signal)
    patience = args.timeout
    if deadline is not None:
        patience = min(patience, max(_RAMP_PATIENCE * deadline, _LEAST_PATIENCE))
    return Plan(
        args.streams or 1,
        rate,
        args.seconds or (_SECONDS if deadline is None else _RAMP_SECONDS),
        args.warm_up,
        "poisson" if args.poisson else "even",
        args.seed,
        patience,
    )


def _check(args: argparse.Namespace) -> float | None:
    """The deadline of a ramp in seconds, None without one. Raises UsageError for invalid arguments."""
    if args.streams is not None and not 1 <= args.streams <= MAX_STREAMS:
        raise UsageError(f"--streams {args.streams}: expected 1 to {MAX_STREAMS}")
    for name, value in (("seconds", args.seconds), ("rate", args.rate), ("timeout", args.timeout)):
        if value is not None and not 0 < value <= _MAX_SECONDS:
            raise UsageError(f"--{name} {value:g}: expected a positive number, {_MAX_SECONDS:g} at most")
    if not 0 <= args.warm_up <= _MAX_SECONDS:
        raise UsageError(f"--warm-up {args.warm_up:g}: expected 0 to {_MAX_SECONDS:g} seconds")
    if not 0 < args.percentile <= 100:
        raise UsageError(f"--percentile {args.percentile:g}: expected more than 0, and 100 at most")
    if args.ramp != (args.deadline is not None):
        raise UsageError("--ramp and --deadline go together: runnel bench TARGET --ramp --deadline 32ms")
    return None if args.deadline is None else _duration(args.deadline)


def _duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", text)
    if not match or not float(match[1]):
        raise UsageError(f"--deadline {text!r}: expected a time, as 32ms or 0.1s")
    return float(match[1]) * (0.001 if match[2] == "ms" else 1.0)


def _trial(bench: _Bench, plan: Plan, meter: _Meter) -> Result:
    from ..loadgen import trial

    meter.begin(plan)
    with bench.target(plan.streams) as target, _without_collection():
        running: Target = target
        return trial.run(plan, running, time.perf_counter, meter.watch)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Disable garbage collection: it would stall the generator, and a trial makes no cycles."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class _Meter:
    """Progress on standard error: one rewritten line on a terminal, else a line for each trial."""

    def __init__(self, quiet: bool, stream: TextIO | None = None) -> None:
        self._stream = bare(stream or sys.stderr)  # only numbers are written here
        self._tty = self._stream.isatty() and not quiet
        self._quiet = quiet
        self._shown = 0.0

    def begin(self, plan: Plan) -> None:
        self._shown = 0.0
        if not self._quiet and not self._tty:
            self._write(f"{plan.streams} streams at {plan.rate:g} Hz\n")

    def watch(self, now: float, result: Result, outstanding: int) -> None:
        if self._tty and now - self._shown >= _SHOWN_EVERY:
            self._shown = now
            plan, p99 = result.plan, result.latencies.percentile(99)
            self._write(
                f"\r\x1b[K{plan.streams} streams  {now:.0f} of {plan.warm_up + plan.seconds:g} s  "
                f"{plan.offered:.0f} chunks/s  p99 {p99 * 1e3:.2f} ms  {outstanding} on their way  "
                f"{result.failures.total()} failed"
            )

    def close(self) -> None:
        """Clear the line."""
        if self._tty:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
