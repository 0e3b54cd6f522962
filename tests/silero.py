"""Silero VAD's own files, from its installed package, as pipelines declare them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import onnxruntime as ort

FILES = ("silero_vad", "silero_vad_16k_op15", "silero_vad_half")  # the last knows one sample rate only
WINDOW, HOP, CONTEXT = 576, 512, 64


def model(name: str) -> Path:
    return Path(str(files("silero_vad"))) / "data" / f"{name}.onnx"


def pipeline(folder: Path, name: str = "silero_vad") -> Path:
    """A pipeline file for one of the vendor's models."""
    constants = "" if name == "silero_vad_half" else "[model.constants]\nsr = 16000\n"
    path = folder / f"{name}.toml"
    path.write_text(
        f'[model]\npath = "{model(name)}"\nwindow = {WINDOW}\nhop = {HOP}\nrate = 16000\n'
        f'[model.inputs]\ninput = "samples"\n[model.outputs]\noutput = "probability"\n{constants}'
        '[[model.state]]\ninput = "state"\noutput = "stateN"\nshape = [2, "slot", 128]\n'
    )
    return path


def plain_loop(name: str, samples: np.ndarray) -> np.ndarray:
    """The oracle: the vendor's file in a hand-written loop, 64 samples of context, zeros at the end."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(model(name)), options, providers=["CPUExecutionProvider"])
    padded = np.concatenate([samples, np.zeros(-len(samples) % HOP, np.float32)])
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros(CONTEXT, np.float32)
    found = []
    for start in range(0, len(padded), HOP):
        fresh = padded[start : start + HOP]
        feeds = {"input": np.concatenate([context, fresh])[None], "state": state}
        if name != "silero_vad_half":
            feeds["sr"] = np.array(16000)
        probability, state = session.run(None, feeds)
        context = fresh[-CONTEXT:]
        found.append(probability[0])
    return np.array(found)
