"""The wheel, in an environment with nothing else: what a device gets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tests.export.zoo import exported

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
STREAM = """
import sys
import runnel
heavy = ("numpy", "onnxruntime", "zmq", "msgspec", "pluggy")
assert not [m for m in heavy if m in sys.modules], "import runnel loads too much"
import numpy as np
with runnel.Engine.load("model.onnx") as engine, engine.open() as stream:
    np.save("out.npy", np.concatenate([stream.feed(tick[None]) for tick in np.load("in.npy")]))
assert not [m for m in ("torch", "onnx", "zmq") if m in sys.modules], "the engine loads too much"
"""


def run(*words: str | Path, cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, f"{words}\n{done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"runnel", "runnel_plugins", "runnel_export"}
    sources = {
        str(path.relative_to(root))
        for root in (ROOT / "engine", ROOT / "plugins", ROOT / "export")
        for path in root.glob("runnel*/**/*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources == {name for name in names if ".dist-info/" not in name}
    assert any(name.endswith("licenses/LICENSE") for name in names)


# One test: an environment is made in half a minute, and every worker that has a part would make its own.
def test_a_clean_install_serves_and_streams_without_torch(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "venv", cwd=tmp_path)
    bin = tmp_path / "venv" / "bin"
    python, runnel = bin / "python", bin / "runnel"
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    probe = [*pip, "download", "--no-deps", "--timeout", "5", "--retries", "1", "pluggy"]
    if subprocess.run(probe, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, timeout=120).returncode:
        pytest.skip("pip reaches no package index here, so nothing can be installed")
    run(*pip, "install", wheel, cwd=tmp_path)
    run(*pip, "check", cwd=tmp_path)

    work = tmp_path / "work"
    work.mkdir()
    installed = run(
        python, "-c", "import sysconfig, os; print(*os.listdir(sysconfig.get_path('purelib')))", cwd=work
    ).stdout.split()
    assert {"runnel", "runnel_plugins", "runnel_export"} <= set(installed)
    assert not {"engine", "plugins", "export", "tests", "deploy", "torch", "onnx"} & set(installed)

    version = wheel.name.split("-")[1]
    assert run(runnel, "--version", cwd=work).stdout == f"runnel {version}\n"
    assert "--max-streams" in run(runnel, "serve", "--help", cwd=work).stdout
    assert "resample" in run(runnel, "plugins", cwd=work).stdout
    listed = run(runnel, "plugins", "resample", "speech_segments", cwd=work).stdout
    assert f"resample  (runnel {version})" in listed
    assert f"speech_segments  (runnel {version})" in listed
    (work / "a.py").write_text("B = None\n")
    for command, extra in ((["export", "a.py:B", "-o", "b.onnx"], "export"), (["demo"], "demo")):
        assert f"pip install 'runnel[{extra}]'" in run(runnel, *command, cwd=work, status=2).stderr

    hand = models.lstm(work / "model.onnx")
    chunk = models.data(hand, 20)
    np.save(work / "in.npy", chunk["x"])
    expected = hand.loop(chunk)["y"]
    run(python, "-c", STREAM, cwd=work)
    np.testing.assert_allclose(np.load(work / "out.npy"), expected, atol=1e-6)
    np.testing.assert_allclose(served(runnel, work), expected, atol=1e-6)

    assert "verified with onnxruntime" in run(runnel, "verify", exported("lstm"), cwd=work).stdout


def served(runnel: Path, work: Path) -> np.ndarray:
    """The same by the installed daemon, which must then stop cleanly."""
    address = "ipc://runnel.sock"
    daemon = subprocess.Popen([runnel, "serve", "model.onnx", "--bind", address], cwd=work, env=ENVIRONMENT)
    try:
        deadline = time.monotonic() + 60
        while not (work / "runnel.sock").exists():
            assert daemon.poll() is None, "the daemon did not start"
            assert time.monotonic() < deadline, "the daemon did not bind"
            time.sleep(0.05)
        run(runnel, "feed", address, "in.npy", "-o", "served.npy", "--quiet", cwd=work)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(60) == 0
    finally:
        daemon.kill()
        daemon.wait()
    found: np.ndarray = np.load(work / "served.npy")
    return found
