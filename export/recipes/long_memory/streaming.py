"""A trained network in a daemon, its streams fed tick by tick over connections that break."""

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

AGREE = 1e-4  # of the largest score: what the certificate allows
_FEEDER = Path(__file__).with_name("feeder.py")


@dataclass(frozen=True)
class Streamed:
    """What came of the sequences of one model."""

    sequences: int
    ticks: int
    interruptions: int
    same: int  # streams that named the tag that torch does: all of them, or it is an error
    recalled: int  # streams that named their tag
    error: float  # the largest difference of a score from torch's, relative to the largest score


def streamed(network: Recall, model: Path, sequences: Sequence[Tensor], seed: int) -> Streamed:
    """Feed each sequence to `runnel serve model` tick by tick, interrupted twice between tag and cue.

    The first ticks come from a client process that is killed; the next from a client that resumes the
    stream by name and leaves; the last, with the cue, from a third. Raises RunnelError where a stream
    answers otherwise than the network does in torch, the whole sequence at once; or where it stands
    elsewhere than it was fed to.
    """
    random = np.random.default_rng(seed)
    rows = {f"{network.kind}-{i}": s.numpy() for i, s in enumerate(sequences)}
    # Two places for each, behind the tag and before the cue.
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
    """Take the stream over where it should stand, and feed it ticks begin to end; what each gave."""
    stream = client.resume(name)
    if stream.seq != begin:
        raise RunnelError(f"stream {name!r} stands at tick {stream.seq}, and was fed {begin}")
    out = [stream.feed(row[at : at + 1]) for at in range(begin, end)]
    if end == len(row):
        stream.close()
    return [y for y in out if isinstance(y, np.ndarray)]


def _whole(network: Recall, row: Array) -> Array:
    """The scores (ticks, tags), by torch in one go."""
    with torch.no_grad():
        scores: Array = network(torch.from_numpy(row)[None])[0].numpy()
    return scores


def _feed_and_die(address: str, firsts: dict[str, Array]) -> None:
    """A client process opens the streams and feeds them; then it is killed, its connection with it."""
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
