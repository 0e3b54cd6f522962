"""Clean a microphone's sound and play it, or clean raw sound between two pipes.

    python export/recipes/noise_suppression/live.py recipes-out/noise_suppression/suppressor.onnx
    arecord ... | python export/recipes/noise_suppression/live.py suppressor.onnx --pipe | aplay ...

Sound is 16-bit little-endian mono at the model's rate. The output has as many samples as the input.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np

from runnel import Engine
from runnel.errors import ModelError, RunnelError, UsageError
from runnel.spec import Array

_SCALE = 32768.0
_READ = 4096  # bytes at most: 128 ms, after a pause of the process
_PERIOD, _RECORD, _PLAY = 10_000, 40_000, 80_000  # µs: a device's period, and both devices' buffers
_END_WITHIN = 5.0  # seconds for a device to play what it has


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when the sound ends or on Ctrl-C, and 1 with a message on an error."""
    parser = argparse.ArgumentParser(
        prog="live.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="the model that the recipe wrote")
    parser.add_argument("--pipe", action="store_true", help="standard input to standard output, no devices")
    parser.add_argument("--device", default="default", help="ALSA's name for both devices (%(default)s)")
    args = parser.parse_args(arguments)
    try:
        with Engine.load(args.model) as engine:
            rate = _rate(engine, args.model)
            if args.pipe:
                clean(engine, sys.stdin.buffer, sys.stdout.buffer)
            else:
                with _devices(rate, args.device) as (microphone, speaker):
                    print(_notice(engine, rate), file=sys.stderr, flush=True)
                    clean(engine, microphone, speaker)
    except BrokenPipeError:  # the reader has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it again at exit
    except KeyboardInterrupt:
        pass
    except (RunnelError, OSError, subprocess.TimeoutExpired) as error:
        print(f"live.py: {error}", file=sys.stderr)
        return 1
    return 0


def clean(engine: Engine, source: IO[bytes], sink: IO[bytes]) -> None:
    """Clean raw sound as it comes, until its end. Raise UsageError if the last sample is incomplete."""
    held, taken, given = b"", 0, 0
    with engine.open() as stream:

        def write(samples: Array) -> None:
            nonlocal given
            samples = samples[: taken - given]  # without the zeros that filled the last hop
            given += len(samples)
            sink.write(np.clip(np.rint(samples * _SCALE), -_SCALE, _SCALE - 1).astype("<i2").tobytes())
            sink.flush()

        while data := source.read1(_READ):  # type: ignore[attr-defined]
            held += data
            whole = len(held) // 2 * 2
            if whole:
                chunk = np.frombuffer(held[:whole], "<i2").astype(np.float32) / np.float32(_SCALE)
                held, taken = held[whole:], taken + len(chunk)
                write(_array(stream.feed(chunk)))
        if missing := -taken % _ticks(engine):
            write(_array(stream.feed(np.zeros(missing, np.float32))))
        write(_array(stream.flush()))
    if held:
        raise UsageError("the sound ends within a sample: it is not 16 bits a sample, or was cut off")


@contextmanager
def _devices(rate: int, device: str) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The default microphone and speaker, by ALSA's arecord and aplay."""
    form = ["-q", "-t", "raw", "-f", "S16_LE", "-c", "1", "-r", str(rate), "-D", device, "-F", str(_PERIOD)]
    record = _started(["arecord", *form, "-B", str(_RECORD)], stdout=subprocess.PIPE)
    try:
        play = _started(["aplay", *form, "-B", str(_PLAY)], stdin=subprocess.PIPE)
    except BaseException:
        record.kill()
        record.wait()
        raise
    with record, play:
        assert record.stdout
        assert play.stdin
        try:
            yield record.stdout, play.stdin
            play.stdin.close()
            _ended("arecord", record)
            _ended("aplay", play)
        except BrokenPipeError:
            _ended("aplay", play)
        finally:
            with suppress(BrokenPipeError):
                play.stdin.close()
            for process in (record, play):
                process.kill()


def _started(command: Sequence[str], **pipes: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, **pipes)  # type: ignore[call-overload, no-any-return]
    except FileNotFoundError:
        raise UsageError(
            f"{command[0]} is not installed here: apt install alsa-utils, or pipe raw sound through --pipe"
        ) from None


def _ended(name: str, process: subprocess.Popen[bytes]) -> None:
    """Raise UsageError if the program failed; it has printed the reason."""
    if status := process.wait(_END_WITHIN):
        raise UsageError(
            f"{name} ended with status {status}: `{name} -L` lists the devices, for --device NAME"
        )


def _rate(engine: Engine, model: Path) -> int:
    """The model's rate in Hz. Raise ModelError if it does not turn a waveform into one."""
    inputs, outputs = engine.pipeline.inputs, engine.pipeline.outputs
    for signal in (inputs, outputs):
        if (
            len(signal.tensors) != 1
            or signal.tensors[0].shape != ()
            or signal.rate != inputs.rate
            or not signal.rate
        ):
            raise ModelError(f"{model} turns {inputs} into {outputs}; a waveform into a waveform is expected")
    return int(inputs.rate or 0)


def _ticks(engine: Engine) -> int:
    model = engine.pipeline.model
    return model.steps.ticks if model is not None and model.steps is not None else 1


def _notice(engine: Engine, rate: int) -> str:
    latency = 1e3 * engine.pipeline.latency / rate
    behind = f"{latency:.1f} ms behind the microphone, and the devices' buffers"
    return f"live: {behind}; wear headphones, or it feeds back; Ctrl-C ends it"


def _array(row: Array | dict[str, Array]) -> Array:
    return next(iter(row.values())) if isinstance(row, dict) else row


if __name__ == "__main__":
    sys.exit(main())
