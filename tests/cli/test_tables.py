"""Tables as programs and people write them, through `runnel run`: what is taken, and what is said else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runnel.cli.main import COMMANDS, main

PIPELINE = '[input]\nshape = [1]\ndtype = "float32"\nrate = 100\n[[before]]\nuse = "gain"\nfactor = 2.0\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.toml").write_text(PIPELINE)
    return tmp_path


def run(data: str | bytes, query: str = "", *words: str, name: str = "x.csv") -> int:
    Path(name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return main(["run", "p.toml", name + query, "-q", "-o", "o.npy", *words])


@pytest.mark.parametrize(
    ("data", "query"),
    [
        ("x\n1\n2\n", ""),
        ("x.0\n1\n2\n", ""),
        ("x\n1\n2\n\n", ""),
        ("x\n1\n2\n\n \n\n", ""),
        ("x,y\n1,3\n2,4\n,\n,\n", ""),
        ("x\r\n1\r\n2\r\n\r\n", ""),
        ("\ufeffx\n1\n2\n", ""),
        ("x\n1\n2\n".encode("utf-16"), ""),
        (b"\xfe\xff" + "x,Größe\n1,0\n2,0\n".encode("utf-16-be"), ""),
        ("a;x\n9;1,0\n9;2,0\n", "?sep=;&decimal=,"),
        ("a;x\n9;1.0\n9;2.0\n", "?sep=;"),
        ("a|x\n9|1.0\n9|2.0\n", "?sep=|"),
        ("a\tx\n9\t1\n9\t2\n", "?sep=tab"),
        ("x\n1,0\n2,0\n", "?sep=;&decimal=,"),
        ("time;x\n0,00;1,0\n0,01;2,0\n", "?sep=;&decimal=,&time=time"),
        ('"x"\n"1"\n"2"\n', ""),
    ],
)
def test_tables_that_are_taken(here: Path, data: str | bytes, query: str) -> None:
    assert run(data, query) == 0
    np.testing.assert_array_equal(np.load("o.npy"), [[2], [4]])


@pytest.mark.parametrize(
    ("data", "query", "says"),
    [
        (
            "time;x\n0,0;1,5\n0,1;2,5\n",
            "",
            ["separated by ';' with decimal commas", "'x.csv?sep=;&decimal=,'"],
        ),
        ("time;x\n0.0;1.5\n", "", ["separated by ';': add ?sep=; behind", "'x.csv?sep=;'"]),
        ("time\tx\n0\t1\n", "", ["separated by '\\t'", "?sep=tab"]),
        ("x\n1,5\n2,5\n", "", ["line 2 has 2 cells", "a decimal comma", "?sep=;&decimal=,"]),
        ('x\n"1,234.5"\n', "", ["line 2, column 'x'", "?sep=;&decimal=,"]),
        ("x\n1.5\n", "?sep=;&decimal=,", ["line 2, column 'x': '1.5' has a point"]),
        ("x\n1.234,5\n", "?sep=;&decimal=,", ["'1.234,5' has a point"]),
        ("x\n1\n", "?decimal=,", ["needs another separator too, such as sep=;"]),
        ("x\n1\n", "?sep=ab", ["sep must be one character", "not 'ab'"]),
        ("x\n1\n", "?sep=.", ["sep must be one character"]),
        ("x\n1\n\n2\n", "", ["line 3 is blank, and line 4 has numbers"]),
        ('x,note\n1,"two\nlines"\nthree,\n', "", ["line 4, column 'x': 'three' is not a finite number"]),
        ("x\n1\n2\nthree\n", "", ["line 4, column 'x': 'three'"]),
        (b"x\n1\nGr\xf6\xdfe\n", "", ["byte 0xf6 in line 3", "Latin-1", "iconv -f windows-1252 -t utf-8"]),
        (b"\xff\xfex\x00\n\x00\x00\xd8\x00\xd8", "", ["not a text in UTF-16, though it begins with a mark"]),
        ("time,value\n0,1\n0.01,2\n", "", ["such as --columns value", "?time=time behind the file's name"]),
    ],
)
def test_tables_that_are_not(
    here: Path, capsys: pytest.CaptureFixture[str], data: str | bytes, query: str, says: list[str]
) -> None:
    assert run(data, query) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    for part in says:
        assert part in told
    assert not Path("o.npy").exists()


def test_what_a_guess_proposes_is_right(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("time;x\n0,00;1,0\n0,01;2,0\n") == 2
    proposed = capsys.readouterr().err.rpartition("in quotes: '")[2].strip().strip("'")
    assert main(["run", "p.toml", proposed, "-q", "-o", "o.npy"]) == 0
    np.testing.assert_array_equal(np.load("o.npy"), [[2], [4]])


def test_a_byte_order_mark_that_comes_in_two_parts(here: Path) -> None:
    from runnel.files import Lines

    class Slow:
        name, live = "slow", True

        def __init__(self, data: bytes) -> None:
            self.data = data

        def read(self, most: int) -> bytes:
            part, self.data = self.data[:1], self.data[1:]
            return part

    text = "x\nGröße\n"
    for kind in ("utf-8", "utf-8-sig", "utf-16"):
        assert "".join(Lines(Slow(text.encode(kind)))) == text  # type: ignore[arg-type]
    assert list(Lines(Slow(b""))) == []  # type: ignore[arg-type]


def test_one_number_a_time_step_in_other_formats(here: Path) -> None:
    np.save("flat.npy", np.array([1, 2], np.float32))
    assert main(["run", "p.toml", "flat.npy", "-q", "-o", "o.npy"]) == 0
    np.testing.assert_array_equal(np.load("o.npy"), [[2], [4]])
    assert run('{"x": [1]}\n{"x": 2}\n', name="x.jsonl") == 0
    np.testing.assert_array_equal(np.load("o.npy"), [[2], [4]])
    assert run('{"x.0": 1}\n2\n', name="x.jsonl") == 0


def test_output_names_are_input_names(here: Path) -> None:
    """A table that was written is read again."""
    assert run("x\n1\n2\n") == 0
    assert main(["run", "p.toml", "o.npy", "-q", "-o", "o.csv"]) == 0
    assert Path("o.csv").read_text() == "x\n4.0\n8.0\n"
    assert main(["run", "p.toml", "o.csv", "-q", "-o", "o.npy"]) == 0
    np.testing.assert_array_equal(np.load("o.npy"), [[8], [16]])


def test_stereo_for_one_channel_is_mixed_as_the_error_says(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile = pytest.importorskip("soundfile")
    samples = np.array([[0.5, 0.25], [-0.25, 0.75]] * 50, np.float32)
    soundfile.write("x.wav", samples, 100, subtype="FLOAT")
    rest = '[[before]]\nuse = "gain"\nfactor = 2.0\n'
    Path("p.toml").write_text('[input]\ndtype = "float32"\nrate = 100\n' + rest)
    assert main(["run", "p.toml", "x.wav", "-q", "-o", "o.npy"]) == 2
    told = capsys.readouterr().err
    for part in ("--columns 1", "shape = [2] under [input]", 'under [[before]], use = "mono"'):
        assert part in told
    Path("p.toml").write_text(
        '[input]\ndtype = "float32"\nrate = 100\nshape = [2]\n[[before]]\nuse = "mono"\n' + rest
    )
    assert main(["run", "p.toml", "x.wav", "-q", "-o", "o.npy"]) == 0
    np.testing.assert_allclose(np.load("o.npy"), 2 * samples.mean(1))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_quiet(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "-q, --quiet" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_no_column_that_only_rises_is_proposed(
    here: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """By its numbers: its name says nothing."""
    columns = {"seen": list(range(20)), "down": list(range(20, 0, -1)), "a": [1, 2] * 10}
    if kind == "csv":
        rows = zip(*columns.values(), strict=True)
        data = "\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)])
        assert run(data) == 2
    else:
        arrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns), "x.parquet")
        assert main(["run", "p.toml", "x.parquet", "-q", "-o", "o.npy"]) == 2
    assert "say which, in order, such as --columns a\n" in capsys.readouterr().err
