"""Serve a trained network by a daemon, and feed streams tick by tick over connections that break."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from runnel import Client
from runnel.errors import RunnelError
from runnel.spec import Array
from runnel_export.demo.daemon import daemon

from .networks import Recall

AGREE = 1e-4  # largest difference, relative to the largest score; the certificate's tolerance
_FEEDER = Path(__file__).with_name("feeder.py")


@dataclass(frozen=True)
class Streamed:
    """Results of the streams of one model."""

    sequences: int
    ticks: int
    interruptions: int
    same: int  # streams that named the same tag as torch: always all of them
    recalled: int  # streams that named the right tag
    error: float  # largest difference of a score from torch's, relative to the largest score


def streamed(network: Recall, model: Path, sequences: Sequence[Tensor], seed: int) -> Streamed:
    """Feed each sequence to `runnel serve model` tick by tick, interrupted twice between tag and cue.

    The first ticks come from a client process that is killed. The next ticks come from a client that resumes
    the stream by name and leaves. The last ticks, with the cue, come from a third client. Raises RunnelError
    if a stream's answer differs from that of torch, which gets the whole sequence at once, or if a resumed
    stream is at the wrong tick.
    """
    random = np.random.default_rng(seed)
    rows = {f"{network.kind}-{i}": s.numpy() for i, s in enumerate(sequences)}
    # Two cuts in each sequence, behind the tag and before the cue.
    cuts = {name: sorted(random.choice(len(row) - 1, 2, replace=False) + 1) for name, row in rows.items()}
    scores: dict[str, list[Array]] = {name: [] for name in rows}
    with daemon(model, "--log-level", "warning") as address:
        _feed_and_die(address, {name: row[: cuts[name][0]] for name, row in rows.items()})
        for name, row in rows.items():
            first, second = cuts[name]
            for begin, end in ((first, second), (second, len(row))):
                with Client(address) as client:
                    scores[name] += _resume(client, name, row, begin, end)
    worst, same, recalled = 0.0, 0, 0
    for name, row in rows.items():
        first, second = cuts[name]
        whole = _whole(network, row)
        got = np.concatenate(scores[name])
        error = float(np.abs(got - whole[first:]).max() / np.abs(whole).max())
        if not error <= AGREE or got[-1].argmax() != whole[-1].argmax():
            raise RunnelError(
                f"stream {name!r}, interrupted after ticks {first} and {second} of {len(row)}, answers tag "
                f"{got[-1].argmax()}, and torch {whole[-1].argmax()}; scores differ by {error:.1e} of the "
                f"largest, {AGREE:g} is allowed: its state was not carried over"
            )
        worst, same = max(worst, error), same + 1
        recalled += int(got[-1].argmax() == row[0])
    return Streamed(len(rows), sum(map(len, rows.values())), 2 * len(rows), same, recalled, worst)


def _resume(client: Client, name: str, row: Array, begin: int, end: int) -> list[Array]:
    """Resume the stream, which must be at tick `begin`, and feed it up to `end`. Return the outputs."""
    stream = client.resume(name)
    if stream.seq != begin:
        raise RunnelError(f"stream {name!r} stands at tick {stream.seq}, and was fed {begin}")
    out = [stream.feed(row[at : at + 1]) for at in range(begin, end)]
    if end == len(row):
        stream.close()
    return [y for y in out if isinstance(y, np.ndarray)]


def _whole(network: Recall, row: Array) -> Array:
    """Return the scores (ticks, tags), computed by torch in one call."""
    with torch.no_grad():
        scores: Array = network(torch.from_numpy(row)[None])[0].numpy()
    return scores


def _feed_and_die(address: str, firsts: dict[str, Array]) -> None:
    """Open and feed the streams from a client process, then kill it, and its connection with it."""
    command = [sys.executable, str(_FEEDER), address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            print(
                json.dumps({name: row.tolist() for name, row in firsts.items()}),
                file=process.stdin,
                flush=True,
            )
            told = process.stdout.readline()
        finally:
            process.kill()
    if told != "fed\n":
        raise RunnelError(f"the client process ended too early: {' '.join(command)}")
