"""Probes: models whose extra outputs show the inside of recurrent layers, tick by tick.

A probe returns the outputs of its model and, beside them, the gates, cell states and hidden states of each
layer. They are ordinary outputs of its graph; this module describes which output is which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

SUFFIX: Final = ".probe.onnx"

# Letters as in the literature and in torch's documentation. Gates are after their activation.
MEANING: Final = {
    "i": "input gate",
    "f": "forget gate",
    "o": "output gate",
    "g": "candidate",
    "c": "cell state",
    "r": "reset gate",
    "z": "update gate",
    "n": "candidate",
    "h": "hidden state",
}
GATES: Final = ("i", "f", "o", "r", "z")  # values within 0..1; c, h and n may be any number
# For layers with a known formula: the letters of all that a probe shows.
KNOWN: Final = {"LSTM": frozenset("ifogch"), "GRU": frozenset("rznh")}
FLAGS: Final = ("backward", "takes")  # of a layer


@dataclass(frozen=True, slots=True)
class ProbeLayer:
    """One recurrent layer, and the outputs and states that show it."""

    name: str  # path in the module, and the layer's index there: "lstm.0"
    kind: str  # "LSTM", "GRU" (see `KNOWN`), "RNN", or the name of the layer's class
    outputs: Mapping[str, str]  # letter: the model's output, (time, hidden) in a stream
    # Letter: the model's state that holds the same value before and after each tick.
    states: Mapping[str, str] = field(default_factory=dict)
    backward: bool = False  # the layer runs from the end of each window; see `runnel.grouping.Blocks`
    takes: bool = False  # for a GRU: z weighs the candidate, not the previous h


@dataclass(frozen=True, slots=True)
class Probe:
    """The outputs of a model that show its inside."""

    of: str  # the certificate's hash of the model that the probe belongs to
    layers: tuple[ProbeLayer, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Every output that the model itself does not have."""
        return tuple(name for layer in self.layers for name in layer.outputs.values())


def beside(model: Path) -> Path:
    """Return the path of a model's probe: ``lm.probe.onnx`` for ``lm.onnx``."""
    return model.with_name(model.name.removesuffix(".onnx") + SUFFIX)


def to_document(probe: Probe) -> dict[str, Any]:
    """Return the probe as JSON values."""
    layers = []
    for x in probe.layers:
        layer = {"name": x.name, "kind": x.kind, "outputs": dict(x.outputs), "states": dict(x.states)}
        layers.append({**layer, **{flag: True for flag in FLAGS if getattr(x, flag)}})
    return {"of": probe.of, "layers": layers}
