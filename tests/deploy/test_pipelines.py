"""The example pipelines load, and do what their comments say."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import resample_poly

from runnel import Engine
from runnel.serve.settings import FLAGS, Settings, Source
from runnel.spec import TensorSpec
from tests import models, silero

PIPELINES = Path(__file__).parents[2] / "deploy" / "pipelines"


def beside(name: str, folder: Path) -> Path:
    """A copy of the pipeline where its model can lie beside it."""
    return Path(shutil.copy(PIPELINES / name, folder))


def samples(seconds: float, rate: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, int(seconds * rate)).astype(np.float32)


def test_silero_gives_what_the_vendors_file_gives(tmp_path: Path) -> None:
    path = beside("silero.toml", tmp_path)
    shutil.copy(silero.model("silero_vad"), tmp_path)
    sound = samples(2, 16000)
    with Engine.load(path) as engine, engine.open() as stream:
        assert engine.pipeline.inputs.rate == 16000
        out = stream.feed({"samples": sound})["probability"]
    expected = silero.plain_loop("silero_vad", sound)
    np.testing.assert_allclose(out[:, None], expected[: len(out)], atol=1e-5)


def test_silero_takes_another_rate_as_its_comment_says(tmp_path: Path) -> None:
    path = beside("silero.toml", tmp_path)
    shutil.copy(silero.model("silero_vad"), tmp_path)
    text = path.read_text()
    commented = re.search(r"(?:^# ?(?:\[|rate|use).*\n|^#\n)+", text[text.index("# [input]") :], re.M)
    assert commented
    path.write_text(text + commented[0].replace("# ", "").replace("#", ""))
    with Engine.load(path) as engine:
        assert engine.pipeline.inputs.rate == 48000
        assert engine.pipeline.stages[0].name == "resample"


def test_sensor_resamples_and_renames(tmp_path: Path) -> None:
    path = beside("sensor.toml", tmp_path)
    hand = models.lstm(tmp_path / "sensor.onnx", features=4, outputs=1)
    readings = np.stack([samples(2, 100) for _ in range(4)], axis=1)
    with Engine.load(path) as engine, engine.open() as stream:
        assert engine.pipeline.inputs.tensors == (TensorSpec("reading", "float32", (4,)),)
        parts = [stream.feed({"reading": readings})["forecast"], stream.flush()]
    halved = resample_poly(readings, 1, 2, axis=0).astype(np.float32)
    np.testing.assert_allclose(np.concatenate(parts), hand.loop({"x": halved})["y"], atol=1e-5)


def test_silero_says_all_that_serve_can_be_told(tmp_path: Path) -> None:
    text = (PIPELINES / "silero.toml").read_text()
    said = re.findall(r"^# (\[serve\]|\w+ = .*)$", text[text.index("# [serve]") :], re.M)
    path = tmp_path / "silero.toml"
    path.write_text(text + "\n".join(said))
    settings, _ = Source(path, {}).read()
    assert [line.split(" = ")[0] for line in said] == ["[serve]", *tomllib.loads("\n".join(said))["serve"]]
    assert tomllib.loads("\n".join(said))["serve"].keys() == set(FLAGS)
    examples = {"bind", "providers", "metrics", "keys", "authorised", "metrics_keys"}
    for name in set(FLAGS) - examples:
        assert getattr(settings, name) == getattr(Settings(), name), (
            f"{name}: not what holds where it is not said"
        )


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.toml")), ids=lambda p: p.stem)
def test_each_says_where_its_model_comes_from(path: Path) -> None:
    model = tomllib.loads(path.read_text())["model"]["path"]
    assert not Path(model).is_absolute()
    comments = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert model in comments
