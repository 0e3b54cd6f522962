"""What a lifted model streams, through the engine, against the module on whole sequences."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from runnel import Engine, Stream
from runnel.loading import container
from runnel.spec import to_document
from runnel_export.lift.lift import Lifted, lift

from .stepping import Array

LENGTHS = (1, 2, 3, 5, 8, 9, 13, 17, 24, 31, 40)


def fed(stream: Stream, x: Array, cuts: Iterable[int]) -> Array:
    """What a stream gives for a sequence that is fed in pieces, to its end."""
    ends = sorted({*cuts, len(x)} - {0})
    pieces = [stream.feed(x[a:b]) for a, b in itertools.pairwise([0, *ends])]
    rows: Array = np.concatenate([*pieces, stream.flush()])
    return rows


def assert_equal_to_torch(
    module: nn.Module,
    example: Tensor,
    folder: Path,
    time_axis: int = 1,
    lengths: Sequence[int] = LENGTHS,
    tolerance: float = 1e-4,
) -> Lifted:
    """Every length that forward takes, cut in three ways, alone and beside other streams.

    `tolerance`: of the peak. Fails if forward takes none of the lengths.
    """
    module = module.eval()
    lifted = lift(module, example, time_axis=time_axis)
    file = folder / "lifted.onnx"
    file.write_bytes(container.seal(lifted.model.SerializeToString(), to_document(lifted.spec)))
    rng = np.random.default_rng(0)
    compared = 0
    with Engine.load(file, max_streams=8, trust=True) as engine, engine.open() as other:
        for ticks in lengths:
            shape = list(example.shape)
            shape[0], shape[time_axis] = 1, ticks
            x = torch.from_numpy(rng.normal(size=shape).astype(np.float32))
            try:
                with torch.no_grad():
                    expected = module(x).movedim(time_axis, 0)[:, 0].numpy()
            except Exception:  # too short for the module itself, or no multiple of its strides
                continue
            rows = x.movedim(time_axis, 1)[0].numpy()
            compared += 1
            for cuts in (range(1, ticks), [], rng.integers(1, ticks + 1, 3).tolist()):
                with engine.open() as stream:
                    found = fed(stream, rows, cuts)
                assert found.shape == expected.shape, (ticks, cuts)
                peak = np.abs(expected).max(initial=0.0) or 1.0
                assert np.abs(found - expected).max(initial=0.0) <= tolerance * peak, (ticks, cuts)
            other.feed(rows)  # at another point of its life
            with engine.open() as stream:
                pairs = [(stream, rows), (other, rows)]
                given, _ = engine.feed_many(pairs)
                assert isinstance(given, np.ndarray), given
                together = np.concatenate([given, stream.flush()])
            np.testing.assert_allclose(
                together, expected, rtol=0, atol=tolerance * (np.abs(expected).max(initial=0.0) or 1)
            )
    assert compared, "forward takes none of these lengths"
    return lifted
