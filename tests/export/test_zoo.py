"""Every module of the zoo, exported: the engine at random cuts against torch in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import runnel_export
from runnel import Engine
from runnel_export.lift import trace

from .zoo import ZOO, exported

TICKS = 37


@pytest.mark.parametrize("name", ZOO)
def test_the_engine_at_random_cuts_gives_what_torch_gives(name: str) -> None:
    case = ZOO[name]
    chunk = case.chunk(TICKS, seed=11)
    expected = case.reference(chunk)
    size = len(next(iter(chunk.values())))
    rng = np.random.default_rng(13)
    with Engine.load(exported(name)) as engine:
        assert set(engine.pipeline.outputs.names) == set(expected)
        for number in (0, 1, 3, 9, size - 1):
            cuts = sorted(rng.choice(np.arange(1, size), number, replace=False).tolist())
            with engine.open() as stream:
                parts = [
                    stream.feed({n: a[start:end] for n, a in chunk.items()})
                    for start, end in zip([0, *cuts], [*cuts, size], strict=True)
                ]
            for output, values in expected.items():
                got = np.concatenate([part[output] for part in parts])
                assert got.shape == values.shape
                if values.dtype.kind == "f":
                    np.testing.assert_allclose(got, values, rtol=0, atol=2e-6 * max(1, np.abs(values).max()))
                else:
                    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("name", ZOO)
def test_the_file_verifies_and_its_states_are_alive(name: str) -> None:
    certificate = runnel_export.verify(exported(name))
    with Engine.load(exported(name)) as engine:
        model = engine.pipeline.model
        assert model is not None
        assert certificate.alive == tuple(state.input for state in model.states)
    assert certificate.alive  # each has something to remember


@pytest.mark.parametrize("name", ["lstm", "tcn", "attention", "conv-lstm", "explicit", "tagger"])
def test_the_file_is_the_same_without_the_shortcut(name: str, tmp_path: Path, monkeypatch) -> None:
    """torch's second pass is left out where the first one's graph has all that the exporter reads."""
    monkeypatch.setattr(trace, "_plain", lambda program: False)
    case, path = ZOO[name], tmp_path / "m.onnx"
    runnel_export.export(case.module(), dict(case.example), path, **case.options)
    graphs = [onnx.load(file).graph.SerializeToString(deterministic=True) for file in (path, exported(name))]
    assert graphs[0] == graphs[1]
