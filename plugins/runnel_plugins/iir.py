"""Recursive filters: sections of second order (biquads) in sequence.

A section b0, b1, b2, a0, a1, a2 computes

    a0 y[t] = b0 x[t] + b1 x[t-1] + b2 x[t-2] - a1 y[t-1] - a2 y[t-2]

in the transposed direct form II, whose two memories m are, for a0 = 1,

    y = b0 x + m1,    m1 <- b1 x - a1 y + m2,    m2 <- b2 x - a2 y

(A. Oppenheim and R. Schafer, Discrete-Time Signal Processing, 1989, chapter 6). Designed sections are those
of R. Bristow-Johnson, Cookbook formulae for audio EQ biquad filter coefficients, 1998: with w = 2 pi
frequency / rate and s = sin(w) / (2 q),

    lowpass   b = (1 - cos w) / 2 * (1, 2, 1)        a = (1 + s, -2 cos w, 1 - s) for all of them
    highpass  b = (1 + cos w) / 2 * (1, -2, 1)
    bandpass  b = (s, 0, -s), 0 dB at its peak
    notch     b = (1, -2 cos w, 1)

All sections together are one linear system, m' = A m + B x and y = C m + D x. So a block of samples is y = O
m + T x and m' = A**n m + K x, with tables made once: O has the rows C A**t, T the impulse response, and K the
columns A**(n-1-t) B. This needs a few matrix products instead of a loop over samples.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

import runnel
from runnel.batch import StackedStage
from runnel.errors import PipelineError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal
from runnel.stage import Arrays, Chunk, require_finite

from . import _given

Kind = Literal["lowpass", "highpass", "bandpass", "notch"]

MAX_SECTIONS = 32  # order 64: more than any filter that is accurate in float64; bounds the tables to 3 MB
BLOCK = 64  # samples per block: fewer need more steps, more need more products with zeros
TINY = 1e-30  # smaller memories become 0: they are inaudible, and denormals are slow


class Iir(StackedStage):
    """Filter every float array with biquads.

    Float arrays (T, ...) are filtered along time in float64 and returned in their dtype; other arrays pass
    unchanged. Give either `sections`, each [b0, b1, b2, a0, a1, a2], as in scipy.signal; or `kind` with
    `frequency` in Hz and `q` (default sqrt(1/2)), if the signal's rate is known. Latency 0: the delay of a
    filter depends on the frequency and is not counted.

    Raises PipelineError for both or neither of the two, sections that are malformed or unstable, a frequency
    not below half the rate, and if no float array arrives; NonFiniteError for a NaN or an infinity in a
    chunk, and for numbers so large that the memories would become infinite.
    """

    name = "iir"

    def __init__(
        self,
        inputs: Signal,
        sections: list[list[float]] | None = None,
        kind: Kind | None = None,
        frequency: float | None = None,
        q: float | None = None,
    ) -> None:
        self._floats = _given.floats(self.name, inputs, None)
        if (sections is None) == (kind is None):
            neither = "neither" if kind is None else "both"
            raise PipelineError(f"iir takes either sections or kind (with frequency and q), not {neither}")
        if kind is not None:
            sections = [design(kind, frequency, math.sqrt(0.5) if q is None else q, inputs.rate)]
        elif frequency is not None or q is not None:
            raise PipelineError("iir: frequency and q go with kind, not with sections")
        self.sections = checked(sections or [])
        self.inputs = self.outputs = inputs
        self._order = 2 * len(self.sections)
        with np.errstate(all="ignore"):
            self._make_tables()
        if not all(np.isfinite(table).all() for table in (self._response, self._drive, self._observe)):
            raise PipelineError("iir: the sections' numbers are too large: the filter would be infinite")

    def initial(self) -> Arrays:
        """The state `memory.NAME`: m1 and m2 of each section for each number of a time step.

        float64 (..., sections, 2), in the input's unit; 0 at first. (scipy.signal.sosfilt's `zi` with its
        first axis last but one.)
        """
        return {f"memory.{t.name}": np.zeros((*t.shape, len(self.sections), 2)) for t in self._floats}

    def advance(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Chunk]:
        after: dict[str, Array] = {}
        made = dict(chunk)
        for tensor in self._floats:
            given, memory = chunk[tensor.name], state[f"memory.{tensor.name}"]
            # Each number of each stream is a signal of its own: (signals, T), and (signals, order).
            lines = np.moveaxis(given, 1, -1) if given.ndim > 2 else given
            signals = memory.size // self._order
            samples = lines.reshape(signals, given.shape[1]).astype(np.float64)
            filtered, memories = self._filter(samples, memory.reshape(signals, self._order))
            rows = filtered.reshape(lines.shape)
            rows = np.moveaxis(rows, -1, 1) if given.ndim > 2 else rows
            made[tensor.name] = np.ascontiguousarray(rows, given.dtype)
            require_finite(f"memory.{tensor.name}", memories, self.name)
            after[f"memory.{tensor.name}"] = memories.reshape(memory.shape)
        return after, {n: a.copy() if a is chunk[n] else a for n, a in made.items()}

    def _filter(self, samples: Array, memory: Array) -> tuple[Array, Array]:
        """Return (signals, T) filtered, and the next memories; neither argument is changed."""
        signals, steps = samples.shape
        blocks, rest = divmod(steps, BLOCK)
        whole = blocks * BLOCK
        out = np.empty_like(samples)
        if blocks:
            cut = samples[:, :whole].reshape(signals * blocks, BLOCK)
            driven = (cut @ self._drive).reshape(signals, blocks, self._order)
            begins = np.empty_like(driven)
            for i in range(blocks):
                begins[:, i] = memory
                memory = memory @ self._powers[BLOCK] + driven[:, i]
            made = cut @ self._response
            made += begins.reshape(signals * blocks, self._order) @ self._observe
            out[:, :whole] = made.reshape(signals, whole)
        if rest:
            last = samples[:, whole:]
            out[:, whole:] = last @ self._response[:rest, :rest] + memory @ self._observe[:, :rest]
            memory = memory @ self._powers[rest] + last @ self._drive[BLOCK - rest :]
        return out, np.where(np.abs(memory) < TINY, 0.0, memory)

    def _make_tables(self) -> None:
        """Make the tables of the module's docstring, transposed, to multiply from the right."""
        a, b, c, d = state_space(self.sections)
        powers = [np.eye(self._order)]
        for _ in range(BLOCK):
            powers.append(a @ powers[-1])
        drive = np.stack([power @ b for power in reversed(powers[:BLOCK])])  # (BLOCK, order)
        observe = np.stack([c @ power for power in powers[:BLOCK]])
        impulse = np.concatenate(([d], observe[:-1] @ b))
        lag = np.arange(BLOCK) - np.arange(BLOCK)[:, None]
        self._response = np.where(lag >= 0, impulse[lag.clip(0)], 0.0)
        self._drive = drive
        self._observe = np.ascontiguousarray(observe.T)
        self._powers = np.stack([power.T for power in powers])


def design(kind: Kind, frequency: float | None, q: float, rate: float | None) -> list[float]:
    """Design one section by the cookbook."""
    if frequency is None:
        raise PipelineError(f"iir: a {kind} needs its frequency, in Hz")
    if rate is None:
        raise PipelineError(
            "iir: the rate of what comes in is not known: give [input] rate, in Hz, or sections"
        )
    if not 0 < frequency < rate / 2:
        raise PipelineError(
            f"iir: frequency must be above 0 and below {rate / 2:g} Hz, half the rate, not {frequency:g}"
        )
    if not 1e-3 <= q <= 1e6:
        raise PipelineError(f"iir: q must be in 0.001..1e6, not {q:g}")
    angle = 2 * math.pi * frequency / rate
    cos, spread = math.cos(angle), math.sin(angle) / (2 * q)
    numerators = {
        "lowpass": [(1 - cos) / 2, 1 - cos, (1 - cos) / 2],
        "highpass": [(1 + cos) / 2, -(1 + cos), (1 + cos) / 2],
        "bandpass": [spread, 0.0, -spread],
        "notch": [1.0, -2 * cos, 1.0],
    }
    if kind not in numerators:
        raise PipelineError(f"iir: kind must be one of {', '.join(numerators)}, not {kind!r}")
    return [*numerators[kind], 1 + spread, -2 * cos, 1 - spread]


def checked(sections: list[list[float]]) -> Array:
    """Return the sections as float64 (n, 6) with a0 = 1.

    Raises PipelineError if a section is malformed or unstable.
    """
    if not 1 <= len(sections) <= MAX_SECTIONS:
        raise PipelineError(f"iir: 1 to {MAX_SECTIONS} sections, not {len(sections)}")
    for i, section in enumerate(sections):
        if len(section) != 6 or not all(map(math.isfinite, section)) or not section[3]:
            raise PipelineError(
                f"iir: sections[{i}] must be six numbers b0, b1, b2, a0, a1, a2, a0 not 0, not {section}"
            )
        a1, a2 = section[4] / section[3], section[5] / section[3]
        # Both poles lie within the unit circle: the triangle of stability.
        if not (abs(a2) < 1 and abs(a1) < 1 + a2):
            largest = max(abs(np.roots([1, a1, a2])), default=0.0)
            raise PipelineError(
                f"iir: sections[{i}] is not stable: a pole at {largest:.6g} from 0, which must be below 1"
            )
    table = np.asarray(sections, np.float64)
    with np.errstate(over="ignore"):
        return np.asarray(table / table[:, 3:4])


def state_space(sections: Array) -> tuple[Array, Array, Array, float]:
    """Return A (n, n), B (n,), C (n,) and D of the system of all sections.

    The system is m' = A m + B x and y = C m + D x.
    """
    order = 2 * len(sections)
    a, b = np.zeros((order, order)), np.zeros(order)
    c, d = np.zeros(order), 1.0  # of the input of the next section: at first x itself
    for i, (b0, b1, b2, _, a1, a2) in enumerate(sections):
        at = slice(2 * i, 2 * i + 2)
        into = np.array([b1 - a1 * b0, b2 - a2 * b0])
        a[at] = np.outer(into, c)
        a[at, at] = [[-a1, 1.0], [-a2, 0.0]]
        b[at] = into * d
        c, d = b0 * c, b0 * d
        c[2 * i] = 1.0
    return a, b, c, float(d)


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"iir": Iir}
