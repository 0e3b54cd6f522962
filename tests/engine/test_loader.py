"""Pipeline files are read strictly: an error names the file, the place and the nearest right word."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from runnel import Engine, errors
from runnel.loading import loader
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
    """A model with a description, and the same graph without it."""
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


OURS = '[model]\npath = "ours.onnx"\n'
GAIN = '[[after]]\nuse = "gain"\nfactor = 2\n'


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
        (f"[input]\nrate = {10**400}\n{GAIN}", r"\[input\]: rate must be a positive number of Hz"),
        ("[input]\nshape = [true]\n" + GAIN, r"at most 8 positive whole numbers$"),
        (f"[input]\n{GAIN}[limits]\nstage_seconds = {10**400}", "stage_seconds must be a number of seconds"),
        (f"[input]\nshape = [10000, 10000]\n{GAIN}", r"x: float32 \(T, 10000, 10000\) is 400000000 bytes a"),
        (
            "[input]\n" + 9 * '[[after]]\nuse = "frame"\nwindow = 2\nhop = 1\n',
            "'8: frame'.* has more than 8 axes",
        ),
        (OURS + '[model.inputs]\nx = "a\\u0000b"', r"\[model.inputs\]: a name is 1 to 256 .*not 'a\\x00b'"),
        (f'{OURS}[model.outputs]\ny = "{"y" * 257}"', r"\[model.outputs\]: a name is 1 to 256 characters"),
    ],
)
def test_mistakes(folder: Path, text: str, says: str) -> None:
    with pytest.raises(errors.RunnelError, match=says):
        load(folder, text)


def test_error_names_its_file_once(folder: Path) -> None:
    with pytest.raises(errors.PipelineError) as caught:
        load(folder, OURS + "[limits]\nstage_seconds = 0\n")
    assert str(caught.value).count(str(folder)) == 1


def test_the_rate_before_a_resampler_must_be_said(tmp_path: Path) -> None:
    """The model's own rate is not the clients' rate, which would make the resampler an identity."""
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
    path.write_text(text + "from_rate = 8000\n[input]\nrate = 48000\n")
    with pytest.raises(
        errors.PipelineError, match=r"says .* at 48000 Hz, but .*\(resample\) takes .* at 8000"
    ):
        Engine.load(path)


def test_rates_that_differ_by_rounding_fit(folder: Path) -> None:
    """A third of 16 kHz is not a float: a computed rate and a given one may differ by rounding."""
    stages = '[input]\nrate = 16000\n[[before]]\nuse = "decimate"\nevery = 3\n[[before]]\nuse = "resample"\n'
    assert load(folder, f"{stages}rate = 500\nfrom_rate = 5333.333333333334").pipeline.outputs.rate == 500
    with pytest.raises(errors.PipelineError, match=r"takes 5330 Hz, but 'decimate' before it makes 5333\.33"):
        load(folder, f"{stages}rate = 500\nfrom_rate = 5330")


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
    """A state paired with another state's output is detected if the shapes differ."""
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


# Without [model]; the input


def test_a_pipeline_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(
        '[input]\nrate = 48000\n[[before]]\nuse = "resample"\nrate = 16000\n'
        '[[after]]\nuse = "resample"\nrate = 8000\n'
    )
    with Engine.load(tmp_path / "p.toml") as engine:
        assert engine.pipeline.model is None
        assert str(engine.pipeline.inputs) == "x: float32 (T) at 48000 Hz"
        assert engine.pipeline.outputs.rate == 8000
        assert (engine.pipeline.state_bytes, engine.placement()) == (0, {})
        stream = engine.open()
        out = np.concatenate([stream.feed(np.zeros(4800, np.float32)), stream.flush()])
        assert len(out) == 800
        assert len(engine.restore(stream.snapshot()).state) == len(stream.state)


def test_a_model_among_the_stages_alone(folder: Path) -> None:
    """A pipeline may have models without a main one: the first one then defines the input."""
    engine = load(folder, '[[before]]\nuse = "model"\npath = "ours.onnx"\n')
    assert engine.pipeline.model is None
    assert engine.pipeline.state_bytes == 4 * 4 * 4
    assert engine.open().feed(np.zeros((2, 3), np.float32)).shape == (2, 2)
    declared = '[[after]]\nuse = "model"\npath = "bare.onnx"\n[after.shapes]\nx = ["time", "slot", 3]\n'
    engine = load(folder, "[input]\nshape = [3]\n" + declared + STATES.replace("model.state", "after.state"))
    assert engine.open().feed(np.zeros((2, 3), np.float32)).shape == (2, 2)


PROBE = """
import numpy as np
from pathlib import Path
import runnel

class Probe(runnel.Stage):
    name = "probe"

    def __init__(self, inputs: runnel.Signal, words: Path | None = None, more: list[Path] = []):
        self.inputs = self.outputs = inputs

    def initial(self):
        return {}

    def step(self, state, chunk):
        return state, chunk

@runnel.hookimpl
def runnel_stages():
    return {"probe": Probe}
"""


@pytest.fixture
def probe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plugin that passes everything on, and takes files as options."""
    info = folder / "site" / "acme_probe-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-probe\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[runnel]\nprobe = loader_probe\n")
    (folder / "site" / "loader_probe.py").write_text(PROBE)
    monkeypatch.syspath_prepend(folder / "site")
    return folder


def test_several_named_inputs(probe: Path) -> None:
    text = "[input.tensors]\nx = {shape = [3]}\ntime = {dtype = 'float64'}\n" + '[[before]]\nuse = "probe"\n'
    engine = load(probe, text + '[model]\npath = "ours.onnx"\n')
    assert str(engine.pipeline.inputs) == "x: float32 (T, 3); time: float64 (T)"
    x, time = np.ones((2, 3), np.float32), np.zeros(2)
    out = engine.open().feed({"x": x, "time": time})
    assert set(out) == {"y"}, "a model gives its outputs, and passes nothing else on"
    np.testing.assert_array_equal(out["y"], Engine.load(probe / "ours.onnx").open().feed(x))
    assert set(load(probe, text).open().feed({"x": x, "time": time})) == {"x", "time"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[input.tensors]", r"\[input.tensors\]: 0 tensors; 1 to 64"),
        ("[input]\ntensors = 3", "tensors must be a table, not 3"),
        ("[input.tensors]\nx = 3", r"\[input.tensors\]: x must be a table"),
        ("[input.tensors]\nx = 'int8'", r"x must be a table, as in x = \{ dtype = .*, not 'int8'"),
        ("[input.tensors]\nx = {shap = [3]}", r"\[input.tensors\] x: unknown key 'shap' .*'shape'"),
        ("[input.tensors]\nx = {dtype = 'float23'}", r"\[input.tensors\] x: dtype 'float23' is not one of"),
        ("[input.tensors]\nx = {shape = [-1]}", r"\[input.tensors\] x: shape \[-1\]"),
        ("[input.tensors]\nx = {shape = ['time']}", r"\[input.tensors\] x: shape \['time'\]"),
        ("[input]\nshape = [1]\n[input.tensors]\nx = {}", "shape and dtype of each of its tensors"),
        ("[input.tensors]\n'' = {}", "a name is 1 to 256 characters"),
        ("[input.tensors]\n" + "\n".join(f"x{i} = {{}}" for i in range(65)), "65 tensors; 1 to 64"),
        ("", r"\[model\] needs path.*without a model says under \[input\] what comes in"),
    ],
)
def test_mistakes_about_the_input(probe: Path, text: str, says: str) -> None:
    with pytest.raises(errors.RunnelError, match=says):
        load(probe, text + '\n[[after]]\nuse = "probe"\n')


def test_a_file_that_is_neither_pipeline_nor_model(tmp_path: Path) -> None:
    """For example, if INPUT and PIPELINE are confused."""
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    for name in ("x.csv", "nothing"):
        with pytest.raises(errors.RunnelError, match=r"pipeline ends in \.toml, that of a model in \.onnx"):
            Engine.load(tmp_path / name)


def test_content_of_a_stages_files_is_part_of_the_identity(probe: Path) -> None:
    """A stream needs the vocabulary that it began with, in any location."""

    def pipeline(words: str) -> str:
        text = '[input]\n[[before]]\nuse = "probe"\nwords = "{0}"\nmore = ["{0}", "a.txt"]\n'
        return load(probe, text.format(words)).pipeline.fingerprint

    for name, word in (("a", "yes"), ("b", "yes"), ("c", "no")):
        (probe / f"{name}.txt").write_text(word)
    assert pipeline("a.txt") == pipeline("b.txt") != pipeline("c.txt")
    with pytest.raises(
        errors.PipelineError, match=r"number 1 \(probe\): .*none.txt: cannot read .*: No such file"
    ):
        pipeline("none.txt")
    with (probe / "big.txt").open("wb") as big:
        big.truncate(loader.MAX_OPTION_FILE + 1)
    with pytest.raises(errors.PipelineError, match=r"big.txt: 67108865 bytes; .* at most 67108864"):
        pipeline("big.txt")


def test_serving_options_are_not_part_of_the_identity(folder: Path) -> None:
    """A snapshot stays valid if serving options, connectors or limits change."""
    plain = '[model]\npath = "ours.onnx"\n'
    ends = '[source]\nuse = "host"\n[[sink]]\nuse = "csv"\n[serve]\n[limits]\nstage_seconds = 60\n'
    blob = load(folder, plain).open().snapshot()
    load(folder, plain + ends).restore(blob)
    feedback = '[feedback]\ny = { output = "y" }\n'
    with pytest.raises(errors.SnapshotError, match="must be the same"):
        load(folder, '[model]\npath = "ours.onnx"\noutputs = { y = "z" }\n').restore(blob)
    with pytest.raises(errors.PipelineError, match=r"\[feedback\] y: the pipeline has no input 'y'"):
        load(folder, plain + feedback)
