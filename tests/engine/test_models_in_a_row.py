"""Several models in one pipeline: a denoiser that feeds a recogniser, both from torch."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import runnel_export
from runnel import Engine, errors
from runnel import snapshot as snapshots
from runnel.client.client import Client
from runnel.daemon.loop import Daemon
from runnel.model.session import ModelStage
from tests import laws, models
from tests.serve.peers import served

TICKS = 40


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 8, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        clean: torch.Tensor = self.out(self.gru(noisy)[0])
        return clean


class Recogniser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 6, batch_first=True)
        self.out = nn.Linear(6, 4)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.out(self.lstm(features)[0])
        return scores


ROW = """
[[before]]
use = "model"
path = "denoiser.onnx"
outputs = { y = "clean" }

[model]
path = "recogniser.onnx"
[model.inputs]
features = "clean"
[model.outputs]
y = "scores"
"""


def waves(batch: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(batch, 1, 3, generator=generator) * 6
    return torch.sin(torch.arange(TICKS)[None, :, None] / 4 + phase)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[[np.ndarray], np.ndarray]]:
    """Return the two files, and a function that calls the two torch modules in turn."""
    folder = tmp_path_factory.mktemp("row")
    torch.manual_seed(3)
    denoiser, recogniser = Denoiser(), Recogniser()
    optimiser = torch.optim.Adam(denoiser.parameters(), 0.02)
    for step in range(30):
        clean = waves(16, step)
        loss = nn.functional.mse_loss(denoiser(clean + 0.3 * torch.randn_like(clean)), clean)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    runnel_export.export(denoiser, {"noisy": waves(2, 0)}, folder / "denoiser.onnx")
    runnel_export.export(recogniser, {"features": waves(2, 0)}, folder / "recogniser.onnx")
    denoiser.double(), recogniser.double()

    def reference(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            made: np.ndarray = recogniser(denoiser(torch.from_numpy(x).double()[None]))[0].numpy()
            return made

    return folder, reference


@pytest.fixture
def row(trained: tuple[Path, Callable[[np.ndarray], np.ndarray]], tmp_path: Path) -> Path:
    """A test's own folder with the pipeline in it."""
    for name in ("denoiser.onnx", "recogniser.onnx"):
        shutil.copy(trained[0] / name, tmp_path)
    path = tmp_path / "row.toml"
    path.write_text(ROW)
    return path


def sequence(seed: int, ticks: int = TICKS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ticks, 3)).astype(np.float32)


def test_equals_torch_run_in_sequence(
    row: Path, trained: tuple[Path, Callable[[np.ndarray], np.ndarray]]
) -> None:
    x = sequence(0)
    with Engine.load(row) as engine:
        assert (engine.pipeline.inputs.names, engine.pipeline.outputs.names) == (("noisy",), ("scores",))
        assert engine.pipeline.stage_names == ("denoiser", "recogniser")
        stream = engine.open()
        parts = [stream.feed(x[a:b]) for a, b in ((0, 1), (1, 9), (9, 10), (10, TICKS))]
        np.testing.assert_allclose(np.concatenate(parts), trained[1](x), atol=2e-6)


def test_through_a_daemon(row: Path, trained: tuple[Path, Callable[[np.ndarray], np.ndarray]]) -> None:
    """30 streams in parallel, their chunks batched as they arrive."""
    sequences = [sequence(seed) for seed in range(30)]
    engine = Engine.load(row, max_streams=30)
    with served(Daemon(engine, f"ipc://{row.parent}/d.sock")) as daemon, Client(daemon.address, 20) as client:
        assert client.describe().state_bytes == engine.pipeline.state_bytes
        streams = [client.open() for _ in sequences]
        parts = [
            client.feed_many([(s, x[a:b]) for s, x in zip(streams, sequences, strict=True)])
            for a, b in ((0, 7), (7, 8), (8, TICKS))
        ]
    for i, x in enumerate(sequences):
        made = np.concatenate([part[i] for part in parts])
        np.testing.assert_allclose(made, trained[1](x), atol=2e-6)


def test_the_laws(row: Path) -> None:
    with Engine.load(row, max_streams=40) as engine:
        chunks = [{"noisy": sequence(i, 5 + i)} for i in range(20)]
        laws.isolation(engine, chunks, [[i % 7, 2 * i] for i in range(20)], 1e-5)
        laws.returning(engine, chunks[9], 6)
        bad = {"noisy": np.full((3, 3), np.nan, np.float32)}
        laws.commit(engine, chunks[9], bad, errors.NonFiniteError, chunks[3])


def test_failure_in_the_second_model_rolls_the_first_one_back(tmp_path: Path) -> None:
    """The first model has made its step by then: it must not be committed."""
    models.accumulator(tmp_path / "sum.onnx")
    models.blowup(tmp_path / "square.onnx")
    model = onnx.load(tmp_path / "sum.onnx")
    del model.metadata_props[:]
    # The same sum, of one number in its own axis.
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim.add().dim_value = 1
    onnx.save(model, tmp_path / "sum.onnx")
    (tmp_path / "p.toml").write_text(
        '[[before]]\nuse = "model"\npath = "sum.onnx"\noutputs = { y = "x" }\n'
        '[[before.state]]\ninput = "s"\noutput = "s.next"\nshape = ["slot", 1]\n'
        '[model]\npath = "square.onnx"\n'
    )
    with Engine.load(tmp_path / "p.toml", max_streams=20) as engine:
        assert [type(stage) for stage in engine.pipeline.stages] == [ModelStage, ModelStage]
        good, bad = {"x": np.full((4, 1), 0.1, np.float32)}, {"x": np.array([[0.1], [1e30]], np.float32)}
        laws.commit(engine, good, bad, errors.NonFiniteError, good)


def test_statistics_of_a_pipeline_cover_all_models(row: Path) -> None:
    """State: 8 floats of the GRU, 2 × 6 of the LSTM."""
    with Engine.load(row, max_streams=3) as engine:
        assert engine.pipeline.state_bytes == 4 * (8 + 12)
        placed = engine.placement()["CPUExecutionProvider"]
        assert placed["GRU"] == placed["LSTM"] == 1
        assert engine.pipeline.model is not None
        assert [t.name for t in engine.pipeline.model.inputs] == ["features"]
        for _ in range(3):
            engine.open()
        with pytest.raises(errors.LimitError):
            engine.open()
        for stage in engine.pipeline.stages:
            assert isinstance(stage, ModelStage)
            assert stage.arena.used == 3
    assert all(stage.arena.used == 0 for stage in engine.pipeline.stages if isinstance(stage, ModelStage))


def test_each_models_certificate_is_checked(row: Path) -> None:
    """A damaged denoiser is refused as a damaged [model] is."""
    file = row.parent / "denoiser.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        errors.RunnelError, match=r"denoiser.onnx.*(not the file that was certified|not an ONNX)"
    ):
        Engine.load(row)


def test_snapshot_needs_the_same_models(row: Path) -> None:
    with Engine.load(row) as engine:
        stream = engine.open()
        stream.feed(sequence(1))
        blob = stream.snapshot()
        assert [name for name, _ in snapshots.decode(blob).stages] == ["denoiser", "recogniser"]
    moved = row.parent / "moved.onnx"
    shutil.move(row.parent / "denoiser.onnx", moved)
    row.write_text(ROW.replace("denoiser.onnx", "moved.onnx"))
    with Engine.load(row) as again:  # the path of a file does not matter
        np.testing.assert_array_equal(
            again.restore(blob).feed(sequence(2)), stream_of(again, 1).feed(sequence(2))
        )
    torch.manual_seed(8)
    runnel_export.export(Denoiser(), {"noisy": waves(2, 0)}, moved)
    with Engine.load(row) as other, pytest.raises(errors.SnapshotError, match="the model, the stages"):
        other.restore(blob)


def stream_of(engine: Engine, seed: int):  # type: ignore[no-untyped-def]
    stream = engine.open()
    stream.feed(sequence(seed))
    return stream


def test_one_file_twice(tmp_path: Path) -> None:
    """Two stages of one name: each has its own state, with its own name in snapshots."""
    hand = models.lstm(tmp_path / "m.onnx", features=2, outputs=2)
    text = '[model]\npath = "m.onnx"\n[[after]]\nuse = "model"\npath = "m.onnx"\ninputs = { x = "y" }\n'
    (tmp_path / "p.toml").write_text(text)
    x = np.random.default_rng(4).standard_normal((20, 2)).astype(np.float32)
    with Engine.load(tmp_path / "p.toml") as engine:
        assert engine.pipeline.stage_names == ("m-0", "m-1")
        stream = engine.open()
        np.testing.assert_allclose(stream.feed(x), hand.loop({"x": hand.loop({"x": x})["y"]})["y"], atol=1e-6)
        held = stream.state
        assert len(held) == 8
        assert (held["m-0.h0"] != held["m-1.h0"]).any()
        copy = engine.restore(stream.snapshot())
        np.testing.assert_array_equal(copy.feed(x), stream.feed(x))


def test_a_framed_model_behind_another(tmp_path: Path) -> None:
    """Samples filtered by one model, then windows of them: the framing comes before the second model."""
    models.accumulator(tmp_path / "sum.onnx")
    hand = models.stateless(tmp_path / "pairs.onnx")
    model = onnx.load(hand.path)
    del model.metadata_props[:]
    onnx.save(model, hand.path)
    (tmp_path / "p.toml").write_text(
        "[input]\nrate = 100\n"
        '[[before]]\nuse = "model"\npath = "sum.onnx"\noutputs = { y = "samples" }\n'
        '[model]\npath = "pairs.onnx"\nwindow = 2\nhop = 1\n[model.inputs]\nx = "samples"\n'
        '[model.shapes]\nx = ["time", "slot", 2]\n'
    )
    with Engine.load(tmp_path / "p.toml") as engine:
        assert engine.pipeline.outputs.rate == 100  # no model states a rate, so the input's rate is used
        out = engine.open().feed(np.ones(3, np.float32))
    np.testing.assert_allclose(out, np.tanh([[0, 1], [1, 2], [2, 3]]), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('outputs = { y = "clean" }', ""), r"\[model\]: the model takes clean.*but y: float32 .* arrives"),
        (
            ('features = "clean"\n', ""),
            r"features: float32 .*can be said under .*\[model.inputs\], \{ features",
        ),
        (("{ y =", "{ z ="), r"number 1 \(model\): outputs: the model has no 'z'"),
        (('path = "denoiser.onnx"\n', ""), r'number 1 \(model\) needs path = "….onnx"'),
        (
            ("outputs = {", "window = 3\noutputs = {"),
            r"\(this model describes itself\): unknown key 'window'",
        ),
        (("denoiser.onnx", "denoyser.onnx"), "cannot read the model"),
        (
            ("[model]", "[input]\nshape = [4]\n[model]"),
            r"\[input\] says noisy: .* \(T, 4\), but .*number 1 \(model\) takes noisy: .* \(T, 3\)",
        ),
        (
            ("[model]", "[input.tensors]\nnoisy = {shape = [3]}\ntime = {}\n[model]"),
            r"\[input\] says noisy.*time",
        ),
        (("[model]", "[input]\nrate = 100\n[model.x]\n[model]"), "TOML"),
    ],
)
def test_mistakes(row: Path, change: tuple[str, str], says: str) -> None:
    text = ROW.replace(*change)
    assert text != ROW
    row.write_text(text)
    with pytest.raises(errors.RunnelError, match=says):
        Engine.load(row)
