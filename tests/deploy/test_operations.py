"""deploy/operations.md names every metric, error, event, setting and bound that there is, and no other."""

from __future__ import annotations

import argparse
import ast
import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

from runnel.cli.main import COMMANDS
from runnel.client.monitor import WorkerStatus
from runnel.daemon import door, logs, process, sender
from runnel.daemon import loop as daemon
from runnel.daemon.metrics import http as metrics
from runnel.daemon.metrics.prometheus import encoder
from runnel.daemon.protocol import budget, intake, jobs, outbox, scheduler, streamtable
from runnel.daemon.protocol.server import ServerProtocol
from runnel.daemon.settings import RELOADABLE, Settings
from runnel.daemon.supervision import supervisor as workers
from runnel.insight import health
from runnel.stage import MAX_PASSAGES
from runnel.wire.placement import Placement
from tests.serve.protocol_page import CODES
from tests.serve.support import Peer, tally_engine

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy" / "operations.md").read_text("utf-8")


def section(name: str) -> str:
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)
    assert found, f"no section {name!r}"
    return found[1]


def table(text: str) -> dict[str, list[str]]:
    """Rows by what their first cell quotes."""
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", text, re.M)
    assert len({name for name, _ in rows}) == len(rows), "a row twice"
    return {name: [cell.strip() for cell in rest.split(" | ")] for name, rest in rows}


def exposed() -> set[str]:
    """The metrics that a scraper is given, by their own lines."""
    server = ServerProtocol(tally_engine(), "boot", placement=Placement(0, ("ipc:///run/x",)))
    server.gauges = process.gauges
    served = Peer(server).ask("hello")[0].server
    encode, _ = encoder("")
    page = encode([WorkerStatus("ipc:///run/x", served, server.document())]).decode()
    return set(re.findall(r"^# TYPE (\w+) ", page, re.M))


def test_every_metric_has_its_row() -> None:
    assert table(section("Metrics")).keys() == exposed()


def test_alerts_ask_for_what_is_there() -> None:
    [block] = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.M | re.S)
    known = exposed()
    histograms = {name + end for name in known for end in ("_bucket", "_sum", "_count")}
    asked = re.findall(r"\b(?:runnel|process)_\w+", block)
    assert len(asked) > len(block.splitlines()) - 1
    assert set(asked) <= known | histograms
    assert set(re.findall(r'code="(\w+)"', block)) <= {error.code for error in CODES}


def test_every_error_on_the_wire_has_its_row() -> None:
    assert list(table(section("Errors"))) == [error.code for error in CODES]


def logged() -> dict[str, str]:
    """Event and level of each line that the daemon can write above debug."""
    found = {"suppressed": "info", "log lines were lost": "warning"}  # written by the log itself
    for path in (ROOT / "engine" / "runnel" / "daemon").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "log"
                and node.func.attr in ("info", "warning", "error", "exception")
            ):
                event = ast.literal_eval(node.args[0])
                found[event] = "error" if node.func.attr == "exception" else node.func.attr
    return found


def test_every_event_has_its_row_and_its_level() -> None:
    assert {event: cells[0] for event, cells in table(section("Log")).items()} == logged()


def test_every_setting_has_its_row_with_its_default() -> None:
    rows = table(section("Settings"))
    defaults = {field.name: getattr(Settings(), field.name) for field in fields(Settings)}
    assert rows.keys() == defaults.keys()
    for name, (default, reload, *_) in rows.items():
        value = defaults[name]
        assert default == (f"{value:g}" if isinstance(value, float) else str(value or "none")), name
        assert (reload == "at once") == (name in RELOADABLE), name


def mib(value: int) -> str:
    assert value % 2**20 == 0
    return f"{value // 2**20} MiB"


BOUNDS = [
    ("requests of one client", [f"{intake.MAX_PENDING_PER_PEER:,}", mib(intake.MAX_PEER_BYTES)]),
    ("one turn of the loop", [f"{budget.TURN_SECONDS * 1000:g} ms", mib(budget.TURN_BYTES)]),
    ("a chunk done at once", [f"{budget.SLICE_SECONDS * 1000:g} ms", mib(budget.SLICE_BYTES)]),
    ("chunks in slices", [str(MAX_PASSAGES), f"one client {scheduler.MAX_JOBS_PER_PEER}"]),
    ("a reply's tensors", [mib(jobs.MAX_REPLY_BYTES)]),
    ("large replies", [mib(scheduler.MAX_UNREAD_BYTES)]),
    ("requests of all", [f"{intake.MAX_PENDING:,}", mib(intake.MAX_PENDING_BYTES)]),
    ("replies that a client has not read", [f"{sender.QUEUED_REPLIES:,}", mib(sender.MAX_HELD)]),
    ("replies that a client has not read", [f"{outbox.MAX_BACKLOG:,}", mib(outbox.MAX_BACKLOG_BYTES)]),
    ("the same, of all", [f"{outbox.MAX_BACKLOGS:,}", mib(outbox.MAX_BACKLOGS_BYTES)]),
    ("seconds without reading", [f"{outbox.SLOW_SECONDS:g}"]),
    (
        "replies kept",
        [
            f"{streamtable.CACHED_REPLIES} of a stream",
            f"{streamtable.CACHED_SECONDS:g} s",
            mib(streamtable.MAX_CACHED_BYTES),
        ],
    ),
    ("ends of closed", [f"{streamtable.MAX_CLOSED:,}", f"{streamtable.CACHED_SECONDS:g} s"]),
    ("a connection without a handshake", [f"{daemon.HANDSHAKE_MS / 1000:g} s"]),
    ("log lines that wait", [f"{logs.MAX_WAITING:,}"]),
    ("open files", [str(door.MAX_RESERVED), f"{door.LEAST_CLIENTS} clients"]),
    ("log lines of one kind", [f"{logs.BURST:g} at once", f"{logs.PER_SECOND:g} a second"]),
    ("HTTP connections", [str(metrics.MAX_CONNECTIONS)]),
]


@pytest.mark.parametrize(("what", "told"), BOUNDS)
def test_a_bound_is_what_the_code_says(what: str, told: list[str]) -> None:
    [row] = [row for row in section("Bounds.*?").splitlines() if row.startswith(f"| {what}")]
    for figure in told:
        assert re.search(rf"(?<![\d,]){re.escape(figure)}(?!,?\d)", row), figure


def test_times_are_what_the_code_says() -> None:
    start = " ".join(section("Start, stop, upgrade").split())
    assert (
        f"for {daemon.FINISH_SECONDS:g} s at most, and replies leave for {daemon.LINGER_MS / 1000:g} s"
        in start
    )
    assert (
        f"after {workers.FIRST_PAUSE:g} s, then longer each time up to {workers.LAST_PAUSE:g} s"
        in " ".join(TEXT.split())
    )
    assert f"loading took {workers.START_SECONDS:g} s" in TEXT
    assert f"answers within {metrics.ANSWER_SECONDS:g} s" in TEXT


def test_looks_at_states_are_what_the_code_says() -> None:
    assert f"at {health.PATIENCE} looks, {health.EVERY} chunks apart" in TEXT
    assert f"beyond `[health] blown_up` ({health.BLOWN_UP:g})" in TEXT
    assert f"one in {health.EVERY} chunks of each" in TEXT
    assert f"below {health.SHUT:g}: nearly shut" in TEXT
    assert f"above {health.OPEN:g}: nearly open" in TEXT
    page = (ROOT / "deploy" / "pipelines.md").read_text("utf-8")
    assert f"{health.EVERY}; 0: never" in page
    assert f"beyond it is told, {health.BLOWN_UP:g}" in page


def test_every_flag_that_is_named_exists() -> None:
    known = set()
    for name in COMMANDS.values():
        parser = argparse.ArgumentParser()
        import_module(f"runnel.cli.{name}").add_arguments(parser)
        known |= set(parser._option_string_actions)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", TEXT)) - {"--memory"}  # that is a container's
    assert named
    assert named <= known
