"""The vendor's side: segments from silero-vad's own `get_speech_timestamps` and ONNX wrapper."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runnel.spec import Array
from runnel_export.demo import silero

Segment = tuple[int, int]  # start and end, in samples at 16 kHz


@dataclass(frozen=True)
class Found:
    """Segments and probabilities of one sound."""

    segments: list[Segment]
    probability: Array  # (windows,): probability of speech
    unfilled: int = 0  # number of segments if the last window is not padded with zeros


class _Again:
    """A model that repeats earlier probabilities, which hold because the vendor pads its last window too."""

    def __init__(self, probability: list[float]) -> None:
        self._said = iter(probability)

    def reset_states(self) -> None:
        pass

    def __call__(self, window: Tensor, rate: int) -> Tensor:
        return torch.tensor(next(self._said))


class Vendor:
    """The vendor's code with one of its graphs, from a file."""

    def __init__(self, graph: Path) -> None:
        from silero_vad.utils_vad import OnnxWrapper

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the vendor warns that this file is for 16 kHz only
            self._model: Any = OnnxWrapper(str(graph), force_onnx_cpu=True)
        self._probability: list[float] = []

    def hear(self, samples: Array) -> Found:
        """Run (samples,) float32 at 16 kHz, padded with zeros to whole windows as in a stream."""
        from silero_vad import get_speech_timestamps

        self._probability = []
        filled = np.pad(samples, (0, -len(samples) % silero.FRAMING.hop))
        found = get_speech_timestamps(torch.from_numpy(filled), self)
        probability = np.array(self._probability, np.float32)
        unfilled = get_speech_timestamps(torch.from_numpy(samples), _Again(self._probability))
        return Found([(s["start"], s["end"]) for s in found], probability, len(unfilled))

    # The vendor's code calls these methods of a model. They also record its probabilities.

    def reset_states(self) -> None:
        self._model.reset_states()

    def __call__(self, window: Tensor, rate: int) -> Tensor:
        probability: Tensor = self._model(window, rate)
        self._probability.append(probability.item())
        return probability
