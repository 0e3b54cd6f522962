"""Recorded speech at 48 kHz through resample, Silero's own model file and speech_segments."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from runnel import Engine
from runnel.cli import run as command
from tests import recordings

PIPELINE = """
[input]
rate = 48000

[[before]]
use = "resample"
rate = 16000

[model]
path = "silero_vad.onnx"
window = 576
hop = 512
rate = 16000
[model.inputs]
input = "samples"
[model.constants]
sr = 16000
[[model.state]]
input = "state"
output = "stateN"
shape = [2, "slot", 128]

[[after]]
use = "speech_segments"
pad_ms = 40
"""


@pytest.fixture
def pipeline(tmp_path):
    found = importlib.util.find_spec("silero_vad")  # importing it would load torchaudio and more
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs the package silero-vad")
    data = Path(found.submodule_search_locations[0]) / "data"
    (tmp_path / "silero_vad.onnx").symlink_to(data / "silero_vad.onnx")
    path = tmp_path / "vad.toml"
    path.write_text(PIPELINE)
    return path


@pytest.fixture
def speech(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    files = recordings.alsa()
    if not files:
        pytest.skip(recordings.REASON)
    parts = [soundfile.read(f, dtype="float32")[0] for f in files]
    path = tmp_path / "speech.wav"
    soundfile.write(path, np.concatenate(parts), 48000)
    return path


def test_pipeline_finds_silero_vads_segments(pipeline, speech, tmp_path):
    soundfile, scipy_signal = pytest.importorskip("soundfile"), pytest.importorskip("scipy.signal")
    silero = pytest.importorskip("silero_vad")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    out = tmp_path / "out.npy"
    assert command.run(parser.parse_args([str(pipeline), str(speech), "-o", str(out), "--quiet"])) == 0
    rows = np.load(out)
    found = [(s, e) for s, e in zip(rows["start"].tolist(), rows["end"].tolist(), strict=True) if e >= 0]

    sixteen = scipy_signal.resample_poly(soundfile.read(speech, dtype="float32")[0], 1, 3)
    model = silero.load_silero_vad(onnx=True)
    padded = np.pad(sixteen, (0, -len(sixteen) % 512)).astype(np.float32)  # as our flush pads the last hop
    want = silero.get_speech_timestamps(padded, model, speech_pad_ms=40)
    assert found == [(s["start"], s["end"]) for s in want]
    assert len(found) > 3


def test_many_microphones_in_batches_equal_each_alone(pipeline, speech):
    soundfile = pytest.importorskip("soundfile")
    samples = soundfile.read(speech, dtype="float32")[0][: 48000 * 3]
    with Engine.load(pipeline, max_streams=8) as engine:
        inputs = [{"samples": samples[i * 4800 :]} for i in range(4)]
        alone = []
        for chunk in inputs:
            with engine.open() as stream:
                first, rest = stream.feed(chunk), stream.flush()
                alone.append({n: np.concatenate([first[n], rest[n]]) for n in first})
        streams = [engine.open() for _ in inputs]
        made = [[] for _ in inputs]
        for at in range(0, len(samples), 1000):
            turn = [(i, {"samples": c["samples"][at : at + 1000]}) for i, c in enumerate(inputs)]
            turn = [(i, c) for i, c in turn if len(c["samples"])]
            for (i, _), out in zip(turn, engine.feed_many([(streams[i], c) for i, c in turn]), strict=True):
                made[i].append(out)
        for stream, parts, want in zip(streams, made, alone, strict=True):
            parts.append(stream.flush())
            got = {n: np.concatenate([p[n] for p in parts]) for n in want}
            np.testing.assert_allclose(got["probability"], want["probability"], atol=1e-5)
            np.testing.assert_array_equal(got["end"], want["end"])
