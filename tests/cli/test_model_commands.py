"""`runnel export`, `verify` and `inspect`, as a user types them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from runnel.cli.main import main
from tests import models
from tests.export.zoo import exported

MODULE = """
import torch
from torch import nn

class Tagger(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.gru = nn.GRU(4, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 2)

    def forward(self, x):
        return self.fc(self.gru(x)[0])

class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(4, 3, batch_first=True, bidirectional=True)

    def forward(self, x):
        return self.gru(x)[0]

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 4)
        self.rnn = nn.RNN(4, 5, batch_first=True)

    def forward(self, tokens):
        return self.rnn(self.embed(tokens))[0]

class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(7, 4)

    def forward(self, x, h):
        h = torch.tanh(self.mix(torch.cat([x, h], -1)))
        return h * 2, h

made = Tagger(3)
number = 5
def five():
    return 5
"""


SWAPPED = """
class Right(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(5, 5)

    def forward(self, x, h, c):
        h, c = self.cell(x, (h, c))
        return h, h, c

class Swapped(Right):
    def forward(self, x, h, c):
        h, c = self.cell(x, (h, c))
        return h, c, h
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(MODULE)
    return str(tmp_path / "nets.py")


def run(*words: object) -> int:
    return main([str(w) for w in words])


def test_export_a_class_with_arguments_and_weights(source: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / "tagger.onnx"
    torch.manual_seed(99)
    weights = {
        "gru.weight_ih_l0": torch.randn(18, 4), "gru.weight_hh_l0": torch.randn(18, 6),
        "gru.bias_ih_l0": torch.randn(18), "gru.bias_hh_l0": torch.randn(18),
        "fc.weight": torch.randn(2, 6), "fc.bias": torch.tensor([20.0, -20.0]),
    }  # fmt: skip
    torch.save(weights, tmp_path / "w.pt")
    status = run("export", f"{source}:Tagger", "--args", '{"hidden": 6}', "--weights", tmp_path / "w.pt",
                 "--input", "float32[1,20,4]", "-o", out)  # fmt: skip
    assert status == 0
    shown = capsys.readouterr()
    assert "stepped" in shown.out
    assert "gru.h.0" in shown.out
    assert "proving" in shown.err
    assert "no --weights" not in shown.out + shown.err
    biases = [onnx.numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer]
    assert any(b.shape == (2,) and np.array_equal(b, [20, -20]) for b in biases)


def test_the_same_command_writes_the_same_weights(source: str, tmp_path: Path) -> None:
    hashes = []
    for name in ("a.onnx", "b.onnx"):
        assert (
            run("export", f"{source}:Words", "--input", "tokens=int64[1,20]<30", "-q", "-o", tmp_path / name)
            == 0
        )
        hashes.append(onnx.load(tmp_path / name).graph.SerializeToString())
    assert hashes[0] == hashes[1]


def test_export_integers_and_data_and_int8(source: str, tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.tile(np.arange(30), (1, 2)))
    out = tmp_path / "words.onnx"
    assert run("export", f"{source}:Words", "--input", "int64[1,20]<30", "--data", tmp_path / "data.npy",
               "--quantize", "int8", "-o", out) == 0  # fmt: skip
    assert run("verify", out, "--quiet") == 0


def test_export_with_a_look_inside(source: str, tmp_path: Path, capsys) -> None:
    out, probe = tmp_path / "tagger.onnx", tmp_path / "tagger.probe.onnx"
    assert run("export", f"{source}:made", "--input", "float32[1,20,4]", "--probe", "gates", "-o", out) == 0
    shown = capsys.readouterr()
    assert f"probe  {probe}\nshows  gru.0  GRU  r, z, n, h\n" in shown.out
    assert "proving the probe" in shown.err
    run("inspect", out, "--json")
    certified = json.loads(capsys.readouterr().out)["certificate"]["hash"]
    assert run("inspect", probe) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if line[0] != " ")
    assert lines["probe of"].strip() == certified
    assert lines["shows"].split() == ["gru.0", "GRU", "r,", "z,", "n,", "h"]
    assert run("verify", probe) == 0
    assert "gates " in capsys.readouterr().out


def test_export_one_step_with_state(source: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / "cell.onnx"
    assert run("export", f"{source}:Cell", "--time-axis", "none", "--input", "x=float32[1,3]",
               "--state", "h=1,4", "--rate", "50", "-q", "-o", out) == 0  # fmt: skip
    assert capsys.readouterr().out == ""
    assert run("inspect", out) == 0
    text = capsys.readouterr().out
    assert "one a call" in text
    assert "50 Hz" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{}:Taggre"], "did you mean 'Tagger'"),
        (["{}"], "nets.py:Tagger"),
        (["nowhere.py:X"], "no such file"),
        (["no_such_package:X"], "no module"),
        (["{}:Tagger"], "--args"),
        (["{}:made", "--args", '{{"hidden": 2}}'], "is a module already"),
        (["{}:number"], "a int, expected an nn.Module"),
        (["{}:five"], "made a int"),
        (["{}:made"], "say what forward(x) takes"),
        (["{}:made", "--input", "float32"], "write it as"),
        (["{}:made", "--input", "flaot32[1,2,3]"], "did you mean 'float32'"),
        (["{}:made", "--input", "float[1,2,4]"], "did you mean 'float32'"),
        (["{}:made", "--input", "int[1,2,4]"], "did you mean 'int64'"),
        (["{}:made", "--input", "float32[0,2,3]"], "at least 1"),
        (
            ["{}:made", "--input", "float32[1,9,3]"],
            "example you gave (x: float32 (1, 9, 3))",
        ),
        (["{}:Cell", "--input", "float32[1,3]", "--time-axis", "none"], "--state h="),
        (["{}:made", "--input", "float32[1,9,4]", "--weights", "no.pt"], "no.pt: no such file"),
        (["{}:made", "--input", "float32[1,2,3]<4"], "for integers"),
        (["{}:Words", "--input", "int64[1,2]"], "how large the integers get"),
        (["{}:made", "--input", "float32[1,9,4]", "--input", "float32[1,9,4]"], "name each"),
        (["{}:made", "--input", "y=float32[1,9,4]"], "y"),
        (["{}:made", "--input", "float32[1,9,4]", "--hop", "3"], "--window"),
        (["{}:Both", "--input", "float32[1,9,4]", "--block", "3"], "--lookahead"),
        (["{}:Both", "--input", "float32[1,9,4]"], "blocks=Blocks("),
        (["{}:made", "--input", "float32[1,9,4]", "--state", "h"], "h=1,1,32"),
        (["{}:made", "--input", "float32[1,9,4]", "--data", "{}"], "not data"),
        (["{}:made", "--input", "float32[1,9,4]", "--weights", "{}"], "not a file of weights"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(
    words, says: str, source: str, tmp_path: Path, capsys
) -> None:
    assert run("export", *(w.format(source) for w in words), "-o", tmp_path / "m.onnx") == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.splitlines()[-1].startswith("runnel: ")
    assert not (tmp_path / "m.onnx").exists()


def test_a_bidirectional_module_with_a_lookahead(source: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "m.onnx"
    assert (
        run("export", f"{source}:Both", "-q", "-o", path, "--input", "float32[1,9,4]", "--lookahead", "6")
        == 0
    )
    assert run("inspect", path) == 0
    told = capsys.readouterr().out
    assert "of 2 ticks, lookahead 6 ticks" in told
    assert "7 input time steps" in told


def test_weights_of_another_module_are_named(source: str, tmp_path: Path, capsys) -> None:
    torch.save({"fc.wieght": torch.zeros(2, 3)}, tmp_path / "w.pt")
    status = run("export", f"{source}:made", "--weights", tmp_path / "w.pt", "--input", "float32[1,9,4]",
                 "-o", tmp_path / "m.onnx")  # fmt: skip
    assert status == 2
    assert "not the module's: fc.wieght" in capsys.readouterr().err


def test_data_without_a_batch_axis_says_so(source: str, tmp_path: Path, capsys) -> None:
    np.save(tmp_path / "data.npy", np.zeros((200, 4), np.float32))
    np.save(tmp_path / "steps.npy", np.zeros((1, 3), np.float32))
    assert run("export", f"{source}:made", "--input", "float32[1,9,4]", "--data", tmp_path / "data.npy",
               "-o", tmp_path / "m.onnx") == 2  # fmt: skip
    assert "data has shape (200, 4); expected (batch, time, 4): add a batch axis" in capsys.readouterr().err
    assert run("export", f"{source}:Cell", "--input", "float32[1,3]", "--state", "h=1,4",
               "--time-axis", "none", "--data", tmp_path / "steps.npy",
               "-o", tmp_path / "m.onnx") == 2  # fmt: skip
    assert "data has shape (1, 3); expected (batch, time, 3)" in capsys.readouterr().err


def test_weights_that_were_not_given_are_said(source: str, tmp_path: Path, capsys) -> None:
    for target, name in (("Words", "Words()"), ("made", "made")):
        inputs = "int64[1,20]<30" if target == "Words" else "float32[1,20,4]"
        assert run("export", f"{source}:{target}", "--input", inputs, "-o", tmp_path / "m.onnx") == 0
        line = f"no --weights: the weights are those that {name} starts with"
        shown = capsys.readouterr()
        assert line in shown.err
        assert f"note: {line}" in shown.out


@pytest.mark.parametrize(
    ("saved", "says"),
    [
        (torch.nn.GRU(4, 3), "it holds a pickled module or other object (torch.nn.modules.rnn.GRU), which "
         "is not loaded: save module.state_dict() instead"),
        ({"module.fc.weight": torch.zeros(2, 3)}, "at 'module' do not fit Tagger: missing: gru.weight_ih_l0"),
        ([torch.zeros(2)], "it holds a list, expected what module.state_dict() gives"),
    ],
)  # fmt: skip
def test_weights_saved_in_another_way_say_what_to_save(
    saved, says: str, source: str, tmp_path: Path, capsys
) -> None:
    torch.save(saved, tmp_path / "w.pt")
    assert run("export", f"{source}:made", "--weights", tmp_path / "w.pt", "--input", "float32[1,9,4]",
               "-o", tmp_path / "m.onnx") == 2  # fmt: skip
    error = capsys.readouterr().err
    assert says in error
    assert "\x1b" not in error


def test_states_pair_by_forwards_order_whatever_the_command_lines(
    source: str, tmp_path: Path, capsys
) -> None:
    with (tmp_path / "nets.py").open("a") as file:
        file.write(SWAPPED)
    state = ("--time-axis", "none", "--input", "x=float32[1,5]", "--state", "c=1,5", "--state", "h=1,5")
    assert run("export", f"{source}:Right", *state, "-o", tmp_path / "m.onnx") == 0
    assert "note: states paired by position: h <- output 1, c <- output 2;" in capsys.readouterr().out
    assert run("export", f"{source}:Swapped", *state, "-o", tmp_path / "n.onnx") == 2
    assert "in the order of forward's parameters?" in capsys.readouterr().err


def test_weights_that_hold_code_are_not_run(source: str, tmp_path: Path, capsys) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"fc.weight": Evil()}, tmp_path / "evil.pt")
    status = run("export", f"{source}:made", "--weights", tmp_path / "evil.pt", "--input", "float32[1,9,4]",
                 "-o", tmp_path / "m.onnx")  # fmt: skip
    assert status == 2
    assert not (tmp_path / "ran").exists()


# verify


def test_verify_prints_what_it_compared(capsys) -> None:
    assert run("verify", exported("lstm")) == 0
    shown = capsys.readouterr()
    assert "the original's own numbers" in shown.out
    assert "verified with onnxruntime" in shown.out


def test_verify_refuses_a_changed_file(tmp_path: Path, capsys) -> None:
    data = bytearray(exported("lstm").read_bytes())
    weights = onnx.load(exported("lstm")).graph.initializer[0].raw_data
    data[data.index(weights)] ^= 1
    (tmp_path / "m.onnx").write_bytes(data)
    assert run("verify", tmp_path / "m.onnx") == 2
    assert "not the file that was certified" in capsys.readouterr().err


def test_verify_needs_neither_torch_nor_onnx() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None; "
        "from runnel.cli.main import main; sys.exit(main(['verify', sys.argv[1], '-q']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported("tagger"))], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


# inspect


def test_inspect_shows_all_that_a_user_asks_for(capsys) -> None:
    assert run("inspect", exported("framed")) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if line[0] != " ")
    expected = {
        "inputs", "outputs", "states", "ops", "parameters", "FLOPs", "state size", "latency", "framing",
        "rate", "runs on", "certificate", "largest error", "reference",
    }  # fmt: skip
    assert expected <= lines.keys()
    assert "window 12, hop 8, context 4" in lines["framing"]
    assert "100 Hz" in lines["rate"]
    assert "CPUExecutionProvider" in lines["runs on"]


def test_inspect_says_whether_the_hash_is_the_certified_one(tmp_path: Path, capsys) -> None:
    run("inspect", exported("lstm"))
    assert "hash verified" in capsys.readouterr().out
    model = onnx.load(exported("lstm"))
    model.producer_name = "somebody else"
    onnx.save(model, tmp_path / "m.onnx")
    assert run("inspect", tmp_path / "m.onnx") == 0
    assert "DIFFERS" in capsys.readouterr().out
    run("inspect", tmp_path / "m.onnx", "--json")
    assert json.loads(capsys.readouterr().out)["vouched"] is False


def test_inspect_as_json(capsys) -> None:
    assert run("inspect", exported("conv-lstm"), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["input"] for s in found["states"]] == ["conv.cache", "lstm.h.0", "lstm.c.0"]
    assert found["state_bytes"] == 4 * (4 * 2 + 5 + 5)
    assert found["graph"]["ops"]["LSTM"] == 1
    assert found["vouched"] is True
    assert found["certificate"]["errors"]["y"]["absolute"] < 1e-5
    assert "vectors" not in found["certificate"]


FOREIGN = """
[model]
path = "foreign.onnx"
[[model.state]]
input = "lstm.h.0"
output = "lstm.h.0.next"
shape = [1, "slot", 5]
[[model.state]]
input = "lstm.c.0"
output = "lstm.c.0.next"
shape = [1, "slot", 5]
[[model.state]]
input = "conv.cache"
output = "conv.cache.next"
shape = ["slot", 4, 2]
[model.shapes]
x = ["time", "slot", 4]
"""


def test_inspect_counts_a_foreign_model_and_says_what_it_lacks(tmp_path: Path, capsys, monkeypatch) -> None:
    model = onnx.load(exported("conv-lstm"))
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    (tmp_path / "p.toml").write_text(FOREIGN)
    assert run("inspect", tmp_path / "p.toml") == 0
    text = capsys.readouterr().out
    assert "LSTM 1" in text
    assert "certificate  none" in text
    monkeypatch.setitem(sys.modules, "runnel_export.describe", None)
    assert run("inspect", tmp_path / "p.toml") == 0
    assert "pip install 'runnel[export]'" in capsys.readouterr().out


def test_inspect_shows_each_of_several_models(tmp_path: Path, capsys) -> None:
    """Tokens to four numbers, four numbers to six; the sum of their states."""
    for name in ("tagger", "lstm"):
        shutil.copy(exported(name), tmp_path / f"{name}.onnx")
    path = tmp_path / "p.toml"
    path.write_text(
        '[[before]]\nuse = "model"\npath = "tagger.onnx"\noutputs = { y = "x" }\n'
        '[model]\npath = "lstm.onnx"\n'
    )
    assert run("inspect", path) == 0
    text = capsys.readouterr().out
    assert [line.split()[1] for line in text.splitlines() if line.startswith("model ")] == [
        str(tmp_path / "tagger.onnx"), str(tmp_path / "lstm.onnx"),
    ]  # fmt: skip
    assert text.count("hash verified") == 2
    assert run("inspect", path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [m["name"] for m in found["models"]] == [s["name"] for s in found["stages"]] == ["tagger", "lstm"]
    assert found["state_bytes"] == sum(m["state_bytes"] for m in found["models"]) > 0
    last = next(line for line in text.splitlines() if line.startswith("all models"))
    assert last.split(maxsplit=2)[2] == f"{found['state_bytes']:,} bytes of state a stream"


def test_inspect_of_a_loop_and_of_no_model(tmp_path: Path, capsys) -> None:
    models.lstm(tmp_path / "m.onnx", features=2, outputs=2)
    path = tmp_path / "p.toml"
    path.write_text('[model]\npath = "m.onnx"\n[feedback]\nx = { output = "y" }\n')
    assert run("inspect", path) == 0
    text = capsys.readouterr().out
    assert "LSTM 2" in text
    assert [line.split() for line in text.splitlines() if line.startswith("feedback")] == [
        ["feedback", "x", "<-", "y"]
    ]
    assert run("inspect", path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["feedback"], found["path"]) == ({"x": "y"}, str(tmp_path / "m.onnx"))
    path.write_text('[input]\nrate = 48000\n[[before]]\nuse = "resample"\nrate = 16000\n')
    assert run("inspect", path) == 0
    assert capsys.readouterr().out.split()[:2] == ["pipeline", str(path)]
    assert run("inspect", path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["models"], found["state_bytes"]) == ([], 0)
    assert found["stages"][0]["inputs"] == "x: float32 (T) at 48000 Hz"
