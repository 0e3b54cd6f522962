"""Files that are not regular, never end, or ask for all memory: a typed error, soon."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from runnel import Engine, regular, spec
from runnel.errors import ModelError, PipelineError, RunnelError, UsageError
from runnel.loading import toml as tables
from runnel.model import bounded_call
from runnel.wire import keys
from runnel_plugins import _names

KINDS = ("pipe", "zeros", "folder", "socket", "missing", "link to a pipe")


@pytest.fixture(params=KINDS)
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A path that is not a regular file. The pipe has no writer."""
    path = tmp_path / "odd"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "zeros":
        path.symlink_to("/dev/zero")
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
            yield path
        return
    yield path


def renamed(odd: Path, name: str) -> Path:
    link = odd.with_name(name)
    link.symlink_to(odd)
    return link


@pytest.mark.parametrize("name", ["m.onnx", "p.toml"])
def test_a_pipeline_or_a_model(odd: Path, name: str) -> None:
    with pytest.raises(RunnelError, match=name):
        Engine.load(renamed(odd, name))


def test_a_model_that_a_pipeline_names(odd: Path) -> None:
    pipeline = odd.with_name("p.toml")
    pipeline.write_text(f'[model]\npath = "{odd.name}"\n')
    with pytest.raises(ModelError, match="odd"):
        Engine.load(pipeline)


def test_a_file_that_an_option_names(odd: Path) -> None:
    pipeline = odd.with_name("p.toml")
    pipeline.write_text(f'[input]\nshape = [3]\n[[before]]\nuse = "labels"\nnames_file = "{odd.name}"\n')
    with pytest.raises(PipelineError, match="odd"):
        Engine.load(pipeline)
    with pytest.raises(PipelineError, match="odd"):
        _names.lines("stage", odd)


def test_keys_and_users(odd: Path) -> None:
    with pytest.raises(UsageError, match="odd"):
        keys.read_secret(odd)
    if not odd.is_dir():  # a folder may be a list of users
        with pytest.raises(UsageError, match="odd"):
            keys.read_users(odd)
    inside = odd.with_name("users")
    inside.mkdir()
    (inside / "x.pub").symlink_to(odd)
    with pytest.raises(UsageError, match=r"x\.pub"):
        keys.read_users(inside)


def test_a_file_that_grows_while_it_is_read_is_bounded() -> None:
    """Files in /proc state a size of 0."""
    with pytest.raises(UsageError, match="at most 10 bytes"):
        regular.read("/proc/self/status", 10, "a status", UsageError)
    assert b"Pid:" in regular.read("/proc/self/status", 10**6, "a status", UsageError)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "\udcff\x1b[2J"])
def test_impossible_path_is_refused(path: str) -> None:
    with pytest.raises(UsageError) as raised:
        regular.read(path, 10, "a thing", UsageError)
    assert "\x1b" not in raised.value.message


DEEP = "a" + ".a" * 500_000


@pytest.mark.parametrize(
    "text",
    [
        f"{DEEP} = 1",
        f"[{DEEP}]",
        f"x = {{ {DEEP} = 1 }}",
        "'a'" + '."b c"' * 100_000 + "=1",
        "a" + " . a" * 200_000 + "=1",
        "." * 2**20,
        "x = " + "[" * 100_000,
        "x = " + "{a=" * 100_000,
    ],
    ids=["key", "table", "inline", "quoted", "spaced", "dots", "brackets", "braces"],
)
def test_text_that_would_stall_the_parser_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(PipelineError, match="not TOML"):
        tables.read_toml(tmp_path / "p.toml")
    (tmp_path / "u.toml").write_text(text)
    with pytest.raises(UsageError, match="not TOML"):
        keys.read_users(tmp_path / "u.toml")


def test_long_keys_that_are_not_dotted_are_accepted() -> None:
    numbers = ", ".join(["0.5"] * 1000)
    text = f'x = [{numbers}]\n# {"." * 1000}\ny = "{"a-b " * 1000}"\na.b.c.d.e.f = 1\n'
    assert tables.parse_toml(text)["a"] == {"b": {"c": {"d": {"e": {"f": 1}}}}}


def state(number: int, size: int) -> dict[str, object]:
    return {"input": f"s{number}", "output": f"t{number}", "dtype": "float32", "shape": ["slot", size]}


def test_states_are_bounded_together() -> None:
    document = {
        "format": 1,
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["slot", 4]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["slot", 4]}],
        "states": [state(number, 2**26) for number in range(1000)],
    }
    with pytest.raises(ModelError, match="the first 2 states take 536870912 bytes"):
        spec.from_document(document, "m.onnx")


def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def foreign(folder: Path, graph: onnx.GraphProto, rest: str = "") -> Path:
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, folder / "m.onnx")
    (folder / "p.toml").write_text(f'[model]\npath = "m.onnx"\n{rest}')
    return folder / "p.toml"


def test_states_that_a_pipeline_declares_are_bounded_together(tmp_path: Path) -> None:
    many = range(5)
    nodes = [helper.make_node("Identity", [f"s{n}"], [f"t{n}"]) for n in many]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"]), *nodes], "g",
        [value("x", "n", 4), *(value(f"s{n}", "n", 2**26) for n in many)],
        [value("y", "n", 4), *(value(f"t{n}", "n", 2**26) for n in many)],
    )  # fmt: skip
    declared = "".join(
        f'[[model.state]]\ninput = "s{n}"\noutput = "t{n}"\nshape = ["slot", {2**26}]\n' for n in many
    )
    with pytest.raises(ModelError, match="the first 2 states take"):
        Engine.load(foreign(tmp_path, graph, declared))


STATE = '[[model.state]]\ninput = "s"\noutput = "t"\nshape = ["slot", 4]\n'


def endless(grows: bool) -> onnx.GraphProto:
    """Return a loop without an end, which may collect a MiB in each round."""
    kept = [value("out", 2**18)] if grows else []
    made = [helper.make_node("ConstantOfShape", ["big"], ["out"])] if grows else []
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["still"]),
            helper.make_node("Add", ["v", "one"], ["w"]),
            *made,
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            value("v", "n", 4),
        ],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), value("w", "n", 4), *kept],
    )
    loop = helper.make_node("Loop", ["", "true", "s"], ["t", *(["all"] if grows else [])], body=body)
    return helper.make_graph(
        [loop, helper.make_node("Add", ["x", "t"], ["y"])], "g",
        [value("x", "n", 4), value("s", "n", 4)], [value("y", "n", 4), value("t", "n", 4)],
        [
            helper.make_tensor("true", TensorProto.BOOL, [], [True]),
            helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
            helper.make_tensor("big", TensorProto.INT64, [1], [2**18]),
        ],
    )  # fmt: skip


@pytest.mark.parametrize(("grows", "said"), [(False, "longer than 0.5 s"), (True, "bytes")])
def test_endless_loop_is_stopped_at_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grows: bool, said: str
) -> None:
    monkeypatch.setattr(bounded_call, "MAX_SECONDS", 60.0 if grows else 0.5)
    monkeypatch.setattr(bounded_call, "MAX_BYTES", 2**26)
    with pytest.raises(ModelError, match=said):
        Engine.load(foreign(tmp_path, endless(grows), STATE))
    assert not [thread for thread in threading.enumerate() if thread.name == "runnel-trial"]
