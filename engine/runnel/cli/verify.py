"""`runnel verify`: verify a model file again on this machine."""

from __future__ import annotations

import argparse
import sys

HELP = "prove a model file again on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Steps the file by the engine and compares with the original's own numbers, which the file keeps.\n"
        "Needs neither torch nor the module.\n\nexample:\n  runnel verify model.onnx"
    )
    parser.add_argument("model", metavar="MODEL.onnx", help="a model file that runnel exported")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing if all is well")


def run(args: argparse.Namespace) -> int:
    from runnel_export import verify

    def report(line: str) -> None:
        print(line, file=sys.stderr)

    certificate = verify(args.model, report=None if args.quiet else report)
    if not args.quiet:
        print(certificate)
        print(f"{args.model}: verified with onnxruntime {certificate.versions['onnxruntime']}")
    return 0
