"""What is proved of a certificate is proved in tests/export; here its longest trial is shorter, for speed."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _a_short_long_trial(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if not request.config.getoption("-m"):  # soak: as it is
            patch.setattr("runnel_export.certify.reference_runs.LONG", 250)
        yield
