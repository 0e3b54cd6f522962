"""Invalid input, and the life of a stream: the error gives the reason, and nothing changes."""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runnel import Engine, errors
from runnel import snapshot as snapshots
from tests import laws, models


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine.load(models.lstm(tmp_path / "m.onnx").path, max_streams=8)


X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize(
    ("chunk", "error", "says"),
    [
        (X.astype(np.float64), errors.ChunkError, r"'x' is float64, expected float32.*astype"),
        (X.astype(">f4"), errors.ChunkError, r"'x' is >f4, expected float32"),
        (X[:, :2], errors.ChunkError, r"shape \(4, 2\), expected x: float32 \(T, 3\)"),
        (X[0], errors.ChunkError, r"array\[None\]"),
        (X[None], errors.ChunkError, "no batch axis"),
        (np.float32(1), errors.ChunkError, "not float32"),
        (X.tolist(), errors.ChunkError, "not list"),
        (None, errors.ChunkError, "not NoneType"),
        ({"X": X}, errors.ChunkError, r"holds \['X'\], expected \['x'\]"),
        ({"x": X, "y": X}, errors.ChunkError, "holds"),
        ({}, errors.ChunkError, "holds"),
        ({"x": X.tolist()}, errors.ChunkError, "'x' is a list"),
        (np.array(1.0, np.float32), errors.ChunkError, "no time axis|expected x"),
        (np.ma.masked_array(X, X > 0), errors.ChunkError, "masked array"),
        (X[:0], errors.EmptyChunkError, "no time steps"),
        (
            np.where(X[2, 1] == X, np.nan, X).astype(np.float32),
            errors.NonFiniteError,
            r"time step 2, element \(1,\)",
        ),
        (np.where(X[0, 0] == X, np.inf, X).astype(np.float32), errors.NonFiniteError, "time step 0"),
    ],
)
def test_bad_chunks(engine: Engine, chunk: Any, error: type[errors.RunnelError], says: str) -> None:
    with engine.open() as stream, pytest.raises(error, match=says):
        stream.feed(chunk)
    laws.commit(engine, {"x": X}, chunk, error, {"x": X})


def test_one_bad_tick_alone(engine: Engine) -> None:
    """The one-tick path checks as the batch does."""
    stream = engine.open()
    stream.feed(X[:1])
    before = stream.state
    with pytest.raises(errors.NonFiniteError, match="time step 0"):
        stream.feed(np.array([[0, np.nan, 0]], np.float32))
    laws.same_state(before, stream.state)


def test_large_finite_input_is_not_refused(engine: Engine) -> None:
    """Its sum of squares overflows float32, but it is finite."""
    big = np.full((1, 3), 3e38, np.float32)
    assert np.isfinite(engine.open().feed(big)).all()
    assert np.isfinite(engine.open().feed(np.repeat(big, 5, 0))).all()


def test_a_state_that_blows_up_is_refused(tmp_path: Path) -> None:
    hand = models.blowup(tmp_path / "m.onnx")
    engine = Engine.load(hand.path, max_streams=20)
    laws.commit(
        engine,
        {"x": np.full((4, 1), 0.5, np.float32)},
        {"x": np.full((1, 1), 1e30, np.float32)},
        errors.NonFiniteError,
        {"x": np.full((3, 1), 0.1, np.float32)},
    )
    with pytest.raises(errors.NonFiniteError, match="state 's' became non-finite"):
        engine.open().feed(np.full((1, 1), 1e30, np.float32))


def test_an_index_out_of_range(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engine = Engine.load(models.embedding(tmp_path / "m.onnx").path)
    good = {"token": np.array([1, 2, 3, 4])}
    laws.commit(engine, good, {"token": np.array([1, 77])}, errors.ChunkError, good)
    with pytest.raises(errors.ChunkError, match="out of range"):
        engine.open().feed(np.array([77]))
    assert capfd.readouterr().err == "", "told once, by the exception, and not by onnxruntime's log too"


def test_arrays_of_unequal_length(tmp_path: Path) -> None:
    engine = Engine.load(models.counter(tmp_path / "m.onnx").path)
    ones = np.ones((3, 2), np.float32)
    with pytest.raises(errors.ChunkError, match="differ in time steps"):
        engine.open().feed({"a": ones, "b": ones[:2]})
    with pytest.raises(errors.ChunkError, match="2 inputs"):
        engine.open().feed(ones)


def test_life(engine: Engine) -> None:
    stream = engine.open("mic-1")
    assert (stream.id, stream.seq, engine.streams["mic-1"]) == ("mic-1", 0, stream)
    stream.feed(X)
    assert stream.seq == 1
    stream.flush()
    for call in (lambda: stream.feed(X), stream.flush):
        with pytest.raises(errors.StreamEndedError, match="reset it"):
            call()
    assert isinstance(engine.feed_many([(stream, X)])[0], errors.StreamEndedError)
    stream.reset()
    stream.feed(X)
    stream.close()
    stream.close()
    assert "mic-1" not in engine.streams
    for call in (lambda: stream.feed(X), stream.flush, stream.reset, stream.snapshot, lambda: stream.state):
        with pytest.raises(errors.StreamClosedError, match="closed"):
            call()
    assert isinstance(engine.feed_many([(stream, X)])[0], errors.StreamClosedError)
    assert engine.open("mic-1").seq == 0


def test_ids_and_bounds(engine: Engine) -> None:
    engine.open("a")
    with pytest.raises(errors.StreamExistsError, match="'a' is open already"):
        engine.open("a")
    for bad in ("", "x" * 600, "a\nb", "\ud800", 7):
        with pytest.raises(errors.StreamError, match="1 to 512"):
            engine.open(bad)  # type: ignore[arg-type]
    more = [engine.open() for _ in range(7)]
    assert len({s.id for s in more}) == 7
    with pytest.raises(
        errors.LimitError, match=r"all 8 streams are open: close some, .* --max-streams of runnel serve"
    ):
        engine.open()
    more[0].close()
    engine.open()
    with pytest.raises(errors.LimitError, match="max_streams"):
        Engine.load("m.onnx", max_streams=0)


def test_a_reused_slot_starts_anew(engine: Engine) -> None:
    first = engine.open()
    fresh = first.state
    first.feed(X)
    first.close()
    laws.same_state(fresh, engine.open().state)


def test_outputs_are_the_callers_own(engine: Engine) -> None:
    """A later step must not write to an output that the caller has."""
    stream = engine.open()
    one = stream.feed(X[:1])
    kept = one.copy()
    stream.feed(X[1:2])
    np.testing.assert_array_equal(one, kept)
    many = engine.feed_many([(stream, X[:1])])[0]
    kept = many.copy()
    engine.feed_many([(stream, X[1:2])])
    np.testing.assert_array_equal(many, kept)


def test_input_may_be_reused_by_the_caller(engine: Engine) -> None:
    buffer = X.copy()
    stream, twin = engine.open(), engine.open()
    stream.feed(buffer)
    buffer[...] = 99
    twin.feed(X)
    laws.same_state(stream.state, twin.state)


def test_state_is_read_only(engine: Engine) -> None:
    state = engine.open().state
    assert set(state) == {"m.h0", "m.c0", "m.h1", "m.c1"}
    with pytest.raises(ValueError):
        state["m.h0"][...] = 1
    with pytest.raises(TypeError):
        state["m.h0"] = X  # type: ignore[index]


def test_a_scalar_for_a_stream_of_scalars(tmp_path: Path) -> None:
    engine = Engine.load(models.accumulator(tmp_path / "m.onnx").path)
    stream = engine.open()
    with pytest.raises(errors.ChunkError, match=r"shape \(\), expected x: float32 \(T\)"):
        stream.feed(np.array(1.0, np.float32))
    assert isinstance(engine.feed_many([(stream, np.array(1.0, np.float32))])[0], errors.ChunkError)
    assert [stream.feed(np.ones(1, np.float32)).item() for _ in range(4)] == [1, 2, 3, 4]


def test_any_array_layout(engine: Engine) -> None:
    """Reversed, strided, read-only and memory-mapped arrays are valid."""
    wide = np.zeros((8, 6), np.float32)
    wide[::2, ::2] = X
    fixed = X.copy()
    fixed.setflags(write=False)
    with engine.open() as stream:
        wanted = stream.feed(X)
    for same in (wide[::2, ::2], X[::-1][::-1], np.asfortranarray(X), fixed, X.view(np.memmap)):
        with engine.open() as stream:
            np.testing.assert_array_equal(stream.feed(same), wanted)


def test_a_renamed_model_takes_its_own_snapshots(engine: Engine, tmp_path: Path) -> None:
    copy = tmp_path / "copy.onnx"
    copy.write_bytes((tmp_path / "m.onnx").read_bytes())
    stream = engine.open()
    stream.feed(X)
    again = Engine.load(copy).restore(stream.snapshot())
    np.testing.assert_array_equal(again.feed(X), stream.feed(X))


@pytest.mark.parametrize("wrong", [np.zeros((1, 1), np.float32), np.full((1, 4), np.nan, np.float32)])
def test_a_snapshot_with_another_state(engine: Engine, wrong: np.ndarray) -> None:
    """A forged snapshot: a right checksum over wrong numbers."""
    held = snapshots.decode(engine.open("a").snapshot())
    name, arrays = held.stages[0]
    blob = snapshots.encode(dataclasses.replace(held, stages=((name, {**arrays, "h0": wrong}),)))
    with pytest.raises(errors.SnapshotError):
        engine.restore(blob)
    assert list(engine.streams) == ["a"]


def test_the_same_stream_twice_in_one_call(engine: Engine) -> None:
    stream, twin = engine.open(), engine.open()
    outs = engine.feed_many([(stream, X[:2]), (stream, X[2:])])
    np.testing.assert_allclose(np.concatenate(outs), twin.feed(X), atol=1e-6)
    assert stream.seq == 2
    bad = engine.feed_many([(stream, X[:, :1]), (stream, X)])
    assert [type(b) for b in bad] == [errors.ChunkError, errors.StreamError]
    assert stream.seq == 2


def test_host_floats_are_not_flushed(tmp_path: Path) -> None:
    """onnxruntime can flush denormals only by changing the process's floating-point mode: on request."""
    path = models.lstm(tmp_path / "m.onnx").path
    code = (
        "import sys, runnel; e = runnel.Engine.load(sys.argv[1], flush_denormals=sys.argv[2] == 'yes');"
        "print(float(sys.argv[3]) / 2 > 0)"
    )
    for flag, kept in (("no", "True"), ("yes", "False")):
        done = subprocess.run(
            [sys.executable, "-c", code, str(path), flag, "3e-308"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == kept


def test_denormals_that_cannot_be_flushed_are_reported(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    path = models.lstm(tmp_path / "m.onnx").path
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    Engine.load(path)
    assert not caplog.records
    Engine.load(path, flush_denormals=True)
    assert "flush_denormals does nothing on aarch64" in caplog.text


def test_another_engines_stream(engine: Engine, tmp_path: Path) -> None:
    other = Engine.load(models.lstm(tmp_path / "o.onnx").path)
    assert isinstance(engine.feed_many([(other.open(), X)])[0], errors.StreamError)


def test_snapshots_of_another_pipeline(engine: Engine, tmp_path: Path) -> None:
    other = Engine.load(models.lstm(tmp_path / "o.onnx", seed=9).path)
    with pytest.raises(errors.SnapshotError, match="must be the same"):
        engine.restore(other.open().snapshot())
    assert not engine.streams
    blob = engine.open("a").snapshot()
    with pytest.raises(errors.StreamExistsError):
        engine.restore(blob, "a")
    for broken in (b"", b"RNLS", blob[:-1], blob[:20] + bytes([blob[20] ^ 1]) + blob[21:], "text"):
        with pytest.raises(errors.SnapshotError):
            engine.restore(broken)  # type: ignore[arg-type]
    assert list(engine.streams) == ["a"]


def test_a_flushed_stream_is_restored_flushed(engine: Engine) -> None:
    stream = engine.open()
    stream.feed(X)
    stream.flush()
    with pytest.raises(errors.StreamEndedError):
        engine.restore(stream.snapshot()).feed(X)


def test_errors_have_stable_distinct_codes() -> None:
    tree = [c for c in errors._walk(errors.RunnelError) if c.__module__ == errors.__name__]
    assert len({c.code for c in tree}) == len(tree)
    assert all(errors.by_code(c.code) is c for c in tree)
    assert errors.by_code("FROM_THE_FUTURE") is errors.RunnelError
    assert len(str(errors.RunnelError("x" * 10_000))) == errors.MAX_MESSAGE


# Subclasses of array


class Units(np.ndarray):
    """Like an array with units: it refuses to be combined with others."""

    def __array_function__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("units do not agree")

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("units do not agree")


class Raising(Mapping[str, np.ndarray]):
    """A chunk that cannot be read."""

    def __getitem__(self, name: str) -> np.ndarray:
        raise OSError("the file is gone")

    def __iter__(self) -> Iterator[str]:
        return iter(["x"])

    def __len__(self) -> int:
        return 1


def subclasses(folder: Path, plain: np.ndarray) -> dict[str, np.ndarray]:
    mapped = np.memmap(folder / "x.bin", plain.dtype, "w+", shape=plain.shape)
    mapped[:] = plain
    return {
        "memmap": mapped,
        "read-only memmap": np.memmap(folder / "x.bin", plain.dtype, "r", shape=plain.shape),
        "matrix": np.asmatrix(plain),
        "recarray": plain.view(np.recarray),
        "units": plain.view(Units),
    }


@pytest.mark.parametrize("ticks", [1, 3])
@pytest.mark.parametrize("stages", ["", '[[before]]\nuse = "smooth"\nweight = 0.5\n'])
def test_subclasses_of_array_are_taken_as_plain_arrays(tmp_path: Path, ticks: int, stages: str) -> None:
    """`feed` and `feed_many`, with other streams in the batch, give the same."""
    hand = models.lstm(tmp_path / "m.onnx")
    (tmp_path / "p.toml").write_text(f'[model]\npath = "m.onnx"\n{stages}')
    plain = models.data(hand, ticks)["x"]
    with Engine.load(tmp_path / "p.toml") as engine:
        with engine.open() as stream:
            expected = stream.feed(plain)
        odd = subclasses(tmp_path, plain)
        for array in odd.values():
            for chunk in (array, {"x": array}):
                with engine.open() as stream:
                    made = stream.feed(chunk)
                    assert type(made) is (dict if isinstance(chunk, dict) else np.ndarray)
                    np.testing.assert_array_equal(made["y"] if isinstance(made, dict) else made, expected)
        chunks = [plain, *odd.values(), {"x": odd["units"]}]
        for made, chunk in zip(engine.feed_many([(engine.open(), c) for c in chunks]), chunks, strict=True):
            assert type(made) is (dict if isinstance(chunk, dict) else np.ndarray)
            np.testing.assert_allclose(made["y"] if isinstance(made, dict) else made, expected, atol=1e-6)


def test_unreadable_chunk_fails_only_its_stream(tmp_path: Path) -> None:
    hand = models.lstm(tmp_path / "m.onnx")
    plain = models.data(hand, 1)["x"]
    with Engine.load(hand.path) as engine:
        bad: list[Any] = [
            np.ma.masked_array(plain, plain > 0),
            Raising(),
            {"x": np.ma.masked_array(plain)},
            [1.0],
        ]
        good = engine.open()
        made = engine.feed_many([*((engine.open(), chunk) for chunk in bad), (good, plain)])
        assert [type(one) for one in made[:-1]] == [errors.ChunkError] * len(bad)
        assert "the file is gone" in made[1].message
        assert (made[-1].shape, good.seq) == ((1, 2), 1)
        for chunk in bad:
            with engine.open() as stream, pytest.raises(errors.ChunkError):
                stream.feed(chunk)
