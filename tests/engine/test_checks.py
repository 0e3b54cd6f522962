"""Each law is broken by a stage made for it, to show that the check can fail."""

from __future__ import annotations

import importlib
import re

import numpy as np
import pytest

from runnel import Engine, Framing, StackedStage, TensorSpec
from runnel.checks import LAWS, LawBroken, Trial, check_stage
from runnel.laws.trial import noise
from runnel.model.framing import Frame
from tests import models
from tests.engine.law_breakers import (
    MUTANTS,
    SIGNAL,
    Centre,
    Difference,
    Holding,
    Last,
    LateAndSaysSo,
    WheneverSlower,
)

# Random output differs everywhere, data stored in the stage shows in every law with two streams, and any
# random cuts include empty chunks. So a stage that breaks these laws breaks others as well.
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
    """Return the laws that the stage breaks, each tried alone."""
    trial = Trial(factory, noise(Difference(), 0), 0, 1e-5)
    found = set()
    for name, law in LAWS.items():
        try:
            law(trial)
        except Exception:
            found.add(name)
    return found


@pytest.mark.parametrize("law", LAWS)
def test_every_law_documents_how_to_keep_it(law):
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


class NoState(Difference):
    def initial(self):
        return None


class NumberForState(StackedStage):
    name = "number"

    def __init__(self):
        self.inputs = self.outputs = SIGNAL

    def initial(self):
        return {"n": 0}

    def advance(self, state, chunk):
        return {"n": state["n"] + 1}, dict(chunk)


class ChunkAlone(Difference):
    def step(self, state, chunk):
        return super().step(state, chunk)[1]


class LastOfNone(Difference):
    def step(self, state, chunk):
        return super().step(state, chunk) if chunk["x"][-1] is not None else None


class OfOneStep(Difference):
    def step(self, state, chunk):
        if len(chunk["x"]) > 1:
            raise ValueError("one at a time")
        return super().step(state, chunk)


@pytest.mark.parametrize(
    ("beginner", "law", "told"),
    [
        (NoState, "arrays", "a new stream's state is a NoneType, not a dict of arrays"),
        (NumberForState, "arrays", "a new stream's state 'n' is a int, not an array of numbers"),
        (ChunkAlone, "signal", "`step` gave a dict, not a pair: state, chunk"),
        (LastOfNone, "empty", "on a chunk of 0 time steps the stage raised IndexError: "),
        (OfOneStep, "signal", "on a chunk of 256 time steps the stage raised ValueError: one at a time"),
    ],
)
def test_beginners_mistakes_have_their_own_messages(beginner, law, told):
    with pytest.raises(LawBroken) as caught:
        check_stage(beginner)
    assert caught.value.law == law
    message = str(caught.value)
    assert message.startswith(f"the law of {law} is broken: {told}")
    assert LAWS[law].__doc__.split(".")[0] in message, "with the advice of that law"


def test_names_in_the_advice_exist():
    """An author who reads the advice imports the names in it."""
    for name in re.findall(r"`(runnel(?:\.\w+)+)", "".join(law.__doc__ for law in LAWS.values())):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute)


def test_samples_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at least 16 time steps"):
        check_stage(Difference, {"y": np.zeros((20, 2), np.float32)})
    with pytest.raises(ValueError, match="at least 16 time steps"):
        check_stage(Difference, {"x": np.zeros((3, 2), np.float32)})
