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

Segment = tuple[int, int]  # start and end, in samples at 16 kHz


@dataclass(frozen=True)
class Found:
    """What was found in one sound."""

    segments: list[Segment]
    probability: Array  # (windows,) of speech


class Vendor:
    """The vendor's code around one of its graphs, in a file."""

    def __init__(self, graph: Path) -> None:
        from silero_vad.utils_vad import OnnxWrapper

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a file for 16 kHz takes 16 kHz
            self._model: Any = OnnxWrapper(str(graph), force_onnx_cpu=True)
        self._probability: list[float] = []

    def hear(self, samples: Array) -> Found:
        """(samples,) float32 at 16 kHz."""
        from silero_vad import get_speech_timestamps

        self._probability = []
        found = get_speech_timestamps(torch.from_numpy(samples), self)
        return Found([(s["start"], s["end"]) for s in found], np.array(self._probability, np.float32))

    # What the vendor's code asks of a model; on the way its probabilities are kept.

    def reset_states(self) -> None:
        self._model.reset_states()

    def __call__(self, window: Tensor, rate: int) -> Tensor:
        probability: Tensor = self._model(window, rate)
        self._probability.append(probability.item())
        return probability
