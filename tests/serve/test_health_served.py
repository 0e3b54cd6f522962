"""A state that dies or blows up shows in the daemon's log and on its pages: a process, real sockets."""

from __future__ import annotations

import http.client
import json
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from runnel.cli.main import main
from runnel.client.client import Client
from runnel.errors import NonFiniteError
from tests.engine.test_health import NEVER_ON, net, noise

from .processes import command

EXPLODING = ("Relu", 1.0, 1.5, 0.0)


def samples(address: str) -> dict[tuple[str, ...], float]:
    """Samples by name and labels, without the worker's label."""
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    return {
        (sample.name, *(v for k, v in sorted(sample.labels.items()) if k != "worker")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def logged(process: subprocess.Popen[str], until: str) -> list[dict[str, str]]:
    """Lines of its log up to this event."""
    assert process.stderr
    found = []
    for line in process.stderr:
        found.append(json.loads(line))
        if found[-1]["event"] == until:
            return found
    raise AssertionError(f"it ended before {until!r}: {found}")


@pytest.mark.parametrize(
    ("layer", "condition", "event", "says"),
    [
        (EXPLODING, "blown_up", "state blown up", "state 'm.h0' reached"),
        (
            NEVER_ON,
            "died",
            "state died",
            "state 'm.h0' no longer changes: the same at 3 looks, 4 chunks apart",
        ),
    ],
    ids=["blown_up", "died"],
)
def test_the_log_and_the_pages_report_it(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    layer: tuple[str, float, float, float],
    condition: str,
    event: str,
    says: str,
) -> None:
    net(tmp_path / "m.onnx", layer)
    pipeline = tmp_path / "p.toml"
    pipeline.write_text(
        '[model]\npath = "m.onnx"\n[health]\nevery = 4\n'
        '[[notice]]\nuse = "jsonl"\npath = "told.jsonl"\nevents = ["died", "blown_up", "recovered"]\n'
    )
    bind = f"ipc://{tmp_path}/d.sock"
    words = ["--trust", "--bind", bind, "--metrics", "0", "--log-format", "json"]
    with command(*words, str(pipeline)) as process:
        pages = logged(process, "serving metrics")[-1]["address"].removeprefix("http://")
        with Client(bind) as client, client.open("mic") as stream:
            exploded = False
            for chunk in noise(400):
                try:
                    stream.feed(chunk)
                except NonFiniteError:
                    exploded = True
                    break
            [line] = [one for one in logged(process, event) if one["event"] == event]
            assert (line["stream"], line["level"]) == ("mic", "warning")
            assert line["why"].startswith(says)
            found = samples(pages)
            while "runnel_looks_total" not in {name for name, *_ in found}:  # not yet monitored
                found = samples(pages)
            for name in ("died", "blown_up"):
                assert found["runnel_streams_unhealthy", name] == (name == condition)
                assert found["runnel_state_events_total", name] == (name == condition)
            looks = found["runnel_looks_total",]
            assert found["runnel_state_rms_count", "m.h0"] == looks
            assert looks == (pytest.approx(400 / 4, abs=1) if not exploded else looks)
            assert found["runnel_state_non_finite_total", "m.h0"] == exploded == (condition == "blown_up")
            if condition == "died":
                assert found["runnel_state_rms_sum", "m.h0"] == 0.0
            assert main(["top", bind, "--once", "--interval", "0.1"]) == 0
            assert f"health    1 {condition.replace('_', ' ')}" in capsys.readouterr().out
            stream.reset()
    told = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    assert [(one["event"], one["stream"]) for one in told] == [(condition, "mic")]
    assert told[0]["reason"] == line["why"]
