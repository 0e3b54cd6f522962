"""What all tests share: profiles of hypothesis, a folder, one thread each, Ctrl-C as a terminal has it."""

import os
import signal
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch start their pools

import pytest
from hypothesis import HealthCheck, settings

_quiet = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("test", max_examples=25, derandomize=True, **_quiet)
settings.register_profile("soak", max_examples=300, **_quiet)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))

# A shell starts its background jobs with SIGINT ignored, and every child process inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    if "RUNNEL_TEST_FILES" not in os.environ:  # else this is a worker: what one has made, all have
        folder = tempfile.TemporaryDirectory(prefix="runnel-test-files-")
        os.environ["RUNNEL_TEST_FILES"] = folder.name
        config.add_cleanup(folder.cleanup)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("-m"):
        return
    skip = pytest.mark.skip(reason="longer proof: make soak")
    for item in items:
        if "soak" in item.keywords:
            item.add_marker(skip)
