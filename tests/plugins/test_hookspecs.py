"""Each hook's documentation holds a whole plugin: extracted, installed, and run as documented."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import textwrap
import tomllib

import numpy as np
import pytest

from runnel import Engine, Signal, TensorSpec, hookspecs
from runnel.checks import check_stage
from runnel.cli.main import main
from runnel.errors import PipelineError, UsageError
from runnel.loading import registry as plugins
from runnel.notices import Notices
from tests import models
from tests.plugins.strangers import install

__all__ = ["install"]  # a fixture

SIGNAL = Signal((TensorSpec("x", "float32", (2,)),), 100.0)


def documented(kind):
    """Return (module's name, its source, its entry, the text in a pipeline[, a command line])."""
    text = inspect.getdoc(getattr(hookspecs, plugins.KINDS[kind])) + "\n"
    module = re.search(r"``(\w+)\.py``::", text)[1]
    blocks = [textwrap.dedent(block) for block in re.findall(r"::\n\n((?:    .*\n|\n)+)", text)]
    return (module, *blocks)


@pytest.fixture
def model(tmp_path):
    """A model of 3 inputs and 2 outputs per tick."""
    return models.lstm(tmp_path / "model.onnx")


def pipeline_file(tmp_path, extra):
    path = tmp_path / "pipeline.toml"
    path.write_text(f'[model]\npath = "model.onnx"\n\n{extra}')
    return path


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_hook_is_documented_with_a_plugin_that_loads_and_that_the_command_shows(install, kind, capsys):
    module, source, entry, used, *_ = documented(kind)
    install(module, source, entry)
    (name,) = tomllib.loads(entry)["project"]["entry-points"]["runnel"]
    assert [plugin.kind for plugin in plugins.offers(name)] == [kind]
    assert plugins.load(name, kind).doc.endswith(".")
    ((_, part),) = tomllib.loads(used).items()
    table = part[0] if isinstance(part, list) else part
    assert table.pop("use") == name
    assert plugins.check_options(plugins.load(name, kind), table, "docs").keys() == table.keys()
    assert main(["plugins", name]) == 0
    shown = capsys.readouterr().out
    assert all(key in shown for key in table), shown


def test_the_stage(install, tmp_path, model):
    module, source, entry, used = documented("stage")
    install(module, source, entry)
    check_stage(lambda: plugins.make_stage("clip", SIGNAL, {"limit": 0.5}, "docs"))
    with pytest.raises(PipelineError, match="docs: clip: limit must be above 0, not 0"):
        plugins.make_stage("clip", SIGNAL, {"limit": 0}, "docs")
    chunk = models.data(model, 20)
    with Engine.load(pipeline_file(tmp_path, used)) as engine, engine.open() as stream:
        np.testing.assert_allclose(
            stream.feed(chunk)["y"], model.loop({"x": np.clip(chunk["x"], -0.5, 0.5)})["y"], atol=1e-6
        )


def test_the_source(install):
    module, source, entry, _, line = documented("source")
    install(module, source, entry)
    tone = plugins.make("source", "tone", (SIGNAL,), {"hz": 10, "seconds": 0.5}, "docs")
    made = list(tone.chunks(16))
    assert (tone.steps, [len(chunk["x"]) for chunk in made]) == (50, [16, 16, 16, 2])
    rows = np.concatenate([chunk["x"] for chunk in made])
    assert (rows.dtype, rows.shape) == (np.float32, (50, 2))
    np.testing.assert_allclose(rows[:, 1], np.sin(2 * np.pi * np.arange(50) / 10), atol=1e-6)
    with pytest.raises(UsageError, match="docs: tone: it makes one array at a known rate"):
        plugins.make("source", "tone", (Signal(SIGNAL.tensors),), {}, "docs")
    assert shlex.split(line) == ["runnel", "run", "pipeline.toml", "tone:1000?seconds=0.5"]


def test_the_sink(install, tmp_path):
    module, source, entry, _, line = documented("sink")
    install(module, source, entry)
    for whole in (False, True):
        peaks = plugins.make("sink", "peaks", (SIGNAL,), {"path": "peaks.json"}, "docs", tmp_path)
        peaks.write({"x": np.array([[1, -3], [2, 0]], np.float32)})
        peaks.write({"x": np.zeros((0, 2), np.float32)})
        peaks.close(whole)
        assert (tmp_path / "peaks.json").exists() == whole
    assert json.loads((tmp_path / "peaks.json").read_text()) == {"x": 3.0}
    with pytest.raises(UsageError, match="docs: peaks: there is no folder"):
        plugins.make("sink", "peaks", (SIGNAL,), {"path": "no/peaks.json"}, "docs", tmp_path)
    assert shlex.split(line) == ["runnel", "run", "pipeline.toml", "sensors.csv", "-o", "peaks:peaks.json"]


def test_the_source_and_the_sink_in_a_run(install, tmp_path, model, monkeypatch):
    for kind in ("stage", "source", "sink"):
        install(*documented(kind)[:3])
    rate = "[input]\nrate = 8000\n\n" + documented("stage")[3].replace("0.5", "2.0")
    pipeline_file(tmp_path, rate + documented("source")[3] + documented("sink")[3])
    monkeypatch.chdir(tmp_path)
    assert main(["run", "pipeline.toml", "--quiet"]) == 0
    t = np.arange(4000) / 8000
    tone = np.sin(2 * np.pi * 1000 * t).astype(np.float32)
    expected = float(np.abs(model.loop({"x": np.repeat(tone[:, None], 3, axis=1)})["y"]).max())
    assert json.loads((tmp_path / "peaks.json").read_text()) == {"y": pytest.approx(expected, abs=1e-5)}
    (tmp_path / "peaks.json").unlink()
    pipeline_file(tmp_path, rate)
    words = ["tone:1000?seconds=0.5", "-o", "peaks:peaks.json", "--quiet"]
    assert main(["run", "pipeline.toml", *words]) == 0
    assert json.loads((tmp_path / "peaks.json").read_text()) == {"y": pytest.approx(expected, abs=1e-5)}


def test_the_notice(install, tmp_path, model):
    module, source, entry, _ = documented("notice")
    install(module, source, entry)
    options = {"path": "streams.log", "events": ["opened", "closed"]}
    journal = plugins.make("notice", "journal", (), options, "docs", tmp_path)
    with Engine.load(model.path) as loaded:
        engine = Engine(loaded.pipeline, notices=Notices([("journal", journal)]))
        with engine.open("mic-1") as stream:
            stream.feed(models.data(model, 4))
    assert (tmp_path / "streams.log").read_text() == "opened mic-1 0 new\nclosed mic-1 1 closed\n"


def test_the_notice_in_a_pipeline(install, tmp_path, model):
    module, source, entry, used = documented("notice")
    install(module, source, entry)
    with Engine.load(pipeline_file(tmp_path, used)) as engine, engine.open("mic-1") as stream:
        stream.feed(models.data(model, 4))
    assert (tmp_path / "streams.log").read_text() == "opened mic-1 0 new\nclosed mic-1 1 closed\n"
