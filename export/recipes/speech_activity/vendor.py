"""The vendor's segments by the vendor's code: silero-vad's `get_speech_timestamps` and ONNX wrapper."""

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
    """What was found in one sound."""

    segments: list[Segment]
    probability: Array  # (windows,) of speech
    unfilled: int = 0  # segments, where the sound ends within the last window and not with it


class _Again:
    """A model that says what was said before; it is the same, since the vendor fills its last window too."""

    def __init__(self, probability: list[float]) -> None:
        self._said = iter(probability)

    def reset_states(self) -> None:
        pass

    def __call__(self, window: Tensor, rate: int) -> Tensor:
        return torch.tensor(next(self._said))


class Vendor:
    """The vendor's code around one of its graphs, in a file."""

    def __init__(self, graph: Path) -> None:
        from silero_vad.utils_vad import OnnxWrapper

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a file for 16 kHz takes 16 kHz
            self._model: Any = OnnxWrapper(str(graph), force_onnx_cpu=True)
        self._probability: list[float] = []

    def hear(self, samples: Array) -> Found:
        """(samples,) float32 at 16 kHz; they are filled up with zeros to whole windows, as a stream is."""
        from silero_vad import get_speech_timestamps

        self._probability = []
        filled = np.pad(samples, (0, -len(samples) % silero.FRAMING.hop))
        found = get_speech_timestamps(torch.from_numpy(filled), self)
        probability = np.array(self._probability, np.float32)
        unfilled = get_speech_timestamps(torch.from_numpy(samples), _Again(self._probability))
        return Found([(s["start"], s["end"]) for s in found], probability, len(unfilled))

    # What the vendor's code asks of a model; on the way its probabilities are kept.

    def reset_states(self) -> None:
        self._model.reset_states()

    def __call__(self, window: Tensor, rate: int) -> Tensor:
        probability: Tensor = self._model(window, rate)
        self._probability.append(probability.item())
        return probability
