"""Each law is broken by a stage made for it: a check that cannot fail is no check."""

from __future__ import annotations

import numpy as np
import pytest

from runnel import Engine, Framing, Signal, Stage, TensorSpec
from runnel.checks import LAWS, LawBroken, check_stage
from runnel.framing import Frame
from runnel.stage import require_finite
from tests import models

SIGNAL = Signal((TensorSpec("x", "float32", (2,)),), 100.0)


class Difference(Stage):
    """y[t] = x[t] - x[t-1], with x[-1] = 0: keeps every law. The mutants below each change one thing."""

    name = "difference"

    def __init__(self):
        self.inputs = self.outputs = SIGNAL

    def initial(self):
        return {"last": np.zeros((1, 2), np.float32)}

    def step(self, state, chunk):
        require_finite("x", chunk["x"], self.name)
        seen = np.concatenate([state["last"], chunk["x"]])
        return {"last": seen[-1:].copy()}, {"x": np.diff(seen, axis=0)}


class WrongDtype(Difference):
    def step(self, state, chunk):
        state, out = super().step(state, chunk)
        return state, {"x": out["x"].astype(np.float64)}


class RaggedOutput(Difference):
    def __init__(self):
        super().__init__()
        self.outputs = Signal((*SIGNAL.tensors, TensorSpec("n", "int64")))

    def step(self, state, chunk):
        state, out = super().step(state, chunk)
        return state, {**out, "n": np.zeros(len(out["x"]) + 1, np.int64)}


class ListInState(Difference):
    def step(self, state, chunk):
        new, out = super().step(state, chunk)
        return {**new, "seen": [1]}, out


class ObjectInState(Difference):
    def step(self, state, chunk):
        new, out = super().step(state, chunk)
        return {**new, "seen": np.array([None], object)}, out


class Dice(Difference):
    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng()

    def step(self, state, chunk):
        new, out = super().step(state, chunk)
        return new, {"x": out["x"] + self.rng.random(out["x"].shape, np.float32)}


class WritesState(Difference):
    def step(self, state, chunk):
        new, out = super().step(state, chunk)
        state["last"][...] = new["last"]
        return state, out


class WritesChunk(Difference):
    def step(self, state, chunk):
        new, out = super().step(state, chunk)
        chunk["x"][...] = 0
        return new, out


class WritesStateThenFails(Difference):
    def step(self, state, chunk):
        if len(chunk["x"]) and np.isnan(chunk["x"]).any():
            state["last"] += 1
        return super().step(state, chunk)


class WritesStateInFlush(Difference):
    def flush(self, state):
        state["last"] += 1
        return super().flush(state)


class KeepsInput(Difference):
    def step(self, state, chunk):
        new, out = super().step(state, chunk)
        return ({"last": chunk["x"][-1:]} if len(chunk["x"]) else new), out


class KeepsOutput(Difference):
    def initial(self):
        return {**super().initial(), "made": np.zeros((1, 2), np.float32)}

    def step(self, state, chunk):
        new, out = super().step(state, chunk)
        return {**new, "made": out["x"][-1:] if len(out["x"]) else state["made"]}, out


class HidesState(Difference):
    """Remembers in the stage object; with one stream at a time nobody would notice."""

    def __init__(self):
        super().__init__()
        self.hidden = None

    def step(self, state, chunk):
        if self.hidden is not None:
            state = {"last": self.hidden}
        new, out = super().step(state, chunk)
        self.hidden = new["last"]
        return new, out


class CountsCalls(Difference):
    def initial(self):
        return {**super().initial(), "calls": np.array(0.0, np.float32)}

    def step(self, state, chunk):
        new, out = super().step(state, chunk)
        if not len(chunk["x"]):
            return {**new, "calls": np.asarray(state["calls"] + 1)}, out
        return {**new, "calls": state["calls"]}, {"x": out["x"] + state["calls"]}


class SpeaksWhenEmpty(Difference):
    def step(self, state, chunk):
        new, out = super().step(state, chunk)
        return new, out if len(chunk["x"]) else {"x": np.zeros((1, 2), np.float32)}


class PerChunkMean(Difference):
    def step(self, state, chunk):
        new, out = super().step(state, chunk)
        return new, {"x": out["x"] - out["x"].mean(axis=0)} if len(out["x"]) else out


class LoadForgets(Difference):
    def load(self, state, arrays):
        return self.initial()


class OpensElsewhere(Difference):
    def open(self):
        return {"last": np.ones((1, 2), np.float32)}


class ResetKeeps(Difference):
    """What was loaded over a used state is not all that counts."""

    def load(self, state, arrays):
        return {"last": arrays["last"] + state["last"]}


class MixesStreams(Difference):
    def step_many(self, states, chunks):
        return [self.step(states[0], chunk) for chunk in chunks]


class BatchFailsWhole(Difference):
    def step_many(self, states, chunks):
        return [self.step(s, c) for s, c in zip(states, chunks, strict=True)]


class LosesOne(Difference):
    def step_many(self, states, chunks):
        return super().step_many(states, chunks)[:-1]


class KeepsNaN(Difference):
    def step(self, state, chunk):
        seen = np.concatenate([state["last"], chunk["x"]])
        return {"last": seen[-1:].copy()}, {"x": np.diff(seen, axis=0)}


class Hoards(Difference):
    def initial(self):
        return {**super().initial(), "all": np.zeros((0, 2), np.float32)}

    def step(self, state, chunk):
        new, out = super().step(state, chunk)
        return {**new, "all": np.concatenate([state["all"], chunk["x"]])}, out


class StatesTooMuch(Difference):
    latency = 5


class Late(Difference):
    """y[t] = x[t-1], but says latency 0."""

    def step(self, state, chunk):
        new, _ = super().step(state, chunk)
        return new, {"x": np.concatenate([state["last"], chunk["x"]])[:-1]}


class Holds(Difference):
    """Gives each row three steps late, and the rest at the flush, but says latency 0."""

    def initial(self):
        return {"held": np.zeros((0, 2), np.float32)}

    def step(self, state, chunk):
        require_finite("x", chunk["x"], self.name)
        seen = np.concatenate([state["held"], chunk["x"]])
        out = max(0, len(seen) - 3)
        return {"held": seen[out:].copy()}, {"x": seen[:out].copy()}

    def flush(self, state):
        return self.initial(), {"x": state["held"].copy()}


class HoldsAndSaysSo(Holds):
    latency = 3


class LateAndSaysSo(Late):
    latency = 1


class WrongRatio(Difference):
    ratio = (1, 2)


MUTANTS = [
    (WrongDtype, "signal"),
    (RaggedOutput, "signal"),
    (ListInState, "arrays"),
    (ObjectInState, "arrays"),
    (Dice, "determinism"),
    (WritesState, "commit"),
    (WritesChunk, "commit"),
    (WritesStateThenFails, "commit"),
    (WritesStateInFlush, "commit"),
    (KeepsInput, "ownership"),
    (KeepsOutput, "ownership"),
    (HidesState, "isolation"),
    (CountsCalls, "empty"),
    (SpeaksWhenEmpty, "empty"),
    (PerChunkMean, "chunking"),
    (LoadForgets, "return"),
    (OpensElsewhere, "reset"),
    (ResetKeeps, "reset"),
    (MixesStreams, "batched"),
    (BatchFailsWhole, "batched"),
    (LosesOne, "batched"),
    (KeepsNaN, "finite"),
    (Hoards, "bounded"),
    (StatesTooMuch, "latency"),
    (Late, "latency"),
    (Holds, "latency"),
    (WrongRatio, "latency"),
]


@pytest.mark.parametrize(("mutant", "law"), MUTANTS, ids=lambda v: getattr(v, "__name__", v))
def test_each_broken_law_is_found_and_named(mutant, law):
    with pytest.raises(LawBroken, match=f"the law of {law} is broken") as caught:
        check_stage(mutant)
    assert caught.value.law == law


def test_every_law_has_a_stage_that_breaks_it():
    assert {law for _, law in MUTANTS} == set(LAWS)


@pytest.mark.parametrize("good", [Difference, HoldsAndSaysSo, LateAndSaysSo])
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
