"""Sampling: draw a class from a model's distribution, such as a text generator's next character.

    p[i] = exp(x[i] / temperature) / sum over j of exp(x[j] / temperature)

The `top_k` most likely classes are kept, and of these the fewest, most likely first, that together have at
least `top_p`; their probabilities are scaled to sum to 1 again. The class drawn is the first whose cumulative
probability, in the order of the classes, exceeds a uniform number u. (A. Fan, M. Lewis, Y. Dauphin,
Hierarchical Neural Story Generation, 2018: top-k; A. Holtzman and others, The Curious Case of Neural Text
Degeneration, 2020: top-p.)

The n-th u of a stream is a function of the seed and of n alone: the upper 53 bits, times 2^-53, of
SplitMix64's n-th output (G. Steele, D. Lea, C. Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA
2014). So the state of the generator is two numbers, and a replay draws the same. Latency 0.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np

import runnel
import runnel.snapshot
from runnel.errors import NonFiniteError, PipelineError, SnapshotError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal, TensorSpec
from runnel.stage import Arrays, Chunk

from . import _names
from ._choose import is_classes, one, with_tensors

LEAST_TEMPERATURE = 1e-6  # except 0, which is the limit itself
MAX_SEED = 2**63 - 1  # the range of TOML's integers
SEED, DRAWN = "sample_seed", "sample_drawn"


class Sample(runnel.StackedStage):
    """Draw one class per time step at random, by the model's scores.

    Input: a float32 array (T, ..., n) with the scores (logits or log-probabilities; with `probabilities`, the
    probabilities) of n classes on its last axis; `of` names it if there are several. A class with -inf cannot
    be drawn. Output, in its place:

    - ``token`` int64 (T, ...): the class;
    - ``probability`` float32: the probability with which it was drawn.

    Other arrays pass. `temperature` below 1 prefers likely classes more, and 0 always takes the most likely.
    `top_k` 0 and `top_p` 1 keep all classes. Names of the classes, for sinks to write: `alphabet`, a text
    with one character per class, or `vocabulary`, a UTF-8 file with one name per line.

    Every stream begins with the same `seed`: the same inputs make the same choices, now and in a replay, and
    two streams of a pipeline draw the same numbers. If they should differ, `reseeded` gives a snapshot
    another seed.

    Raises PipelineError if no such array arrives, for an option out of range, and if the names are too many,
    too few or unreadable; NonFiniteError for a time step with a NaN or +inf, or with only -inf.
    """

    name = "sample"
    finite = False  # -inf has a meaning; other values are refused in `advance`

    def __init__(
        self,
        inputs: Signal,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        probabilities: bool = False,
        alphabet: str | None = None,
        vocabulary: Path | None = None,
        of: str | None = None,
    ) -> None:
        taken = one("sample", inputs, of, is_classes, "a float32 array with classes on its last axis")
        classes = taken.shape[-1]
        if temperature != 0 and not LEAST_TEMPERATURE <= temperature <= 1 / LEAST_TEMPERATURE:
            raise PipelineError(f"sample: temperature must be 0 or in 1e-6..1e6, not {temperature:g}")
        if not 0 <= top_k <= classes:
            raise PipelineError(f"sample: top_k must be in 0..{classes}, the number of classes, not {top_k}")
        if not 0 < top_p <= 1:
            raise PipelineError(f"sample: top_p must be above 0 and at most 1, not {top_p:g}")
        if not 0 <= seed <= MAX_SEED:
            raise PipelineError(f"sample: seed must be in 0..{MAX_SEED}, not {seed}")
        called = _names.given("sample", "alphabet and vocabulary", alphabet, vocabulary)
        if called is not None:
            _names.check_count("sample", called, classes)
        self._of, self._shape, self._classes = taken.name, taken.shape[:-1], classes
        self._temperature, self._top_p, self._seed = temperature, top_p, seed
        self._top_k = 1 if temperature == 0 else top_k or classes
        self._probabilities = probabilities
        self.inputs = inputs
        self.outputs = with_tensors(
            "sample", inputs, taken,
            TensorSpec("token", "int64", self._shape, called or ()),
            TensorSpec("probability", "float32", self._shape),
        )  # fmt: skip

    def initial(self) -> Arrays:
        """The state, both uint64 ().

        - `sample_seed`: the generator's seed.
        - `sample_drawn`: random numbers drawn, modulo 2^64.
        """
        return {SEED: np.array(self._seed, np.uint64), DRAWN: np.array(0, np.uint64)}

    def advance(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Chunk]:
        given = chunk[self._of]
        shape = given.shape[:-1]
        weights = self._weights(given)
        count = math.prod(shape[1:])
        numbers = uniform(state[SEED][:, None], state[DRAWN][:, None] + np.arange(count, dtype=np.uint64))
        sums = np.cumsum(weights, axis=-1)
        total = sums[..., -1]
        # u is at most 1 - 2^-53: even rounded, the product is below the total, and a class exceeds it.
        target = numbers.reshape(shape) * total
        token = (sums <= target[..., None]).sum(-1)
        chosen = np.take_along_axis(weights, token[..., None], -1)[..., 0] / total
        rows: dict[str, Array] = {}
        for name, array in chunk.items():
            if name == self._of:
                rows |= {
                    "token": token.astype(np.int64, copy=False),
                    "probability": chosen.astype(np.float32),
                }
            else:
                rows[name] = array.copy()
        return {SEED: state[SEED].copy(), DRAWN: state[DRAWN] + np.uint64(count)}, rows

    def _weights(self, given: Array) -> Array:
        """Return the weights of the classes for the draw: float64, 0 for those that cannot be drawn."""
        scores = given.astype(np.float64)
        if self._probabilities:
            self._require(np.asarray((scores >= 0).all(-1)), "a probability below 0, or nan")
            with np.errstate(divide="ignore"):
                scores = np.log(scores)
        best = scores.max(-1, keepdims=True)
        self._require(np.isfinite(best[..., 0]), "nan, inf or nothing but -inf")
        weights: Array = np.exp((scores - best) / (self._temperature or 1.0))
        if self._top_k == self._classes and self._top_p == 1:
            return weights
        # Stable: of equal classes the first is kept.
        order = np.argsort(-weights, axis=-1, kind="stable")[..., : self._top_k]
        kept = np.take_along_axis(weights, order, -1)
        if self._top_p < 1:
            sums = np.cumsum(kept, axis=-1)
            # A class is not needed if those before it have enough.
            kept[..., 1:][sums[..., :-1] >= self._top_p * sums[..., -1:]] = 0
        weights[...] = 0
        np.put_along_axis(weights, order, kept, -1)
        return weights

    def _require(self, good: Array, what: str) -> None:
        if not good.all():
            step = int(np.argwhere(~good)[0][1])
            raise NonFiniteError(
                f"sample: {self._of!r} has {what} at time step {step}; the chunk was not applied"
            )


def uniform(seed: Array, n: Array) -> Array:
    """Return number n of the sequences with these seeds: float64 in [0, 1).

    n counts from 0; both are uint64.
    """
    z = seed + (n + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    made: Array = (z >> np.uint64(11)) * 2.0**-53
    return made


def reseeded(blob: bytes, seed: int) -> bytes:
    """Return a snapshot in which each `sample` stage draws from another seed, from its start.

    ``engine.restore(reseeded(stream.snapshot(), 7))`` is a stream that makes other choices from there. Raises
    SnapshotError for bytes that are not a snapshot, or the snapshot of a pipeline without `sample`.
    """
    snapshot = runnel.snapshot.decode(blob)
    if not 0 <= seed <= MAX_SEED:
        raise SnapshotError(f"seed must be in 0..{MAX_SEED}, not {seed}")
    found, stages = False, []
    for name, arrays in snapshot.stages:
        after = dict(arrays)
        for key in arrays:  # a stage around this one may prefix the key with its own name
            if key.endswith(SEED):
                found, after[key] = True, np.array(seed, np.uint64)
            elif key.endswith(DRAWN):
                after[key] = np.array(0, np.uint64)
        stages.append((name, after))
    if not found:
        raise SnapshotError("the snapshot is of a pipeline without a 'sample' stage: nothing to seed")
    return runnel.snapshot.encode(dataclasses.replace(snapshot, stages=tuple(stages)))


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"sample": Sample}
