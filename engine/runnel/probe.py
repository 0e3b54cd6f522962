"""What a probe shows: a model with outputs that lay open the inside of its recurrent layers, tick by tick.

A probe gives what the model gives that it was made with, and beside it the gates, cell states and hidden
states of each layer. They are ordinary outputs of its graph; this says which of them is what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

SUFFIX: Final = ".probe.onnx"

# By the letters of the literature, and of torch's documentation. Gates are after their activation.
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
GATES: Final = ("i", "f", "o", "r", "z")  # within 0..1; of the others c, h and n may be any number
# Of the layers whose formula is known by their kind: all that is shown of each.
KNOWN: Final = {"LSTM": frozenset("ifogch"), "GRU": frozenset("rznh")}
FLAGS: Final = ("backward", "takes")  # of a layer


@dataclass(frozen=True, slots=True)
class ProbeLayer:
    """One recurrent layer and what of it is to be seen."""

    name: str  # where it is in the module, and which layer there: "lstm.0"
    kind: str  # "LSTM", "GRU" (see `KNOWN`), "RNN", or the class that it was written as
    outputs: Mapping[str, str]  # by letter: the model's output, (time, hidden) in a stream
    # By letter, the model's states that are what the layer shows: before a tick, and after it.
    states: Mapping[str, str] = field(default_factory=dict)
    backward: bool = False  # it goes through each window from its end; see `runnel.spec.Blocks`
    takes: bool = False  # of a GRU: z is how much is taken of the candidate, not how much of h is kept


@dataclass(frozen=True, slots=True)
class Probe:
    """Which outputs of a model show its inside."""

    of: str  # the hash in the certificate of the model that it was made with
    layers: tuple[ProbeLayer, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Every output that the model itself has not."""
        return tuple(name for layer in self.layers for name in layer.outputs.values())


def beside(model: Path) -> Path:
    """Where a model's probe is: ``lm.probe.onnx`` for ``lm.onnx``."""
    return model.with_name(model.name.removesuffix(".onnx") + SUFFIX)


def to_document(probe: Probe) -> dict[str, Any]:
    """As JSON values."""
    layers = []
    for x in probe.layers:
        layer = {"name": x.name, "kind": x.kind, "outputs": dict(x.outputs), "states": dict(x.states)}
        layers.append({**layer, **{flag: True for flag in FLAGS if getattr(x, flag)}})
    return {"of": probe.of, "layers": layers}
