"""`runnel plot`: a picture, or events for TensorBoard, and what it says besides."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from matplotlib.image import imread
from torch import nn

import runnel_export
from runnel import Engine
from runnel.cli.main import main
from runnel.insight import picture
from runnel.insight.captions import axis_texts
from runnel.insight.recorder import Record
from tests import models
from tests.probes import LETTERS, lstm

GENERATOR = """
[input]
dtype = "uint8"
[[before]]
use = "cast"
to = "int64"
[model]
path = "m.onnx"
[model.inputs]
x = "byte"
[[after]]
use = "sample"
of = "y"
seed = 3
[[after]]
use = "cast"
of = "token"
to = "uint8"
[feedback]
byte = { output = "token", initial = 10 }
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(4).standard_normal((30, 3)).astype(np.float32))
    return tmp_path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """What would be drawn; drawing takes time."""
    records: list[Record] = []

    def note(record: Record, *_: object) -> int:
        records.append(record)
        return len(record.tracks)

    monkeypatch.setattr(picture, "draw", note)
    return records


def generator(folder: Path) -> Path:
    """Bytes below 128 in, scores of them out, fed back."""
    rng = np.random.default_rng(0)
    weights = {"E": (128, 3), "W": (3, 16), "R": (4, 16), "b": (16,), "V": (4, 128), "v": (128,)}
    held = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in weights.items()}
    held["v"][:32] = -1e4  # no control characters
    lstm(folder / "m.onnx", held)
    path = folder / "text.toml"
    path.write_text(GENERATOR)
    return path


def test_a_picture_is_written_and_shows_something(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lstm(here / "m.onnx")
    assert main(["plot", "m.onnx", "x.npy", "-o", "a.png", "--show", "f,c", "--steps", "20"]) == 0
    pixels = imread("a.png")[..., :3]
    height, width, _ = pixels.shape
    assert width == round(100 * (picture._WIDTH + picture._LEFT + picture._RIGHT))
    assert 400 < height < 800
    # Between the margins, where the two maps are, many colours; above them lines on white.
    below = pixels[height // 2 :, 90:-110].reshape(-1, 3)
    assert len(np.unique(below, axis=0)) > 30
    assert (pixels == 1).all(axis=2).mean() > 0.3
    said = capsys.readouterr().err
    assert "drawn: time steps 0 to 20 of 30; --from and --steps (or --for) choose others" in said
    assert "4 panels in a.png" in said
    assert not list(here.glob(".*"))


def test_what_is_typed_is_what_is_drawn(here: Path, drawn: list[Record]) -> None:
    _, probe = lstm(here / "m.onnx")
    words = ["plot", "m.onnx", "x.npy", "-o", "a.svg", "--from", "7", "--steps", "9", "--show", "o"]
    assert main([*words, "--layers", "cell"]) == 0
    [record] = drawn
    want = probe.loop({"x": np.load("x.npy")})
    assert [t.name for t in record.tracks] == ["input x", "m: y", "cell"]
    for track, name in zip(record.tracks[1:], ("y", "cell.o"), strict=True):
        assert (track.start, track.end) == (7, 16)
        np.testing.assert_allclose(track.values, want[name][7:16], rtol=1e-6, atol=1e-7)


def test_a_prompt_and_what_is_made_after_it_stand_on_the_axis(here: Path, drawn: list[Record]) -> None:
    path = generator(here)
    Path("prompt.txt").write_text("To be, or")
    assert main(["plot", str(path), "prompt.txt", "--generate", "40", "-o", "a.png"]) == 0
    [record] = drawn
    stream = Engine.load(path).open()
    first = stream.feed({"byte": np.frombuffer(b"To be, or", np.uint8)})["token"]
    made = np.concatenate([first[-1:], stream.generate(39)["token"]])
    found = axis_texts(record)
    assert found is not None
    assert "".join(found[1]) == "To be, or" + made.tobytes().decode()
    assert record.made_from == 9
    names = [t.name for t in record.tracks]
    assert names[:3] == ["input byte", "m: y", "output token"]
    assert [t.letter for t in record.tracks[-6:]] == list(LETTERS)
    assert all(len(t.values) == 49 for t in record.tracks)


def test_without_a_probe_it_draws_states_and_says_how_to_have_gates(
    here: Path, drawn: list[Record], capsys: pytest.CaptureFixture[str]
) -> None:
    models.lstm(here / "m.onnx")
    assert main(["plot", "m.onnx", "x.npy", "-o", "a.png"]) == 0
    assert [t.name for t in drawn[0].tracks if t.kind == "states"] == [
        "m: state h0", "m: state c0", "m: state h1", "m: state c1"
    ]  # fmt: skip
    said = capsys.readouterr().err
    assert "seen where m.probe.onnx stands beside it" in said
    assert "`runnel export --probe gates`" in said
    assert "drawn: time steps" not in said  # all of it is


def test_a_live_source_ends_when_what_is_drawn_is_there(here: Path, drawn: list[Record]) -> None:
    lstm(here / "m.onnx")
    os.mkfifo("live.csv")
    over = threading.Event()
    ended: list[bool] = []  # before the source did

    def write() -> None:
        with open("live.csv", "w") as pipe:
            pipe.write("a,b,c\n")
            for i in range(12):
                pipe.write(f"{i},0,1\n")
                pipe.flush()
            ended.append(over.wait(60))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert main(["plot", "m.onnx", "live.csv", "-o", "a.png", "--steps", "5", "--quiet"]) == 0
    finally:
        over.set()
        thread.join()
    assert ended == [True]
    np.testing.assert_array_equal(drawn[0].tracks[0].values, [[i, 0, 1] for i in range(5)])


def test_tensorboard_reads_what_was_seen(here: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, probe = lstm(here / "m.onnx", hidden=40)
    assert main(["plot", "m.onnx", "x.npy", "--tensorboard", "runs/a", "--from", "3", "--show", "i,c"]) == 0
    read = EventAccumulator("runs/a", size_guidance={"histograms": 0, "scalars": 0, "images": 0})
    read.Reload()
    want = probe.loop({"x": np.load("x.npy")})
    gate = want["cell.i"][3:]
    for tag, numbers in {
        "cell/i/mean": gate.mean(axis=1),
        "cell/i/saturated": ((gate < 0.1) | (gate > 0.9)).mean(axis=1),
        "cell/c/mean": want["cell.c"][3:].mean(axis=1),
        "m/y/1": want["y"][3:, 1],
        "input x/2": np.load("x.npy")[3:, 2],
    }.items():
        events = read.Scalars(tag)
        assert [e.step for e in events] == list(range(3, 30))
        np.testing.assert_allclose([e.value for e in events], numbers, rtol=1e-5, atol=1e-6)
    assert "cell/c/saturated" not in read.Tags()["scalars"]
    for event, row in zip(read.Histograms("cell/i/units"), gate, strict=True):
        counts = event.histogram_value
        assert counts.num == 40 == sum(counts.bucket)
        below = [(row <= limit).sum() for limit in counts.bucket_limit]
        assert np.abs(np.cumsum(counts.bucket) - below).max() <= 1  # a number on an edge, of float32
        np.testing.assert_allclose(
            (counts.min, counts.max, counts.sum), (row.min(), row.max(), row.sum()), 1e-5
        )
    assert set(read.Tags()["images"]) == {"cell/i/map", "cell/c/map", "picture"}
    [image] = read.Images("picture")
    Path("seen.png").write_bytes(image.encoded_image_string)
    assert imread("seen.png").shape[:2] == (image.height, image.width)


def test_where_events_cannot_be_written_none_are(here: Path) -> None:
    """A file may not grow, as on a disk that is full; in a process of its own, which then has the limit."""
    lstm(here / "m.onnx")
    words = ["plot", "m.onnx", "x.npy", "-o", "a.svg", "--tensorboard", "runs"]
    code = (
        "import resource, signal, sys; from runnel.cli.main import main; "
        "import runnel.insight.picture as picture; picture.draw = lambda *a: a[1].write(bytes(24)) and 1; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); sys.exit(main({words!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "runnel: --tensorboard runs: cannot write there: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(Path("runs").iterdir())
    assert not Path("a.svg").exists()


def test_a_model_that_others_made_is_not_said_to_have_a_probe(
    here: Path, capsys: pytest.CaptureFixture[str], drawn: list[Record]
) -> None:
    model = onnx.load(models.lstm(here / "m.onnx", layers=1).path)
    del model.metadata_props[:]  # it says nothing of itself
    onnx.save(model, "m.onnx")
    told = (f'[[model.state]]\ninput = "{s}0"\noutput = "{s}0.next"\nshape = [1, "slot", 4]\n' for s in "hc")
    Path("p.toml").write_text(
        '[model]\npath = "m.onnx"\nshapes = { x = ["time", "slot", 3] }\n' + "".join(told)
    )
    assert main(["plot", "p.toml", "x.npy", "-o", "a.png"]) == 0
    assert drawn[0].tracks[-1].kind == "states"
    assert "stands beside it" not in capsys.readouterr().err


def test_tensorboard_has_the_text(here: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = generator(here)
    Path("prompt.txt").write_text("One.\nTwo.")
    assert main(["plot", str(path), "prompt.txt", "--tensorboard", "runs", "--show", "f"]) == 0
    read = EventAccumulator("runs")
    read.Reload()
    [text] = read.Tensors("input byte/text")
    assert text.tensor_proto.string_val[0].decode() == "    One.\n    Two."


def test_layers_that_have_nothing_of_what_is_to_be_shown_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.LSTM(2, 3, batch_first=True)
            self.b = nn.GRU(3, 3, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x)[0])[0]  # type: ignore[no-any-return]

    runnel_export.export(Two().eval(), torch.randn(1, 20, 2), "two.onnx", probe="gates")
    np.save("two.npy", np.zeros((30, 2), np.float32))
    words = ["plot", "two.onnx", "two.npy", "-o", "a.png", "--quiet", "--show", "f,c"]
    assert main([*words, "--layers", "b.0"]) == 2
    assert "--show f,c: there is none in --layers: b.0 has r, z, n, h" in capsys.readouterr().err
    assert not Path("a.png").exists()
    assert main([*words, "--layers", "b.0,a.0"]) == 0


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["m.onnx", "x.npy"], "-o FILE (.png, .svg or .pdf), --tensorboard DIR, or both"),
        (["m.onnx", "x.npy", "-o", "a.jpg"], "-o a.jpg: the kind of picture is told by the name's ending"),
        (["m.onnx", "x.npy", "-o", "no/a.png"], "no/a.png: cannot write it"),
        (["m.onnx", "-o", "a.png"], "INPUT is needed"),
        (["m.onnx", "none.npy", "-o", "a.png"], "none.npy: cannot read it"),
        (
            ["m.onnx", "x.npy", "-o", "a.png", "--show", "z"],
            "--show: there is no 'z' (known: c, f, g, h, i, o)",
        ),
        (["m.onnx", "x.npy", "-o", "a.png", "--layers", "sell"], "did you mean 'cell'?"),
        (["bare.onnx", "x.npy", "-o", "a.png", "--show", "f"], "no model here has a probe beside it"),
        (["m.onnx", "x.npy", "-o", "a.png", "--from", "1s"], "neither the pipeline nor the input has a rate"),
        (
            ["m.onnx", "x.npy", "-o", "a.png", "--from", "soon"],
            "--from 'soon': a time step (1000), or a time",
        ),
        (
            ["m.onnx", "x.npy", "-o", "a.png", "--from", "30"],
            "the input ended after 30 time steps, and --from",
        ),
        (["m.onnx", "x.npy", "-o", "a.png", "--steps", "5000"], "a picture holds at most 4096"),
        (["m.onnx", "x.npy", "--tensorboard", "x.npy"], "that is a file; name a folder"),
        (["m.onnx", "raw:a.png", "-o", "a.png"], "a.png is what is read, and would be lost"),
        (["m.onnx", "x.npy", "-o", "a.png", "--generate", "3"], "cannot step without input"),
    ],
)
def test_what_cannot_be_is_told_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], what: str
) -> None:
    lstm(here / "m.onnx")
    models.lstm(here / "bare.onnx")
    before = set(here.iterdir())
    if "raw:a.png" in words:
        (here / "a.png").write_bytes(bytes(12))
        before.add(here / "a.png")
    assert main(["plot", *words]) == 2
    assert what in capsys.readouterr().err
    assert set(here.iterdir()) == before


@pytest.mark.parametrize(
    ("package", "words"), [("matplotlib", ["-o", "a.png"]), ("tensorboard", ["--tensorboard", "t"])]
)
def test_a_missing_package_is_named_before_anything_is_read(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
    words: list[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["plot", "none.onnx", "none.npy", *words]) == 2
    assert "pip install 'runnel[plot]'" in capsys.readouterr().err


def test_a_chunk_that_fails_leaves_no_picture(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lstm(here / "m.onnx")
    x = np.load("x.npy")
    x[20] = np.nan
    np.save("x.npy", x)
    Path("a.png").write_bytes(b"before")
    assert main(["plot", "m.onnx", "x.npy", "-o", "a.png"]) == 2
    assert "x.npy: in the chunk that begins at time step 0" in capsys.readouterr().err
    assert Path("a.png").read_bytes() == b"before"
    assert not list(here.glob(".a.png*"))


def test_a_table_at_a_wrong_rate_is_not_drawn(
    here: Path, drawn: list[Record], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "p.toml").write_text(
        '[input]\nshape = [1]\ndtype = "float32"\nrate = 100\n[[before]]\nuse = "gain"\nfactor = 2.0\n'
    )
    for rate, status in ((25, 2), (100, 0)):
        (here / "x.csv").write_text("time,x\n" + "".join(f"{n / rate},1\n" for n in range(50)))
        assert main(["plot", "p.toml", "x.csv?time=time", "-o", "x.png", "--quiet"]) == status
    assert "the rows come at 25 Hz, but the pipeline takes 100 Hz" in capsys.readouterr().err
    assert len(drawn) == 1
