"""Input chunks of a load: valid for the signal, finite, reproducible, with a start of its own per stream."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.errors import UsageError
from runnel.loadgen.inputs import MADE, MOST_BYTES, Playlist, random_chunks
from runnel.spec import Signal, TensorSpec

DTYPES = ("float16", "float32", "float64", "int8", "uint8", "int64", "bool")
SIGNAL = Signal(tuple(TensorSpec(d, d, (3,)) for d in DTYPES))


def test_random_chunks_are_of_the_signal_and_finite() -> None:
    for chunk in random_chunks(SIGNAL, 7):
        assert tuple(chunk) == SIGNAL.names
        for name, array in chunk.items():
            assert (array.dtype, array.shape) == (np.dtype(name), (7, 3))
            assert np.isfinite(array).all()


def test_a_seed_makes_the_same_chunks_again() -> None:
    def some(seed: int) -> list[bytes]:
        return [chunk["float32"].tobytes() for chunk in random_chunks(SIGNAL, 2, seed)]

    assert some(1) == some(1)
    assert some(1) != some(2)
    assert len(set(some(1))) == MADE


def test_huge_chunks_are_few_and_those_that_do_not_fit_are_refused() -> None:
    row = Signal((TensorSpec("x", "uint8", (2**20,)),))
    assert len(random_chunks(row, 100)) == 2
    with pytest.raises(UsageError, match="--chunk 129: one chunk has"):
        random_chunks(row, MOST_BYTES // 2**20 // 2 + 1)


@given(st.integers(1, 20), st.integers(1, 20))
def test_a_stream_cycles_through_all_chunks_from_its_own_start(chunks: int, streams: int) -> None:
    playlist = Playlist([{}] * chunks, streams)
    firsts = [playlist.next_index(stream) for stream in range(streams)]
    assert len(set(firsts)) == min(chunks, streams)
    for stream in range(streams):
        heard = [firsts[stream]] + [playlist.next_index(stream) for _ in range(2 * chunks - 1)]
        assert sorted(heard[:chunks]) == list(range(chunks))
        assert heard[chunks:] == heard[:chunks]
