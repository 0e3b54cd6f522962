"""Temporal convolutions and layers that stand beside torch's own recurrent ones."""

from __future__ import annotations

from typing import Any

import torch

from ..case import Built, Case


def tcn(**options: Any) -> Built:
    from pytorch_tcn import TCN

    layout = options.get("input_shape", "NCL")
    model = TCN(20, [64, 64, 64, 64], kernel_size=4, causal=options.pop("causal", True), **options)
    axis = 2 if layout == "NCL" else 1
    example = torch.randn(1, 20, 100) if axis == 2 else torch.randn(1, 100, 20)
    return Built(model, example, {"time_axis": axis})


CASES = (
    Case("TCN", "pytorch-tcn", tcn, "today"),
    Case(
        "TCN, skip connections, gates",
        "pytorch-tcn",
        lambda: tcn(use_skip_connections=True, use_gate=True),
        "today",
    ),
    Case(
        "TCN, layer norm, NLC", "pytorch-tcn", lambda: tcn(use_norm="layer_norm", input_shape="NLC"), "today"
    ),
    Case("TCN, not causal", "pytorch-tcn", lambda: tcn(causal=False), "first"),
)
