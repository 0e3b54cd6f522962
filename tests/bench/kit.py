"""What the rows share: a folder, the effort, and the model files, each made when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import runnel_export
from runnel import Engine
from runnel.loading import container
from runnel.spec import Array, ModelSpec, from_document
from runnel_export.demo import silero as demo
from runnel_export.demo.oracle import vendor_weights

from .measure import Effort
from .modules import Tagger

SMALL = "LSTM 4→32→1"
LARGE = "LSTM 80→128×2→29"


@dataclass(frozen=True, slots=True)
class File:
    """A model file of the exporter's and what it was made of."""

    path: Path
    module: nn.Module
    features: int

    @property
    def spec(self) -> ModelSpec:
        document = container.document(self.path.read_bytes(), str(self.path))
        assert document is not None
        return from_document(document, str(self.path))

    def load(self) -> Engine:
        return Engine.load(self.path)

    def ticks(self, slots: int = 1, count: int = 61) -> list[Array]:
        """So many time steps of data, each (slots, features); a prime count, so that cuts never align."""
        rng = np.random.default_rng(7)
        return list(rng.standard_normal((count, slots, self.features)).astype(np.float32))


@dataclass
class Kit:
    folder: Path
    effort: Effort
    say: Callable[[str], None] = field(default=lambda _: None)

    def __post_init__(self) -> None:
        torch.manual_seed(7)  # the same weights in every run

    @cached_property
    def small(self) -> File:
        return self._tagger("lstm-4-32-1", Tagger("lstm", 4, 32, 1, 1), 4)

    @cached_property
    def large(self) -> File:
        return self._tagger("lstm-80-128x2-29", Tagger("lstm", 80, 128, 2, 29), 80)

    @cached_property
    def gru(self) -> File:
        return self._tagger("gru-80-128x2-29", Tagger("gru", 80, 128, 2, 29), 80)

    @cached_property
    def silero(self) -> File:
        """Silero VAD as PyTorch, holding the weights of the vendor's ONNX file.

        Its safetensors hold another training of the network; see `runnel_export.demo.oracle`.
        """
        module = demo.load()
        module.load_state_dict(vendor_weights())
        path = self._export("silero", module, demo.example(), framing=demo.FRAMING, rate=demo.RATE)
        return File(path, module, demo.FRAMING.window)

    def _tagger(self, name: str, module: Tagger, features: int) -> File:
        return File(self._export(name, module, torch.randn(2, 24, features)), module, features)

    def _export(self, name: str, module: nn.Module, example: Tensor, **about: Any) -> Path:
        self.say(f"exporting {name}")
        path = self.folder / f"{name}.onnx"
        runnel_export.export(module, example, path, **about)
        return path
