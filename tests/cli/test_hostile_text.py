"""Text of files and daemons on a terminal: nothing in it acts, whatever the command."""

from __future__ import annotations

import io
import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from runnel import shown
from runnel.cli.main import main
from runnel.cli.text import aligned
from runnel.daemon.protocol.server import ServerProtocol
from runnel.shown import one_line, visible
from tests.serve.support import Peer, tally_engine

EVIL = "\x1b]0;title\x07\x9b31m\x7f\u202e\r"
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@given(st.text(st.characters(codec=None), max_size=50))
def test_what_is_shown_acts_on_nothing_and_says_what_was_there(text: str) -> None:
    assert not ACTS.search(visible(text).replace("\r\n", "\n"))
    assert not ACTS.search(one_line(text))
    assert "\n" not in one_line(text)
    if not re.search(r'["\\]', text):
        read = json.loads(f'"{one_line(text)}"')
        assert read.encode("utf-16", "surrogatepass") == text.encode("utf-16", "surrogatepass")


def test_plain_text_is_shown_as_it_is() -> None:
    text = "Zürich 漢字 café\t½ ▁▂▃ 👩‍🚀\nnext\r\n"
    assert visible(text) == text


def test_a_value_cannot_pass_for_another_row() -> None:
    assert aligned([("name", "x\nhash  verified")]) == r"name  x\u000ahash  verified"


def test_a_terminal_with_few_characters_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", out)
    with shown.guarded():
        print("café")
    out.flush()
    assert cast(io.BytesIO, out.buffer).getvalue() == b"caf\\xe9\n"


class Lying:
    """A daemon all of whose texts are hostile."""

    def __init__(self, address: str) -> None:
        server = ServerProtocol(tally_engine(), "boot")
        served = msgspec.to_builtins(Peer(server).ask("hello")[0].server)
        self._address = address
        self._served = {**self._spoilt(served), "workers": [address]}
        counted = {"requests", "errors", "closed"}
        self._stats = {
            key: {f"k{EVIL}": 1} if key in counted else value for key, value in server.document().items()
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _spoilt(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: value if key == "datatype" else self._spoilt(value) for key, value in value.items()}
        if isinstance(value, list):
            return [self._spoilt(one) for one in value]
        return value + EVIL if isinstance(value, str) else value

    def _serve(self) -> None:
        with zmq.Context.instance().socket(zmq.ROUTER) as router:
            router.linger = 0
            router.bind(self._address)
            while not self._stop.is_set():
                if not router.poll(50):
                    continue
                peer, head, *_ = router.recv_multipart()
                asked = msgspec.msgpack.decode(head)
                for one in asked if isinstance(asked, list) else [asked]:
                    reply: dict[str, Any] = {"v": 1, "op": one["op"], "id": one.get("id", "")}
                    if one["op"] == "hello":
                        reply["server"] = self._served
                    elif one["op"] == "stats":
                        reply["stats"] = self._stats
                    else:
                        reply["error"] = {"code": "LIMIT", "message": f"no\nrunnel: all is well{EVIL}"}
                    router.send_multipart([peer, msgspec.msgpack.encode(reply)])


@pytest.fixture
def lying(tmp_path: Path) -> Iterator[str]:
    daemon = Lying(f"ipc://{tmp_path}/d.sock")
    yield f"ipc://{tmp_path}/d.sock"
    daemon.close()


def clean(captured: Any) -> str:
    """All that was printed, once it is known that nothing in it acts."""
    text = str(captured.out + captured.err)
    assert not ACTS.search(text), ascii(text)
    return text


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "ADDRESS"],
        ["inspect", "ADDRESS", "--json"],
        ["top", "ADDRESS", "--once", "--interval", "0.1"],
        ["feed", "ADDRESS", "TABLE"],
        ["bench", "ADDRESS", "--streams", "1", "--seconds", "0.2"],
    ],
    ids=lambda words: " ".join(words),
)
def test_a_hostile_daemon(
    lying: str, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.csv").write_text("x.0,x.1\n1,2\n")
    told = {"ADDRESS": lying, "TABLE": str(tmp_path / "x.csv")}
    status = main([told.get(word, word) for word in words])
    text = clean(capsys.readouterr())
    assert "\nrunnel: all is well" not in text
    if status == 0:
        assert r"\u001b]0;title" in text or words[0] == "top", "it is shown, and not left out"


HOSTILE_FILES = {
    "unknown key": f'"a{EVIL[:-1]}" = 1\n'.replace("\x1b", "\\u001b").replace("\x07", "\\u0007"),
    "not TOML": f"[{EVIL}",
    "stage": '[input]\nshape = [1]\n[[before]]\nuse = "\\u001b]0;t\\u0007"\n',
    "model": '[model]\npath = "\\u001b]0;t\\u0007.onnx"\n',
    "source": '[source]\nuse = "\\u001b]0;t\\u0007"\n[input]\nshape = [1]\n[[before]]\nuse = "gain"\n',
    "serve": '[serve]\nbind = "\\u001b]0;t\\u0007"\nlog_level = "\\u001b"\n',
}


@pytest.mark.parametrize("command", ["inspect", "serve", "run", "plot", "verify"])
@pytest.mark.parametrize("kind", HOSTILE_FILES)
def test_a_hostile_file(tmp_path: Path, kind: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"p{EVIL}.toml"
    path.write_text(HOSTILE_FILES[kind].replace("\x7f", "").replace("\x9b", "").replace("\u202e", ""))
    words = [command, str(path), *(["x.csv"] if command in ("run", "plot") else [])]
    assert main(words) == 2
    clean(capsys.readouterr())


def test_a_command_line_that_is_hostile_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"serve{EVIL}"]) == 2
    with pytest.raises(SystemExit):
        main(["serve", f"--{EVIL}"])
    clean(capsys.readouterr())


def test_a_results_text_goes_to_another_program_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    with shown.guarded():
        assert shown.for_data(sys.stdout) is out
        monkeypatch.setattr(out, "isatty", lambda: True)
        shown.for_data(sys.stdout).write(EVIL)
    assert not ACTS.search(out.getvalue())
