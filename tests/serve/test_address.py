"""Addresses that may be served without keys, and those that need them."""

import pytest

from runnel.errors import UsageError
from runnel.wire.address import beside, parse

HERE = ["tcp://127.0.0.1:7070", "tcp://127.8.9.1:*", "tcp://[::1]:1", "tcp://localhost:65535", "ipc:///run/x"]
BEYOND = ["tcp://0.0.0.0:7070", "tcp://*:7070", "tcp://[::]:1", "tcp://eth0:7070", "tcp://example.org:7070"]


@pytest.mark.parametrize("text", HERE)
def test_this_machine_needs_no_keys_and_may_have_them(text: str) -> None:
    assert str(parse(text)) == str(parse(text, keyed=True)) == text


@pytest.mark.parametrize("text", BEYOND)
def test_other_machines_are_reached_with_keys_only(text: str) -> None:
    with pytest.raises(UsageError, match="without keys anyone could use it: make keys"):
        parse(text)
    assert str(parse(text, keyed=True)) == text


@pytest.mark.parametrize(
    "text",
    ["", "tcp://", "tcp://a", "tcp://a:b", "tcp://a:70000", "udp://a:1", "ipc://", "ipc://@x", "tcp://a/b:1"],
)
@pytest.mark.parametrize("keyed", [False, True])
def test_invalid_addresses(text: str, keyed: bool) -> None:
    with pytest.raises(UsageError, match="address"):
        parse(text, keyed)


@pytest.mark.parametrize(
    ("worker", "home", "found"),
    [
        ("tcp://0.0.0.0:7071", "tcp://example.org:7070", "tcp://example.org:7071"),
        ("tcp://[::]:7071", "tcp://[fe80::1]:9", "tcp://[fe80::1]:7071"),
        ("tcp://127.0.0.1:7071", "tcp://127.0.0.1:7070", "tcp://127.0.0.1:7071"),
        ("ipc:///run/x.1", "ipc:///run/x", "ipc:///run/x.1"),
        ("ipc:///run/x.1", "ipc:///mnt/x", "ipc:///mnt/x.1"),
        ("ipc://x.1", "ipc:///run/x", "ipc:///run/x.1"),
        ("ipc:///run/x.1", "ipc://../x", "ipc://../x.1"),
        ("ipc:///run/x.1", "ipc://x", "ipc://x.1"),
    ],
)
def test_a_worker_is_reached_at_its_daemons_host(worker: str, home: str, found: str) -> None:
    assert beside(worker, home) == found
