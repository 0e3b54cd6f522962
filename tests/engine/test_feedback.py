"""Feedback: against loops written by hand over torch's layers, and the four laws."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import runnel_export
from runnel import Engine, Signal, TensorSpec, errors
from runnel import snapshot as snapshots
from runnel.batch import RowStage, StackedStage
from runnel.checks import check_stage
from runnel.loading.loader import load_pipeline
from runnel.loading.modelfile import RunOptions, read_model
from runnel.model.session import MAX_CELLS
from runnel.pipeline.feedback import Feedback, LoopInput, read
from runnel.pipeline.pipeline import Pipeline
from runnel.stage import MAX_STEPS, Stage, Steps
from tests import laws, models

WORDS = 11


class Reader(nn.Module):
    """A character model: a character's number in, the next one's scores out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 5)
        self.gru = nn.GRU(5, 7, batch_first=True)
        self.out = nn.Linear(7, WORDS)

    def forward(self, token: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.out(self.gru(self.embedding(token))[0])
        return scores


class Actor(nn.Module):
    """A controller: observation and last action in, next action out."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 6, batch_first=True)
        self.out = nn.Linear(6, 1)

    def forward(self, seen: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        done: torch.Tensor = torch.tanh(self.out(self.lstm(torch.cat((seen, action), -1))[0]))
        return done


class Greedy(RowStage):
    """Return the index of the highest score."""

    name = "greedy"

    def __init__(self, inputs: Signal) -> None:
        self.inputs = inputs
        self.outputs = Signal((TensorSpec("sampled", "int64"), *inputs.tensors), inputs.rate)

    def rows(self, arrays: Any) -> Any:
        [(name, scores)] = arrays.items()
        return {"sampled": scores.argmax(-1), name: scores}


class Count(StackedStage):
    """Passes a tensor on and counts; raises at the number `unlucky`."""

    name = "count"

    def __init__(self, inputs: Signal, unlucky: int = -1) -> None:
        self.inputs = self.outputs = inputs
        self.unlucky = unlucky

    def initial(self) -> Any:
        return {"seen": np.zeros((), np.int64)}

    def advance(self, state: Any, chunk: Any) -> Any:
        steps = next(iter(chunk.values())).shape[1]
        if ((state["seen"] <= self.unlucky) & (self.unlucky < state["seen"] + steps)).any():
            raise ValueError("an unlucky tick")
        return {"seen": state["seen"] + steps}, {name: array.copy() for name, array in chunk.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reader, Actor]:
    folder = tmp_path_factory.mktemp("loops")
    torch.manual_seed(0)
    reader, actor = Reader(), Actor()
    with torch.no_grad():
        for weight in reader.parameters():
            weight *= 3  # so that its output is not constant
    runnel_export.export(reader, {"token": torch.randint(0, WORDS, (2, 9))}, folder / "reader.onnx")
    example = {"seen": torch.randn(2, 9, 2), "action": torch.randn(2, 9, 1)}
    runnel_export.export(actor, example, folder / "actor.onnx")
    (folder / "actor.toml").write_text(
        '[model]\npath = "actor.onnx"\n[feedback]\naction = { output = "y", initial = [0.25] }\n'
    )
    return folder, reader, actor


def generator(files: tuple[Path, Reader, Actor], streams: int = 40, unlucky: int = -1) -> Engine:
    """Return an engine that generates the most likely characters, from number 3 on."""
    model = load_pipeline(files[0] / "reader.onnx", streams, None, 1, False, False).stages[0]
    count = Count(model.outputs, unlucky)
    inner = Pipeline([model, count, Greedy(count.outputs)], None, {})
    loop = Feedback(inner, [LoopInput(inner.inputs.tensors[0], "sampled", np.array(3))])
    return Engine(Pipeline([loop], None, {}), streams)


def written(reader: Reader, prompt: list[int], steps: int) -> list[int]:
    """The oracle: torch's own layers, called for one character at a time."""
    held, token, made = None, 3, []
    with torch.no_grad():
        for i in range(len(prompt) + steps):
            token = prompt[i] if i < len(prompt) else token
            y, held = reader.gru(reader.embedding(torch.tensor([[token]])), held)
            token = int(reader.out(y)[0, 0].argmax())
            made.append(token)
    return made


def test_generation_equals_a_loop_over_torch(files: tuple[Path, Reader, Actor]) -> None:
    stream = generator(files).open()
    assert stream._pipeline.inputs.names == ("token",)
    out = [stream.generate(n)["sampled"] for n in (1, 7, 2, 20)]
    assert [len(o) for o in out] == [1, 7, 2, 20]
    assert np.concatenate(out).tolist() == written(files[1], [], 30)
    assert stream.seq == 4
    assert len(set(written(files[1], [], 30))) > 2, "a loop that stands still would prove nothing"


def test_goes_on_from_a_prompt(files: tuple[Path, Reader, Actor]) -> None:
    """The prompt replaces the values fed back; generation then continues from the last output."""
    prompt = [5, 1, 1, 8]
    expected = written(files[1], prompt, 12)
    stream = generator(files).open()
    first = stream.feed(np.array(prompt))["sampled"]
    assert [*first, *stream.generate(12)["sampled"]] == expected
    stream.reset()
    parts = [stream.feed(np.array([token]))["sampled"] for token in prompt]
    assert np.concatenate([*parts, stream.generate(12)["sampled"]]).tolist() == expected


def test_a_controller_equals_torch(files: tuple[Path, Reader, Actor]) -> None:
    """Some inputs are given, one is fed back: the last action, 0.25 at first."""
    actor = files[2]
    seen = np.random.default_rng(0).standard_normal((25, 2)).astype(np.float32)
    held, action, expected = None, torch.tensor([[[0.25]]]), []
    with torch.no_grad():
        for row in torch.from_numpy(seen):
            y, held = actor.lstm(torch.cat((row[None, None], action), -1), held)
            action = torch.tanh(actor.out(y))
            expected.append(action[0, 0].numpy())
    with Engine.load(files[0] / "actor.toml") as engine:
        assert str(engine.pipeline.inputs) == "seen: float32 (T, 2)"
        assert engine.pipeline.state_bytes == 2 * 6 * 4
        assert engine.placement()["CPUExecutionProvider"]["LSTM"] == 1
        stream = engine.open()
        assert set(stream.state) == {"feedback.actor." + n for n in names(engine)} | {"feedback.fed.action"}
        made = np.concatenate([stream.feed(seen[a:b]) for a, b in ((0, 1), (1, 2), (2, 20), (20, 25))])
        np.testing.assert_allclose(made, expected, atol=1e-6)
        with pytest.raises(
            errors.ChunkError, match=r"cannot step without input, it takes seen.*feeds back all"
        ):
            stream.generate(3)
        assert stream.seq == 4


def names(engine: Engine) -> list[str]:
    [model] = engine.pipeline.unrolled.stages
    return list(model.initial())


SEEN = np.random.default_rng(2).standard_normal((30, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def actor(files: tuple[Path, Reader, Actor]) -> Engine:
    return Engine.load(files[0] / "actor.toml", max_streams=80)


@given(where=laws.cuts, ticks=st.integers(1, 30))
def test_chunking(actor: Engine, where: list[int], ticks: int) -> None:
    laws.chunking(actor, {"seen": SEEN[:ticks]}, where, 1e-6)


@given(data=st.data(), streams=st.integers(2, 12))
def test_isolation(actor: Engine, data: st.DataObject, streams: int) -> None:
    chunks = [{"seen": SEEN[i : i + data.draw(st.integers(1, 15))]} for i in range(streams)]
    laws.isolation(actor, chunks, [data.draw(laws.cuts) for _ in chunks], 1e-6)


@given(at=st.integers(0, 30))
def test_return(actor: Engine, at: int) -> None:
    laws.returning(actor, {"seen": SEEN}, at)


@given(tick=st.integers(0, 9))
def test_commit(actor: Engine, tick: int) -> None:
    """After an error at any tick of a chunk, the stream is unchanged bit for bit."""
    bad = SEEN[:10].copy()
    bad[tick, 1] = np.nan
    laws.commit(actor, {"seen": SEEN}, {"seen": bad}, errors.NonFiniteError, {"seen": SEEN[5:9]})
    with actor.open() as stream, pytest.raises(errors.NonFiniteError, match=f"in time step {tick} of 10"):
        stream.feed(bad)


def test_the_published_laws(files: tuple[Path, Reader, Actor]) -> None:
    check_stage(lambda: load_pipeline(files[0] / "actor.toml", 64, None, 1, False, False).stages[0])


def test_an_error_in_the_middle_of_generating(files: tuple[Path, Reader, Actor]) -> None:
    """Tick 12 of the stream fails: alone, in a batch, and after ticks that succeeded."""
    engine = generator(files, unlucky=12)
    stream, other = engine.open(), engine.open()
    stream.generate(8)
    before = stream.state
    for _ in range(2):
        with pytest.raises(
            errors.StageError, match=r"in time step 4 of 9: .*stage '1: count'.*an unlucky tick"
        ):
            stream.generate(9)
        laws.same_state(before, stream.state)
    failed, fine = engine.generate_many([(stream, 9), (other, 9)])
    assert isinstance(failed, errors.StageError)
    laws.same_state(before, stream.state)
    assert fine["sampled"].tolist() == written(files[1], [], 9)
    assert (stream.seq, other.seq) == (1, 1)
    assert stream.generate(4)["sampled"].tolist() == written(files[1], [], 12)[8:]
    with pytest.raises(errors.StageError, match="unlucky"):
        stream.feed(np.array([1]))


def test_a_batch_of_64_equals_each_alone(files: tuple[Path, Reader, Actor]) -> None:
    """Prompts of all lengths and numbers of steps of all sizes, mixed in each call; some streams twice."""
    rng = np.random.default_rng(5)
    engine, single = generator(files, 64), generator(files, 1)
    prompts = [rng.integers(0, WORDS, rng.integers(1, 9)) for _ in range(64)]
    counts = rng.integers(1, 20, (2, 64)).tolist()
    streams = [engine.open() for _ in prompts]
    mixed: list[Any] = [
        (s, p if i % 2 else Steps(counts[0][i]))
        for i, (s, p) in enumerate(zip(streams, prompts, strict=True))
    ]
    first = engine.feed_many(mixed)
    rest = engine.generate_many([(s, n) for s, n in zip(streams, counts[1], strict=True)])
    again = engine.generate_many([(streams[0], 2), (streams[1], 3), (streams[0], 4)])
    assert [len(a["sampled"]) for a in again] == [2, 3, 4]
    for i, prompt in enumerate(prompts):
        with single.open() as alone:
            expected = [
                alone.feed(prompt) if i % 2 else alone.generate(counts[0][i]),
                alone.generate(counts[1][i]),
            ]
            for ours, theirs in zip((first[i], rest[i]), expected, strict=True):
                assert ours["sampled"].tolist() == theirs["sampled"].tolist()
                np.testing.assert_allclose(ours["y"], theirs["y"], atol=1e-6)


def test_snapshot_midway_and_reset(files: tuple[Path, Reader, Actor]) -> None:
    expected = written(files[1], [], 20)
    engine = generator(files)
    stream = engine.open()
    stream.generate(9)
    blob = stream.snapshot()
    assert stream.generate(11)["sampled"].tolist() == expected[9:]
    copy = generator(files).restore(blob)
    assert copy.seq == 1
    assert int(copy.state["feedback.fed.token"][0]) == expected[8]
    assert copy.generate(11)["sampled"].tolist() == expected[9:]
    copy.reset()
    assert copy.generate(20)["sampled"].tolist() == expected
    assert copy.flush()["sampled"].size == 0
    with pytest.raises(errors.StreamEndedError):
        copy.generate(1)


def test_outputs_share_no_memory_with_the_loop(actor: Engine) -> None:
    """The value fed back is not the array that the caller has."""
    stream, twin = actor.open(), actor.open()
    for _ in range(3):
        out = stream.feed(SEEN[:1])
        np.testing.assert_array_equal(out, twin.feed(SEEN[:1].copy()))
        out[...] = 9


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"fed.action": np.zeros((2, 1), np.float32)},
            r"'action' on its way back has shape \(2, 1\), expected",
        ),
        ({"fed.action": np.full((1, 1), np.nan, np.float32)}, "nan"),
        ({"fed.action": np.zeros((1, 1))}, "float64"),
        ({"fed.more": np.zeros((1, 1))}, "fed.more"),
    ],
)
def test_forged_snapshot_of_a_loop_is_refused(
    actor: Engine, change: dict[str, np.ndarray], says: str
) -> None:
    with actor.open() as stream:
        stream.feed(SEEN)
        held = snapshots.decode(stream.snapshot())
    [(name, arrays)] = held.stages
    blob = snapshots.encode(dataclasses.replace(held, stages=((name, {**arrays, **change}),)))
    before = len(actor.streams)
    with pytest.raises(errors.SnapshotError, match=says):
        actor.restore(blob)
    assert len(actor.streams) == before
    key = next(key for key in arrays if key.startswith("actor."))
    wrong = {**arrays, key: np.zeros((*arrays[key].shape[:-1], 99), np.float32)}
    blob = snapshots.encode(dataclasses.replace(held, stages=((name, wrong),)))
    with pytest.raises(errors.SnapshotError, match=r"'0: actor'|actor: state"):
        actor.restore(blob)


@pytest.mark.parametrize("count", [0, -1, MAX_STEPS + 1, 1.0, True, "7", None])
def test_how_many_steps(files: tuple[Path, Reader, Actor], count: Any) -> None:
    stream = generator(files).open()
    with pytest.raises(errors.ChunkError, match=rf"whole number in 1..{MAX_STEPS}, not"):
        stream.generate(count)
    engine = generator(files)
    bad, good = engine.open(), engine.open()
    refused, made, skipped = engine.generate_many([(bad, count), (good, 2), (bad, 2)])
    assert (type(refused), type(skipped)) == (errors.ChunkError, errors.StreamError)
    assert (len(made["y"]), bad.seq, good.seq, stream.seq) == (2, 0, 1, 0)


def test_the_most_steps(files: tuple[Path, Reader, Actor]) -> None:
    assert len(generator(files).open().generate(MAX_STEPS)["y"]) == MAX_STEPS


def test_value_that_blows_up_is_not_stored(tmp_path: Path) -> None:
    """s' = (s + x)²: the output is its own input, and soon exceeds float32."""
    hand = models.blowup(tmp_path / "m.onnx")
    model = onnx.load(hand.path)
    del model.metadata_props[:]
    graph = model.graph
    graph.node[2].CopyFrom(onnx.helper.make_node("Add", ["s.next", "s.next"], ["y"]))
    onnx.save(model, hand.path)
    (tmp_path / "p.toml").write_text(
        '[model]\npath = "m.onnx"\n[[model.state]]\ninput = "s"\noutput = "s.next"\nshape = ["slot", 1]\n'
        '[feedback]\nx = { output = "y", initial = [2] }\n'
    )
    with Engine.load(tmp_path / "p.toml") as engine:
        stream = engine.open()
        first = stream.generate(4)
        expected, s, x = [], np.float32(0), np.float32(2)
        for _ in range(4):
            s = np.square(s + x)
            x = s + s
            expected.append(x)
        np.testing.assert_allclose(first[:, 0], expected)
        before = stream.state
        with pytest.raises(errors.NonFiniteError, match=r"in time step \d+ of 9"):
            stream.generate(9)
        laws.same_state(before, stream.state)
        many = [engine.open() for _ in range(3)]
        for made in engine.generate_many([(s, 9) for s in many]):
            assert isinstance(made, errors.NonFiniteError)
        for out in engine.generate_many([(s, 4) for s in many]):
            np.testing.assert_array_equal(out, first)


def test_one_of_a_group_whose_state_blows_up_later(tmp_path: Path) -> None:
    """The failure is found after the run, when rows could be written: the others are not stepped twice."""
    models.blowup(tmp_path / "m.onnx")
    (tmp_path / "p.toml").write_text('[model]\npath = "m.onnx"\n[feedback]\nx = { output = "y" }\n')
    with Engine.load(tmp_path / "p.toml") as engine:
        starts = [np.full((1, 1), x, np.float32) for x in (0.1, 0.2, 0.3, 2)]
        group = [engine.open() for _ in starts]
        engine.feed_many(list(zip(group, starts, strict=True)))
        *fine, failed = engine.generate_many([(stream, 9) for stream in group])
        assert isinstance(failed, errors.NonFiniteError)
        assert "in time step 5 of 9: m: state 's' became non-finite" in failed.message
        for x, out in zip(starts, fine, strict=False):
            with engine.open() as alone:
                alone.feed(x)
                np.testing.assert_array_equal(out, alone.generate(9))


class Log(RowStage):
    """Returns the logarithm, which is NaN for negative numbers."""

    name = "log"

    def __init__(self, inputs: Signal) -> None:
        self.inputs = self.outputs = inputs

    def rows(self, arrays: Any) -> Any:
        with np.errstate(invalid="ignore"):
            return {name: np.log(array) for name, array in arrays.items()}


@pytest.mark.parametrize("streams", [1, 3])
def test_a_nan_is_not_fed_back(streams: int) -> None:
    """A NaN inside a prompt is refused, as it would be in two chunks."""
    signal = Signal((TensorSpec("x", "float32"),))
    loop = Feedback(Pipeline([Log(signal)], None, {}), [LoopInput(signal.tensors[0], "x", np.float32(2))])
    engine = Engine(Pipeline([loop], None, {}))
    opened = [engine.open() for _ in range(streams)]
    for made in engine.generate_many([(stream, 9) for stream in opened]):
        assert isinstance(made, errors.NonFiniteError)
        assert made.message.startswith("in time step 2 of 9: feedback: 'x' has nan")
    for made in engine.feed_many([(stream, np.array([3, -1, 3], np.float32)) for stream in opened]):
        assert isinstance(made, errors.NonFiniteError)
    for made in engine.generate_many([(stream, 2) for stream in opened]):
        np.testing.assert_allclose(made, [np.log(2), np.log(np.log(2))], rtol=1e-6)


def test_forks_of_more_streams_than_a_call_takes(tmp_path: Path) -> None:
    """Two groups, of which the second fails and is stepped again one by one: no tick is applied twice."""
    hand = models.embedding(tmp_path / "m.onnx")
    streams = MAX_CELLS + 3
    file = read_model({"path": "m.onnx"}, tmp_path, "m", RunOptions(streams, None, 1, False, False))
    stage: Any = file.stages(None, streams, streams)[0]
    rows = [stage.open() for _ in range(streams)]
    forks = [stage.fork(row) for row in rows]
    chunks = [{"token": np.array([i % 5])} for i in range(streams)]
    first = [row for row, _ in stage.step_many(forks, chunks)]
    chunks[-1] = {"token": np.array([77])}
    second = stage.step_many(first, chunks)
    assert isinstance(second[-1], errors.ChunkError)
    again = stage.step_many(first, chunks)
    for i, (made, twin) in enumerate(zip(second[:-1], again[:-1], strict=True)):
        assert made[0] == twin[0]
        landed = stage.land(rows[i], made[0])
        np.testing.assert_array_equal(stage.dump(landed)["acc"], 2 * hand_embedding(hand)[i % 5])
        assert not stage.dump(rows[i])["acc"].any()
    stage.drop(first[-1])
    assert (stage.arena.forked, stage.arena.used) == (0, streams)


def hand_embedding(hand: models.Hand) -> np.ndarray:
    graph = onnx.load(hand.path).graph
    return np.array(onnx.numpy_helper.to_array(next(w for w in graph.initializer if w.name == "E")))


# Which stages are allowed in a loop, and mistakes in [feedback]


class Late(RowStage):
    name = "late"
    latency = 2

    def __init__(self, inputs: Signal) -> None:
        self.inputs = self.outputs = inputs

    def rows(self, arrays: Any) -> Any:
        return dict(arrays)


class Half(Late):
    name = "half"
    latency = 0
    ratio = (1, 2)


class Rare(Late):
    name = "rare"
    latency = 0
    ratio = None


X = TensorSpec("x", "float32", (2,))


@pytest.mark.parametrize("kind", [Late, Half, Rare])
def test_stages_that_cannot_be_in_a_loop(kind: type[Stage]) -> None:
    stages = [Count(Signal((X,))), kind(Signal((X,)))]  # type: ignore[call-arg]
    with pytest.raises(errors.PipelineError, match=rf"stage '1: {kind.name}' cannot be in a loop: .*ratio"):
        Feedback(Pipeline(stages, None, {}), [LoopInput(X, "x", np.zeros(2, np.float32))])


class Liar(Late):
    """States that it makes one time step of each, and makes two."""

    name = "liar"
    latency = 0

    def rows(self, arrays: Any) -> Any:
        return {name: np.repeat(array, 2, -2) for name, array in arrays.items()}


def test_stage_with_more_output_than_declared_is_refused() -> None:
    loop = Feedback(Pipeline([Liar(Signal((X,)))], None, {}), [LoopInput(X, "x", np.zeros(2, np.float32))])
    engine = Engine(Pipeline([loop], None, {}))
    stream = engine.open()
    for call in (lambda: stream.generate(2), lambda: stream.feed(np.zeros((3, 2), np.float32))):
        with pytest.raises(errors.StageError, match=r"made . time steps of"):
            call()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"\[feedback\] names no input"),
        ("action = 3", "action must be a table"),
        (
            "actoin = { output = 'y' }",
            r"\[feedback\] actoin: the pipeline has no input 'actoin' .*'action'\?\)",
        ),
        ("action = {}", r"\[feedback\] action: output must be a text"),
        ("action = { output = 'z' }", r"action: the pipeline has no output 'z'.*it has y: float32 \(T, 1\)"),
        ("action = { output = 'y', intial = 1 }", r"unknown key 'intial' \(did you mean 'initial'\?\)"),
        ("action = { output = 'y', initial = nan }", "initial value is not finite"),
        ("action = { output = 'y', initial = [1, 2] }", "initial value does not fit"),
        ("action = { output = 'y', initial = 'no' }", "initial value does not fit"),
        ("seen = { output = 'y' }", r"y: float32 \(T, 1\) cannot be the next input seen: float32 \(T, 2\)"),
    ],
)
def test_mistakes(files: tuple[Path, Reader, Actor], tmp_path: Path, text: str, says: str) -> None:
    path = files[0] / "mistake.toml"
    path.write_text(f'[model]\npath = "actor.onnx"\n[feedback]\n{text}\n')
    with pytest.raises(errors.RunnelError, match=says):
        Engine.load(path)


@pytest.mark.parametrize("value", [0.5, float("nan"), 2**70, -1, "1"])
def test_an_initial_number_must_be_whole_for_whole_numbers(value: Any) -> None:
    """numpy would silently truncate 0.5 to 0."""
    inner = Pipeline([Count(Signal((TensorSpec("n", "uint8"),)))], None, {})
    assert read({"n": {"output": "n", "initial": 7}}, inner, "p").loop_inputs[0].initial == 7
    with pytest.raises(errors.RunnelError, match=r"initial (must be uint8|value does not fit)"):
        read({"n": {"output": "n", "initial": value}}, inner, "p")


def test_snapshot_fits_only_its_own_loop(files: tuple[Path, Reader, Actor], actor: Engine) -> None:
    """The outputs fed back, and their initial values, are part of the pipeline's identity."""
    with actor.open() as stream:
        blob = stream.snapshot()
    for text in ("", "[feedback]\naction = { output = 'y', initial = 0.5 }\n"):
        path = files[0] / "other.toml"
        path.write_text(f'[model]\npath = "actor.onnx"\n{text}')
        with Engine.load(path) as other, pytest.raises(errors.SnapshotError, match="must be the same"):
            other.restore(blob)
