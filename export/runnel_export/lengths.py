"""Find the sequence lengths that a module accepts, since not every forward runs on any number of ticks.

A module with strides may need a multiple of their product. A module without padding needs at least the
ticks that its windows see.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .dry_run import copied, resample

PRIMES = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61)
MOST = 2**18  # most ticks that forward is tried on: 16 s of 16 kHz
_TRIALS = 24  # most candidates that are tried
_STRIDED = (nn.Conv1d, nn.Conv2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d)


@dataclass(frozen=True)
class Lengths:
    """Forward runs on multiples of `unit` ticks, from `least` ticks on."""

    unit: int = 1
    least: int = 1

    def up(self, ticks: int) -> int:
        """Return the shortest accepted length of at least `ticks`."""
        return -(-max(ticks, self.least) // self.unit) * self.unit

    def times_a_prime(self, free: tuple[int, ...]) -> list[int]:
        """Return two lengths that are a prime number of units. `free`: primes to choose from."""
        more = (p for p in range(free[-1] + 2, 2 * MOST) if all(p % d for d in range(2, math.isqrt(p) + 1)))
        found: list[int] = []
        for prime in itertools.chain(free, more):
            if prime * self.unit >= self.least:
                found.append(prime * self.unit)
                if len(found) == 2:
                    break
        return found


ANY = Lengths()


def accepted(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    state: Mapping[str, Any] | None,
    time_axes: Mapping[str, int],
) -> list[Lengths]:
    """Return the lengths to trace at, best first. "Any number of ticks" is preferred if forward runs on it.

    The list is never empty. If forward runs on the example's length only, the list is [ANY].
    """
    other = copied(module)
    given = max(inputs[name].shape[axis] for name, axis in time_axes.items())
    stride = min(_strides(module), MOST)

    def runs(ticks: int) -> bool:
        feed: dict[str, Any] = {
            n: resample(t, time_axes[n], ticks) for n, t in inputs.items() if n in time_axes
        }
        feed |= {n: t for n, t in inputs.items() if n not in time_axes}
        feed |= pytree.tree_map(
            lambda t: t.detach().clone() if isinstance(t, Tensor) else t, dict(state or {})
        )
        try:
            with torch.no_grad():
                other(**feed)
        except Exception:  # the user's code raises of every kind
            return False
        return True

    def fits(lengths: Lengths) -> bool:
        # Also try a length that is not prime: prime lengths alone could hide a condition on parity.
        ticks = [*lengths.times_a_prime(PRIMES), lengths.up(12 * lengths.unit)]
        return max(ticks) <= MOST and all(map(runs, ticks))

    found: list[Lengths] = []
    units = [
        1,
        *([stride] if stride > 1 else []),
        *(u for u in (2, 4, 8, 16, 32, 64, 128, 256, 512) if u <= given),
    ]
    units += [u for u in range(3, min(given, 4096) + 1) if given % u == 0 and u not in units]
    # Try any length first, then any length from the example's on. Modules that need multiples are rarer.
    wanted = [Lengths(), Lengths(1, given)]
    wanted += [Lengths(unit, least) for least in (1, given) for unit in units if unit > 1]
    for lengths in wanted[:_TRIALS]:
        if fits(lengths):
            found.append(lengths)
            break
    else:
        return [ANY]
    if stride > found[0].unit and fits(whole := Lengths(stride, found[0].least)):
        found.append(whole)
    if fits(longer := Lengths(found[0].unit, given)) and longer not in found:
        found.append(longer)  # strides may reduce a short sequence to a single time step
    return found


def _strides(module: nn.Module) -> int:
    """Return the product of all strides along the first axis.

    In a module with a single path, this is the number of ticks that become one output time step.
    """
    product = 1
    for part in module.modules():
        if isinstance(part, _STRIDED):
            stride = part.stride[0] if isinstance(part.stride, tuple) else part.stride
            product *= max(1, int(stride or 1))
    return product
