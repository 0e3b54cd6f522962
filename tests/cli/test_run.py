"""`runnel run`: every kind of input and output through a small model, and what is said when it cannot be."""

from __future__ import annotations

import argparse
import csv
import gc
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runnel import Engine, Signal, TensorSpec
from runnel.cli import run as command
from runnel.cli.main import main
from runnel.cli.pace import chunk_steps
from runnel.errors import ModelError, NonFiniteError, UsageError
from runnel.files import OutputFile
from tests.cli.support import open_sink, open_source

STATE = """
[[model.state]]
input = "h"
output = "h_next"
shape = ["slot", {width}]
"""


def leaky(path, width):
    """An ONNX step: h' = 0.5 h + x, y = h', peak = max |h'| of a step."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Mul", ["h", "half"], ["faded"]),
        helper.make_node("Add", ["faded", "x"], ["h_next"]),
        helper.make_node("Identity", ["h_next"], ["y"]),
        helper.make_node("Abs", ["h_next"], ["size"]),
        helper.make_node("ReduceMax", ["size"], ["peak"], axes=[1], keepdims=0),
    ]
    shape = ["N", width]
    graph = helper.make_graph(
        nodes, "leaky",
        [value("x", TensorProto.FLOAT, shape), value("h", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, shape), value("peak", TensorProto.FLOAT, ["N"]),
         value("h_next", TensorProto.FLOAT, shape)],
        [helper.make_tensor("half", TensorProto.FLOAT, [], [0.5])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, path)


@pytest.fixture
def pipeline(tmp_path):
    """Two numbers a tick at 100 Hz: x (T, 2) -> y (T, 2), peak (T,)."""
    leaky(tmp_path / "leaky.onnx", 2)
    path = tmp_path / "leaky.toml"
    path.write_text('[model]\npath = "leaky.onnx"\nrate = 100.0\n' + STATE.format(width=2))
    return path


@pytest.fixture
def sound_pipeline(tmp_path):
    """Samples at 16 kHz, four a step: samples (T,) -> y (T/4, 4), peak (T/4,)."""
    leaky(tmp_path / "sound.onnx", 4)
    path = tmp_path / "sound.toml"
    path.write_text(
        '[model]\npath = "sound.onnx"\nwindow = 4\nhop = 4\nrate = 16000\n'
        '[model.inputs]\nx = "samples"\n' + STATE.format(width=4)
    )
    return path


def runnel_run(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(list(map(str, words))))


def expected(pipeline, x):
    with Engine.load(pipeline) as engine, engine.open() as stream:
        first = stream.feed({engine.pipeline.inputs.names[0]: x})
        rest = stream.flush()
        return {name: np.concatenate([first[name], rest[name]]) for name in first}


@pytest.fixture
def x():
    return np.random.default_rng(3).standard_normal((300, 2)).astype(np.float32)


def write_csv(path, header, rows, separator=","):
    path.write_text("\n".join(separator.join(map(str, row)) for row in [header, *rows]) + "\n")
    return path


def read_csv(text):
    header, *rows = csv.reader(io.StringIO(text))
    return {name: np.array([row[i] for row in rows], np.float32) for i, name in enumerate(header)}


# Every input kind, every output kind


@pytest.mark.parametrize("chunk", ["1", "7", "0.1s", "250ms", "100000"])
def test_a_table_in_and_a_table_out_whatever_the_chunk(pipeline, tmp_path, x, chunk):
    source = write_csv(tmp_path / "in.csv", ["t", "x.1", "x.0"], [(i, b, a) for i, (a, b) in enumerate(x)])
    assert runnel_run(pipeline, source, "-o", tmp_path / "out.csv", "--chunk", chunk, "--quiet") == 0
    got, want = read_csv((tmp_path / "out.csv").read_text()), expected(pipeline, x)
    assert list(got) == ["y.0", "y.1", "peak"]
    np.testing.assert_array_equal(np.stack([got["y.0"], got["y.1"]], 1), want["y"])
    np.testing.assert_array_equal(got["peak"], want["peak"])


def test_one_input_takes_a_table_that_fits_exactly_or_the_chosen_columns(pipeline, tmp_path, x):
    named = write_csv(tmp_path / "a.tsv", ["temp", "press"], x, "\t")
    runnel_run(pipeline, named, "-o", tmp_path / "a.npy", "--quiet")
    swapped = write_csv(tmp_path / "b.csv", ["press", "n", "temp"], [(b, 5, a) for a, b in x])
    runnel_run(pipeline, swapped, "-o", tmp_path / "b.npy", "--columns", "temp,press", "--quiet")
    want = expected(pipeline, x)["y"]
    for name in ("a.npy", "b.npy"):
        np.testing.assert_array_equal(np.load(tmp_path / name)["y"], want)


def test_arrays_in_and_records_out(pipeline, tmp_path, x):
    np.save(tmp_path / "in.npy", x.astype(np.float64))
    runnel_run(pipeline, tmp_path / "in.npy", "-o", tmp_path / "out.npy", "--chunk", 64, "--quiet")
    got, want = np.load(tmp_path / "out.npy"), expected(pipeline, x)
    assert got.shape == (300,)
    np.testing.assert_array_equal(got["y"], want["y"])
    np.testing.assert_array_equal(got["peak"], want["peak"])


def test_records_in(pipeline, tmp_path, x):
    records = np.zeros(len(x), [("n", "int64"), ("x", "<f4", (2,))])
    records["x"] = x
    np.save(tmp_path / "in.npy", records)
    runnel_run(pipeline, tmp_path / "in.npy", "-o", tmp_path / "out.npy", "--quiet")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy")["y"], expected(pipeline, x)["y"])


def test_json_lines_out(pipeline, tmp_path, x):
    np.save(tmp_path / "in.npy", x)
    runnel_run(pipeline, tmp_path / "in.npy", "-o", tmp_path / "out.jsonl", "--quiet")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    want = expected(pipeline, x)
    np.testing.assert_array_equal(np.array([row["y"] for row in rows], np.float32), want["y"])
    np.testing.assert_array_equal(np.array([row["peak"] for row in rows], np.float32), want["peak"])


def test_raw_numbers_from_standard_input_and_a_table_to_standard_output(pipeline, x):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(pipeline), "-", "--quiet"],
        input=x.astype("<f4").tobytes(), capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    got = read_csv(done.stdout.decode())
    np.testing.assert_array_equal(got["peak"], expected(pipeline, x)["peak"])
    assert done.stderr == b""


@pytest.mark.parametrize("kind", [".wav", ".flac"])
def test_sound_in(sound_pipeline, tmp_path, kind):
    soundfile = pytest.importorskip("soundfile")
    samples = np.round(np.random.default_rng(0).uniform(-1, 1, 1001) * 32767) / 32768
    soundfile.write(tmp_path / f"in{kind}", samples, 16000, subtype="PCM_16")
    runnel_run(
        sound_pipeline, tmp_path / f"in{kind}", "-o", tmp_path / "out.npy", "--chunk", "10ms", "--quiet"
    )
    got, want = np.load(tmp_path / "out.npy"), expected(sound_pipeline, samples.astype(np.float32))
    assert len(got) == 251  # the flush fills the last window
    np.testing.assert_array_equal(got["y"], want["y"])


def test_a_channel_is_chosen(sound_pipeline, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    samples = np.random.default_rng(0).uniform(-1, 1, (400, 2)).astype(np.float32)
    soundfile.write(tmp_path / "in.wav", samples, 16000, subtype="FLOAT")
    runnel_run(
        sound_pipeline, tmp_path / "in.wav", "-o", tmp_path / "out.npy", "--columns", "2", "--quiet"
    )  # fmt: skip
    np.testing.assert_array_equal(
        np.load(tmp_path / "out.npy")["y"], expected(sound_pipeline, samples[:, 1].copy())["y"]
    )
    with pytest.raises(UsageError, match="2 of its 2 channels are chosen, but the pipeline takes 1"):
        runnel_run(sound_pipeline, tmp_path / "in.wav", "--quiet")
    with pytest.raises(UsageError, match="no channel '3'; it has the channels 1 to 2"):
        runnel_run(sound_pipeline, tmp_path / "in.wav", "--columns", "3", "--quiet")


def test_too_few_channels_are_told_without_advice_that_cannot_help(pipeline, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "in.wav", np.zeros(9, np.float32), 100)
    with pytest.raises(UsageError, match=r"takes 2 numbers a time step .*, and the file has 1 channel$"):
        runnel_run(pipeline, tmp_path / "in.wav", "--quiet")


def test_a_rate_that_only_the_sound_file_states_is_told(sound_pipeline, tmp_path, capsys):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "in.wav", np.zeros(8, np.float32), 22050)
    sound_pipeline.write_text(sound_pipeline.read_text().replace("rate = 16000\n", ""))
    runnel_run(sound_pipeline, tmp_path / "in.wav", "-o", tmp_path / "out.npy", "--quiet")
    (line,) = capsys.readouterr().err.splitlines()
    assert "the pipeline states no rate" in line
    assert "in.wav is 22050 Hz: say rate under [model] (or export with rate=)" in line


def test_sound_at_another_rate_is_refused_and_resampled_as_the_error_says(sound_pipeline, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    samples = np.random.default_rng(0).uniform(-1, 1, 4800).astype(np.float32)
    soundfile.write(tmp_path / "in.wav", samples, 48000, subtype="FLOAT")
    with pytest.raises(
        UsageError, match=r"48000 Hz, but the pipeline takes 16000 Hz: .* rate = 48000 under \[input\]"
    ):
        runnel_run(sound_pipeline, tmp_path / "in.wav", "--quiet")
    text = sound_pipeline.read_text()
    sound_pipeline.write_text(text + '[input]\nrate = 48000\n[[before]]\nuse = "resample"\nrate = 16000\n')
    runnel_run(sound_pipeline, tmp_path / "in.wav", "-o", tmp_path / "out.npy", "--quiet")
    assert len(np.load(tmp_path / "out.npy")) == 400


def test_sound_out(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    with open_sink(tmp_path / "out.wav", Signal((TensorSpec("y", "float32"),), 8000.0)) as write:
        write({"y": values[:10]})
        write({"y": values[10:]})
    got, rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert rate == 8000
    np.testing.assert_array_equal(got, values)


def test_one_array_out_is_a_plain_npy(tmp_path):
    values = np.arange(70_000, dtype=np.int64).reshape(-1, 2)
    with open_sink(tmp_path / "out.npy", Signal((TensorSpec("y", "int64", (2,)),))) as write:
        for part in np.array_split(values, 7):
            write({"y": part})
        write({"y": values[:0]})
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), values)


def test_numbers_survive_a_table_and_json_says_null_for_what_it_cannot_say(tmp_path):
    spec = Signal((TensorSpec("a", "float32"), TensorSpec("b", "bool"), TensorSpec("c", "int64")))
    chunk = {
        "a": np.array([0.1, -np.inf, 1e-30], np.float32),
        "b": np.array([True, False, True]),
        "c": np.array([2**62 + 1, -1, 0]),
    }
    for name in ("out.csv", "out.jsonl"):
        with open_sink(tmp_path / name, spec) as write:
            write(chunk)
    assert (tmp_path / "out.csv").read_text() == "a,b,c\n0.1,1,4611686018427387905\n-inf,0,-1\n1e-30,1,0\n"
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[1] == {"a": None, "b": False, "c": -1}
    assert lines[0]["c"] == 2**62 + 1


TWO = Signal((TensorSpec("token", "int64"), TensorSpec("v", "float32", (2,))))


def read_all(path, spec, block=3):
    with open_source(path, spec) as source:
        chunks = list(source.chunks(block))
    assert all(1 <= len(c["token"]) <= block for c in chunks)
    return {n: np.concatenate([c[n] for c in chunks]) for n in spec.names}


def test_two_inputs_from_a_table_and_from_records(tmp_path):
    token, v = np.array([2**60 + 1, -2, 3, 4]), np.arange(8, dtype=np.float32).reshape(4, 2)
    rows = [(b, t, a) for t, (a, b) in zip(token, v, strict=True)]
    records = np.zeros(4, [("v", ">f8", (2,)), ("token", "i8")])
    records["token"], records["v"] = token, v
    np.save(tmp_path / "in.npy", records)
    for path in (write_csv(tmp_path / "in.csv", ["v.1", "token", "v.0"], rows), tmp_path / "in.npy"):
        got = read_all(path, TWO)
        assert {n: a.dtype.str for n, a in got.items()} == {"token": "<i8", "v": "<f4"}
        np.testing.assert_array_equal(got["token"], token)
        np.testing.assert_array_equal(got["v"], v)


def test_two_inputs_need_their_names(tmp_path):
    np.save(tmp_path / "in.npy", np.zeros((4, 2), np.float32))
    with pytest.raises(UsageError, match="one array, but the pipeline has several inputs"):
        read_all(tmp_path / "in.npy", TWO)
    with pytest.raises(UsageError, match=r"no column 'token' \(known: a, b, c\)\. Choose with --columns"):
        read_all(write_csv(tmp_path / "in.csv", ["a", "b", "c"], [(1, 2, 3)]), TWO)


@pytest.mark.parametrize(("cell", "says"), [("2.5", "not a whole number"), (str(2**70), "token: int64")])
def test_a_cell_that_is_no_int64(tmp_path, cell, says):
    source = write_csv(tmp_path / "in.csv", ["token", "v.0", "v.1"], [(1, 2, 3), (cell, 2, 3)])
    with pytest.raises(UsageError, match=says):
        read_all(source, TWO)


# What cannot be


@pytest.mark.parametrize(
    ("header", "rows", "says"),
    [
        (["x.0", "x.2"], [(1, "a")], r"no column 'x.1'.* x.0, x.2, 1 of them"),
        (["x.1", "a"], [(1, 2)], "no column 'x.0'.* its columns are x.1, a, 2 of them hold numbers"),
        (["id", "a", "note"], [(1, 2, "n")], r"are id, a, note, 2 of .* which, in order, with --columns$"),
        (["id", "a", "b"], [(1, 2, 3)], r"are id, a, b, 3 of .* 2 are needed.* such as --columns a,b$"),
        ([1, "2e3"], [(3, 4)], "in.csv: its first row holds numbers, not column names: add a header row"),
        (["", "nan"], [(3, 4)], "in.csv: its first row holds numbers, not column names"),
        (["a;b"], [("1;2",)], r"separated by ';': add \?sep=; behind its name, .*: '.*in\.csv\?sep=;'"),
        (["a\tb"], [("1\t2",)], r"separated by '\\t': add \?sep=tab behind"),
        (["x.0", "x.1"], [], "in.csv: has a header and no rows"),
        (["x.0", "x.1"], [(1, 2), (3, "nan")], "line 3, column 'x.1': 'nan' is not a finite number"),
        (["x.0", "x.1"], [(1, 2)] * 70 + [("", 3)], "line 72, column 'x.0': '' is not a finite number"),
        (["x.0", "x.1"], [(1, 2), (3,)], "line 3, column 'x.1': the row ends before it, after 1 cells"),
        ([], [], "in.csv: its first row is blank: it must hold the names of the columns"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_says_where(pipeline, tmp_path, header, rows, says):
    source = write_csv(tmp_path / "in.csv", header, rows)
    with pytest.raises(UsageError, match=says):
        runnel_run(pipeline, source, "-o", tmp_path / "out.csv", "--chunk", 64, "--quiet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.csv", "leaky.onnx", "leaky.toml"]


def test_a_table_without_anything(pipeline, tmp_path, capsys):
    (tmp_path / "in.csv").write_text("")
    with pytest.raises(UsageError, match=r"in\.csv: is empty"):
        runnel_run(pipeline, tmp_path / "in.csv", "--quiet")
    assert capsys.readouterr().out == "", "no header of an output that there is not"


def test_columns_whose_names_are_numbers_can_be_chosen(pipeline, tmp_path, x):
    source = write_csv(tmp_path / "in.csv", ["1", "2"], x)
    runnel_run(pipeline, source, "-o", tmp_path / "out.npy", "--columns", "1,2", "--quiet")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy")["y"], expected(pipeline, x)["y"])


def test_a_chosen_column_that_is_not_there_names_the_nearest(pipeline, tmp_path):
    source = write_csv(tmp_path / "in.csv", ["temp", "press"], [(1, 2)])
    with pytest.raises(UsageError, match=r"no column 'pres' \(did you mean 'press'\?\)"):
        runnel_run(pipeline, source, "--columns", "temp,pres", "--quiet")
    with pytest.raises(UsageError, match="--columns names 1, but a time step holds 2 numbers"):
        runnel_run(pipeline, source, "--columns", "temp", "--quiet")


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((5, 3), np.float32), r"has shape \(5, 3\), but the pipeline takes x: float32 \(T, 2\)"),
        (np.zeros((5, 2), np.complex64), "is complex64, but the pipeline takes x: float32"),
        (np.float32(3), "one array with time as its first axis"),
        (np.zeros(5, [("z", "f4")]), "no field 'x'"),
    ],
)
def test_an_array_that_does_not_fit(pipeline, tmp_path, array, says):
    np.save(tmp_path / "in.npy", array)
    with pytest.raises(UsageError, match=says):
        runnel_run(pipeline, tmp_path / "in.npy", "--quiet")


def test_a_pickle_is_refused(pipeline, tmp_path):
    np.save(tmp_path / "in.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(UsageError, match=r"not a \.npy file of plain numbers"):
        runnel_run(pipeline, tmp_path / "in.npy", "--quiet")


def test_a_nan_in_an_array_says_which_chunk(pipeline, tmp_path, x):
    x[130, 1] = np.nan
    np.save(tmp_path / "in.npy", x)
    (tmp_path / "out.csv").write_text("what was there\n")
    with pytest.raises(NonFiniteError, match=r"in\.npy: in the chunk that begins at time step 100: .*'x'"):
        runnel_run(pipeline, tmp_path / "in.npy", "-o", tmp_path / "out.csv", "--chunk", 100, "--quiet")
    assert (tmp_path / "out.csv").read_text() == "what was there\n"
    assert not list(tmp_path.glob(".*"))


def test_raw_input_that_is_cut_off(pipeline):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(pipeline), "-", "--quiet"],
        input=bytes(8 * 5 + 3), capture_output=True, timeout=60,
    )  # fmt: skip
    assert b"standard input ended 3 bytes into time step 5, which takes 8" in done.stderr
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["missing.csv"], "missing.csv: cannot read it: No such file"),
        (["missing.wav"], "missing.wav: cannot read it: No such file"),
        (["in.xyz"], r"kind of input is told by the name's ending, and .xyz is not one \(known: .*\.csv"),
        (["in.npy", "-o", "out.xyz"], "kind of output is told by the name's ending, and .xyz"),
        (["in.npy", "-o", "no/such/folder/out.csv"], "out.csv: cannot write it"),
        (["in.npy", "-o", "out.wav"], "a sound file holds one float32 or int16 array"),
        (
            ["in.npy", "--columns", "x"],
            "--columns is for sources that have such an option, and 'npy' has none",
        ),
        (["in.npy", "--chunk", "fast"], "--chunk 'fast': a number of time steps"),
        (["in.npy", "--chunk", "0"], "1 to 16777216"),
        (["in.npy", "--chunk", "2.5"], "whole"),
        (["in.wav"], "not a sound file that libsndfile reads"),
    ],
)
def test_a_wrong_word_on_the_command_line(pipeline, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    np.save("in.npy", np.zeros((4, 2), np.float32))
    if words[0] == "in.wav":
        pytest.importorskip("soundfile")
        leaky("one.onnx", 1)
        pipeline.write_text('[model]\npath = "one.onnx"\n' + STATE.format(width=1))
        (tmp_path / "in.wav").write_bytes(b"no sound")
    with pytest.raises(UsageError, match=says):
        runnel_run(pipeline, *words, "--quiet")
    assert not list(tmp_path.glob("*out*"))


def test_without_soundfile_the_error_says_what_to_install(pipeline, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    (tmp_path / "in.wav").write_bytes(b"")
    with pytest.raises(UsageError, match=r"need the package soundfile .*pip install 'runnel\[audio\]'"):
        runnel_run(pipeline, tmp_path / "in.wav", "--quiet")


def test_a_pipeline_that_is_missing(tmp_path):
    with pytest.raises(ModelError, match="cannot read the model"):
        runnel_run(tmp_path / "no.onnx", "-", "--quiet")


# Interrupts, lengths, the last line

PROGRAM = """
import argparse, sys
from runnel.cli import run
parser = argparse.ArgumentParser()
run.add_arguments(parser)
sys.exit(run.run(parser.parse_args()))
"""


@pytest.mark.parametrize(
    ("number", "status", "says"),
    [(signal.SIGINT, 130, "runnel: stopped, nothing written\n"), (signal.SIGTERM, 143, "")],
)
def test_a_signal_leaves_no_half_file_and_what_was_there(pipeline, tmp_path, number, status, says):
    np.save(tmp_path / "in.npy", np.zeros((100_000, 2), np.float32))  # 1000 s at 100 Hz
    (tmp_path / "out.csv").write_text("what was there\n")
    source, target = tmp_path / "in.npy", tmp_path / "out.csv"
    command = [sys.executable, "-m", "runnel.cli.main", "run", pipeline, source, "-o", target]
    process = subprocess.Popen([*command, "--realtime", "--quiet"], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".out.csv.*.part")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(tmp_path.glob(".out.csv.*.part")), "it was under way when it was interrupted"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, errors) == (status, says)
    assert (tmp_path / "out.csv").read_text() == "what was there\n"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("stop", "says"), [(KeyboardInterrupt, "nothing written"), (SystemExit, "")])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "npy"])
def test_a_signal_while_the_outputs_are_opened_leaves_no_half_file(
    pipeline, tmp_path, monkeypatch, suffix, stop, says
):
    np.save(tmp_path / "in.npy", np.zeros((4, 2), np.float32))
    opened = OutputFile.__init__

    def interrupted(self, *args, **options):
        opened(self, *args, **options)
        raise stop

    monkeypatch.setattr(OutputFile, "__init__", interrupted)
    with pytest.raises(stop) as caught:
        runnel_run(pipeline, tmp_path / "in.npy", "-o", tmp_path / f"out.{suffix}", "--quiet")
    assert " ".join(caught.value.args) == says
    del caught
    gc.collect()
    assert not list(tmp_path.glob("*out*"))
    assert not list(tmp_path.glob(".*"))


def test_an_output_that_nobody_closes_leaves_nothing(tmp_path):
    program = (
        "import os; from pathlib import Path; from runnel.files import OutputFile; "
        "out = OutputFile(Path('out')); assert os.listdir(), 'its part is there'"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, timeout=60, check=True)
    assert not list(tmp_path.iterdir())


def test_an_output_keeps_the_part_of_another(tmp_path):
    first = OutputFile(tmp_path / "out")
    with pytest.raises(UsageError, match="cannot write it"):
        OutputFile(tmp_path / "out")
    gc.collect()
    first.file.write(b"whole")
    first.close(True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_bytes() == b"whole"


def test_an_output_that_is_a_device_is_written_and_not_replaced(pipeline, tmp_path, x):
    np.save(tmp_path / "in.npy", x)
    fifo = tmp_path / "out.csv"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(pipeline), str(tmp_path / "in.npy"), "-o", str(fifo), "--quiet"]
    )
    try:
        assert len(read_csv(fifo.read_text())["peak"]) == len(x)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
    assert fifo.is_fifo()


def test_realtime_needs_a_rate(pipeline, tmp_path):
    np.save(tmp_path / "in.npy", np.zeros((4, 2), np.float32))
    pipeline.write_text(pipeline.read_text().replace("rate = 100.0\n", ""))
    with pytest.raises(UsageError, match="--realtime: the pipeline has no rate, nor has the input"):
        runnel_run(pipeline, tmp_path / "in.npy", "--realtime")
    with pytest.raises(UsageError, match="--chunk 10ms: the pipeline has no rate"):
        runnel_run(pipeline, tmp_path / "in.npy", "--chunk", "10ms")


@pytest.mark.parametrize(
    ("text", "rate", "realtime", "steps"),
    [
        ("160", None, False, 160),
        ("20ms", 16000.0, False, 320),
        ("0.1s", 8000.0, True, 800),
        (None, 16000.0, True, 1600),
        (None, 2.0, True, 1),
        (None, 16000.0, False, 4096),
    ],
)
def test_chunk_lengths(text, rate, realtime, steps):
    assert chunk_steps(text, rate, realtime) == steps


def test_quiet_is_quiet_and_else_the_last_line_says_what_was_done(pipeline, tmp_path, x, capsys):
    np.save(tmp_path / "in.npy", x)
    runnel_run(pipeline, tmp_path / "in.npy", "-o", tmp_path / "out.csv", "--quiet")
    assert capsys.readouterr().err == ""
    runnel_run(pipeline, tmp_path / "in.npy", "-o", tmp_path / "out.csv")
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("300 time steps, ")
    assert last.endswith("× real time, 300 rows out")


def test_a_state_that_blows_up_is_told_once_and_the_output_is_whole(pipeline, tmp_path, capsys):
    pipeline.write_text(pipeline.read_text() + "[health]\nevery = 1\nblown_up = 100\n")
    np.save(tmp_path / "x.npy", np.full((20, 2), 80, np.float32))
    out = tmp_path / "y.csv"
    words = ["run", str(pipeline), str(tmp_path / "x.npy"), "-o", str(out), "--chunk", "1", "--quiet"]
    assert main(words) == 0
    assert capsys.readouterr().err == ("runnel: warning: blown up: state 'leaky.h' reached 120, beyond 100\n")
    assert len(out.read_text().splitlines()) == 21
