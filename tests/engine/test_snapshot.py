"""Snapshots: exact in both directions; any other bytes are refused."""

import hashlib
import json
import resource
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runnel import Engine
from runnel.errors import LimitError, NonFiniteError, SnapshotError
from runnel.model.arena import Arena
from runnel.snapshot import MAX_HEADER, Snapshot, decode, encode
from runnel.spec import DTYPES
from tests import models
from tests.models import state

arrays = st.sampled_from(DTYPES).flatmap(
    lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0), elements=st.integers(0, 1))
)
stages = st.lists(
    st.tuples(st.text(max_size=8), st.dictionaries(st.text(max_size=8), arrays, max_size=3)), max_size=3
)


@given(stages=stages, seq=st.integers(0, 2**60), ended=st.booleans(), pipeline=st.text(max_size=40))
def test_round_trip(
    stages: list[tuple[str, dict[str, np.ndarray]]], seq: int, ended: bool, pipeline: str
) -> None:
    blob = encode(Snapshot(pipeline, seq, ended, tuple(stages)))
    found = decode(blob)
    assert (found.pipeline, found.seq, found.ended) == (pipeline, seq, ended)
    assert encode(found) == blob
    for (name, held), (wanted, given_) in zip(found.stages, stages, strict=True):
        assert name == wanted
        assert held.keys() == given_.keys()
        for key, array in held.items():
            assert array.dtype == given_[key].dtype
            np.testing.assert_array_equal(array, given_[key])
            assert not array.flags.writeable


def test_every_bit_is_kept() -> None:
    odd = np.array([-0.0, 1e-45, np.nan, np.inf, 3.4e38], np.float32)
    found = decode(encode(Snapshot("p", 1, False, (("m", {"h": odd}),)))).stages[0][1]["h"]
    assert found.tobytes() == odd.tobytes()


@given(blob=st.binary(max_size=200))
def test_any_bytes(blob: bytes) -> None:
    with pytest.raises(SnapshotError):
        decode(blob)


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_one_flipped_bit(at: int, bit: int) -> None:
    blob = bytearray(encode(Snapshot("p", 3, False, (("m", {"h": np.ones((2, 3), np.float32)}),))))
    blob[at % len(blob)] ^= 1 << bit
    with pytest.raises(SnapshotError):
        decode(bytes(blob))


# Forged snapshots: the checksum is right, and the content is arbitrary.


def made_up(header: object, tail: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = struct.pack("<4sBI", b"RNLS", 1, len(text)) + text + tail
    return body + hashlib.blake2b(body, digest_size=16).digest()


def one(**changed: object) -> dict[str, object]:
    return {"pipeline": "p", "seq": 0, "ended": False, "stages": [["m", [["h", "uint8", [2]]]]]} | changed


def test_unchanged_base_snapshot_is_accepted() -> None:
    assert decode(made_up(one(), b"ab")).stages[0][1]["h"].tobytes() == b"ab"


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (made_up(b"[" * 100_000), "makes no sense"),
        (made_up(b'{"a":' * 50_000), "makes no sense"),
        (made_up(b" " * (MAX_HEADER + 1)), "the snapshot's header has 262145 bytes; at most 262144"),
        (made_up(b"9" * 5000), "makes no sense"),
        (made_up(b"\xff"), "makes no sense"),
        (made_up([]), "makes no sense"),
        (made_up(one(seq=2**63), b"ab"), "seq is"),
        (made_up(one(seq=-1), b"ab"), "seq is"),
        (made_up(one(seq=True), b"ab"), "seq is"),
        (made_up(one(seq=1.0), b"ab"), "seq is"),
        (made_up(one(ended=1), b"ab"), "ended is"),
        (made_up(one(), b"a"), "past the end"),
        (made_up(one(), b"abc"), "1 bytes too many"),
        (made_up(one(stages=[["m", [["h", "bool", [2]]]]]), b"\1\2"), "neither 0 nor 1"),
        (made_up(one(stages=[["m", [["h", "object", [2]]]]]), b"ab"), "object"),
        (made_up(one(stages=[["m", [["h", ["uint8"], [2]]]]]), b"ab"), "uint8"),
        (made_up(one(stages=[["m", [["h", "uint8", 2]]]]), b"ab"), "makes no sense"),
        (made_up(one(stages=[["m", [["h", "uint8", [-2, -1]]]]]), b"ab"), "makes no sense"),
        (made_up(one(stages=[["m", [["h", "uint8", [1e300]]]]]), b"ab"), "makes no sense"),
        (made_up(one(stages=[["m", [["h", "uint8", [float("nan")]]]]]), b"ab"), "makes no sense"),
        (made_up(one(stages=[["m", [["h", "uint8", [2**28] * 8]]]]), b"ab"), "past the end"),
        (made_up(one(stages=[["m", [["h", "uint8", [0, *[2**28] * 7]]]]])), "makes no sense"),
        (made_up(one(stages=[["m", [["h", "uint8", [1] * 99]]]]), b"a"), "makes no sense"),
        (made_up(one(stages=[[0]]), b"ab"), "makes no sense"),
        (made_up(one(stages=None), b"ab"), "makes no sense"),
    ],
)
def test_forged_snapshot_is_refused(blob: bytes, words: str) -> None:
    with pytest.raises(SnapshotError, match=words):
        decode(blob)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["m", "h", *DTYPES]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(list(one())), inner),
    max_leaves=12,
)


@given(
    header=json_values | st.builds(lambda k, v: one(**{k: v}), st.sampled_from(list(one())), json_values),
    tail=st.binary(max_size=20),
)
def test_any_header_is_accepted_or_refused(header: object, tail: bytes) -> None:
    with suppress(SnapshotError):
        decode(made_up(header, tail))


def test_a_header_that_decode_would_refuse_is_not_encoded() -> None:
    with pytest.raises(SnapshotError, match="the names of the stream's state"):
        encode(Snapshot("p", 1, False, (("m" * (MAX_HEADER + 1), {}),)))


# The arena


def test_columns_are_views_of_one_arena() -> None:
    arena = Arena([state("h", (2, "slot", 3)), state("n", ("slot",), 7, "int64"), state("c", ("slot", 5))], 3)
    assert arena.columns["h"].shape == (8, 2, 3)
    assert arena.columns["n"].shape == (8,)
    for column in arena.columns.values():
        assert np.shares_memory(column, arena._rows)
        assert column.ctypes.data % 64 == 0
    assert arena.floats is None, "a row of two types is checked state by state"


@given(ops=st.lists(st.integers(0, 9), max_size=60))
def test_slots_are_never_shared_and_always_fresh(ops: list[int]) -> None:
    arena = Arena([state("h", ("slot", 2), 0.5)], 5)
    held: list[int] = []
    for op in ops:
        if op < 6:
            if len(held) == 5:
                with pytest.raises(
                    LimitError, match=r"all 5 streams are open: close some, .* --max-streams of runnel serve"
                ):
                    arena.allocate()
                continue
            row = arena.allocate()
            assert row // 2 not in {r // 2 for r in held}
            assert (arena.read(row)["h"] == 0.5).all()
            arena.write(row ^ 1, {"h": np.full(2, 9.0, np.float32)})
            held.append(row ^ 1)
        elif held:
            arena.release(held.pop(op % len(held)))
        assert arena.used == len(held)
        assert all((arena.read(r)["h"] == 9).all() for r in held)


def resident() -> int:
    """Return the resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_an_open_streams_memory_is_reserved_and_no_others() -> None:
    row = 2**20
    before = resident()
    arena = Arena([state("h", ("slot", row // 4))], 1000)
    assert resident() - before < 10 * row, "it is touched only when a slot is taken"
    rows = [arena.allocate() for _ in range(20)]
    taken = resident() - before
    assert 40 * row <= taken < 60 * row
    for first in rows:  # the steps of these streams need no more memory
        arena.write(first ^ 1, {"h": np.ones(row // 4, "float32")})
    assert resident() - before < taken + 5 * row


def test_more_rows_than_memory() -> None:
    with pytest.raises(LimitError, match=r"GiB: load the engine with a smaller max_streams"):
        Arena([state("h", ("slot", 1024))], 2**48)


def test_state_that_decode_would_refuse_is_not_encoded() -> None:
    for odd in (np.zeros(2, np.complex64), np.zeros((1,) * 9, np.float32)):
        with pytest.raises(SnapshotError, match="a snapshot holds"):
            encode(Snapshot("p", 1, False, (("m", {"h": odd}),)))


def test_a_non_finite_state_is_named() -> None:
    arena = Arena([state("h", ("slot", 2)), state("c", ("slot", 2))], 2)
    row = arena.allocate()
    arena.check(row, "m")
    arena.write(row, {"h": np.zeros(2), "c": np.array([0, np.inf])})
    with pytest.raises(NonFiniteError, match="m: state 'c' became non-finite"):
        arena.check(row, "m")
    assert np.isnan(np.vdot(arena.floats[row], np.zeros_like(arena.floats[row])))  # type: ignore[index]


def test_restored_arrays_are_aligned_and_have_memory_of_their_own() -> None:
    """A view of the snapshot's bytes may be unaligned, which some machines cannot read."""
    odd = {f"a{i}": np.arange(3, dtype="uint8") for i in range(3)}
    arrays = {**odd, "b": np.arange(4, dtype="float64"), "c": np.array(7, "int16"), "d": np.zeros((0, 2))}
    for name_length in range(9):  # the header's length shifts all arrays
        [(_, found)] = decode(encode(Snapshot("p" * name_length, 1, False, (("s", arrays),)))).stages
        for key, array in found.items():
            np.testing.assert_array_equal(array, arrays[key])
            assert array.flags.aligned
            assert array.base is None or len(array.base) == array.nbytes, "a view keeps all of the bytes"
            assert not array.flags.writeable


def test_equal_states_give_equal_bytes() -> None:
    grid = np.arange(12, dtype="float32").reshape(3, 4)
    wide = np.zeros((6, 8), "float32")
    wide[::2, ::2] = grid
    raw = bytearray(1) + grid.tobytes()
    ways = [
        grid,
        np.asfortranarray(grid),
        grid.astype(">f4"),
        wide[::2, ::2],
        np.frombuffer(raw, "float32", 12, 1).reshape(3, 4),
        grid[::-1].copy()[::-1],
        grid.view(np.recarray),
    ]
    blobs = {encode(Snapshot("p", 1, False, (("s", {"a": one, "b": grid}),))) for one in ways}
    blobs |= {encode(Snapshot("p", 1, False, (("s", {"b": grid, "a": one}),))) for one in ways}
    assert len(blobs) == 1
    [blob] = blobs
    assert encode(decode(blob)) == blob


def test_a_header_that_cannot_be_of_the_pipeline_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that sends many of them costs a check of their length only."""
    engine = Engine.load(models.lstm(tmp_path / "m.onnx").path)
    stream = engine.open()
    blob = stream.snapshot()
    header = len(blob) - 16 - sum(array.nbytes for array in stream.state.values())
    assert header < engine.pipeline.most_header <= MAX_HEADER
    foreign = made_up(
        {"pipeline": "x", "seq": 0, "ended": False, "stages": [["a", [["k", "bool", [0, 1]]] * 4000]]}
    )
    monkeypatch.setattr("runnel.snapshot.json.loads", lambda text: pytest.fail("it was read"))
    with pytest.raises(SnapshotError, match="another pipeline"):
        engine.restore(foreign)
    with pytest.raises(SnapshotError, match="another pipeline"):
        stream.rewind(foreign)
