"""deploy/pipelines.md says all that a pipeline file may say, and its examples are pipelines."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from runnel import Engine
from runnel.insight import health
from runnel.loading import declared as foreign
from runnel.loading import loader
from runnel.pipeline import feedback
from tests import models

PAGE = (Path(__file__).parents[2] / "deploy" / "pipelines.md").read_text("utf-8")
TABLE = "\n".join(line for line in PAGE.splitlines() if line.startswith("|"))
EXAMPLES = re.findall(r"^```toml\n(.*?)^```$", PAGE.partition("\n## Examples\n")[0], re.M | re.S)
# The blocks under that heading are run, in order, by tests/test_readme.py.


@pytest.mark.parametrize(
    "key",
    sorted(
        {
            *loader._INPUT, *loader._LIMITS, *loader._TENSOR, *feedback._KEYS, *health._KEYS,
            *(set(foreign.KEYS) - {"state"}), *foreign._STATE, "use",
        }
    ),
)  # fmt: skip
def test_every_key_has_its_row(key: str) -> None:
    assert f"`{key}`" in TABLE


def test_every_table_has_its_row_and_nothing_else_has() -> None:
    told = {name.partition(".")[0] for name in re.findall(r"`\[{1,2}([a-z][\w.]*)\]{1,2}`", TABLE)}
    assert told == set(loader._TOP)


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_examples_are_pipelines(tmp_path: Path, text: str) -> None:
    for name in ("denoiser", "recogniser"):
        models.lstm(tmp_path / f"{name}.onnx", features=3, outputs=3)
    path = tmp_path / "example.toml"
    path.write_text(text)
    with Engine.load(path, trust=True) as engine, engine.open() as stream:
        steps = {t.name: np.ones((5, *t.shape), t.dtype) for t in engine.pipeline.inputs.tensors}
        assert stream.feed(steps) is not None
        if engine.pipeline.generates:
            np.testing.assert_allclose(engine.open().generate(3), [0.5, 0.25, 0.125])


def test_what_is_said_of_snapshots_is_true(tmp_path: Path) -> None:
    path = tmp_path / "example.toml"
    path.write_text(EXAMPLES[0])
    with Engine.load(path) as engine:
        blob = engine.open().snapshot()
    path.write_text(EXAMPLES[0].partition("[limits]")[0])
    with Engine.load(path) as engine:
        engine.restore(blob)
