"""`runnel serve` seen from outside, with one process and with several: its pages, its log."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from runnel.client.client import Client

from .processes import children, command
from .support import model_pipeline, rows


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_pipeline(tmp_path_factory.mktemp("model"))


def pages_of(process: subprocess.Popen[str]) -> str:
    """The address of its pages, from its log; it serves by then."""
    assert process.stderr
    for line in process.stderr:
        document = json.loads(line)
        if document["event"] == "serving metrics":
            return str(document["address"]).removeprefix("http://")
    raise AssertionError("it serves no metrics")


def get(address: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("many", [1, 2])
def test_its_pages_cover_every_worker(pipeline: Path, tmp_path: Path, many: int) -> None:
    bind = f"ipc://{tmp_path}/d.sock"
    words = ["--bind", bind, "--workers", str(many), "--metrics", "0", "--log-format", "json"]
    with command(str(pipeline), *words) as process:
        address = pages_of(process)
        with Client(bind) as client, client.open() as stream:
            stream.feed(rows(1, 2))
            stream.feed(rows(3))
            while get(address, "/readyz")[0] != 200:  # a busy machine takes its time
                pass
            samples = [
                sample
                for family in text_string_to_metric_families(get(address, "/metrics")[1])
                for sample in family.samples
            ]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0

    def total(name: str) -> float:
        return sum(sample.value for sample in samples if sample.name == name)

    assert total("runnel_worker_up") == many
    assert total("runnel_chunks_total") == 2
    assert total("runnel_streams") == 1
    assert total("runnel_request_seconds_count") == 3
    assert total("process_resident_memory_bytes") > many * 2**20
    with pytest.raises(ConnectionRefusedError):
        get(address, "/healthz")


def test_a_worker_that_hangs_makes_the_daemon_unhealthy(pipeline: Path, tmp_path: Path) -> None:
    words = ["--bind", f"ipc://{tmp_path}/d.sock", "--workers", "2", "--metrics", "0", "--log-format", "json"]
    with command(str(pipeline), *words) as process:
        address = pages_of(process)
        while get(address, "/healthz")[0] != 200:
            pass
        stuck = children(process)[1]
        os.kill(stuck, signal.SIGSTOP)
        status, text = get(address, "/healthz")
        while status == 200:  # the last answer is still in use
            status, text = get(address, "/healthz")
        assert status == 503
        assert text.startswith("worker 1: no answer from ipc://")
        os.kill(stuck, signal.SIGCONT)
        while get(address, "/healthz")[0] != 200:
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_each_log_line_names_its_worker(pipeline: Path, tmp_path: Path) -> None:
    words = ["--bind", f"ipc://{tmp_path}/d.sock", "--workers", "2", "--metrics", "0", "--log-format", "json"]
    with command(str(pipeline), *words) as process:
        pages_of(process)
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=30)
    stopped = [json.loads(line) for line in rest.splitlines()]
    assert {line["worker"] for line in stopped if "worker" in line} == {0, 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "example.org:80"], "no IP address"),
        (["--metrics", "192.0.2.1:0"], "cannot serve metrics"),
        (["--log-format", "xml"], "--log-format"),
    ],
)
def test_invalid_arguments_are_a_one_line_error(
    pipeline: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    with command(str(pipeline), "--bind", f"ipc://{tmp_path}/d.sock", *words) as process:
        _, told = process.communicate(timeout=30)
    assert process.returncode == 2
    assert message in told.splitlines()[-1]
    assert "Traceback" not in told
