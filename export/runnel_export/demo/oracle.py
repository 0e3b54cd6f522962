"""Run the vendor's ONNX graph in a hand-written loop, to compare with our export.

The package silero-vad ships weights as safetensors and graphs as ONNX. In its versions 6.2.1 to 6.2.3 the
two come from different trainings of one network. So the graph is run twice: with the weights of the
safetensors file, which must give our numbers, and with its own weights, for comparison.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from torch import Tensor

from runnel.errors import UsageError
from runnel.spec import Array

from .files import vendor_file
from .silero import FRAMING, RATE, SileroVAD

GRAPH = "silero_vad_16k_op15.onnx"  # the vendor's file that has its weights as plain initializers
_NAMES = {
    "stft_conv": "model.stft.forward_basis_buffer",
    "conv1": "model.encoder.0.reparam_conv",
    "conv2": "model.encoder.1.reparam_conv",
    "conv3": "model.encoder.2.reparam_conv",
    "conv4": "model.encoder.3.reparam_conv",
    "lstm": "model.decoder.rnn",
    "final": "model.decoder.decoder.2",
}


def _vendor_name(name: str) -> str:
    """Return the vendor's name of the initializer for our module's weight `name`."""
    layer, part = name.split(".")
    if layer == "stft_conv":
        return _NAMES[layer]
    return f"{_NAMES[layer]}.{part.removesuffix('_l0')}"


def vendor_weights() -> dict[str, Tensor]:
    """Return the weights in the vendor's graph, for `SileroVAD.load_state_dict`."""
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(vendor_file(GRAPH)).graph.initializer}
    shapes = {name: value.shape for name, value in SileroVAD().state_dict().items()}
    return {n: torch.tensor(held[_vendor_name(n)]).reshape(shape) for n, shape in shapes.items()}


def vendor_graph(module: SileroVAD | None = None) -> bytes:
    """Return the vendor's graph, with its own weights or with those of `module`."""
    model = onnx.load(vendor_file(GRAPH))
    if module is not None:
        held = {t.name: t for t in model.graph.initializer}
        for name, value in module.state_dict().items():
            target = held.get(_vendor_name(name))
            if target is None or target.data_type != onnx.TensorProto.FLOAT:
                raise UsageError(f"{vendor_file(GRAPH)}: no weights {_vendor_name(name)!r} in it")
            array = value.numpy().reshape(tuple(target.dims))
            target.CopyFrom(numpy_helper.from_array(array, target.name))
    data: bytes = model.SerializeToString()
    return data


def probabilities(graph: bytes, samples: Array) -> Array:
    """Run (samples,) float32 at 16 kHz to (windows,) float32. The last window is padded with zeros."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    padded = np.concatenate([samples, np.zeros(-len(samples) % FRAMING.hop, np.float32)])
    state = np.zeros((2, 1, 128), np.float32)
    context = np.zeros(FRAMING.context, np.float32)
    found = []
    for start in range(0, len(padded), FRAMING.hop):
        fresh = padded[start : start + FRAMING.hop]
        feeds = {"input": np.concatenate([context, fresh])[None], "state": state, "sr": np.array(RATE)}
        probability, state = session.run(None, feeds)
        context = fresh[-FRAMING.context :]
        found.append(probability[0, 0])
    return np.array(found, np.float32)
