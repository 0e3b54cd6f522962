"""The exported model in a daemon: its sound against torch's, its latency against the stated one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from runnel import Client, Engine
from runnel.errors import RunnelError
from runnel.spec import Array
from runnel_export import export
from runnel_export.certify.certificate import Certificate
from runnel_export.demo.daemon import daemon

from .measuring import clean
from .network import HOP, RATE, Suppressor

AGREE = 1e-4  # of the peak: float32 rounding, through a state, stays far below
EXAMPLE = 10 * HOP  # samples that the exporter is shown
_MOST = 700  # samples in a chunk: more than four hops
_SINGLE = 8 * HOP  # samples that are sent one at a time
_HOPS = 500  # timed without a daemon


@dataclass(frozen=True)
class Streamed:
    """What came of the sounds, each a stream of its own."""

    sounds: int
    samples: int
    chunks: int
    error: float  # the largest difference from torch, relative to the peak
    stated: int  # the latency in samples, as the daemon describes it
    latest: int  # samples by which the latest sample of the output lagged behind its input
    replies: Array  # (hops,) seconds from a live hop's last sample to the reply
    hop: float  # seconds that the engine computes for a hop, without a daemon: the median


def certify(network: Suppressor, sounds: Sequence[Array], path: Path, seed: int) -> Certificate:
    """Write the model file, proved on random data and on some of the sounds."""
    example = torch.from_numpy(np.stack([sound[:EXAMPLE] for sound in sounds]))
    return export(network, {"noisy": example}, path, rate=RATE, output_names=["clean"], seed=seed)


def streamed(network: Suppressor, model: Path, sounds: Sequence[Array], live: float, seed: int) -> Streamed:
    """Stream the sounds through `runnel serve model` in chunks of random sizes, and the last one live.

    `live`: seconds of it, in real time. Raise RunnelError if a stream's sound is not torch's, or if a sample
    comes later than the model file states.
    """
    random = np.random.default_rng(seed)
    worst, chunks = 0.0, 0
    with daemon(model, "--log-level", "warning") as address, Client(address) as client:
        stated = client.describe().latency
        for number, sound in enumerate(sounds):
            made, count = _in_chunks(client, sound, random)
            worst, chunks = max(worst, _apart(clean(network, sound), made, f"sound {number}")), chunks + count
        latest = _lag(client, sounds[0][:_SINGLE])
        replies = _live(client, sounds[-1][: int(live * RATE)])
    if latest != stated:
        raise RunnelError(f"{model} states a latency of {stated} samples, but the output lags by {latest}")
    return Streamed(
        len(sounds), sum(map(len, sounds)), chunks, worst, stated, latest, replies, _hop(model, sounds[0])
    )


def _in_chunks(client: Client, sound: Array, random: np.random.Generator) -> tuple[Array, int]:
    """Return what one stream makes of the sound, and the number of chunks."""
    sizes = random.integers(1, _MOST, len(sound))
    ends = np.cumsum(sizes)
    chunks = np.split(sound, ends[ends < len(sound)])
    with client.open() as stream:
        rows = [*stream.feed_all(chunks), stream.flush()]
    return np.concatenate([_array(row) for row in rows]), len(chunks)


def _apart(whole: Array, made: Array, what: str) -> float:
    if made.shape != whole.shape:
        raise RunnelError(f"{what}: the stream made {len(made)} samples, and torch {len(whole)}")
    error = float(np.abs(made - whole).max() / np.abs(whole).max())
    if not error <= AGREE:
        raise RunnelError(
            f"{what}: the stream differs from torch by {error:.1e} of the peak, at most {AGREE:g} is right"
        )
    return error


def _lag(client: Client, sound: Array) -> int:
    """Feed single samples; return how many samples later than its input the latest output sample came."""
    lag, came = 0, 0
    with client.open() as stream:
        for number in range(len(sound)):
            for _ in range(len(_array(stream.feed(sound[number : number + 1])))):
                lag, came = max(lag, number - came), came + 1
    if not came:
        raise RunnelError(f"{len(sound)} samples went in, and none came out")
    return lag


def _live(client: Client, sound: Array) -> Array:
    """Feed a hop at a time, each when a microphone would have heard its last sample."""
    waits = []
    with client.open() as stream:
        start = time.monotonic()
        for at in range(0, len(sound), HOP):
            due = start + (at + HOP) / RATE
            time.sleep(max(0.0, due - time.monotonic()))
            stream.feed(sound[at : at + HOP])
            waits.append(time.monotonic() - due)
    return np.array(waits)


def _hop(model: Path, sound: Array) -> float:
    took = []
    with Engine.load(model) as engine, engine.open() as stream:
        for number in range(_HOPS):
            at = number * HOP % (len(sound) - HOP)
            began = time.perf_counter()
            stream.feed(sound[at : at + HOP])
            took.append(time.perf_counter() - began)
    return float(np.median(took))


def _array(row: Array | dict[str, Array]) -> Array:
    return row["clean"] if isinstance(row, dict) else row
