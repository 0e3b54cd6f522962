"""One case in a process of its own: build, export, check, time. Its last line is the outcome as JSON."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch start their pools
os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # pyannote.audio reports its use otherwise

import argparse
import json
import resource
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import onnx
import torch

import runnel
import runnel_export
from runnel.errors import ExportError

from . import timing
from .case import Built, Case
from .checking import check
from .families import CASES
from .outcome import Outcome, installed

MEMORY = 10 * 2**30  # bytes of private memory: beyond it a case fails, and the machine goes on
SEED = 20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.public.child", description=__doc__)
    parser.add_argument("name", choices=CASES)
    parser.add_argument("--no-timing", action="store_true")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    outcome = run(CASES[asked.name], timed=not asked.no_timing)
    print("\n" + json.dumps(asdict(outcome)), flush=True)


def run(case: Case, *, timed: bool) -> Outcome:
    """Build and export one case. Whatever goes wrong is the outcome."""
    outcome = Outcome(case.name, installed(case.package), "fault")
    torch.manual_seed(SEED)
    try:
        built = case.build()
        built.module.eval()
    except Exception as error:
        return replace(outcome, result="absent", reason=_said(error))
    outcome = replace(outcome, parameters=sum(p.numel() for p in built.module.parameters()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        began = time.monotonic()
        try:
            runnel_export.export(built.module, built.example, path, progress=False, **built.options)
        except ExportError as error:
            return replace(outcome, result="refused", reason=_said(error), seconds=time.monotonic() - began)
        except Exception as error:
            traceback.print_exc()
            return replace(outcome, reason=_said(error), seconds=time.monotonic() - began)
        outcome = replace(outcome, seconds=time.monotonic() - began, nodes=_nodes(onnx.load(path).graph))
        try:
            return _used(outcome, built, path, timed)
        except Exception as error:
            traceback.print_exc()
            return replace(outcome, reason=_said(error))


def _used(outcome: Outcome, built: Built, path: Path, timed: bool) -> Outcome:
    """Check the file that was certified, and time it."""
    with runnel.Engine.load(path) as engine:
        found = check(engine, built, SEED)
        outcome = replace(
            outcome,
            result="certified",
            error=found.error,
            rate="varies" if found.rate is None else str(found.rate),
            latency=found.latency,
        )
        if not timed:
            return outcome
        measured = timing.measure(engine, built, found.rate or Fraction(1))
        return replace(outcome, ratio=measured.ratio, step_us=measured.step_us)


def _nodes(graph: onnx.GraphProto) -> int:
    """Nodes, with those of inner graphs."""
    inner = (a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
    return len(graph.node) + sum(map(_nodes, inner))


def _said(error: Exception) -> str:
    """The first line of an error, with its kind unless `export` refused."""
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, ExportError) else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # some packages leave threads behind
