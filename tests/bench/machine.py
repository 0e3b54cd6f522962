"""What a figure depends on: the machine, the versions, the day, and how busy the machine was."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("numpy", "onnxruntime", "torch", "onnx", "onnxscript", "silero-vad", "pyzmq")


def describe() -> list[tuple[str, str]]:
    """(what, value) for the head of the page."""
    versions = (f"{name} {_version(name)}" for name in PACKAGES)
    return [
        ("date", datetime.now(UTC).isoformat(timespec="minutes")),
        ("commit", _commit()),
        ("processor", f"{_processor()}, {os.cpu_count()} cores, {platform.machine()}"),
        ("system", f"{platform.system()} {platform.release()}, {platform.libc_ver()[0] or 'libc'} "
                   f"{platform.libc_ver()[1]}"),
        ("versions", f"{platform.python_implementation()} {platform.python_version()}, "
                     + ", ".join(versions)),
        ("onnxruntime", "CPUExecutionProvider, one thread on either side of every ratio"),
        ("load average at the start", f"{os.getloadavg()[0]:.2f}"),
    ]  # fmt: skip


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(absent)"


def _processor() -> str:
    """The kernel's name for it; /proc/cpuinfo has none on some Arm boards."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or "unknown"


def _commit() -> str:
    """The commit, and whether the tree differs from it."""
    try:
        git = ("git", "-C", str(Path(__file__).parent))
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + (" with changes" if changed.stdout.strip() else "")
