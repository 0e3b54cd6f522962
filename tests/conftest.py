"""What all tests share: hypothesis profiles, one thread a process, and Ctrl-C as a terminal delivers it."""

import os
import signal

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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("-m"):
        return
    skip = pytest.mark.skip(reason="longer proof: make soak")
    for item in items:
        if "soak" in item.keywords:
            item.add_marker(skip)
