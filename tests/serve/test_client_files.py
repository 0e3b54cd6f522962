"""A client in a process without free descriptors: a typed error, and nothing left open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .processes import command, ready
from .support import model_pipeline

SYNC = """
import os, resource, sys
import numpy as np
import runnel
address = sys.argv[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
def files(): return len(os.listdir("/proc/self/fd"))
clients = []
while True:
    before = files()
    client = runnel.Client(address, timeout=20)
    try:
        stream = client.open()
    except runnel.errors.LimitError as error:
        assert "ulimit -n" in str(error) and address in str(error), error
        assert error.retry
        break
    clients.append((client, stream))
assert len(clients) > 3, len(clients)
for _ in range(50):
    try:
        client.open()
    except runnel.errors.LimitError:
        pass
    else:
        raise AssertionError("there is no room")
assert files() <= before + 1, (files(), before)
x = np.ones((1, 2), np.float32)
for _, stream in clients:
    assert stream.feed(x).tolist() == [[1, 1]]
for old, _ in clients[:3]:
    old.close()
for _ in range(500):
    try:
        assert client.open().feed(x).tolist() == [[1, 1]]
        break
    except runnel.errors.LimitError:  # libzmq closes in its own time
        import time; time.sleep(0.02)
else:
    raise AssertionError("still no room")
"""

ASYNC = """
import asyncio, os, resource, sys
import runnel
address = sys.argv[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
async def main():
    clients = []
    for _ in range(100):
        client = runnel.AsyncClient(address, timeout=20)
        try:
            stream = await client.open()
        except runnel.errors.LimitError as error:
            assert "ulimit -n" in str(error)
            break
        clients.append(client)
    assert 3 < len(clients) < 100
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        try:
            await client.open()
        except runnel.errors.LimitError:
            pass
    assert len(os.listdir("/proc/self/fd")) <= before
    for client in clients:
        await client.close()
asyncio.run(main())
"""

# The first use of libzmq in a process, for each number of free descriptors: it aborts if it meets the limit
# at the wrong point.
FIRST = """
import os, resource, sys
import runnel
import runnel.client.client, zmq
from runnel.client.monitor import Watcher
address = sys.argv[1]
held = len(os.listdir("/proc/self/fd")) - 1
for left in range(26):
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_NOFILE, (held + left, held + left))
        try:
            runnel.Client(address, timeout=20).open()
        except runnel.RunnelError:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (0 if left >= 21 else 1) or left == 20 and status in (0, 1), (left, status)
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + 3, held + 3))
    Watcher([address]).look()
except runnel.errors.LimitError:
    pass
else:
    raise AssertionError("there is no room")
"""


@pytest.mark.parametrize("code", [SYNC, ASYNC, FIRST], ids=["Client", "AsyncClient", "the first use"])
def test_a_process_without_descriptors(tmp_path: Path, code: str) -> None:
    with command(str(model_pipeline(tmp_path)), "--bind", f"ipc://{tmp_path}/d.sock") as daemon:
        address = ready(daemon)
        done = subprocess.run(
            [sys.executable, "-c", code, address], capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
