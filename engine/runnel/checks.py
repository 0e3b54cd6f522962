"""The laws that every stage keeps, as checks that an author's own tests can run.

    from runnel.checks import check_stage

    def test_gain_keeps_the_laws():
        check_stage(lambda: Gain(Signal((TensorSpec("x", "float32"),)), factor=0.5))

`LAWS` names them, each a function of a `Trial`; `check_stage` runs them all. They need numpy alone, and a
seed gives the same trial again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import numpy as np

from .laws import batched as laws_many
from .laws import single as laws
from .laws import timing as laws_time
from .laws.trial import LawBroken, Trial, noise
from .stage import Chunk, Stage

__all__ = ["LAWS", "LawBroken", "Trial", "check_stage"]

LAWS: Mapping[str, Callable[[Trial], None]] = {
    "signal": laws.signal,
    "arrays": laws.arrays,
    "determinism": laws.determinism,
    "commit": laws.commit,
    "ownership": laws.ownership,
    "isolation": laws_many.isolation,
    "return": laws.round_trip,
    "reset": laws.reset,
    "empty": laws.empty,
    "chunking": laws.chunking,
    "batched": laws_many.batched,
    "finite": laws.finite,
    "bounded": laws.bounded,
    "latency": laws_time.latency,
    "flush": laws_time.flush,
}
"""The laws by name, in the order in which `check_stage` tries them: what others rest on comes first."""


def check_stage(
    factory: Callable[[], Stage],
    samples: Chunk | None = None,
    seed: int = 0,
    tolerance: float = 1e-5,
) -> None:
    """Try every law of `LAWS` on the stage that `factory` makes; raise LawBroken for the first broken one.

    `factory` takes nothing and makes a new stage at each call. `samples` is one chunk of the stage's inputs,
    at least 16 time steps; without it, 256 steps of noise: give real ones to a stage for which noise means
    nothing (tokens, probabilities, time stamps). Floats may differ by `tolerance` times the output's peak
    where the law lets the arithmetic be done in another order (chunking, isolation, batched); everything else
    is exact.
    """
    __tracebackhide__ = True  # pytest then shows the author's own line
    stage = factory()
    given = noise(stage, seed) if samples is None else {n: np.asarray(a) for n, a in samples.items()}
    if sorted(given) != sorted(stage.inputs.names) or any(len(a) < 16 for a in given.values()):
        raise ValueError(f"samples must hold at least 16 time steps of {stage.inputs}, not {sorted(given)}")
    trial = Trial(factory, given, seed, tolerance)
    for name, law in LAWS.items():
        try:
            law(trial)
        except LawBroken as broken:
            kept = LAWS[broken.law]  # another than `law` where that is how it came to light
            raise LawBroken(broken.law, f"{broken.found}{_advice(kept, stage, seed)}") from broken.__cause__
        except Exception as error:
            raise LawBroken(
                name, f"the stage raised {type(error).__name__}: {error}{_advice(law, stage, seed)}"
            ) from error


def _advice(law: Callable[[Trial], None], stage: Stage, seed: int) -> str:
    """The law in its own words, and how to keep it: what an author needs beside what was found."""
    text = inspect.getdoc(law) or ""
    return f"\n\n{text}\n\n(stage {getattr(stage, 'name', '?')!r}, seed {seed})"
