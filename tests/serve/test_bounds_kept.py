"""Bounds of the daemon that nothing else meets: strangers who knock, and the limit of open files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import zmq

from runnel.client.monitor import Watcher
from runnel.daemon import guard as curve
from runnel.daemon.zap import DOMAIN

from .processes import ready
from .site import Site
from .support import model_pipeline


def test_strangers_who_knock_take_one_turn_only_so_much(tmp_path: Path) -> None:
    """Each knock is answered in the end, `MAX_ADMITTED` in a turn of the daemon's loop."""
    many = 3 * curve.MAX_ADMITTED
    guard = Site(tmp_path).guard()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, guard.at(context, router):
        knocking: list[zmq.Socket[bytes]] = []
        for number in range(many):
            one = context.socket(zmq.REQ)
            one.linger = 0
            one.connect("inproc://zeromq.zap.01")
            one.send_multipart([b"1.0", b"%d" % number, DOMAIN, b"", b"", b"CURVE", bytes(32)])
            knocking.append(one)
        counts = []
        for _ in range(3):
            guard.answer()
            counts.append(sum(bool(one.poll(0)) for one in knocking))
        assert counts == [curve.MAX_ADMITTED * turn for turn in (1, 2, 3)]
        for one in knocking:
            assert one.recv_multipart()[2] != b"200"
            one.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(tmp_path: Path, workers: int) -> None:
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
