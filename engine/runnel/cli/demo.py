"""`runnel demo`: the whole path with a trained model, from PyTorch weights to segments of live speech."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import UsageError

HELP = "the whole path on a trained model: export, certify, serve, stream live speech"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", type=Path, help="a sound file of your own (WAV, FLAC, OGG); default: a clip"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo-out"), help="folder for what it writes (%(default)s)"
    )
    parser.add_argument("--microphones", type=int, default=4, help="live streams, 1 to 64 (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="listen for at most this long (%(default)s)"
    )
    parser.add_argument(
        "--files",
        type=Path,
        metavar="DIR",
        help="only put the silero_vad.onnx of the package silero-vad, and speech.wav, into this folder",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing if all is well")
    parser.epilog = (
        "Takes Silero VAD's trained weights, exports a certified step model, holds it against the\n"
        "vendor's ONNX file, starts the daemon, and streams speech to it in real time.\n\n"
        "examples:\n  runnel demo\n  runnel demo --input my.wav\n  runnel demo --files ."
    )


def run(args: argparse.Namespace) -> int:
    if not 1 <= args.microphones <= 64:
        raise UsageError(f"--microphones must be in 1..64, not {args.microphones}")
    if not args.seconds > 0:
        raise UsageError(f"--seconds must be positive, not {args.seconds:g}")
    try:
        if args.files is not None:
            from runnel_export.demo.files import put
        else:
            from runnel_export.demo.show import show
    except ImportError as error:
        raise UsageError(f"the demo needs more packages ({error.name}): pip install 'runnel[demo]'") from None
    if args.files is None:
        return show(args.input, args.out, args.microphones, args.seconds, args.quiet)
    for path, about in put(args.files):
        if not args.quiet:
            print(f"{path}  {about}")
    return 0
