"""onnxruntime's configuration: no fallback to another provider, and idle threads do not spin."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from runnel.model.session import load_session
from tests import models


def session(folder: Path, threads: int = 1) -> ort.InferenceSession:
    path = models.lstm(folder / "m.onnx").path
    return load_session(path.read_bytes(), str(path), None, threads)


def feeds(loaded: ort.InferenceSession) -> dict[str, object]:
    return {
        value.name: np.zeros([size if isinstance(size, int) else 1 for size in value.shape], np.float32)
        for value in loaded.get_inputs()
    }


def test_an_error_of_a_provider_is_raised_and_not_run_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default onnxruntime prints a line and falls back to another provider."""
    loaded = session(tmp_path)
    fail: type[Exception] = ort.capi.onnxruntime_pybind11_state.EPFail
    moved: list[object] = []

    inner = loaded._sess

    class Failing:
        def run(self, *_: object) -> None:
            raise fail("the device is gone")

        run_with_ort_values = run

        def __getattr__(self, name: str) -> object:
            return getattr(inner, name)

    monkeypatch.setattr(loaded, "_sess", Failing())
    monkeypatch.setattr(loaded, "set_providers", lambda *providers: moved.append(providers))
    with pytest.raises(fail, match="the device is gone"):
        loaded.run(None, feeds(loaded))
    assert not moved


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc: processor time by thread")
def test_idle_threads_of_a_session_do_not_spin(tmp_path: Path) -> None:
    loaded = session(tmp_path, threads=4)
    assert loaded.get_session_options().get_session_config_entry("session.intra_op.allow_spinning") == "0"
    loaded.run(None, feeds(loaded))
    before, began = time.process_time(), time.monotonic()
    time.sleep(0.3)
    assert time.process_time() - before < 0.5 * (time.monotonic() - began)


def test_one_thread_starts_no_thread_of_onnxruntime(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/task")) if Path("/proc/self/task").exists() else 0
    loaded = session(tmp_path)
    loaded.run(None, feeds(loaded))
    after = len(os.listdir("/proc/self/task")) if before else 0
    assert after <= before
