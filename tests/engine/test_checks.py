"""Each law is broken by a stage made for it: a check that cannot fail is no check."""

from __future__ import annotations

import numpy as np
import pytest

from runnel import Engine, Framing, TensorSpec
from runnel.checks import LAWS, LawBroken, Trial, check_stage
from runnel.framing import Frame
from runnel.trial import noise
from tests import models
from tests.engine.law_breakers import (
    MUTANTS,
    Centre,
    Difference,
    Holding,
    Last,
    LateAndSaysSo,
    WheneverSlower,
)

# What is random is the same nowhere; what is kept in the stage shows wherever a stage has a second stream;
# any random cutting has empty chunks. So whoever breaks these breaks others as well.
ENTAILING = {"determinism", "isolation", "empty"}


@pytest.mark.parametrize(("mutant", "law"), MUTANTS, ids=lambda v: getattr(v, "__name__", v))
def test_each_broken_law_is_found_and_named(mutant, law):
    with pytest.raises(LawBroken, match=f"the law of {law} is broken") as caught:
        check_stage(mutant)
    assert caught.value.law == law, "and those before it are kept"


def test_every_law_has_a_stage_that_breaks_it_and_keeps_all_others():
    assert {law for _, law in MUTANTS} == set(LAWS)
    alone = {law for mutant, law in MUTANTS if broken(mutant) == {law}}
    assert alone == set(LAWS) - ENTAILING


def broken(factory):
    """The laws that the stage breaks, each tried by itself."""
    trial = Trial(factory, noise(Difference(), 0), 0, 1e-5)
    found = set()
    for name, law in LAWS.items():
        try:
            law(trial)
        except Exception:
            found.add(name)
    return found


@pytest.mark.parametrize("law", LAWS)
def test_every_law_says_how_to_keep_it(law):
    mutant = next(mutant for mutant, broken in MUTANTS if broken == law)
    with pytest.raises(LawBroken, match=r"(?s)\n\nThe law: .*\n\nTo keep it: .*\n\n\(stage '\w+', seed 7\)$"):
        check_stage(mutant, seed=7)


@pytest.mark.parametrize("good", [Difference, Holding, LateAndSaysSo, Last, Centre, WheneverSlower])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_stage_that_keeps_them_passes(good, seed):
    check_stage(good, seed=seed)


@pytest.mark.parametrize(("window", "hop"), [(5, 5), (9, 4), (16, 1)])
def test_the_engines_own_framing_keeps_the_laws(window, hop):
    check_stage(lambda: Frame(TensorSpec("x", "float32"), "frames", Framing(window, hop), 16000.0))


@pytest.mark.parametrize("model", [models.lstm, models.counter, models.embedding, models.stateless])
def test_the_model_as_a_stage_keeps_the_laws(model, tmp_path):
    hand = model(tmp_path / "model.onnx")
    check_stage(
        lambda: Engine.load(hand.path, max_streams=64, trust=True).pipeline.stages[0], models.data(hand, 64)
    )


def test_a_stage_that_only_raises_breaks_a_law_with_its_own_error_as_cause():
    class Raises(Difference):
        def step(self, state, chunk):
            raise KeyError("gone")

    with pytest.raises(LawBroken, match="KeyError: 'gone'") as caught:
        check_stage(Raises)
    assert isinstance(caught.value.__cause__, KeyError)


def test_samples_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at least 16 time steps"):
        check_stage(Difference, {"y": np.zeros((20, 2), np.float32)})
    with pytest.raises(ValueError, match="at least 16 time steps"):
        check_stage(Difference, {"x": np.zeros((3, 2), np.float32)})
