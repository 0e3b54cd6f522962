"""Run the ONNX side of a certificate again: on another machine, or with another onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from runnel import Engine
from runnel.errors import CertificateError

from . import vectors
from .certificate import FLOAT32, INT8, Certificate, totals, versions
from .checks import Prover, Trial, prove
from .errors import judge
from .probe import recomposed
from .samples import Source, draw


def verify(path: str | Path, *, report: Callable[[str], None] | None = None) -> Certificate:
    """Prove again what can be proved without the module; needs neither torch nor onnx.

    Compares with the module's own numbers that the file keeps, and repeats the checks of chunking,
    batching, isolation, reset, snapshot and living states on random data. `report` is called with a
    line of text as the work goes on. Returns the file's certificate with the checks, errors, versions
    and date of this run.

    Raises ModelError for a file that cannot be read or describes nothing; CertificateError for one
    that is not the certified one, has no certificate, or fails a check.
    """
    say = report or (lambda _: None)
    with Engine.load(path, max_streams=64) as engine:  # refuses a file whose hash is another
        spec = engine.pipeline.model
        if spec is None or spec.certificate is None:
            raise CertificateError(f"{path}: it has no certificate: export it with runnel_export")
        certificate = Certificate.from_json(spec.certificate, str(path))
        sources = [Source.from_json(s, str(path)) for s in certificate.sources]
        original = vectors.from_json(certificate.vectors, str(path))
        rng = np.random.default_rng(certificate.seed)
        # Without the module, its own rounding of small elements is not known: the typical element's scale.
        limits = replace(
            INT8 if certificate.quantize else FLOAT32, tolerance=certificate.tolerance, floor=1.0
        )
        prover = Prover(engine, rng)
        sizes = [certificate.ticks - 3 * i for i in range(certificate.streams)]
        chunks = [draw(sources, rng, ticks * prover.unit) for ticks in (*sizes, certificate.long) if ticks]
        trials = [Trial(chunk, prover.whole(chunk)) for chunk in chunks]
        long = trials.pop() if certificate.long else None
        checks, alive = prove(engine, trials, [original], long, rng, limits, say)
        if spec.probe:
            say("whether the gates are those of its layers")
            checks += judge([recomposed(prover, [*trials, original])], limits)
    found = replace(
        certificate,
        checks=checks,
        errors=totals(c for c in checks if c.name == "given"),
        alive=alive,
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if not found.passed:
        rows = "\n".join(check.row() for check in found.failures)
        raise CertificateError(
            f"{path}: the file is the certified one, but here (onnxruntime {found.versions['onnxruntime']}; "
            f"certified with {certificate.versions.get('onnxruntime')}) it gives other numbers\n{rows}"
        )
    return found
