"""Stages that keep every law, and stages that break one law each, for `test_checks`."""

from __future__ import annotations

import numpy as np

from runnel import RowStage, Signal, StackedStage, Stage, TensorSpec
from runnel.batch import Batch, BatchResult
from runnel.stage import require_finite

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


class Holding(Difference):
    """Returns each time step three steps late, and the rest at the flush."""

    latency = 3

    def initial(self):
        return {"held": np.zeros((0, 2), np.float32)}

    def step(self, state, chunk):
        require_finite("x", chunk["x"], self.name)
        seen = np.concatenate([state["held"], chunk["x"]])
        out = max(0, len(seen) - 3)
        return {"held": seen[out:].copy()}, {"x": seen[:out].copy()}

    def flush(self, state):
        return self.initial(), {"x": state["held"].copy()}


class WrongDtype(Difference):
    def step(self, state, chunk):
        state, out = super().step(state, chunk)
        return state, {"x": out["x"].astype(np.float64)}


class MeansNothing(Difference):
    ratio = (0, 1)


class ScalarOutput(Difference):
    def flush(self, state):
        return state, {"x": 3.0}


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


class OtherDtypeInState(Difference):
    """The state of `initial` is float32, but float64 after a step: its snapshot would be refused."""

    def step(self, state, chunk):
        new, out = super().step({"last": state["last"].astype(np.float32)}, chunk)
        return {"last": new["last"].astype(np.float64)}, out


class NumberInState(Difference):
    def initial(self):
        return {**super().initial(), "seen": np.array(0)}

    def step(self, state, chunk):
        new, out = super().step({"last": state["last"]}, chunk)
        return {**new, "seen": state["seen"] + len(chunk["x"])}, out  # a numpy scalar, not an array


class LosesStateInFlush(Difference):
    def flush(self, state):
        return {}, self.outputs.empty()


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


class BorrowsChunk(Difference):
    """Writes to its chunk and restores it: visible only if the chunk is read-only."""

    def step(self, state, chunk):
        new, out = super().step(state, chunk)
        chunk["x"][...] *= 2
        chunk["x"][...] /= 2
        return new, out


class LoadWrites(Difference):
    def load(self, state, arrays):
        state["last"][...] = arrays["last"]
        return {"last": arrays["last"].copy()}


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


class KeepsWhatItFlushed(Holding):
    def flush(self, state):
        return state, {"x": state["held"]}


class HidesState(Difference):
    """Stores data in the stage object; with one stream at a time it does not show."""

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


class TripsOnNothing(Difference):
    """Resets its state on an empty chunk."""

    def step(self, state, chunk):
        return super().step(state, chunk) if len(chunk["x"]) else (self.initial(), self.outputs.empty())


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


class LoadWritesLater(Difference):
    """Writes to the arrays that it loaded, which are read-only if they come from a snapshot."""

    def load(self, state, arrays):
        arrays["last"].setflags(write=True)
        return dict(arrays)


class OpensElsewhere(Difference):
    def open(self):
        return {"last": np.ones((1, 2), np.float32)}


class ResetKeeps(Difference):
    """Keeps a part of the used state over which it loads."""

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


class MixesEqual(StackedStage):
    """Takes the mean over the wrong axis: the streams', not the tensor's."""

    name = "mixes"

    def __init__(self):
        self.inputs = self.outputs = SIGNAL

    def initial(self):
        return {"last": np.zeros(2, np.float32)}

    def advance(self, state, chunk):
        x = chunk["x"]
        last = x[:, -1].copy() if x.shape[1] else state["last"].copy()
        return {"last": last}, {"x": x - x.mean(axis=0, keepdims=True) if x.shape[1] else x.copy()}


class Blends(Difference):
    """Correct alone, and in chunks of unequal length; in a batch its neighbours affect it."""

    def step_many(self, states, chunks):
        results = super().step_many(states, chunks)
        if (
            isinstance(chunks, Batch)
            and len(chunks) > 1
            and not any(isinstance(r, Exception) for r in results)
        ):
            rows = np.stack([out["x"] for _, out in results])
            results = BatchResult(
                [state for state, _ in results], Batch({"x": rows + 1e-3 * rows.sum(axis=0)})
            )
        return results


class CountsFromTheFirstAxis(RowStage):
    """Uses the first axis: time for one stream, but the streams for a batch."""

    name = "centre"

    def __init__(self):
        self.inputs = self.outputs = SIGNAL

    def rows(self, arrays):
        x = arrays["x"]
        return {"x": x - x.mean(axis=1, keepdims=True)}


class Sorts(Difference):
    def step_many(self, states, chunks):
        order = sorted(range(len(chunks)), key=lambda i: float(np.sum(chunks[i]["x"])))
        return super().step_many([states[i] for i in order], [chunks[i] for i in order])


class TakesAList(Difference):
    def step_many(self, states, chunks):
        return super().step_many(states, chunks.copy())  # a list has `copy`, a Batch has not


class Squeezes(Difference):
    """Correct for two streams and more; drops the axis for one."""

    def step_many(self, states, chunks):
        if isinstance(chunks, Batch):
            chunks = Batch(
                {
                    name: np.squeeze(array, 0) if len(array) == 1 else array
                    for name, array in chunks.arrays.items()
                }
            )
        return super().step_many(states, chunks)


class NeedsATimeStep(Difference):
    def step_many(self, states, chunks):
        if isinstance(chunks, Batch) and not chunks.steps:
            raise IndexError("no last time step")
        return super().step_many(states, chunks)


class BatchWrites(Difference):
    def step_many(self, states, chunks):
        results = super().step_many(states, chunks)
        if isinstance(chunks, Batch):
            chunks.arrays["x"][...] = 0
        return results


class BatchWritesStates(Difference):
    def step_many(self, states, chunks):
        results = super().step_many(states, chunks)
        for state, result in zip(states, results, strict=True):
            if isinstance(result, tuple):
                state["last"][...] = result[0]["last"]
        return results


class BatchKeepsChunks(Difference):
    def step_many(self, states, chunks):
        return [
            ({"last": chunk["x"][-1:]}, result[1])
            if isinstance(result, tuple) and len(chunk["x"])
            else result
            for chunk, result in zip(chunks, super().step_many(states, chunks), strict=True)
        ]


class BatchSwallows(Difference):
    """A stream with a bad chunk gets no output, instead of an error."""

    def step_many(self, states, chunks):
        results = super().step_many(states, chunks)
        return [
            (state, self.outputs.empty()) if isinstance(result, Exception) else result
            for state, result in zip(states, results, strict=True)
        ]


class KeepsNaN(Difference):
    def step(self, state, chunk):
        seen = np.concatenate([state["last"], chunk["x"]])
        return {"last": seen[-1:].copy()}, {"x": np.diff(seen, axis=0)}


class KeepsInfinity(KeepsNaN):
    def step(self, state, chunk):
        if np.isnan(chunk["x"]).any():
            raise ValueError("NaN")
        return super().step(state, chunk)


class Hoards(Difference):
    def initial(self):
        return {**super().initial(), "all": np.zeros((0, 2), np.float32)}

    def step(self, state, chunk):
        new, out = super().step(state, chunk)
        return {**new, "all": np.concatenate([state["all"], chunk["x"]])}, out


class KeepsAView(Difference):
    """Stores one time step, as a view of an array as long as the chunk."""

    def step(self, state, chunk):
        new, out = super().step(state, chunk)
        return {"last": np.concatenate([new["last"], chunk["x"]])[:1]}, out


class StatesTooMuch(Difference):
    latency = 5


class Late(Difference):
    """y[t] = x[t-1], but states latency 0."""

    def step(self, state, chunk):
        new, _ = super().step(state, chunk)
        return new, {"x": np.concatenate([state["last"], chunk["x"]])[:-1]}


class Holds(Holding):
    """Holds back output, but states latency 0."""

    latency = 0


class ForgetsFlush(Holding):
    def flush(self, state):
        return state, self.outputs.empty()


class FlushNeedsSomething(Holding):
    def flush(self, state):
        if not len(state["held"]):
            raise IndexError("nothing there")
        return super().flush(state)


class LateAndSaysSo(Late):
    latency = 1


class WrongRatio(Difference):
    ratio = (1, 2)


class SlowerThanStated(Difference):
    """Outputs every second time step, but states ratio (1, 1)."""

    def initial(self):
        return {**super().initial(), "phase": np.array(0)}

    def step(self, state, chunk):
        new, out = super().step({"last": state["last"]}, chunk)
        phase = (int(state["phase"]) + len(chunk["x"])) % 2
        return {**new, "phase": np.array(phase)}, {"x": out["x"][int(state["phase"]) :: 2].copy()}


class WheneverSlower(SlowerThanStated):
    """The same, but with ratio None: nothing is stated about the timing."""

    ratio = None


class Centre(CountsFromTheFirstAxis):
    def rows(self, arrays):
        return {"x": arrays["x"] - arrays["x"].mean(axis=-1, keepdims=True)}


class Last(MixesEqual):
    """y[t] = x[t-1], stacked."""

    latency = 1

    def advance(self, state, chunk):
        seen = np.concatenate([state["last"][:, None], chunk["x"]], axis=1)
        return {"last": seen[:, -1]}, {"x": seen[:, :-1].copy()}


MUTANTS = [
    (WrongDtype, "signal"),
    (RaggedOutput, "signal"),
    (ScalarOutput, "signal"),
    (MeansNothing, "signal"),
    (ListInState, "arrays"),
    (ObjectInState, "arrays"),
    (OtherDtypeInState, "arrays"),
    (NumberInState, "arrays"),
    (LosesStateInFlush, "arrays"),
    (Dice, "determinism"),
    (WritesState, "commit"),
    (WritesChunk, "commit"),
    (WritesStateThenFails, "commit"),
    (WritesStateInFlush, "commit"),
    (BorrowsChunk, "commit"),
    (LoadWrites, "commit"),
    (KeepsInput, "ownership"),
    (KeepsOutput, "ownership"),
    (KeepsWhatItFlushed, "ownership"),
    (HidesState, "isolation"),
    (CountsCalls, "empty"),
    (SpeaksWhenEmpty, "empty"),
    (TripsOnNothing, "empty"),
    (PerChunkMean, "chunking"),
    (LoadForgets, "return"),
    (LoadWritesLater, "return"),
    (OpensElsewhere, "reset"),
    (ResetKeeps, "reset"),
    (ForgetsFlush, "flush"),
    (FlushNeedsSomething, "flush"),
    (MixesStreams, "batched"),
    (MixesEqual, "batched"),
    (Blends, "batched"),
    (CountsFromTheFirstAxis, "batched"),
    (Sorts, "batched"),
    (BatchFailsWhole, "batched"),
    (TakesAList, "batched"),
    (Squeezes, "batched"),
    (NeedsATimeStep, "batched"),
    (BatchWrites, "batched"),
    (BatchWritesStates, "batched"),
    (BatchKeepsChunks, "batched"),
    (BatchSwallows, "batched"),
    (LosesOne, "batched"),
    (KeepsNaN, "finite"),
    (KeepsInfinity, "finite"),
    (Hoards, "bounded"),
    (KeepsAView, "bounded"),
    (StatesTooMuch, "latency"),
    (Late, "latency"),
    (Holds, "latency"),
    (WrongRatio, "latency"),
    (SlowerThanStated, "latency"),
]
