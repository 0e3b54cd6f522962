"""Bounds of files and memory: at the bound it works, one past it is refused or evicted."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from runnel import Engine, errors
from runnel import snapshot as state
from runnel.loading import container
from runnel.loading import toml as tables
from runnel.loading.loader import MAX_LISTENERS, MAX_STAGES
from runnel.model import session as model
from runnel.pipeline import pipeline
from tests import models


@pytest.fixture
def hand(tmp_path: Path) -> models.Hand:
    return models.lstm(tmp_path / "m.onnx")


def bindings() -> int:
    """Count the live bindings of onnxruntime."""
    gc.collect()
    return sum(type(one) is ort.IOBinding for one in gc.get_objects())


def test_cached_bindings_are_bounded_and_evicted(hand: models.Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "MAX_CALLS", 4)
    before = bindings()
    with Engine.load(hand.path, max_streams=20) as engine:
        streams = [engine.open() for _ in range(20)]
        chunk = models.data(hand, 20)["x"]
        expected = hand.loop({"x": chunk})["y"]
        made: list[list[np.ndarray]] = [[] for _ in streams]
        for turn in range(len(chunk)):
            count = turn % 10 + 2  # sizes whose binding was evicted are used again
            pairs = [(s, chunk[len(m)][None]) for s, m in zip(streams[:count], made, strict=False)]
            for parts, out in zip(made, engine.feed_many(pairs), strict=False):
                assert isinstance(out, np.ndarray)
                parts.append(out)
            assert bindings() - before <= 4
        for parts in made[:10]:
            np.testing.assert_allclose(np.concatenate(parts), expected[: len(parts)], atol=1e-6)


def test_ticks_and_streams_of_one_call_are_bounded(
    hand: models.Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "MAX_TICKS", 8)
    monkeypatch.setattr(model, "MAX_CELLS", 16)
    cells: list[tuple[int, int]] = []
    call = model.ModelStage._call

    def spy(self: model.ModelStage, slots: int, ticks: int) -> Any:
        cells.append((slots, ticks))
        return call(self, slots, ticks)

    monkeypatch.setattr(model.ModelStage, "_call", spy)
    chunk = models.data(hand, 50)["x"]
    expected = hand.loop({"x": chunk})["y"]
    with Engine.load(hand.path, max_streams=40) as engine:
        streams = [engine.open() for _ in range(40)]
        begin = engine.feed_many([(stream, chunk[:1]) for stream in streams])
        rest = engine.feed_many([(stream, chunk[1:]) for stream in streams])
        for one, other in zip(begin, rest, strict=True):
            assert isinstance(one, np.ndarray)
            assert isinstance(other, np.ndarray)
            np.testing.assert_allclose(np.concatenate([one, other]), expected, atol=1e-6)
        streams[0].reset()
        np.testing.assert_allclose(streams[0].feed(chunk), expected, atol=1e-6)
    assert max(ticks for _, ticks in cells) <= 8
    assert max(slots * ticks for slots, ticks in cells) <= 16


@pytest.mark.parametrize(
    ("table", "most"),
    [
        ('[[before]]\nuse = "gain"\nfactor = 1\n', MAX_STAGES),
        ('[[after]]\nuse = "gain"\nfactor = 1\n', MAX_STAGES),
        ('[[notice]]\nuse = "jsonl"\npath = "{}.jsonl"\n', MAX_LISTENERS),
    ],
)
def test_tables_of_a_pipeline(hand: models.Hand, tmp_path: Path, table: str, most: int) -> None:
    path = tmp_path / "p.toml"
    for count in (most, most + 1):
        path.write_text('[model]\npath = "m.onnx"\n' + "".join(table.format(i) for i in range(count)))
        if count == most:
            Engine.load(path).close()
            continue
        with pytest.raises(errors.PipelineError, match=rf"{count} .* at most {most}$"):
            Engine.load(path)


def test_bytes_of_a_pipeline_file(hand: models.Hand, tmp_path: Path) -> None:
    text = '[model]\npath = "m.onnx"\n#'
    path = tmp_path / "p.toml"
    path.write_text(text.ljust(tables.MAX_PIPELINE_FILE, "x"))
    Engine.load(path).close()
    path.write_text(text.ljust(tables.MAX_PIPELINE_FILE + 1, "x"))
    with pytest.raises(errors.PipelineError, match=f"at most {tables.MAX_PIPELINE_FILE}"):
        Engine.load(path)


def test_bytes_of_a_time_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_TIME_STEP_BYTES", 400)
    path = tmp_path / "p.toml"
    for size in (100, 101):  # float32
        path.write_text(f'[input]\ndtype = "int64"\nshape = []\n[[before]]\nuse = "one_hot"\nsize = {size}\n')
        if size == 100:
            Engine.load(path).close()
            continue
        with pytest.raises(errors.PipelineError, match="is 404 bytes a time step; at most 400"):
            Engine.load(path)


def test_bytes_of_a_snapshot_that_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that `decode` would refuse is not encoded."""
    snapshot = state.Snapshot("p", 0, False, (("s", {"x": np.zeros(100, np.float32)}),))
    size = len(state.encode(snapshot))
    monkeypatch.setattr(state, "MAX_SNAPSHOT", size)
    assert state.decode(state.encode(snapshot)).pipeline == "p"
    monkeypatch.setattr(state, "MAX_SNAPSHOT", size - 1)
    with pytest.raises(errors.SnapshotError, match=f"a snapshot holds {size - 1}"):
        state.encode(snapshot)


def test_bytes_of_a_description(monkeypatch: pytest.MonkeyPatch) -> None:
    description = {"format": 1, "graph": "x" * 100}
    size = len('{"format":1,"graph":""}') + 100
    monkeypatch.setattr(container, "MAX_DOCUMENT", size)
    assert container.document(container.seal(b"", description), "m") == description
    monkeypatch.setattr(container, "MAX_DOCUMENT", size - 1)
    with pytest.raises(errors.ModelError, match=f"takes {size} bytes; at most {size - 1}"):
        container.seal(b"", description)
