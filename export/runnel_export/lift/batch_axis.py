"""Explicit states with two axes of the batch's size: which one is the batch is found by trying."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..call import Call, results
from ..dry_run import resample

TRIED = 16  # combinations of axes


def told_apart(
    module: nn.Module, inputs: Mapping[str, Tensor], call: Call
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(inputs, state), as they are where each state's batch is where it usually is: `Call.state_axis`.

    Else with a batch size that no other axis has, rows repeated, for which forward returns every state
    in the shape that it came in. As they are, too, where no axes make forward do that.
    """
    as_given = dict(inputs), dict(call.state)
    leaves, spec = pytree.tree_flatten(as_given[1])
    fitting = [[i for i, size in enumerate(leaf.shape) if size == call.batch] for leaf in leaves]
    if not any(len(axes) > 1 for axes in fitting) or not all(fitting):
        return as_given
    usual = [call.state_axis(leaf) for leaf in leaves]
    choices = [[u, *(a for a in axes if a != u)] for u, axes in zip(usual, fitting, strict=True)]
    taken = {size for leaf in leaves for size in leaf.shape}
    batch = next(n for n in range(call.batch + 1, call.batch + len(taken) + 2) if n not in taken)
    sized = {n: resample(t, call.batch_axis, batch) for n, t in inputs.items()}
    for axes in islice(product(*choices), TRIED):
        tried = [resample(leaf, axis, batch) for leaf, axis in zip(leaves, axes, strict=True)]
        state = pytree.tree_unflatten(tried, spec)
        if _goes_on(module, sized, state, call):
            return as_given if list(axes) == usual else (sized, state)
    return as_given


def _goes_on(module: nn.Module, inputs: Mapping[str, Tensor], state: dict[str, Any], call: Call) -> bool:
    """Whether forward takes these and returns states of the same shapes."""
    try:
        with torch.no_grad():
            _, after = results(copy.deepcopy(module).eval()(**inputs, **state), call)
    except Exception:  # the wrong axis, or another error, which comes again later with the arguments as given
        return False
    before = pytree.tree_leaves(state)
    return sorted(tuple(t.shape) for t in before) == sorted(tuple(t.shape) for t in after.values())
