"""A daemon in a thread, at a temporary address."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runnel.client.client import Client
from runnel.daemon.loop import Daemon

from .support import SpyEngine, tally_engine


@pytest.fixture
def engine() -> SpyEngine:
    return tally_engine(max_streams=64)


@pytest.fixture(params=["ipc", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/d.sock" if request.param == "ipc" else "tcp://127.0.0.1:*"


@pytest.fixture
def daemon(engine: SpyEngine, address: str) -> Iterator[Daemon]:
    daemon = Daemon(engine, address)
    thread = threading.Thread(target=daemon.serve)
    thread.start()
    assert daemon.started.wait(10)
    yield daemon
    daemon.stop()
    thread.join(15)
    assert not thread.is_alive()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.address, timeout=10.0) as client:
        yield client
