"""Conversion from one dtype to another, in which no number changes unnoticed.

With scale, between integers of b bits and floats of -1 to 1, as in audio:

    float y = x / 2**(b - 1)            integer y = round(x * 2**(b - 1)), halves to the even neighbour

so that 16 bits to float32 and back is exact, and 1.0 itself is one beyond the largest integer. (Rounding is
IEEE 754's roundTiesToEven, 2019, section 4.3.1.) Latency 0.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

import runnel
from runnel.batch import RowStage
from runnel.errors import ChunkError, NonFiniteError, PipelineError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal, TensorSpec
from runnel.stage import Chunk

from ._choose import one, with_tensors

ROUND = "round = true would take the nearest that is"
SATURATE = "saturate = true would cut it off there"


class Cast(RowStage):
    """Change an array's dtype, and refuse values that the new dtype cannot hold.

    Input: one array that is not of dtype `to` yet; `of` names it if there are several. Other arrays pass; if
    all are `to` already, nothing changes. `scale` maps the full range of int8, int16 or int32 to -1..1 and
    back.

    A value outside the new dtype raises ChunkError with the value and its position; with `saturate` it
    becomes the nearest value inside. A fraction for an integer dtype, and an integer that a float cannot
    represent exactly, also raise ChunkError; with `round` they are rounded to the nearest, halves to the even
    one. A float for a narrower float is always rounded, and so is a scaled value. A NaN stays NaN in a float;
    in an integer or a bool it raises NonFiniteError. To bool only 0 and 1 fit.

    Raises PipelineError if no array is named and several would fit, and for a scale between other dtypes.
    """

    name = "cast"

    def __init__(
        self,
        inputs: Signal,
        to: Literal[
            "float32", "float16", "float64", "int8", "int16", "int32", "int64",
            "uint8", "uint16", "uint32", "uint64", "bool",
        ],
        scale: bool = False,
        saturate: bool = False,
        round: bool = False,
        of: str | None = None,
    ) -> None:  # fmt: skip
        self.to, self.saturate, self.round = np.dtype(to), saturate, round
        self.inputs = self.outputs = inputs
        self.tensor: TensorSpec | None = None
        if of is None and all(t.dtype == to for t in inputs.tensors):
            return
        self.tensor = one(
            self.name, inputs, of, lambda t: of is not None or t.dtype != to, f"what is not {to} yet"
        )
        source = np.dtype(self.tensor.dtype)
        self.factor = _factor(source, self.to) if scale else None
        # All numbers of these dtypes fit: no check is needed.
        self.safe = np.can_cast(source, self.to, "safe") and not (
            source.kind in "iu" and self.to.kind == "f" and np.iinfo(source).bits > np.finfo(self.to).nmant
        )
        made = TensorSpec(self.tensor.name, to, self.tensor.shape, self.tensor.labels)
        self.outputs = with_tensors(self.name, inputs, self.tensor, made)

    def rows(self, arrays: Chunk) -> Chunk:
        if self.tensor is None:
            return arrays
        x = arrays[self.tensor.name]
        if self.factor is not None and self.to.kind == "f":
            # In float64, which holds an int32 exactly, and rounded once.
            made = (x * np.float64(self.factor)).astype(self.to)
        elif self.safe:
            made = x.astype(self.to)
        elif self.to.kind == "f":
            made = self._to_float(x)
        elif x.dtype.kind == "f":
            made = self._float_to_whole(x)
        else:
            low, high = _limits(self.to)
            made = self._fit(x, low, high).astype(self.to)
        return {**arrays, self.tensor.name: made}

    def _to_float(self, x: Array) -> Array:
        kind = np.finfo(self.to)
        limit = 2 ** (kind.nmant + 1)  # all integers up to this are exact in the float
        whole = x.dtype.kind in "iu" and x.size
        if whole and not self.round and (int(x.max()) > limit or int(x.min()) < -limit):
            self._refuse(x, (x > limit) | (x < -limit), f"{self.to} has gaps beyond {limit}; {ROUND}")
        with np.errstate(over="ignore"):
            made = x.astype(self.to)
        beyond = np.isinf(made) & np.isfinite(x)
        if beyond.any():
            if not self.saturate:
                self._refuse(x, beyond, f"{self.to} ends at {kind.max:g}; {SATURATE}")
            made = np.where(beyond, np.where(x > 0, kind.max, kind.min), made)
        return made

    def _float_to_whole(self, x: Array) -> Array:
        nan = np.isnan(x)
        if nan.any():
            raise NonFiniteError(f"cast: {self._name} is NaN at {_position(nan)}; {self.to} has no NaN")
        values = x.astype(np.float64) if self.factor is None else x * np.float64(self.factor)
        whole = np.rint(values)
        if self.factor is None and not self.round:
            broken = (whole != values) & np.isfinite(values)
            if broken.any():
                self._refuse(x, broken, f"a fraction is no {self.to}; {ROUND}")
        low, high = _limits(self.to)
        # 2**63 - 1 is not a float64, 2**63 is: so the upper bound is compared with the number after it.
        under, over = whole < float(low), whole >= float(high + 1)
        if under.any() or over.any():
            if not self.saturate:
                self._refuse(x, under | over, self._range(low, high))
            whole = np.where(under | over, 0.0, whole)
        made = whole.astype(self.to)
        made[under], made[over] = low, high
        return made

    def _fit(self, x: Array, low: int, high: int) -> Array:
        """Return integers or bools within low..high."""
        if x.dtype == bool or not x.size or (int(x.min()) >= low and int(x.max()) <= high):
            return x
        least, most = _limits(x.dtype)
        low, high = max(low, least), min(high, most)  # values that x's own dtype can be compared with
        if not self.saturate:
            self._refuse(x, (x < low) | (x > high), self._range(*_limits(self.to)))
        return np.clip(x, low, high)

    @property
    def _name(self) -> str:
        assert self.tensor is not None
        return repr(self.tensor.name)

    def _range(self, low: int, high: int) -> str:
        scaled = f" (-1 to just below 1, times {self.factor:g})" if self.factor is not None else ""
        return f"{self.to} is {low} to {high}{scaled}; {SATURATE}"

    def _refuse(self, x: Array, where: Array, why: str) -> None:
        value = x[tuple(np.argwhere(where)[0])]
        raise ChunkError(f"cast: {self._name} is {value!s} at {_position(where)}: {why}")


def _factor(source: np.dtype[np.generic], to: np.dtype[np.generic]) -> float:
    whole = to if source.kind == "f" else source
    if {source.kind, to.kind} != {"i", "f"} or whole.itemsize > 4:
        raise PipelineError(f"cast: scale is between int8, int16 or int32 and floats, not {source} and {to}")
    full = 2.0 ** (8 * whole.itemsize - 1)
    return full if to.kind == "i" else 1 / full


def _limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    if dtype.kind == "b":
        return 0, 1
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def _position(where: Array) -> str:
    first = tuple(int(i) for i in np.argwhere(where)[0])
    return f"time step {first[0]}" + (f", element {first[1:]}" if len(first) > 1 else "")


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"cast": Cast}
