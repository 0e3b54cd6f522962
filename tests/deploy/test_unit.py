"""The systemd unit: systemd can read it, and it starts a command that exists."""

from __future__ import annotations

import argparse
import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runnel.cli import serve
from runnel.wire.address import parse

UNIT = Path(__file__).parents[2] / "deploy" / "runnel.service"
ANALYZE = shutil.which("systemd-analyze")
EXPOSURE = 15  # tenths, on systemd's own scale of 0 to 100; 7 when this was written


def section(name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their capitals
    parser.read_string(UNIT.read_text())
    return parser[name]


def test_it_starts_a_command_that_runnel_serve_knows() -> None:
    program, command, *words = shlex.split(section("Service")["ExecStart"])
    assert Path(program).name == "runnel"
    assert Path(program).is_absolute()
    assert command == "serve"
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve.add_arguments(parser)
    args = parser.parse_args(words)
    assert Path(args.pipeline).is_absolute()
    socket = parse(args.bind).path
    assert socket is not None
    assert str(socket.parent) == f"/run/{section('Service')['RuntimeDirectory']}"


def test_it_waits_longer_than_the_daemon_takes_to_start_and_to_finish() -> None:
    from runnel.daemon.loop import FINISH_SECONDS, LINGER_MS
    from runnel.daemon.supervision.supervisor import REAP_SECONDS, START_SECONDS, STOP_SECONDS

    service = section("Service")
    longest = max(FINISH_SECONDS + 2 * LINGER_MS / 1000, STOP_SECONDS + REAP_SECONDS)
    assert int(service["TimeoutStopSec"]) > longest
    assert int(service["TimeoutStartSec"]) >= START_SECONDS


def test_systemd_hears_and_tells_what_the_daemon_says_and_heeds() -> None:
    """That it does is shown by tests/serve/test_systemd.py; here, that the unit counts on it."""
    service = section("Service")
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) > 0
    assert shlex.split(service["ExecReload"])[-2:] == ["-HUP", "$MAINPID"]
    assert service["KillMode"] == "mixed"
    assert "AF_UNIX" in service["RestrictAddressFamilies"].split(), "NOTIFY_SOCKET is one"
    assert service["Restart"] == "on-failure", "which a watchdog that was not fed is"


@pytest.mark.skipif(ANALYZE is None, reason="no systemd-analyze here")
def test_systemd_finds_no_fault_in_it(tmp_path: Path) -> None:
    found = analyze(tmp_path, "verify")
    assert found.returncode == 0, found.stderr
    assert UNIT.name not in found.stderr  # it may complain of the machine's other units


@pytest.mark.skipif(ANALYZE is None, reason="no systemd-analyze here")
def test_systemd_calls_it_safe(tmp_path: Path) -> None:
    found = analyze(tmp_path, "security", "--offline=true", f"--threshold={EXPOSURE}")
    if "unrecognized option" in found.stderr:
        pytest.skip("this systemd-analyze is older than 250 and judges running units only")
    assert found.returncode == 0, found.stdout + found.stderr


def analyze(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    unit = folder / UNIT.name
    # It checks that the program is there.
    unit.write_text(UNIT.read_text().replace("/opt/runnel/bin/runnel", sys.executable))
    return subprocess.run([str(ANALYZE), *words, str(unit)], capture_output=True, text=True, timeout=60)
