"""What a snapshot's fingerprint covers, and the errors if it does not fit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from runnel import Engine
from runnel import snapshot as snapshots
from runnel.errors import SnapshotError
from runnel.loading import container
from runnel.pipeline import identity
from runnel.pipeline.identity import Part
from tests import models

X = np.ones((3, 3), np.float32)
PIPELINE = '[model]\npath = "m.onnx"\n'

STAGE = """
import numpy as np
import runnel

class Probe(runnel.Stage):
    name = "probe"

    def __init__(self, inputs: runnel.Signal, gain: float = 1.0):
        self.inputs = self.outputs = inputs

    def initial(self):
        return {"held": np.zeros(2)}

    def step(self, state, chunk):
        return state, {name: array * 1 for name, array in chunk.items()}

@runnel.hookimpl
def runnel_stages():
    return {"probe": Probe, "probe2": Probe}
"""


def blob(folder: Path, text: str) -> bytes:
    (folder / "p.toml").write_text(text)
    with Engine.load(folder / "p.toml") as engine:
        stream = engine.open()
        stream.feed(np.ones((1, *engine.pipeline.inputs.tensors[0].shape), np.float32))
        return stream.snapshot()


def refusal(folder: Path, text: str, snapshot: bytes) -> str:
    """Return the error's message; "" if the snapshot is accepted."""
    (folder / "p.toml").write_text(text)
    with Engine.load(folder / "p.toml") as engine:
        try:
            engine.restore(snapshot)
        except SnapshotError as error:
            assert not engine.streams
            return error.message
    return ""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str, source: str = STAGE) -> None:
    """Install a package acme-probe of that version ("": without metadata), in place of an earlier one."""
    site = folder / f"site{version}-{hash(source)}"
    info = site / "acme_probe-1.dist-info"
    info.mkdir(parents=True)
    if version:
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-probe\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[runnel]\nprobe = identity_probe\nprobe2 = identity_probe\n")
    (site / "identity_probe.py").write_text(source)
    monkeypatch.setattr(sys, "path", [str(site), *(p for p in sys.path if not p.startswith(str(folder)))])
    monkeypatch.delitem(sys.modules, "identity_probe", raising=False)


def sealed(path: Path, **changes: Any) -> None:
    """Write the model again with another description, as a second export would."""
    described = container.document(path.read_bytes(), "m")
    assert described is not None
    model = onnx.load(path)
    del model.metadata_props[:]
    model.producer_name, model.producer_version, model.doc_string = "other", "9", "made again"
    path.write_bytes(container.seal(model.SerializeToString(), {**described, **changes}))


def test_the_same_weights_exported_again(tmp_path: Path) -> None:
    """A second export on another day, machine and version has states of the same meaning."""
    models.lstm(tmp_path / "m.onnx")
    taken = blob(tmp_path, PIPELINE)
    sealed(tmp_path / "m.onnx", certificate={"date": "2026-02-02", "versions": {"runnel": "9"}})
    assert refusal(tmp_path, PIPELINE, taken) == ""


def test_other_weights_or_states(tmp_path: Path) -> None:
    hand = models.lstm(tmp_path / "m.onnx")
    taken = blob(tmp_path, PIPELINE)
    models.lstm(tmp_path / "m.onnx", seed=9)
    assert refusal(tmp_path, PIPELINE, taken).endswith("the model of [model] is another one")
    models.lstm(tmp_path / "m.onnx")
    described = container.document(hand.path.read_bytes(), "m")
    assert described is not None
    [first, *rest] = described["states"]
    sealed(hand.path, states=[{**first, "initial": 0.5}, *rest])
    assert refusal(tmp_path, PIPELINE, taken).endswith("the model of [model] is another one")


def test_a_plugins_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[input]\n[[before]]\nuse = "probe"\n'
    install(tmp_path, monkeypatch, "1.0")
    taken = blob(tmp_path, text)
    assert refusal(tmp_path, text, taken) == ""
    install(tmp_path, monkeypatch, "1.1")
    assert refusal(tmp_path, text, taken).endswith(
        "[[before]] number 1 (probe) was of acme-probe 1.0, and is of acme-probe 1.1"
    )


def test_a_plugin_of_no_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a version, the module's source identifies it."""
    text = '[input]\n[[before]]\nuse = "probe"\n'
    install(tmp_path, monkeypatch, "")
    taken = blob(tmp_path, text)
    assert refusal(tmp_path, text, taken) == ""
    install(tmp_path, monkeypatch, "", STAGE.replace("array * 1", "array * 2"))
    assert "an unknown package, source" in refusal(tmp_path, text, taken)


def test_stages_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "1.0")
    one = '[input]\n[[before]]\nuse = "probe"\ngain = 2.0\n'
    taken = blob(tmp_path, one)
    two = one + '[[before]]\nuse = "probe"\n'
    for text, says in (
        (one.replace("2.0", "3.0"), "what the file says of [[before]] number 1 (probe) has changed"),
        (two, "[[before]] number 2 (probe) is new"),
        (one.replace('"probe"', '"probe2"'), "[[before]] number 1 was 'probe', and is 'probe2'"),
        (one.replace("[input]", "[input]\nrate = 100"), "what the file says of [input] has changed"),
    ):
        assert refusal(tmp_path, text, taken).endswith(says)
    assert refusal(tmp_path, one, blob(tmp_path, two)).endswith("number 2 (probe) is no more")


def test_path_of_a_model_is_not_part_of_the_identity(tmp_path: Path) -> None:
    models.lstm(tmp_path / "m.onnx")
    taken = blob(tmp_path, PIPELINE)
    (tmp_path / "m.onnx").rename(tmp_path / "other.onnx")
    assert refusal(tmp_path, PIPELINE.replace("m.onnx", "other.onnx"), taken) == ""


def test_a_snapshot_of_an_earlier_version(tmp_path: Path) -> None:
    """Such a snapshot has no list of parts."""
    models.lstm(tmp_path / "m.onnx")
    held = snapshots.decode(blob(tmp_path, PIPELINE))
    old = snapshots.encode(snapshots.Snapshot("0" * 32, held.seq, held.ended, held.stages))
    assert refusal(tmp_path, PIPELINE, old).endswith("their options must be the same")


@pytest.mark.parametrize(
    "parts",
    [
        None, {}, "text", [[]], [["a"] * 4], [["a", "b", "c", "d", 1]], [["a" * 257, "", "", "", ""]],
        [["a", "", "", "", ""]] * 257, [3],
    ],
)  # fmt: skip
def test_forged_parts_are_refused(parts: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        identity.read(parts)


def test_parts_survive_and_are_bounded() -> None:
    part = Part("[[before]] number 1", "x" * 999, "p 1").bounded()
    assert (len(part.use), identity.read([list(part)])) == (256, (part,))
    held = snapshots.Snapshot("f", 1, False, (("s", {}),), (part,))
    assert snapshots.decode(snapshots.encode(held)) == held
