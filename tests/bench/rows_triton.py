"""NVIDIA Triton beside ours, where somebody has put it: nothing here depends on it.

Its server binary comes with the package nvidia-pytriton (a wheel of 55 MB; with what it needs, some 400 MB):

    python3 -m venv DIR && DIR/bin/pip install nvidia-pytriton onnxruntime
    RUNNEL_TRITON=DIR python -m tests.bench --only triton
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import numpy as np

from runnel import Client

from . import serving
from .kit import LARGE, Kit
from .measure import Spread, alone
from .report import Measured, Row, SkipRow

VARIABLE = "RUNNEL_TRITON"
STREAMS = 256
_CHILDREN = Path(__file__).parent / "children"


def _triton(kit: Kit) -> Measured:
    python = _python()
    seconds = max(1.0, kit.effort.messages / 500)
    found: dict[int, dict[str, float]] = {}
    with _server(kit, python) as address:
        for sequences in (1, STREAMS):
            command = [str(python), str(_CHILDREN / "triton_client.py"), address, str(sequences), "80"]
            done = subprocess.run([*command, str(seconds)], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
            found[sequences] = json.loads(done.stdout)
    a_step = _ours(kit)
    theirs = found[STREAMS]["rate"]
    beside = [
        (f"Triton, {STREAMS} sequences at once", f"{theirs:.0f} steps/s, p50 {found[STREAMS]['p50']:.1f} ms"),
        ("Triton, one sequence", f"{found[1]['rate']:.0f} steps/s, p50 {found[1]['p50']:.2f} ms"),
        (f"ours, {STREAMS} streams at once", f"{1 / a_step.median:.0f} steps/s"),
    ]
    rates = [1 / a_step.median, 1 / a_step.high, 1 / a_step.low]
    return Measured(Spread(*(rate / theirs for rate in rates)), beside)


def _ours(kit: Kit) -> Spread:
    """Seconds a step by the client, as many streams at once."""
    with serving.serving(kit, kit.large.path) as (address, _), Client(address) as client:
        streams = [client.open() for _ in range(STREAMS)]
        given = cycle(
            [list(zip(streams, np.split(tick, STREAMS), strict=True)) for tick in kit.large.ticks(STREAMS)]
        )
        return alone(
            lambda calls: [client.feed_many(next(given)) for _ in range(calls)], kit.effort, steps=STREAMS
        )


def _python() -> Path:
    """The interpreter of the environment that has Triton; SkipRow says how to get one."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        raise SkipRow(
            f"{VARIABLE} names no environment with Triton: python3 -m venv DIR && DIR/bin/pip install "
            f"nvidia-pytriton onnxruntime, then {VARIABLE}=DIR"
        )
    python = Path(folder) / "bin" / "python"
    if not python.exists():
        raise SkipRow(f"{VARIABLE}: there is no bin/python in the folder that it names")
    return python


@contextmanager
def _server(kit: Kit, python: Path) -> Iterator[str]:
    """The gRPC address of a Triton that serves the model by its Python backend and sequence batcher."""
    code = "import sys, sysconfig; print(sysconfig.get_path('purelib'), '%d.%d' % sys.version_info[:2])"
    said = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    site, version = said.stdout.split()
    home = Path(site) / "pytriton" / "tritonserver"
    stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise SkipRow(f"nvidia-pytriton is not there, or has no Python backend for {version}")
    models, backends = kit.folder / "triton-models" / "lstm", kit.folder / "triton-backends"
    (models / "1").mkdir(parents=True)
    shutil.copy(_CHILDREN / "triton" / "config.pbtxt", models)
    shutil.copy(_CHILDREN / "triton" / "model.py", models / "1")
    shutil.copytree(home / "backends", backends)
    Path(shutil.copy(stub, backends / "python")).chmod(0o755)  # the wheel's are not executable
    port = _free_port()
    process = subprocess.Popen(
        [
            str(home / "bin" / "tritonserver"), f"--model-repository={models.parent}",
            f"--backend-directory={backends}", "--grpc-address=127.0.0.1", f"--grpc-port={port}",
            "--allow-http=false", "--allow-metrics=false",
        ],
        env=os.environ | {
            "LD_LIBRARY_PATH": f"{site}/nvidia_pytriton.libs",
            "RUNNEL_TRITON_SITE": site,
            "RUNNEL_TRITON_MODEL": str(kit.large.path),
        },
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


ROWS = (
    Row(
        "triton",
        f"steps/s, one client, {STREAMS} streams, {LARGE} ÷ NVIDIA Triton's",
        "Triton's sequence batcher ('oldest') and a Python backend that runs the same file, batched, by "
        "`session.run`, over gRPC by its own client, a chunk of each sequence on its way at any time; ours "
        "as in `serve-throughput`. One after the other, not side by side. More is better.",
        _triton,
    ),
)
