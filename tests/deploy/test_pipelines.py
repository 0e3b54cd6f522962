"""The example pipelines load, and do what their comments say."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import resample_poly

import runnel_export
from runnel import Engine
from runnel.cli.main import main
from runnel.daemon.settings import FLAGS, Settings, Source
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


def uncommented(text: str, begin: str) -> str:
    """The lines of the table that is commented out, from `begin` on."""
    lines = text[text.index(begin) :].splitlines()
    return "\n".join(line[2:] for line in itertools.takewhile(lambda line: line.startswith("# "), lines))


def test_host_scores_each_sensor_and_tells_of_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = beside("host.toml", tmp_path)
    rng = np.random.default_rng(0)
    sensors = rng.normal([40.0, 60.0], [2.0, 0.1], (400, 2)).astype(np.float32)
    sensors[200:210, 0] = 95.0
    with Engine.load(path) as engine, engine.open() as stream:
        assert engine.pipeline.inputs.rate == 2
        out = stream.feed(sensors)
    np.testing.assert_array_equal(out["sensors"], sensors)
    assert np.flatnonzero(out["anomaly"].any(axis=1)).tolist() == [*range(200, 210)]
    assert not out["anomaly"][:, 1].any(), "memory moves by less than the floor"

    path.write_text(path.read_text() + uncommented(path.read_text(), "# [[after]]"))
    np.save(tmp_path / "sensors.npy", sensors)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "host.toml", "sensors.npy", "-o", "events.csv", "--quiet"]) == 0
    rows = [row.split(",") for row in Path("events.csv").read_text().splitlines()]
    assert [dict(zip(rows[0], row, strict=True))["time"] for row in rows[1:]] == ["100.0", "105.0"]


def test_host_runs_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("psutil")
    pytest.importorskip("plotext")
    path = beside("host.toml", tmp_path)
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_, **__: os.terminal_size((80, 24)))
    assert main(["run", str(path), "--steps", "3", "--quiet"]) == 0
    drawn = capsys.readouterr().out
    assert "sensors.0  " in drawn
    assert "z.0  0" in drawn
    assert max(map(len, drawn.splitlines())) <= 80


def test_text_says_what_its_model_makes_it_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each byte has the probability that torch gives it after all bytes before it; the prompt's too."""
    path = beside("text.toml", tmp_path)
    code = re.search(r"^#     from torch.*?(?=^# trained)", path.read_text(), re.M | re.S)
    assert code
    names: dict[str, Any] = {}
    exec("\n".join(line[6:] for line in code[0].splitlines()), names)
    torch.manual_seed(0)
    module = names["Text"](hidden=16)
    with torch.no_grad():
        for weight in module.parameters():
            weight *= 3  # so that it does not say all bytes alike
    runnel_export.export(module, {"byte": torch.randint(0, 256, (1, 20))}, tmp_path / "text.onnx")
    with Engine.load(path) as engine:
        stream = engine.open()
        out = stream.generate(200)
        said = [10, *out["token"].tolist()]
        told = engine.open().feed(np.array(said[:-1], np.uint8))
        np.testing.assert_array_equal(told["token"], out["token"])
    with torch.no_grad():
        scores = module(torch.tensor([said[:-1]]))[0] / 0.7
    likely = torch.softmax(scores, -1)[range(200), said[1:]].numpy()
    assert (out["probability"] >= likely - 1e-5).all(), "top_p leaves some out: the others are likelier"
    assert (out["probability"] <= likely / 0.95 + 1e-5).all()
    assert len(set(said)) > 20

    (tmp_path / "prompt.txt").write_text("Once upon")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "text.toml", "--generate", "200", "--quiet"]) == 0
    assert capsys.readouterr().out == bytes(said[1:]).decode("utf-8", "replace") + "\n"
    assert main(["run", "text.toml", "prompt.txt", "--generate", "30", "--quiet"]) == 0
    with Engine.load(path) as engine, engine.open() as stream:
        prompt = np.frombuffer(b"Once upon", np.uint8)
        after = [stream.feed(prompt)["token"][-1], *stream.generate(30)["token"]]
    assert capsys.readouterr().out == bytes(after).decode("utf-8", "replace") + "\n"


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.toml")), ids=lambda p: p.stem)
def test_each_says_where_its_model_comes_from(path: Path) -> None:
    document = tomllib.loads(path.read_text())
    if "model" not in document:
        return
    model = document["model"]["path"]
    assert not Path(model).is_absolute()
    comments = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert model in comments
