"""Find the sequence lengths that a module accepts, since not every forward runs on any number of ticks.

A module with strides may need a multiple of their product. A module without padding needs at least the
ticks that its windows see.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
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
        """Return two lengths that are a prime number of units. `free`: primes to choose from.

        Divided by 3 and by 4 they leave different remainders. So what depends on a remainder differs too.
        """
        more = (p for p in range(free[-1] + 2, 2 * MOST) if all(p % d for d in range(2, math.isqrt(p) + 1)))
        primes = (p for p in itertools.chain(free, more) if p * self.unit >= self.least)
        first = next(primes)
        second = next(p for p in primes if p % 3 != first % 3 and p % 4 != first % 4)
        return [first * self.unit, second * self.unit]


ANY = Lengths()


def accepted(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    state: Mapping[str, Any] | None,
    time_axes: Mapping[str, int],
) -> tuple[Lengths, list[Lengths]]:
    """Return the lengths that forward runs on, and those to trace at, best first.

    If forward runs on the example's length only, they are ANY and [ANY].
    """
    other = copied(module)
    given = max(inputs[name].shape[axis] for name, axis in time_axes.items())
    stride = min(stride_of(module), MOST)

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
        return ANY, [ANY]
    unit = found[0].unit
    shortest = _first(runs, found[0].times_a_prime(PRIMES)[0], unit)
    takes = Lengths(unit, 1 if shortest == unit else shortest)
    if stride > found[0].unit and fits(whole := Lengths(stride, found[0].least)):
        found.append(whole)
    if fits(longer := Lengths(found[0].unit, given)) and longer not in found:
        found.append(longer)  # strides may reduce a short sequence to a single row
    return takes, found


def _first(true: Callable[[int], bool], end: int, unit: int) -> int:
    """Return the first multiple of `unit` for which `true` holds. It holds for `end`."""
    low, high = 0, end // unit
    while high - low > 1:
        if true((middle := (low + high) // 2) * unit):
            high = middle
        else:
            low = middle
    return high * unit


def stride_of(module: nn.Module) -> int:
    """Return the product of all strides along the first axis.

    In a module with a single path, as many ticks become one row.
    """
    product = 1
    for part in module.modules():
        if isinstance(part, _STRIDED):
            stride = part.stride[0] if isinstance(part.stride, tuple) else part.stride
            product *= max(1, int(stride or 1))
    return product
