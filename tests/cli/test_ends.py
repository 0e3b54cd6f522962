"""Ends as they are written: files, NAME:ARGUMENT?key=value, a pipeline's tables; strangers'; many sinks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from runnel import Signal, TensorSpec
from runnel.cli import run as command
from runnel.cli.connectors import Outputs, declared_connectors, open_connector, parse_connector, sinks_of
from runnel.errors import PipelineError, PluginError, UsageError
from runnel.loading.registry import Option, from_text
from tests.cli.support import read
from tests.cli.test_run import STATE, leaky

X = Signal((TensorSpec("x", "float32", (2,)),), 100.0)


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    leaky(tmp_path / "leaky.onnx", 2)
    path = tmp_path / "leaky.toml"
    path.write_text('[model]\npath = "leaky.onnx"\nrate = 100.0\n' + STATE.format(width=2))
    return path


def runnel_run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([*map(str, words), "--quiet"]))


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of somebody else's with a source and a sink ``edf``."""
    info = tmp_path / "site" / "edf-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edf\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[runnel]\nedf = edf_files\n")
    (info.parent / "edf_files.py").write_text('''
from pathlib import Path
import numpy as np
import runnel

class Edf(runnel.Source):
    """Read EDF."""

    def __init__(self, signal: runnel.Signal, path: Path, gain: float = 1.0):
        self.signal, self.values = signal, [gain * float(n) for n in path.read_text().split()]

    def chunks(self, block):
        (tensor,) = self.signal.tensors
        for value in self.values:
            yield {tensor.name: np.full((1, *tensor.shape), value, tensor.dtype)}

class EdfSink(runnel.Sink):
    def __init__(self, signal: runnel.Signal, path: Path):
        self.path, self.rows = path, 0

    def write(self, chunk):
        self.rows += len(next(iter(chunk.values())))

    def close(self, whole):
        self.path.write_text(f"{self.rows} {whole}")

@runnel.hookimpl
def runnel_sources():
    return {"edf": Edf}

@runnel.hookimpl
def runnel_sinks():
    return {"edf": EdfSink}
''')  # fmt: skip
    monkeypatch.syspath_prepend(info.parent)
    monkeypatch.delitem(sys.modules, "edf_files", raising=False)


def test_a_strangers_ends_are_reached_as_ours_are(stranger: None, pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "in.edf").write_text("1 2 3")
    out = tmp_path / "out.EDF"
    for source in (f"{tmp_path}/in.edf", f"{tmp_path}/in.edf?gain=2", f"edf:{tmp_path}/in.edf?gain=2"):
        runnel_run(pipeline, source, "-o", out, "-o", tmp_path / "out.npy")
        assert out.read_text() == "3 True"
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy")["peak"], [2, 5, 8.5])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("wav", "wav is a source, and no file: write wav:PATH$"),
        ("gain", "told by the name's ending, and none is not one"),
        ("x.gain2", r"and .gain2 is not one \(known: .*\.csv, .*\.wav\)$"),
        ("x.cvs", r"and .cvs is not one \(did you mean '.csv'\?\)"),
        ("hots:", r"no source 'hots' is installed \(did you mean 'host'\?\)"),
        ("resample:", "'resample' of runnel .* is a stage, not a source"),
        ("prometheus:", "is a sink, not a source"),
        ("host:?rate", "expected key=value, or several with & between, not 'rate'"),
        ("host:?rate=1&rate=2", "'rate' is given twice"),
        ("host:?rat=1", r"source 'host' has no option 'rat' \(did you mean 'rate'\?\), a number"),
        ("host:?rate=fast", "option 'rate' of source 'host' takes a number, not 'fast'"),
        ("lines:-?baud=1.5", "option 'baud' of source 'lines' takes a whole number, not '1.5'"),
        ("sub:", "source 'sub' needs the option address: a text"),
        ("npy:", "source 'npy' needs the option path: a path"),
    ],
)
def test_what_cannot_be_meant(text: str, says: str) -> None:
    with pytest.raises((UsageError, PipelineError, PluginError), match=rf"^INPUT: .*{says}"):
        open_connector(parse_connector("source", text), X)


def test_an_argument_is_the_first_option_and_values_are_unquoted(tmp_path: Path) -> None:
    end = parse_connector("source", "sub:tcp://127.0.0.1:5556?topic=a%26b+c&queue=5")
    assert (end.use, end.first, end.texts) == (
        "sub", "tcp://127.0.0.1:5556", {"topic": "a&b+c", "queue": "5"}
    )  # fmt: skip
    (tmp_path / "a?time=t.csv").write_text("x.0,x.1\n1,2\n")
    (chunk,) = read(tmp_path / "a?time=t.csv", X)  # a file of that very name
    assert chunk["x"].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("true", bool, True),
        ("yes", bool, "yes"),
        ("12", int, 12),
        ("12", float, 12.0),
        ("1e3", float, 1000.0),
        ("1e3", int, "1e3"),
        ("3", int | str | None, 3),
        ("mic", int | str | None, "mic"),
        ("1.5", int | float, 1.5),
        ("12", str, "12"),
        ("12", Path, "12"),
        ("a,b", list[str] | None, ["a", "b"]),
        ("1,b", list[int], [1, "b"]),
        ("", list[str], []),
        ("nan", Literal["refuse", "nan"], "nan"),
    ],
)
def test_text_becomes_the_options_type(text: str, kind: object, value: object) -> None:
    got = from_text(text, Option("o", kind))
    assert got == value
    assert type(got) is type(value)


# A pipeline's own ends


def test_a_pipeline_with_its_own_ends(pipeline: Path, tmp_path: Path) -> None:
    """Their paths are relative to its file; the command line takes their place."""
    np.save(tmp_path / "in.npy", np.ones((3, 2), np.float32))
    np.save(tmp_path / "other.npy", np.ones((5, 2), np.float32))
    pipeline.write_text(
        pipeline.read_text()
        + '[source]\nuse = "npy"\npath = "in.npy"\n'
        + '[[sink]]\nuse = "npy"\npath = "out.npy"\n[[sink]]\nuse = "jsonl"\npath = "out.jsonl"\n'
    )
    runnel_run(pipeline)
    assert np.load(tmp_path / "out.npy").shape == (3,)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3
    runnel_run(pipeline, tmp_path / "other.npy", "-o", tmp_path / "mine.npy")
    assert np.load(tmp_path / "mine.npy").shape == (5,)
    assert np.load(tmp_path / "out.npy").shape == (3,)
    with pytest.raises(UsageError, match=r"--columns is for an INPUT; write columns = … under \[source\]"):
        runnel_run(pipeline, "--columns", "a,b")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[source]\n", r"p.toml: \[source\]: use must be a text, not None"),
        ('source = "host"\n', "source must be a table"),
        ('[sink]\nuse = "csv"\n', r"sink must be written as \[\[sink\]\] tables"),
        ('[[sink]]\nuse = "csv"\n' * 17, r"17 \[\[sink\]\] tables; at most 16"),
    ],
)
def test_tables_of_ends_that_are_none(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(PipelineError, match=says):
        declared_connectors(tmp_path / "p.toml")


def test_an_option_of_a_table_is_checked_and_the_error_says_where(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('[source]\nuse = "host"\nrate = "2"\n[[sink]]\nuse = "csv"\npth = "x"\n')
    source, (sink,) = declared_connectors(tmp_path / "p.toml")
    assert source is not None
    with pytest.raises(PipelineError, match=r"p.toml: \[source\] \(host\): option 'rate' .* takes a number"):
        open_connector(source, X)
    with pytest.raises(PipelineError, match=r"\[\[sink\]\] \(csv\): sink 'csv' has no option 'pth' .*'path'"):
        open_connector(sink, X)
    assert declared_connectors(tmp_path / "model.onnx") == (None, [])


def test_no_input_at_all(pipeline: Path) -> None:
    with pytest.raises(UsageError, match=r"INPUT is needed: .* or a \[source\]"):
        runnel_run(pipeline)


# Several outputs


def test_all_sinks_end_whole_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = {"x": np.ones((2, 2), np.float32)}
    ends = sinks_of([f"{tmp_path}/a.csv", f"{tmp_path}/b.npy"])
    with Outputs(ends, X, keep=False) as outputs:
        outputs.write(chunk)
    assert outputs.rows == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "b.npy"]
    with pytest.raises(ZeroDivisionError), Outputs(sinks_of([f"{tmp_path}/c.csv"]), X, False):
        raise ZeroDivisionError
    with pytest.raises(UsageError, match="no/such"):
        Outputs(sinks_of([f"{tmp_path}/d.csv", f"{tmp_path}/no/such/e.csv"]), X, False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "b.npy"]


def test_a_sink_that_cannot_end_whole_leaves_the_later_ones_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = sinks_of([f"{tmp_path}/a.csv", f"{tmp_path}/b.csv", f"{tmp_path}/c.csv"])
    outputs = Outputs(ends, X, False)
    outputs.write({"x": np.ones((2, 2), np.float32)})
    closed = outputs._sinks[1].close

    def full(whole: bool) -> None:
        closed(False)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs._sinks[1], "close", full)
    with pytest.raises(OSError, match="No space left"), outputs:
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"-o: x.csv is given twice"):
        sinks_of(["x.csv", "x.csv"])
    with pytest.raises(UsageError, match="17 outputs; at most 16"):
        sinks_of([f"{n}.csv" for n in range(17)])
    with pytest.raises(UsageError, match=r"^-o: .*the kind of output is told by the name's ending"):
        sinks_of(["x.xyz"])
    with pytest.raises(PluginError, match=r"-o: .*'host' of runnel .* is a source, not a sink"):
        open_connector(sinks_of(["host:"])[0], X)


def _written(outputs: Outputs, *chunks: dict[str, np.ndarray]) -> None:
    for chunk in chunks:
        outputs.write(chunk)


def test_what_a_live_run_made_is_kept_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Outputs(sinks_of([f"{tmp_path}/x.csv"]), X, keep=True) as outputs:
        _written(outputs, {"x": np.ones((1, 2), np.float32)}, {})
    assert (tmp_path / "x.csv").read_text() == "x.0,x.1\n1.0,1.0\n"


# So much, and by when


def test_only_so_much(pipeline: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.ones((300, 2), np.float32))
    for words, rows in (
        (("--steps", 7), 7),
        (("--steps", 70, "--chunk", 64), 70),
        (("--for", "500ms"), 50),  # of a file: by its rate
        (("--for", "1s", "--steps", 120), 100),
        (("--steps", 9999), 300),
    ):
        runnel_run(pipeline, tmp_path / "in.npy", "-o", tmp_path / "out.npy", *words)
        assert len(np.load(tmp_path / "out.npy")) == rows
    for words, says in (
        (("--steps", 0), "--steps 0: a whole number of at least 1"),
        (("--for", "10"), "--for '10': a time above 0, as 10s"),
        (("--for", "0s"), "--for '0s'"),
        (("--for", "9999h"), "--for '9999h'"),
    ):
        with pytest.raises(UsageError, match=says):
            runnel_run(pipeline, tmp_path / "in.npy", *words)
    pipeline.write_text(pipeline.read_text().replace("rate = 100.0\n", ""))
    with pytest.raises(UsageError, match="--for: the pipeline has no rate, nor has the input: say --steps"):
        runnel_run(pipeline, tmp_path / "in.npy", "--for", "1s")


@pytest.mark.parametrize("out", ["x.csv", "csv:x.csv", "./x.csv", "csv:?path=x.csv"])
def test_what_is_read_is_not_written_over(pipeline: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    monkeypatch.chdir(pipeline.parent)
    Path("x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match=r"-o: \.?/?x\.csv is what is read, and would be lost"):
        runnel_run(pipeline, "x.csv", "-o", out)
    assert Path("x.csv").read_text() == "a,b\n1,2\n"


def test_what_is_read_is_not_written_over_by_what_the_file_says(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pipeline.parent.parent)
    (pipeline.parent / "x.csv").write_text("a,b\n1,2\n")
    with pipeline.open("a") as file:
        file.write('[source]\nuse = "csv"\npath = "x.csv"\n[[sink]]\nuse = "csv"\npath = "x.csv"\n')
    with pytest.raises(UsageError, match=r"\[\[sink\]\] \(csv\): .*x\.csv is what is read"):
        runnel_run(pipeline)


@pytest.mark.parametrize(
    ("outs", "told"),
    [
        (["y.csv", "csv:y.csv"], r"-o: y\.csv is written by y\.csv already"),
        (["-", "jsonl:"], r"-o: standard output is written by standard output already"),
        (["tsv:", "csv:-"], r"-o: standard output is written by tsv: already"),
    ],
)
def test_two_outputs_do_not_write_to_one_place(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, outs: list[str], told: str
) -> None:
    monkeypatch.chdir(pipeline.parent)
    Path("x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match=told):
        runnel_run(pipeline, "x.csv", *(word for out in outs for word in ("-o", out)))
    assert sorted(path.name for path in Path().iterdir()) == ["leaky.onnx", "leaky.toml", "x.csv"]


def test_a_device_may_be_read_and_written_twice(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pipeline.parent)
    Path("x.csv").write_text("a,b\n1,2\n")
    assert runnel_run(pipeline, "x.csv", "-o", "csv:/dev/null", "-o", "jsonl:/dev/null") == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["host"], r"INPUT: host is a source, and no file: write host:"),
        (["x.csv", "-o", "plot"], r"-o: plot is a sink, and no file: write plot:"),
        (["plot"], r"INPUT: plot: the kind of input is told by the name's ending"),
    ],
)
def test_the_name_of_an_end_without_its_colon(pipeline: Path, words: list[str], told: str) -> None:
    (pipeline.parent / "x.csv").write_text("a,b\n1,2\n")
    words = [str(pipeline.parent / word) if word == "x.csv" else word for word in words]
    with pytest.raises(UsageError, match=told):
        runnel_run(pipeline, *words)
