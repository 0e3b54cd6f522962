"""Live lines of numbers: a pseudo-terminal as the serial port, pipes, and malformed lines."""

from __future__ import annotations

import os
import pty
import termios
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runnel import Signal, TensorSpec
from runnel.errors import UsageError
from tests.cli.support import open_source, read

X = Signal((TensorSpec("x", "float32", (2,)),))


@pytest.fixture
def port() -> Iterator[tuple[int, int, str]]:
    """Return (the device's end, ours, its name)."""
    device, ours = pty.openpty()
    yield device, ours, os.ttyname(ours)
    os.close(device)
    os.close(ours)


def test_a_serial_port_from_the_first_whole_line_on(port: tuple[int, int, str]) -> None:
    device, ours, name = port
    os.write(device, b"9.9, 9.9\n")  # before the port was opened: old input is dropped
    began = time.time()
    signal = Signal((*X.tensors, TensorSpec("time", "float64")))
    with open_source(f"lines:{name}?baud=9600", signal) as source:
        assert source.live
        set_to = termios.tcgetattr(ours)
        assert set_to[4] == set_to[5] == termios.B9600
        assert not set_to[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        os.write(device, b"3.4, 5.5\r\n1.5,-2\r\n 3 4\r\n")  # the first may be the end of 123.4
        chunks = source.chunks(10)
        first = next(chunks)
        assert first["x"].tolist() == [[1.5, -2], [3, 4]]
        assert began <= first["time"][0] <= time.time()
        os.write(device, b"5;")
        threading.Timer(0.05, os.write, (device, b"6\n")).start()
        assert next(chunks)["x"].tolist() == [[5, 6]]
    assert termios.tcgetattr(ours)[3] & termios.ICANON, "the port is as it was"


def test_unplugged_port_ends_the_input(capsys: pytest.CaptureFixture[str]) -> None:
    device, ours = pty.openpty()
    name = os.ttyname(ours)
    with open_source(f"lines:{name}", X) as source:
        chunks = source.chunks(10)
        os.write(device, b"\n1 2\n")
        assert next(chunks)["x"].tolist() == [[1, 2]]
        os.close(device)
        os.close(ours)
        assert list(chunks) == []
    assert f"runnel: warning: {name}: it is gone: " in capsys.readouterr().err


def test_malformed_lines_are_left_out_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.log").write_bytes(b"1, 2\n\nhello\n3 4 5\n4, nan\n\xff\xfe,1\n,\n5\t6,\n7 8")
    chunks = read(f"lines:{tmp_path}/x.log", X)
    assert np.concatenate([chunk["x"] for chunk in chunks]).tolist() == [[1, 2], [5, 6], [7, 8]]
    told = capsys.readouterr().err
    assert "5 of 8 lines were left out; the first, line 2: 'hello': 1 numbers, not 2" in told
    with pytest.raises(UsageError, match=r"line 2: 'hello': 1 numbers, not 2"):
        read(f"lines:{tmp_path}/x.log?malformed=refuse", X)


def test_first_malformed_line_of_a_live_source_is_reported_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the wrong number of numbers, no other report would come until Ctrl-C."""
    os.mkfifo(tmp_path / "x")
    fd = os.open(tmp_path / "x", os.O_RDWR)
    os.write(fd, b"1\n2\n3 4\n")
    with open_source(f"lines:{tmp_path}/x", X) as source:
        assert next(source.chunks(10))["x"].tolist() == [[3, 4]]
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "a line was left out; such lines are counted. line 1: '1': 1 numbers, not 2" in told
    assert "2 of 3 lines were left out" in capsys.readouterr().err
    os.close(fd)


def test_a_line_without_an_end_is_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.log").write_bytes(b"1 2\n" + b"3" * 300_000 + b" 4\n5 6\n")
    chunks = read(f"lines:{tmp_path}/x.log", X)
    assert np.concatenate([chunk["x"] for chunk in chunks]).tolist() == [[1, 2], [5, 6]]
    assert "1 of 3 lines were left out; the first, line 2: '3333" in capsys.readouterr().err


def test_whole_numbers_keep_all_their_digits(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text(f"{2**62 + 1}\n")
    (chunk,) = read(f"lines:{tmp_path}/x.log", Signal((TensorSpec("n", "int64"),)))
    assert chunk["n"].tolist() == [2**62 + 1]


def test_baud_is_refused_if_the_path_is_not_a_port(tmp_path: Path, port: tuple[int, int, str]) -> None:
    (tmp_path / "x.log").write_text("1 2\n")
    with pytest.raises(UsageError, match="baud is for a serial port, which this is not"):
        read(f"lines:{tmp_path}/x.log?baud=9600", X)
    with pytest.raises(UsageError, match="no port has the speed baud = 9601; the nearest is 9600"):
        read(f"lines:{port[2]}?baud=9601", X)
    with pytest.raises(UsageError, match=r"no/such/port: cannot read it: No such file"):
        read("lines:no/such/port", X)


def test_a_port_in_raw_mode_stays_in_it(port: tuple[int, int, str]) -> None:
    tty.setraw(port[1])
    with open_source(f"lines:{port[2]}", X):
        pass
    assert not termios.tcgetattr(port[1])[3] & termios.ICANON
