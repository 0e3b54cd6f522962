"""The repr of public objects in an interactive session: one line that identifies the object."""

from __future__ import annotations

from pathlib import Path

import pytest

from runnel import Engine
from runnel_export import Certificate, verify
from tests.export.zoo import exported


def short(value: object) -> str:
    text = repr(value)
    assert len(text) <= 200
    assert "\n" not in text
    assert "array(" not in text
    assert " at 0x" not in text
    return text


def test_repr_of_an_engine_shows_signals_and_open_streams() -> None:
    with Engine.load(exported("lstm"), max_streams=7) as engine:
        stream = engine.open("mic-1")
        told = short(engine)
        assert str(engine.pipeline.inputs) in told
        assert str(engine.pipeline.outputs) in told
        assert "1 of 7 streams" in told
        assert "mic-1" in short(stream)
        stream.close()
        assert "0 of 7 streams" in short(engine)


def test_a_pipeline_names_its_stages(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(
        '[input]\nrate = 48000\n[[before]]\nuse = "resample"\nrate = 16000\n'
        '[[before]]\nuse = "gain"\ndb = 3\n'
    )
    with Engine.load(path) as engine:
        told = short(engine.pipeline)
    assert "resample, gain" in told
    assert "48000 Hz" in told
    assert f"latency {engine.pipeline.latency}" in told


def test_a_long_pipeline_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text("[input]\nrate = 100\n" + '[[before]]\nuse = "gain"\ndb = 3\n' * 60)
    with Engine.load(path) as engine:
        assert "…" in short(engine.pipeline)


def test_a_certificate_is_its_verdict() -> None:
    certificate = verify(exported("lstm"))
    told = short(certificate)
    assert told.startswith("<Certificate passed")
    assert f"{certificate.error:.1e}" in told
    assert f"{len(certificate.checks)} checks" in told
    assert f"{len(certificate.alive)} states" in told
    assert "one tick at a time" in str(certificate), "print shows all of it"
    again = Certificate.from_json(certificate.to_json(), "here")
    assert again.errors == certificate.errors


@pytest.mark.parametrize("name", ["lstm", "tagger"])
def test_a_model_is_its_inputs_states_and_outputs(name: str) -> None:
    with Engine.load(exported(name)) as engine:
        model = engine.pipeline.model
        assert model is not None
        told = short(model)
        assert all(t.name in told for t in (*model.inputs, *model.outputs))
