"""Decision stages after a model, as users have them: pipeline files, an exported LSTM, many streams."""

from __future__ import annotations

import numpy as np
import pytest

from runnel import Engine

torch = pytest.importorskip("torch")
runnel_export = pytest.importorskip("runnel_export")

WORDS = ["rest", "walk", "run"]


class Tagger(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(4, 8, batch_first=True)
        self.head = torch.nn.Linear(8, len(WORDS))

    def forward(self, x):
        return self.head(self.lstm(x)[0])


class Forecaster(torch.nn.Module):
    """Returns a forecast and its input: all that `forecast_error` needs."""

    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(1, 8, batch_first=True)
        self.head = torch.nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.lstm(x)[0]), x


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decide")
    torch.manual_seed(3)
    for name, module, width in (("tagger", Tagger(), 4), ("forecaster", Forecaster(), 1)):
        module.eval()
        runnel_export.export(module, torch.randn(1, 30, width), folder / f"{name}.onnx")
        torch.save(module.state_dict(), folder / f"{name}.pt")
    (folder / "words.txt").write_text("\n".join(WORDS))
    return folder


def reference(folder, name, module):
    module.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
    return module.eval()


def test_a_tagger_gives_names_and_scores_for_many_streams(folder):
    (folder / "tagger.toml").write_text(
        f"""
        [model]
        path = "tagger.onnx"
        [[after]]
        use = "softmax"
        [[after]]
        use = "labels"
        names_file = "{folder / "words.txt"}"
        """
    )
    engine = Engine.load(folder / "tagger.toml")
    label, score = engine.pipeline.outputs.tensors
    assert (label.labels, score.name) == (tuple(WORDS), "score")
    x = np.random.default_rng(0).standard_normal((20, 12, 4)).astype(np.float32)
    outs = engine.feed_many([(engine.open(), one) for one in x])
    with torch.no_grad():
        want = reference(folder, "tagger", Tagger())(torch.from_numpy(x)).softmax(-1)
    np.testing.assert_array_equal([out["label"] for out in outs], want.argmax(-1))
    np.testing.assert_allclose([out["score"] for out in outs], want.max(-1).values, atol=1e-5)


def test_forecaster_reports_when_its_series_is_unusual(folder):
    (folder / "watch.toml").write_text(
        """
        [model]
        path = "forecaster.onnx"
        [model.outputs]
        y0 = "forecast"
        y1 = "x.now"
        [[after]]
        use = "forecast_error"
        [[after]]
        use = "anomaly"
        of = "residual"
        threshold = 8
        [[after]]
        use = "event"
        """
    )
    engine = Engine.load(folder / "watch.toml")
    x = np.random.default_rng(1).standard_normal((300, 1)).astype(np.float32)
    x[200:203] += 100
    stream = engine.open()
    rows = [stream.feed({"x": x[t : t + 7]}) for t in range(0, 300, 7)]
    edges = {name: np.concatenate([r[name] for r in rows]).tolist() for name in rows[0]}
    assert (edges["edge"], edges["index"], edges["length"]) == ([1, -1], [200, 203], [200, 3])
    blob = stream.snapshot()
    assert engine.restore(blob, "again").state.keys() == stream.state.keys()
