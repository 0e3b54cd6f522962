"""The registry: one module a family, each with its CASES."""

from __future__ import annotations

from ..case import Case
from . import (
    amplifiers,
    codecs,
    enhancement,
    forecasting,
    liquid,
    policies,
    recurrent,
    spectra,
    speech,
    statespace,
)

FAMILIES = (
    amplifiers, codecs, enhancement, forecasting, liquid, policies, recurrent, spectra, speech,
    statespace,
)  # fmt: skip
CASES: dict[str, Case] = {case.name: case for family in FAMILIES for case in family.CASES}
