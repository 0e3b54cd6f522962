"""What the rows share: a folder, the effort, and the model files, each made when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from runnel_export.lift import lift
from runnel import Engine, container
from runnel.spec import Array, ModelSpec, from_document, to_document

from .measure import Effort
from .modules import Tagger

SMALL = "LSTM 4→32→1"
LARGE = "LSTM 80→128×2→29"


@dataclass(frozen=True, slots=True)
class File:
    """A model file of the exporter's and what it was made of."""

    path: Path
    module: torch.nn.Module
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

    @cached_property
    def small(self) -> File:
        return self._export("lstm-4-32-1", Tagger("lstm", 4, 32, 1, 1), 4)

    @cached_property
    def large(self) -> File:
        return self._export("lstm-80-128x2-29", Tagger("lstm", 80, 128, 2, 29), 80)

    @cached_property
    def gru(self) -> File:
        return self._export("gru-80-128x2-29", Tagger("gru", 80, 128, 2, 29), 80)

    def _export(self, name: str, module: Tagger, features: int) -> File:
        self.say(f"exporting {name}")
        path = self.folder / f"{name}.onnx"
        lifted = lift(module.eval(), torch.randn(2, 24, features))
        sealed = container.seal(
            lifted.model.SerializeToString(),
            to_document(replace(lifted.spec, certificate={"by": "bench"})),
        )
        path.write_bytes(sealed)
        return File(path, module, features)
