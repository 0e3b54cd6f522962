"""The laws of stages, as checks for a plugin author's own tests.

    from runnel.checks import check_stage

    def test_gain_keeps_the_laws():
        check_stage(lambda: Gain(Signal((TensorSpec("x", "float32"),)), factor=0.5))

`LAWS` maps the name of each law to a function of a `Trial`. `check_stage` runs all laws. They need numpy
only, and the same seed repeats the same trial.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import numpy as np

from .laws import batched, single, timing
from .laws.trial import LawBroken, Trial, noise
from .stage import Chunk, Stage

__all__ = ["LAWS", "LawBroken", "Trial", "check_stage"]

LAWS: Mapping[str, Callable[[Trial], None]] = {
    "signal": single.signal,
    "arrays": single.arrays,
    "determinism": single.determinism,
    "commit": single.commit,
    "ownership": single.ownership,
    "isolation": batched.isolation,
    "return": single.round_trip,
    "reset": single.reset,
    "empty": single.empty,
    "chunking": single.chunking,
    "batched": batched.batched,
    "finite": single.finite,
    "bounded": single.bounded,
    "latency": timing.latency,
    "flush": timing.flush,
}
"""The laws by name, in the order of `check_stage`: a law comes after the laws that it relies on."""


def check_stage(
    factory: Callable[[], Stage],
    samples: Chunk | None = None,
    seed: int = 0,
    tolerance: float = 1e-5,
) -> None:
    """Check every law of `LAWS` on a stage; raise LawBroken for the first broken one.

    `factory` takes no argument and makes a new stage at each call. `samples` is one chunk of the stage's
    inputs with at least 16 time steps. The default is 256 time steps of noise: pass real samples if noise has
    no meaning for the stage (tokens, probabilities, time stamps). Floats may differ by `tolerance` times the
    output's peak in the laws that change the order of the arithmetic (chunking, isolation, batched). All
    other comparisons are exact.
    """
    __tracebackhide__ = True  # pytest then shows the line of the author's test
    stage = factory()
    given = noise(stage, seed) if samples is None else {n: np.asarray(a) for n, a in samples.items()}
    if sorted(given) != sorted(stage.inputs.names) or any(len(a) < 16 for a in given.values()):
        raise ValueError(f"samples must hold at least 16 time steps of {stage.inputs}, not {sorted(given)}")
    trial = Trial(factory, given, seed, tolerance)
    for name, law in LAWS.items():
        try:
            law(trial)
        except LawBroken as broken:
            kept = LAWS[broken.law]  # a law may find that another law is broken
            raise LawBroken(broken.law, f"{broken.found}{_advice(kept, stage, seed)}") from broken.__cause__
        except Exception as error:
            raise LawBroken(
                name, f"the stage raised {type(error).__name__}: {error}{_advice(law, stage, seed)}"
            ) from error


def _advice(law: Callable[[Trial], None], stage: Stage, seed: int) -> str:
    """Return the law's docstring, and how to repeat the trial."""
    text = inspect.getdoc(law) or ""
    return f"\n\n{text}\n\n(stage {getattr(stage, 'name', '?')!r}, seed {seed})"
