"""Who may import whom: design rules kept by reading every import, and by looking at what gets loaded."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENGINE = ROOT / "engine" / "runnel"
PURE = (
    "errors",
    "spec",
    "state",
    "stage",
    "framing",
    "blocks",
    "slots",
    "probe",
    "histogram",
    "health",
    "figures",
    "container",
    "onnxgraph",
    "identity",
    "recurrence",
    "regular",
    "tables",
    "pipeline",
    "place",
    "batch",
    "feedback",
    "ends",
    "notices",
    "calls",
    "checks",
    "laws",
    "laws_many",
    "laws_time",
    "trial",
    "columns",
    "times",
)
HEAVY = ("torch", "onnx", "onnxscript", "onnxruntime", "zmq", "pluggy", "msgspec")


def imports(path: Path) -> set[str]:
    """Absolute names of everything that a module imports, wherever in it; not what only types need."""
    package = (
        ".".join(path.relative_to(ENGINE.parent).with_suffix("").parts[:-1]) if ENGINE in path.parents else ""
    )
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            found |= (
                {f"{base}.{a.name}" for a in node.names} if base in ("runnel", "runnel.serve") else {base}
            )
    return found


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_import_numpy_and_pure_modules_only(name: str) -> None:
    for found in imports(ENGINE / f"{name}.py"):
        top, *rest = found.split(".")
        if top == "runnel":
            assert set(rest[:1]) & set(PURE), f"{name} imports {found}"
        else:
            assert top in sys.stdlib_module_names or top == "numpy", f"{name} imports {found}"


def test_one_importer_each() -> None:
    importers: dict[str, set[str]] = {"onnxruntime": set(), "zmq": set(), "torch": set(), "onnx": set()}
    importers["prometheus_client"] = set()
    for path in ENGINE.rglob("*.py"):
        for name in tops(path) & importers.keys():
            importers[name].add(str(path.relative_to(ENGINE)))
    assert importers["onnxruntime"] == {"model.py"}
    zmq = ("connection", "curve", "daemon", "door", "sender", "watch")
    assert importers["zmq"] == {"load/remote.py", *(f"serve/{name}.py" for name in zmq)}
    assert importers["torch"] == set()
    assert importers["prometheus_client"] == {"serve/exposition.py"}


@pytest.mark.parametrize(
    "name",
    [
        "protocol",
        "admission",
        "shares",
        "attention",
        "replies",
        "conversation",
        "sequences",
        "transitions",
        "placement",
        "stats",
        "outbox",
        "settings",
    ],
)
def test_what_decides_has_no_socket_and_no_clock(name: str) -> None:
    assert not tops(ENGINE / "serve" / f"{name}.py") & {
        "zmq",
        "time",
        "socket",
        "asyncio",
        "threading",
        "datetime",
        "random",
        "secrets",
    }


@pytest.mark.parametrize("name", ["serve/stats", "serve/reading", "cli/panel"])
def test_what_is_counted_and_shown_is_pure(name: str) -> None:
    clocks = {"zmq", "time", "socket", "threading", "datetime", "os", "sys"}
    assert not tops(ENGINE / f"{name}.py") & clocks


def test_wire_imports_only_errors_and_the_header_library() -> None:
    for found in imports(ENGINE / "serve" / "wire.py"):
        top = found.split(".")[0]
        assert top in sys.stdlib_module_names or top == "msgspec" or found.startswith("runnel.errors"), found


@pytest.mark.parametrize("name", ["keys", "zap"])
def test_who_is_let_in_is_decided_without_a_socket(name: str) -> None:
    assert not tops(ENGINE / "serve" / f"{name}.py") & {"zmq", "time", "socket", "threading"}


def test_the_engine_never_imports_the_exporter() -> None:
    for path in ENGINE.rglob("*.py"):
        if path.parent.name != "cli":  # the command line starts the exporter, where it is installed
            assert "runnel_export" not in tops(path), path


def test_plugins_use_only_public_names() -> None:
    public = {"runnel", "runnel.stage", "runnel.errors", "runnel.spec", "runnel.checks"}
    for path in (ROOT / "plugins" / "runnel_plugins").rglob("*.py"):
        for found in imports(path):
            top = found.split(".")[0]
            assert top != "runnel_export"
            if top == "runnel":
                assert found in public or ".".join(found.split(".")[:2]) in public or found.count(".") == 1, (
                    found
                )


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


@pytest.mark.parametrize("module", ["runnel.model", "runnel_export.exporter", "runnel_export.demo.show"])
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
