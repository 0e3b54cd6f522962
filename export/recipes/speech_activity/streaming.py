"""Our side: write the pipeline of the exported model, and stream sounds through it in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runnel import Engine
from runnel.spec import Array
from runnel_export import export
from runnel_export.certify.certificate import Certificate
from runnel_export.demo import silero

from .vendor import Found, Segment

_TOGETHER = 32  # streams in a batch
_PIECE = 4000  # samples in a chunk


def certify(module: silero.SileroVAD, path: Path) -> Certificate:
    return export(
        module,
        silero.example(),
        path,
        framing=silero.FRAMING,
        rate=silero.RATE,
        output_names=["probability"],
    )


def write_pipeline(path: Path, model: Path, rate: int) -> Path:
    """Write a pipeline from sound at `rate` to segments. The stage's defaults are the vendor's settings."""
    before = "" if rate == silero.RATE else (
        f'[input]\nrate = {rate}\n\n[[before]]\nuse = "resample"\nrate = {silero.RATE}\n\n'
    )  # fmt: skip
    path.write_text(
        "# Written by the recipe speech_activity.\n"
        f'{before}[model]\npath = "{model.name}"\n[model.inputs]\nframes = "samples"\n\n'
        '[[after]]\nuse = "speech_segments"\n'
    )
    return path


def through_engine(pipeline: Path, sounds: Sequence[Array], lengths: Sequence[int]) -> list[Found]:
    """Stream each sound in pieces, many sounds in a batch. `lengths`: samples at 16 kHz."""
    found = []
    with Engine.load(pipeline, max_streams=_TOGETHER) as engine:
        for at in range(0, len(sounds), _TOGETHER):
            some = sounds[at : at + _TOGETHER]
            streams = [engine.open() for _ in some]
            heard: list[list[dict[str, Array]]] = [[] for _ in some]
            for start in range(0, max(map(len, some)), _PIECE):
                going = [i for i, sound in enumerate(some) if start < len(sound)]
                pairs = [(streams[i], {"samples": some[i][start : start + _PIECE]}) for i in going]
                for i, out in zip(going, engine.feed_many(pairs), strict=True):
                    if isinstance(out, Exception):
                        raise out
                    heard[i].append(out)
            for stream, outs, length in zip(streams, heard, lengths[at : at + _TOGETHER], strict=True):
                outs.append(stream.flush())
                stream.close()
                found.append(joined(outs, length))
    return found


def joined(outs: Sequence[dict[str, Array]], length: int) -> Found:
    """Join the outputs for one sound. `length`: samples at 16 kHz.

    The last window of the stream is padded with zeros. The further rows of the flush have segments only.
    """
    every = {name: np.concatenate([out[name] for out in outs]) for name in outs[0]}
    pairs = zip(every["start"].tolist(), every["end"].tolist(), strict=True)
    segments: list[Segment] = [(start, end) for start, end in pairs if end >= 0]
    return Found(segments, every["probability"][: -(-length // silero.FRAMING.hop)])
