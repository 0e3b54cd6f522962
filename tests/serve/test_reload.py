"""A reload is all or nothing: with one wrong value, all others stay unchanged."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from runnel.client.client import Client

from .logfmt import parsed
from .peers import ask
from .processes import command, ready
from .site import Site
from .support import code, model_pipeline
from .test_users import peer

WRONG = {
    "a value of another key": "max_streams = 0",
    "an address that is none": 'metrics = "nowhere at all"',
    "an unknown key": "idle = 3",
    "a file of keys that is not there": 'metrics_keys = "none.key"',
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", [*WRONG, "a list of users that is damaged"])
def test_one_wrong_value_changes_nothing(tmp_path: Path, kind: str, workers: int) -> None:
    (tmp_path / "keys").mkdir()
    site = Site(tmp_path / "keys")
    alice, bob = site.user("alice"), site.user("bob")
    bob_file = (site.users / "bob.pub").read_text()
    (site.users / "bob.pub").unlink()
    pipeline = model_pipeline(tmp_path)
    text = pipeline.read_text()
    table = (
        f'[serve]\nbind = "tcp://127.0.0.1:*"\nkeys = "keys/daemon.key"\nauthorised = "keys/users"\n'
        f"workers = {workers}\n"
    )
    pipeline.write_text(text + table + "idle_seconds = 100\n")
    with command(str(pipeline)) as process:
        address = ready(process, workers)
        with Client(address, timeout=30, keys=site.key_file("alice")) as client, peer(address, alice) as sock:
            assert client.describe().limits["idle_seconds"] == 100
            (site.users / "alice.pub").unlink()  # alice is removed, bob is added ...
            (site.users / "bob.pub").write_text(bob_file)
            changed = text + table + "idle_seconds = 50\n"
            if kind in WRONG:
                pipeline.write_text(changed + WRONG[kind] + "\n")
            else:
                pipeline.write_text(changed)
                (site.users / "carol.pub").write_text("damaged")
            process.send_signal(signal.SIGHUP)
            assert process.stderr
            while (told := parsed(process.stderr.readline()))["event"].startswith("serving"):
                pass  # the other worker's
            assert told["event"] == "reload failed: nothing was changed"
            assert code(ask(sock, "hello")) == "ok", "... but nothing of that has happened"
            assert client.describe().limits["idle_seconds"] == 100
            # Once corrected, all of it applies.
            pipeline.write_text(changed)
            (site.users / "carol.pub").unlink(missing_ok=True)
            process.send_signal(signal.SIGHUP)
            while code(ask(sock, "hello")) != "NO_ACCESS":
                pass
        with peer(address, bob) as sock:
            assert code(ask(sock, "hello")) == "ok"
        with Client(address, timeout=30, keys=site.key_file("bob")) as client:
            assert client.describe().limits["idle_seconds"] == 50
        process.terminate()
        assert process.wait(30) == 0
