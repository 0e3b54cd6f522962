"""What is seen in a pipeline: what the model gives, and the stream none the wiser."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from runnel import Engine, Stream
from runnel.errors import CertificateError, ModelError, NonFiniteError
from runnel.grouping import Framing
from runnel.insight import picture
from runnel.insight.captions import axis_texts
from runnel.insight.recorder import MAX_MAPS, MAX_UNITS, Record, Recorder
from runnel.loading.loader import load_pipeline
from runnel.probe import beside
from tests import models
from tests.probes import LETTERS, lstm

BEFORE = """
[input]
rate = 50
[[before]]
use = "gain"
factor = 0.5
[model]
path = "m.onnx"
[model.outputs]
y = "seen"
[[after]]
use = "gain"
factor = 2.0
"""
LOOP = """
[model]
path = "m.onnx"
[[after]]
use = "gain"
factor = 0.9
[feedback]
x = { output = "y", initial = 0.5 }
"""
WORDS = """
[input.tensors]
x = { dtype = "uint8" }
[[before]]
use = "tokens"
unit = "word"
vocabulary = "words.txt"
[model]
path = "m.onnx"
[[after]]
use = "softmax"
[[after]]
use = "labels"
names = ["no", "yes"]
"""


def looked(path: Path, first: int = 0, steps: int = 1000) -> tuple[Recorder, Stream]:
    """A stream that is looked at."""
    recorder = Recorder()
    engine = Engine(load_pipeline(path, 1, None, 1, False, False, observer=recorder), 1)
    recorder.choose(None, None)
    recorder.begin(recorder.axis(None), first, steps)
    return recorder, engine.open()


def numbers(record: Record) -> dict[str, np.ndarray]:
    return {f"{t.name} {t.letter}".strip(): t.values for t in record.tracks}


def cuts(x: np.ndarray, seed: int = 1) -> list[np.ndarray]:
    at = np.sort(np.random.default_rng(seed).integers(1, len(x), 4))
    return [part for part in np.split(x, at) if len(part)]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("itself", [False, True])
def test_what_is_kept_is_what_the_probe_gives_tick_by_tick(tmp_path: Path, itself: bool) -> None:
    model, probe = lstm(tmp_path / "m.onnx")
    recorder, stream = looked(probe.path if itself else model.path)
    x = noise(17, 3)
    for part in cuts(x):
        stream.feed(part)
    want = probe.loop({"x": x})
    record = recorder.record()
    got = numbers(record)
    assert set(got) == {"input x", f"{'m.probe' if itself else 'm'}: y", *(f"cell {k}" for k in LETTERS)}
    np.testing.assert_array_equal(got["input x"], x)
    for letter in LETTERS:
        np.testing.assert_allclose(got[f"cell {letter}"], want[f"cell.{letter}"], rtol=1e-6, atol=1e-7)
    for track in record.tracks:
        np.testing.assert_allclose(track.mean, track.values.mean(axis=1), rtol=1e-5, atol=1e-6)
        if track.letter in ("i", "f", "o"):
            shut = (track.values < 0.1) | (track.values > 0.9)
            np.testing.assert_allclose(track.saturated, shut.mean(axis=1))
            assert 0 < shut.mean() < 1
        else:
            assert track.saturated is None


@pytest.mark.parametrize("probed", [True, False])
@pytest.mark.parametrize("kind", ["bare", "stages", "loop", "framed"])
def test_a_stream_that_is_looked_at_gives_the_same_bit_for_bit(
    tmp_path: Path, kind: str, probed: bool
) -> None:
    framing = Framing(6, 4) if kind == "framed" else None
    _, probe = lstm(
        tmp_path / "m.onnx", features=6 if framing else 3, outputs=3 if kind == "loop" else 2, framing=framing
    )
    path = tmp_path / "p.toml"
    path.write_text({"stages": BEFORE, "loop": LOOP}.get(kind, '[model]\npath = "m.onnx"\n'))
    if not probed:
        probe.path.unlink()
    plain = Engine.load(path).open()
    recorder, stream = looked(path)
    x = noise(26) if framing else noise(26, 3)
    assert stream._pipeline.outputs == plain._pipeline.outputs
    for part in cuts(x):
        want, got = plain.feed({"x": part}), stream.feed({"x": part})
        assert want.keys() == got.keys()
        for name, value in want.items():
            np.testing.assert_array_equal(got[name], value)
    if kind == "loop":
        np.testing.assert_array_equal(stream.generate(9), plain.generate(9))
    np.testing.assert_array_equal(stream.flush(), plain.flush())
    assert stream._pipeline.fingerprint == plain._pipeline.fingerprint
    layers = [t for t in recorder.record().tracks if t.kind in ("layer", "states")]
    assert [t.letter for t in layers] == (list("ifogch") if probed else ["", ""])


def test_without_a_probe_the_states_are_seen_after_each_tick(tmp_path: Path) -> None:
    """Of a model of many ticks a call, against a loop over onnxruntime."""
    model = models.lstm(tmp_path / "m.onnx")
    recorder, stream = looked(model.path)
    x = noise(9, 3)
    for part in cuts(x):
        stream.feed(part)
    session, names = model.session(), [f"{s}.next" for s in ("h0", "c0", "h1", "c1")]
    state = {s.input: s.initial[:, None] for s in model.spec.states}
    want = []
    for tick in x:
        made = session.run(names, {"x": tick[None, None], **state})
        state = dict(zip(state, made, strict=True))
        want.append([a.ravel() for a in made])
    got = [t for t in recorder.record().tracks if t.kind == "states"]
    assert [t.name for t in got] == ["m: state h0", "m: state c0", "m: state h1", "m: state c1"]
    for i, track in enumerate(got):
        np.testing.assert_allclose(track.values, [w[i] for w in want], rtol=1e-5, atol=1e-6)
    assert recorder.unprobed == ["m"]


def test_a_chunk_that_fails_leaves_a_watched_stream_as_it_was(tmp_path: Path) -> None:
    model = models.lstm(tmp_path / "m.onnx")
    _, stream = looked(model.path)
    stream.feed(noise(3, 3))
    before = {name: array.copy() for name, array in stream.state.items()}
    bad = noise(6, 3)
    bad[4] = np.nan
    with pytest.raises(NonFiniteError):
        stream.feed(bad)
    for name, array in stream.state.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_state_that_holds_several_is_drawn_in_parts(tmp_path: Path) -> None:
    model = models.counter(tmp_path / "m.onnx")
    recorder, stream = looked(model.path)
    ones = np.ones((3, 2), np.float32)
    stream.feed({"a": ones, "b": ones})
    got = numbers(recorder.record())
    np.testing.assert_array_equal(got["m: state total[0]"], [[3, 4], [5, 6], [7, 8]])
    np.testing.assert_array_equal(got["m: state total[1]"], [[5, 6], [7, 8], [9, 10]])
    np.testing.assert_array_equal(got["m: state count"], [[1], [2], [3]])


def test_rows_stand_where_they_are_in_the_input(tmp_path: Path) -> None:
    lstm(tmp_path / "m.onnx", features=6, framing=Framing(6, 4))
    path = tmp_path / "p.toml"
    path.write_text('[input]\nrate = 80\n[[before]]\nuse = "decimate"\nevery = 2\n[model]\npath = "m.onnx"\n')
    recorder, stream = looked(path, first=16, steps=16)
    axis = recorder.axis(None)
    assert (axis.rate, axis.tick) == (80, 8)
    stream.feed(noise(64))
    at = {t.name: (t.start, t.step, len(t.values)) for t in recorder.record().tracks}
    assert at == {"input x": (16, 1, 16), "to m: x": (16, 2, 8), "m: y": (16, 8, 2), "cell": (16, 8, 2)}


def test_rows_that_come_when_they_come_are_told_and_not_drawn(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('[input]\nrate = 10\n[[before]]\nuse = "threshold"\non = 0.0\n[[after]]\nuse = "event"\n')
    recorder, stream = looked(path)
    stream.feed(noise(20))
    record = recorder.record()
    assert [t.name for t in record.tracks] == ["input x"]
    assert [text for text in record.omitted if text.startswith("output: between it and")]


def test_words_that_a_model_takes_are_told_by_their_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = {"E": (3, 2), "W": (2, 8), "R": (2, 8), "b": (8,), "V": (2, 2), "v": (2,)}
    lstm(tmp_path / "m.onnx", {k: rng.standard_normal(s).astype(np.float32) for k, s in sizes.items()})
    (tmp_path / "words.txt").write_text("to\nbe\nor\n")
    path = tmp_path / "p.toml"
    path.write_text(WORDS)
    recorder, stream = looked(path)
    stream.feed(np.frombuffer(b"to be or be to ", np.uint8))
    record = recorder.record()
    found = axis_texts(record)
    assert found is not None
    assert found[1] == ["to", "be", "or", "be", "to"]
    assert [t.name for t in record.tracks[:3]] == ["to m: x", "m: y", "output label"]
    assert set(record.tracks[2].labels or {}) == {0, 1}
    assert record.omitted == ["input: between it and what is drawn rows come when they come"]


def test_what_only_passes_is_drawn_once_and_what_is_only_alike_is_drawn_too(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('[input]\nrate = 10\n[[after]]\nuse = "anomaly"\nwarm_up = 100\n')
    recorder, stream = looked(path)
    stream.feed(noise(20))
    assert [t.name for t in recorder.record().tracks] == ["input x", "output z", "output anomaly"]


def test_of_two_models_in_a_row_each_is_seen_under_its_name(tmp_path: Path) -> None:
    _, probe = lstm(tmp_path / "one.onnx", outputs=3)
    models.lstm(tmp_path / "two.onnx", layers=1)
    path = tmp_path / "p.toml"
    path.write_text(
        '[[before]]\nuse = "model"\npath = "one.onnx"\n[before.outputs]\ny = "x"\n'
        '[model]\npath = "two.onnx"\n'
    )
    recorder, stream = looked(path)
    x = noise(6, 3)
    stream.feed(x)
    record = recorder.record()
    assert [f"{t.name} {t.letter}".strip() for t in record.tracks] == [
        "input x", "one: x", "two: y", *(f"one cell {k}" for k in LETTERS), "two: state h0", "two: state c0"
    ]  # fmt: skip
    np.testing.assert_allclose(numbers(record)["one cell g"], probe.loop({"x": x})["cell.g"], rtol=1e-6)


def test_of_two_models_of_one_name_each_has_a_name_of_its_own(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        lstm(tmp_path / folder / "m.onnx", outputs=3)
    path = tmp_path / "p.toml"
    path.write_text(
        '[[before]]\nuse = "model"\npath = "a/m.onnx"\n[before.outputs]\ny = "x"\n'
        '[model]\npath = "b/m.onnx"\n'
    )
    recorder, stream = looked(path)
    stream.feed(noise(6, 3))
    names = [f"{t.name} {t.letter}".strip() for t in recorder.record().tracks]
    assert names[:3] == ["input x", "m: x", "m (2): y"]
    assert names[3:] == [f"{model} cell {k}" for model in ("m", "m (2)") for k in LETTERS]


@pytest.mark.filterwarnings("error")
def test_a_gap_of_some_or_of_all_channels_is_left_out_of_the_mean(tmp_path: Path) -> None:
    lstm(tmp_path / "m.onnx", features=12)
    path = tmp_path / "p.toml"
    path.write_text('[[before]]\nuse = "impute"\n[model]\npath = "m.onnx"\n')
    x = noise(9, 12)
    x[2, 5] = x[4] = np.nan
    for given, means in ((x, [*x[:2].mean(axis=1), np.delete(x[2], 5).mean()]), (x * np.nan, [np.nan] * 3)):
        recorder, stream = looked(path)
        stream.feed(given)
        record = recorder.record()
        np.testing.assert_allclose(record.tracks[0].mean[:3], means, rtol=1e-5)
        assert np.isnan(record.tracks[0].mean[4])
        picture.draw(replace(record, tracks=record.tracks[:1]), BytesIO(), "png")


def test_only_so_many_states_are_drawn(tmp_path: Path) -> None:
    models.lstm(tmp_path / "m.onnx", layers=MAX_MAPS)
    recorder, stream = looked(tmp_path / "m.onnx")
    stream.feed(noise(2, 3))
    record = recorder.record()
    assert sum(t.kind == "states" for t in record.tracks) == MAX_MAPS
    [said] = [text for text in record.omitted if "heat maps" in text]
    assert said.startswith(f"{MAX_MAPS} heat maps, of ")
    assert said.endswith(f", …: at most {MAX_MAPS} are drawn")


def test_only_so_many_units_are_kept_but_the_mean_is_of_all(tmp_path: Path) -> None:
    _, probe = lstm(tmp_path / "m.onnx", hidden=300)
    recorder, stream = looked(tmp_path / "m.onnx")
    x = noise(4, 3)
    stream.feed(x)
    want = probe.loop({"x": x})["cell.f"]
    record = recorder.record()
    [f] = [t for t in record.tracks if t.letter == "f"]
    assert (len(f.units), f.size, f.units[0], f.units[-1]) == (MAX_UNITS, 300, 0, 299)
    np.testing.assert_allclose(f.values, want[:, f.units], rtol=1e-5)
    np.testing.assert_allclose(f.mean, want.mean(axis=1), rtol=1e-5)
    assert any("units" in text for text in record.omitted)


def test_a_bare_probe_is_a_model_with_more_outputs(tmp_path: Path) -> None:
    model, probe = lstm(tmp_path / "m.onnx")
    assert Engine.load(probe.path).pipeline.outputs.names == ("y", *(f"cell.{k}" for k in LETTERS))
    assert Engine.load(model.path).pipeline.outputs.names == ("y",)


def test_the_probe_of_another_model_is_refused(tmp_path: Path) -> None:
    model, _ = lstm(tmp_path / "m.onnx", of="sha256:0")
    with pytest.raises(
        ModelError, match=r"another model than m\.onnx, or of an earlier export: .*--probe gates"
    ):
        looked(model.path)
    Engine.load(model.path)  # which nobody looks into


def test_a_file_in_the_probes_place_that_is_none_is_refused(tmp_path: Path) -> None:
    model, _ = lstm(tmp_path / "m.onnx")
    beside(model.path).write_bytes(model.path.read_bytes())
    with pytest.raises(ModelError, match="shows nothing"):
        looked(model.path)


def test_a_probe_that_is_not_the_certified_file_is_refused(tmp_path: Path) -> None:
    model, probe = lstm(tmp_path / "m.onnx")
    data = bytearray(probe.path.read_bytes())
    at = data.index(b"cell.g") + 5
    data[at : at + 1] = b"k"
    probe.path.write_bytes(data)
    with pytest.raises(CertificateError, match=r"m\.probe\.onnx"):
        looked(model.path)
