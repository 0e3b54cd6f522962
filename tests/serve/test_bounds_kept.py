"""Bounds of the daemon that no other test meets: handshakes of strangers, and the limit of open files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import zmq

from runnel.client.monitor import Watcher
from runnel.daemon.authenticator import MAX_ADMITTED
from runnel.daemon.zap import DOMAIN

from .processes import ready
from .site import Site
from .support import model_pipeline


def test_handshakes_of_strangers_are_bounded_per_turn(tmp_path: Path) -> None:
    """Every handshake is answered in the end, `MAX_ADMITTED` in each turn of the loop."""
    many = 3 * MAX_ADMITTED
    authenticator = Site(tmp_path).authenticator()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, authenticator.at(context, router):
        knocking: list[zmq.Socket[bytes]] = []
        for number in range(many):
            one = context.socket(zmq.REQ)
            one.linger = 0
            one.connect("inproc://zeromq.zap.01")
            one.send_multipart([b"1.0", b"%d" % number, DOMAIN, b"", b"", b"CURVE", bytes(32)])
            knocking.append(one)
        counts = []
        for _ in range(3):
            authenticator.answer()
            counts.append(sum(bool(one.poll(0)) for one in knocking))
        assert counts == [MAX_ADMITTED * turn for turn in (1, 2, 3)]
        for one in knocking:
            assert one.recv_multipart()[2] != b"200"
            one.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_limit_of_open_files_is_raised_to_its_maximum(tmp_path: Path, workers: int) -> None:
    shell = 'ulimit -S -n 128; ulimit -H -n 900; exec "$0" -m runnel.cli.main serve "$@"'
    words = [str(model_pipeline(tmp_path)), "--bind", f"ipc://{tmp_path}/d.sock", "--workers", str(workers)]
    daemon = subprocess.Popen(["sh", "-c", shell, sys.executable, *words], stderr=subprocess.PIPE, text=True)
    try:
        with Watcher([ready(daemon, workers)], 30) as watcher:
            seen = watcher.look()
        assert [one.stats and one.stats["max_files"] for one in seen] == [900] * workers
    finally:
        daemon.kill()
        daemon.communicate()
