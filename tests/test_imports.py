"""Who may import whom: design rules kept by reading every import, and by looking at what gets loaded."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.imported import offences, read

ROOT = Path(__file__).parent.parent
ENGINE = ROOT / "engine" / "runnel"
SYSTEM = {"zmq", "socket", "selectors", "asyncio", "threading", "multiprocessing", "subprocess", "signal"}
CLOCKS = {"time", "datetime", "random", "secrets"}
PURE = ("model", "pipeline", "laws", "wire", "daemon/protocol")  # folders
PURE_TOP = ("errors", "spec", "stage", "batch", "snapshot", "connectors", "notices", "columns")
PURE_TOP += ("checks", "probe", "times")
IMPURE = {  # what a module of a pure folder may import beyond that, and why
    "model/session.py": {"onnxruntime"},  # the one that runs models
    "model/bounded_call.py": SYSTEM | CLOCKS,  # it bounds a first run in time
    "pipeline/stage_runner.py": {"time"},  # stages have a limit of seconds
    "wire/curve.py": {"zmq"},  # keys on a socket
}
NEVER = [  # folder, what it never imports
    ("client", "daemon"),
    ("wire", "client"),
    ("wire", "daemon"),
    ("daemon/protocol", "client"),
    ("model", "insight"),
    ("pipeline", "insight"),
    ("model", "pipeline"),
    ("model", "loading"),
    ("model", "daemon"),
    ("pipeline", "daemon"),
    ("loading", "daemon"),
    ("insight", "daemon"),
    ("laws", "loading"),
    ("laws", "daemon"),
    ("client", "loading"),
    ("client", "pipeline"),
    ("loadgen", "daemon"),
]
HEAVY = ("torch", "onnx", "onnxscript", "onnxruntime", "zmq", "pluggy", "msgspec")


def imports(path: Path) -> set[str]:
    """What a module imports."""
    parts = path.relative_to(ENGINE.parent).with_suffix("").parts if ENGINE in path.parents else ()
    return read(path.read_text(), ".".join(parts))


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize(("folder", "forbidden"), NEVER)
def test_a_folder_never_imports_another(folder: str, forbidden: str) -> None:
    paths = list((ENGINE / folder).rglob("*.py"))
    assert len(paths) > 1
    for path in paths:
        assert not offences(imports(path), f"runnel.{forbidden.replace('/', '.')}"), path


@pytest.mark.parametrize(
    "offender",
    [
        "from ..daemon.loop import Daemon",
        "from ..daemon import loop",
        "from .. import daemon",
        "from runnel.daemon.loop import Daemon",
        "import runnel.daemon.loop",
        "def f():\n    from ..daemon import loop",
    ],
)
def test_an_import_that_breaks_a_rule_is_found(offender: str) -> None:
    assert offences(read(offender, "runnel.client.client"), "runnel.daemon")
    assert not offences(read(offender, "runnel.client.client"), "runnel.wire")


@pytest.mark.parametrize("folder", PURE)
def test_a_pure_folder_has_no_socket_thread_or_clock(folder: str) -> None:
    for path in (ENGINE / folder).rglob("*.py"):
        allowed = IMPURE.get(str(path.relative_to(ENGINE)), set())
        assert not tops(path) & (SYSTEM | CLOCKS | {"onnxruntime"}) - allowed, path


@pytest.mark.parametrize(
    "name",
    [*PURE_TOP, "client/protocol", "wire/pauses", "daemon/settings", "cli/panel", "daemon/metrics/rates"],
)
def test_a_pure_module_has_no_socket_thread_or_clock(name: str) -> None:
    assert not tops(ENGINE / f"{name}.py") & (SYSTEM | CLOCKS), name


@pytest.mark.parametrize("name", PURE_TOP)
def test_the_contract_imports_numpy_and_the_standard_library(name: str) -> None:
    for found in imports(ENGINE / f"{name}.py"):
        top = found.split(".")[0]
        assert top in sys.stdlib_module_names or top in ("numpy", "runnel"), f"{name} imports {found}"


@pytest.mark.parametrize("name", ["keys"])
def test_keys_are_judged_without_a_socket(name: str) -> None:
    assert not tops(ENGINE / "wire" / f"{name}.py") & (SYSTEM | CLOCKS)
    assert not tops(ENGINE / "daemon" / "zap.py") & (SYSTEM | CLOCKS)


def test_one_importer_each() -> None:
    importers: dict[str, set[str]] = {"onnxruntime": set(), "zmq": set(), "torch": set(), "onnx": set()}
    importers["prometheus_client"] = set()
    for path in ENGINE.rglob("*.py"):
        for name in tops(path) & importers.keys():
            importers[name].add(str(path.relative_to(ENGINE)))
    assert importers["onnxruntime"] == {"model/session.py"}
    assert importers["zmq"] == {
        "client/connection.py",
        "client/monitor.py",
        "daemon/door.py",
        "daemon/authenticator.py",
        "daemon/loop.py",
        "daemon/sender.py",
        "loadgen/remote.py",
        "wire/curve.py",
    }
    assert importers["torch"] == set()
    assert importers["prometheus_client"] == {"daemon/metrics/prometheus.py"}


def test_messages_import_only_errors_and_the_header_library() -> None:
    for found in imports(ENGINE / "wire" / "messages.py"):
        top = found.split(".")[0]
        assert top in sys.stdlib_module_names or top == "msgspec" or found.startswith("runnel.errors"), found


def test_the_engine_never_imports_the_exporter() -> None:
    for path in ENGINE.rglob("*.py"):
        if path.parent.name != "cli":  # the command line starts the exporter, where it is installed
            assert "runnel_export" not in tops(path), path


def test_plugins_use_only_public_names() -> None:
    """A module at the top of `runnel` is public, a folder is private."""
    for path in (ROOT / "plugins" / "runnel_plugins").rglob("*.py"):
        for found in imports(path):
            assert found.split(".")[0] != "runnel_export"
            if found.split(".")[0] == "runnel":
                assert found.count(".") <= 1, f"{path.name} imports {found}"
                assert found == "runnel" or not ENGINE.parent.joinpath(*found.split(".")).is_dir(), found


def test_no_python_in_a_component_root() -> None:
    for root in ("engine", "plugins", "export"):
        assert not list((ROOT / root).glob("*.py"))


def test_no_file_past_600_lines() -> None:
    for root in ("engine", "plugins", "export", "tests"):
        for path in (ROOT / root).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 600, path


def test_init_files_hold_names_only() -> None:
    for root in ("engine", "plugins", "export"):
        for path in (ROOT / root).rglob("__init__.py"):
            for node in ast.parse(path.read_text()).body:
                assert not isinstance(node, ast.ClassDef), path


def test_import_runnel_loads_nothing_heavy() -> None:
    code = f"import sys, runnel; print([m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module", ["runnel.model.session", "runnel_export.exporter", "runnel_export.demo.show"]
)
def test_onnxruntime_writes_nothing_into_the_users_home(module: str, tmp_path: Path) -> None:
    """Its telemetry begins with a database there; onnxruntime 1.31 makes it when it is imported."""
    environment = os.environ | {"HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    environment.pop("XDG_CACHE_HOME", None)
    code = f"import sys, {module}; assert 'onnxruntime' in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]


def test_every_public_name_is_there() -> None:
    import runnel

    for name in runnel.__all__:
        assert getattr(runnel, name) is not None
    assert set(runnel.__all__) <= set(dir(runnel))
    with pytest.raises(AttributeError, match="no attribute 'Enigne'"):
        runnel.Enigne  # noqa: B018


@pytest.mark.parametrize(
    ("package", "modules", "loads"),
    [("runnel", {"checks", "errors"}, "Engine"), ("runnel_export", {"nn"}, "export")],
)
def test_tab_completion_shows_what_is_public_and_nothing_else(
    package: str, modules: set[str], loads: str
) -> None:
    """Also after the submodules were imported, which makes each an attribute."""
    code = (
        f"import {package} as p; p.{loads}; shown = {{n for n in dir(p) if not n.startswith('__')}}; "
        f"assert shown == set(p.__all__) | {modules}, shown; assert all(hasattr(p, n) for n in shown); "
        "import pydoc; text = pydoc.plain(pydoc.render_doc(p)); assert 'import_module' not in text"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
