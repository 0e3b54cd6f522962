"""The tests' own loop over a lifted step model, and torch in float64 to compare with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from runnel_export.lift.lift import Lifted, lift

Array = np.ndarray[Any, np.dtype[Any]]
TICKS, STREAMS = 9, 3


class Apply(nn.Module):
    """forward(x) = function(x, self)."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self._function = function
        for name, part in parts.items():
            if isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            else:
                self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self._function(x, self)


def op_types(lifted: Lifted) -> list[str]:
    return [node.op_type for node in lifted.model.graph.node]


def session(lifted: Lifted) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(lifted.model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def stepped(lifted: Lifted, inputs: Mapping[str, Array], cuts: Sequence[int]) -> dict[str, Array]:
    """Outputs for inputs of shape (time, slot, ...), run in blocks of these lengths, states carried."""
    spec = lifted.spec
    run = session(lifted)
    slots = next(iter(inputs.values())).shape[1]
    states = {s.input: np.stack([s.initial] * slots, axis=s.slot_axis) for s in spec.states}
    names = [o.name for o in run.get_outputs()]
    pieces: dict[str, list[Array]] = {o.name: [] for o in spec.outputs}
    at = 0
    for length in cuts:
        feed = {n: a[at : at + length] for n, a in inputs.items()}
        if spec.inputs[0].time_axis is None:
            assert length == 1
            feed = {n: a[0] for n, a in feed.items()}
        found = dict(zip(names, run.run(names, {**feed, **states}), strict=True))
        for o in spec.outputs:
            block = found[o.name] if o.time_axis is not None else found[o.name][None]
            assert block.shape == (length, slots, *o.step_shape), (o, block.shape)
            assert block.dtype == np.dtype(o.dtype)
            pieces[o.name].append(block)
        for s in spec.states:
            assert found[s.output].shape == s.sized(slots), (s, found[s.output].shape)
        states = {s.input: found[s.output] for s in spec.states}
        at += length
    return {name: np.concatenate(blocks) for name, blocks in pieces.items()}


def resample(example: Tensor, batch_axis: int, time_axis: int, generator: torch.Generator) -> Tensor:
    """Random data like the example, for STREAMS streams and TICKS ticks."""
    shape = list(example.shape)
    shape[batch_axis], shape[time_axis] = STREAMS, TICKS
    if example.is_floating_point():
        return torch.randn(shape, generator=generator)
    picks = torch.randint(example.numel(), shape, generator=generator)
    return example.reshape(-1)[picks]


def torch_over_time(
    module: nn.Module, data: Mapping[str, Tensor], time_axis: int, batch_axis: int, last: Sequence[int] = ()
) -> list[Array]:
    """Every output leaf in float64 as (time, slot, ...); leaves in `last` are taken on each prefix."""
    reference = copy.deepcopy(module).double().eval()
    prefixes = []
    torch.set_default_dtype(torch.float64)  # for what forward makes itself: torch.zeros(batch, hidden)
    try:
        for ticks in range(1, TICKS + 1):
            cut = {n: t.narrow(time_axis, 0, ticks) for n, t in data.items()}
            feed = {n: t.double() if t.is_floating_point() else t for n, t in cut.items()}
            with torch.no_grad():
                prefixes.append(pytree.tree_leaves(reference(**feed)))
    finally:
        torch.set_default_dtype(torch.float32)
    leaves = []
    for i, leaf in enumerate(prefixes[-1]):
        if i in last:
            leaves.append(torch.stack([p[i] for p in prefixes]).numpy())
        else:
            leaves.append(torch.movedim(leaf, (time_axis, batch_axis), (0, 1)).numpy())
    return leaves


def assert_streams(
    module: nn.Module,
    example: Tensor | Mapping[str, Tensor],
    *,
    time_axis: int = 1,
    batch_axis: int = 0,
    last: Sequence[int] = (),
    tolerance: float = 2e-5,
    seed: int = 0,
    **options: Any,
) -> Lifted:
    """Lift it; its steps, one by one and in blocks, must give what torch gives over the whole sequence."""
    lifted = lift(module, example, time_axis=time_axis, batch_axis=batch_axis, **options)
    if time_axis == 0 and batch_axis == 0:
        batch_axis = 1
    generator = torch.Generator().manual_seed(seed)
    examples = {lifted.spec.inputs[0].name: example} if isinstance(example, Tensor) else example
    data = {n: resample(e, batch_axis, time_axis, generator) for n, e in examples.items()}
    expected = torch_over_time(module, data, time_axis, batch_axis, last)
    inputs = {n: torch.movedim(t, (time_axis, batch_axis), (0, 1)).numpy() for n, t in data.items()}
    cuttings = [[1] * TICKS]
    if lifted.spec.any_ticks:
        cuttings += [[TICKS], [2, 1, 4, TICKS - 7]]
    assert len(expected) == len(lifted.spec.outputs)
    for cuts in cuttings:
        found = stepped(lifted, inputs, cuts)
        for tensor, leaf in zip(lifted.spec.outputs, expected, strict=True):
            np.testing.assert_allclose(
                found[tensor.name], leaf, rtol=tolerance, atol=tolerance, err_msg=f"{tensor.name} cut {cuts}"
            )
    return lifted
