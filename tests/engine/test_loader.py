"""Pipeline files are read strictly: an error names the file, the place and the nearest right word."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from runnel import Engine, errors
from tests import models, silero

GOOD = """
[model]
path = "bare.onnx"
[model.shapes]
x = ["time", "slot", 3]
"""
STATES = "".join(
    f'[[model.state]]\ninput = "{s}{i}"\noutput = "{s}{i}.next"\nshape = [1, "slot", 4]\ninitial = {v}\n'
    for i in range(2)
    for s, v in (("h", 0.0), ("c", 0.25))
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of ours, and the same graph without its description."""
    hand = models.lstm(tmp_path / "ours.onnx")
    model = onnx.load(hand.path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    return tmp_path


def load(folder: Path, text: str) -> Engine:
    (folder / "p.toml").write_text(text)
    return Engine.load(folder / "p.toml")


def test_a_declared_model_equals_the_described_one(folder: Path) -> None:
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    a = Engine.load(folder / "ours.onnx").open().feed(x)
    np.testing.assert_array_equal(a, load(folder, GOOD + STATES).open().feed(x))


def test_renaming_and_relative_paths(folder: Path) -> None:
    engine = load(
        folder, '[model]\npath = "ours.onnx"\n[model.inputs]\nx = "accel"\n[model.outputs]\ny = "score"'
    )
    assert engine.pipeline.inputs.names == ("accel",)
    out = engine.open().feed({"accel": np.zeros((2, 3), np.float32)})
    assert set(out) == {"score"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[modle]\n", r"unknown key 'modle' \(did you mean 'model'\?\)"),
        ("", r"\[model\] needs path"),
        ("[model]\npath = 7", "path must be a text, not 7"),
        ("model = 3", "model must be a table"),
        ("x = = 1", "not TOML"),
        (GOOD + "winodw = 3\n" + STATES, r"shapes\].*the model has no 'winodw'"),
        ('[model]\npath = "bare.onnx"\nwinodw = 3', r"unknown key 'winodw' \(did you mean 'window'\?\)"),
        ('[model]\npath = "ours.onnx"\nrate = 3', "this model describes itself.*unknown key 'rate'"),
        (GOOD, "input 'h0' has shape.*if it is a state, declare it"),
        (GOOD + STATES.replace('"h0.next"', '"h0.nxt"'), r"no 'h0.nxt' \(did you mean 'h0.next'\?\)"),
        (GOOD + STATES.replace('[1, "slot", 4]', "[1, 4]"), "must hold 'slot' once"),
        (GOOD + STATES.replace('[1, "slot", 4]', '[1, "slot", 5]'), "trial run"),
        (GOOD + STATES.replace("0.25", "nan"), "initial value is not finite"),
        (GOOD + STATES.replace("0.25", "[1.0, 2.0, 3.0]"), "initial value does not fit"),
        (GOOD + STATES.replace("shape", "shapes"), r"unknown key 'shapes' \(did you mean 'shape'\?\)"),
        ('[model]\npath = "ours.onnx"\n[input]\nrate = 3', "there are none"),
        ('[model]\npath = "ours.onnx"\n[[before]]\nrate = 3', r"\[\[before\]\] number 1: use must be a text"),
        ('before = 1\n[model]\npath = "ours.onnx"', r"written as \[\[before\]\]"),
        ('[model]\npath = "ours.onnx"\n[model.outputs]\nz = "score"', "the model has no 'z'"),
        ('[model]\npath = "missing.onnx"', "cannot read the model"),
        ('[model]\npath = "a\\u0000b.onnx"', "cannot read the model"),
        ("x = " + "[" * 5000, "not TOML"),
        (GOOD.replace("[model.shapes]", "rate = inf\n[model.shapes]") + STATES, "rate must be a positive"),
        (GOOD.replace("[model.shapes]", 'latency = "x"\n[model.shapes]') + STATES, "latency must be a count"),
        (GOOD.replace("[model.shapes]", "latency = -5\n[model.shapes]") + STATES, "latency must be a count"),
        (GOOD + '[model.constants]\nh0 = "text"\n' + STATES, "h0 is float32 in the model, not 'text'"),
        (GOOD + STATES.replace('[1, "slot", 4]', '[1000000, "slot", 1000000]'), "bytes of state a stream"),
    ],
)
def test_mistakes(folder: Path, text: str, says: str) -> None:
    with pytest.raises(errors.RunnelError, match=says):
        load(folder, text)


def test_the_rate_before_a_resampler_must_be_said(tmp_path: Path) -> None:
    """The model's own rate is not what clients send: taking it would make the resampler an identity."""
    path = silero.pipeline(tmp_path)
    text = path.read_text() + '[[before]]\nuse = "resample"\nrate = 16000\n'
    path.write_text(text)
    with pytest.raises(
        errors.PipelineError, match=r"number 1 \(resample\).*give from_rate, or \[input\] rate"
    ):
        Engine.load(path)
    path.write_text(text + "[input]\nrate = 48000\n")
    assert Engine.load(path).pipeline.inputs.rate == 48000
    path.write_text(text + "from_rate = 8000\n")
    assert Engine.load(path).pipeline.outputs.rate == 31.25


def test_a_foreign_models_latency_counts_samples(tmp_path: Path) -> None:
    path = silero.pipeline(tmp_path)
    path.write_text(path.read_text().replace("rate = 16000", "rate = 16000\nlatency = 96"))
    assert Engine.load(path).pipeline.latency == 96


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(errors.PipelineError, match="is a folder"):
        Engine.load(tmp_path)
    with pytest.raises(errors.PipelineError, match="cannot read the pipeline"):
        Engine.load(tmp_path / "none.toml")


def test_states_swapped_between_shapes_are_caught(tmp_path: Path) -> None:
    """A state paired with another state's output is seen where the shapes differ."""
    hand = models.counter(tmp_path / "c.onnx")
    model = onnx.load(hand.path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    text = '[model]\npath = "bare.onnx"\n'
    for name, other, shape in (("total", "count", '[2, "slot", 2]'), ("count", "total", '["slot", 1]')):
        text += f'[[model.state]]\ninput = "{name}"\noutput = "{other}.next"\nshape = {shape}\n'
    with pytest.raises(errors.ModelError, match=r"state 'total' is declared.*output 'count.next'"):
        load(tmp_path, text)


def test_windows_that_do_not_fit(tmp_path: Path) -> None:
    path = silero.pipeline(tmp_path)
    path.write_text(path.read_text().replace("hop = 512", "hop = 600"))
    with pytest.raises(errors.ModelError, match=r"hop must be in 1..window"):
        Engine.load(path)


def test_a_missing_provider(folder: Path) -> None:
    with pytest.raises(errors.ProviderError, match=r"'CUDAExecutionProvider' is not in.*onnxruntime-gpu"):
        Engine.load(folder / "ours.onnx", providers=["CUDAExecutionProvider"])
    with pytest.raises(errors.ProviderError, match="did you mean 'CPUExecutionProvider'"):
        Engine.load(folder / "ours.onnx", providers=["CPUExecutionProvder"])
    with pytest.raises(errors.ProviderError, match="a list of names"):
        Engine.load(folder / "ours.onnx", providers="CPUExecutionProvider")
    for odd in ([5], [()]):
        with pytest.raises(errors.ProviderError, match="a provider is a name"):
            Engine.load(folder / "ours.onnx", providers=odd)  # type: ignore[arg-type]


def test_placement(folder: Path) -> None:
    placed = Engine.load(folder / "ours.onnx", providers=["CPUExecutionProvider"]).placement()
    assert set(placed) == {"CPUExecutionProvider"}
    assert placed["CPUExecutionProvider"]["LSTM"] == 2
