"""Export Silero VAD, compare it with the vendor's own segments, and run it live for several microphones."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measured import Say, Table

from runnel.errors import RunnelError
from runnel.spec import Array
from runnel_export.certify.certificate import Certificate
from runnel_export.demo import oracle, silero
from runnel_export.demo.daemon import daemon
from runnel_export.demo.files import vendor_file
from runnel_export.demo.live import Heard, Microphones

from . import picture, recordings, streaming
from .comparing import CELLS, Compared, compare, total
from .vendor import Found, Vendor

_AGREE = 1e-4  # largest difference of two probabilities: float32 rounding stays far below
_QUICK = {"loudspeakers named": 1, "telephone prompts": 2}  # files of each set, longer than 9 in 10 of it
_SHOWN, _SPOKEN = "loudspeakers named, in a row", "telephone prompts"
_MICROPHONES, _SECONDS = 8, 20.0
_QUICK_MICROPHONES, _QUICK_SECONDS = 3, 2.0

_SEGMENTS = "Segments of speech: streamed, from the recording's own rate; and the vendor's"
_LIVE = "Live microphones, over the daemon, with the weights of the ONNX file"
_PROOFS = "Certificates: the exported steps with the network in PyTorch, on random sound"


@dataclass(frozen=True)
class Sound:
    """A recording at its own sampling rate."""

    samples: Array
    rate: int

    def at_16k(self) -> Array:
        return recordings.at_16k(self.samples, self.rate)

    @property
    def length(self) -> int:
        """Length in samples at 16 kHz."""
        return -(-len(self.samples) * silero.RATE // self.rate)


@dataclass(frozen=True)
class Weights:
    """One training of the network: our certified model, and the vendor's graph with the same weights."""

    name: str
    model: Path
    certificate: Certificate
    graph: Path


def run(out: Path, quick: bool, say: Say) -> list[Table]:
    sounds = _sounds(recordings.sets(say), quick)
    with tempfile.TemporaryDirectory(prefix="runnel-") as folder:
        trainings = _trainings(out, Path(folder), say)
        rows = []
        for weights in trainings:
            vendor = Vendor(weights.graph)
            for name, some in sounds.items():
                say(f"{name}, {weights.name}: {len(some)} to the vendor's code, and streamed")
                together = total(c for _, _, c in _both(out, weights, vendor, some))
                _hold(f"{name}, {weights.name}", together)
                rows.append([name, weights.name, *together.cells()])
        shipped = Vendor(trainings[0].graph)
        (shown,) = sounds[_SHOWN]
        ((ours, theirs, _),) = _both(out, trainings[0], shipped, [shown])
        live = _live(out, trainings[0], shipped, sounds[_SPOKEN], quick, say)
    title = f"{_SHOWN}: {len(theirs.segments)} segments of the vendor's, {len(ours.segments)} streamed"
    picture.draw(out / "speech.png", title, shown.at_16k(), ours, theirs)
    return [Table(_SEGMENTS, ["recordings", "weights", *CELLS], rows), live, _proofs(trainings)]


def _sounds(files: Mapping[str, Sequence[Path]], quick: bool) -> dict[str, list[Sound]]:
    """Return the recordings of each set, and for each set one sound that joins them all."""
    found = {}
    for name, paths in files.items():
        if quick:
            ranked = sorted(paths, key=lambda path: path.stat().st_size)
            first = len(ranked) * 9 // 10
            paths = ranked[first : first + _QUICK[name]]
        every = [Sound(*recordings.read(path)) for path in paths]
        rates = {sound.rate for sound in every}
        if len(rates) != 1:
            raise RunnelError(f"{name}: recordings at {sorted(rates)} Hz, where one rate was expected")
        found[name] = every
        found[f"{name}, in a row"] = [Sound(np.concatenate([s.samples for s in every]), every[0].rate)]
    return found


def _trainings(out: Path, folder: Path, say: Say) -> list[Weights]:
    """Return both trainings in the vendor's package, each exported and in a graph of the vendor's."""
    shipped = silero.SileroVAD().eval()
    shipped.load_state_dict(oracle.vendor_weights())
    tensors = silero.load()
    other = folder / "vendor.onnx"
    other.write_bytes(oracle.vendor_graph(tensors))
    found = []
    for name, file, module, graph in (
        ("ONNX file", "silero.onnx", shipped, vendor_file("silero_vad.onnx")),
        ("safetensors", "silero_safetensors.onnx", tensors, other),
    ):
        say(f"export with the weights of the vendor's {name}, with its certificate")
        certificate = streaming.certify(module, out / file)
        found.append(Weights(name, out / file, certificate, graph))
    return found


def _both(
    out: Path, weights: Weights, vendor: Vendor, sounds: Sequence[Sound]
) -> list[tuple[Found, Found, Compared]]:
    """Return (ours, the vendor's, comparison) for each sound. All sounds have one rate."""
    rate = sounds[0].rate
    pipeline = streaming.write_pipeline(out / f"{weights.model.stem}_{rate}.toml", weights.model, rate)
    lengths = [sound.length for sound in sounds]
    streamed = streaming.through_engine(pipeline, [sound.samples for sound in sounds], lengths)
    found = []
    for ours, sound in zip(streamed, sounds, strict=True):
        theirs = vendor.hear(sound.at_16k())
        found.append((ours, theirs, compare(ours, theirs, sound.length)))
    return found


def _hold(what: str, compared: Compared) -> None:
    """Raise RunnelError if the two differ by more than rounding."""
    if not (compared.within_a_window and compared.probability <= _AGREE):
        raise RunnelError(
            f"{what}: what was streamed differs from the vendor's: {compared}. "
            f"Segments may differ by a window, where rounding decides, and probabilities by {_AGREE:g}"
        )


def _live(
    out: Path, weights: Weights, vendor: Vendor, sounds: Sequence[Sound], quick: bool, say: Say
) -> Table:
    """Run microphones in real time over the daemon's socket, each with other recordings."""
    count, seconds = (_QUICK_MICROPHONES, _QUICK_SECONDS) if quick else (_MICROPHONES, _SECONDS)
    rate = sounds[0].rate
    spoken = np.concatenate([sound.samples for sound in sounds])
    each = int(seconds * rate)
    heard = [np.roll(spoken, -i * (len(spoken) // count))[:each] for i in range(count)]
    pipeline = streaming.write_pipeline(out / f"{weights.model.stem}_{rate}.toml", weights.model, rate)
    say(f"{count} live microphones, {seconds:g} s in real time")
    hop = round(rate * silero.FRAMING.hop / silero.RATE)
    with daemon(pipeline, "--log-level", "warning") as address:
        live = Microphones(address, heard, rate, hop, silero.RATE)
        with live.listening():
            _tell(live, say)
    rows, every = [], []
    for mic, samples in zip(live.heard, heard, strict=True):
        if mic.error is not None:
            raise mic.error
        sound = Sound(samples, rate)
        compared = compare(_found(mic, sound.length), vendor.hear(sound.at_16k()), sound.length)
        p50, p99 = np.percentile(mic.latency, [50, 99]) * 1e3
        rows.append([mic.name, *compared.cells()[1:], f"{p50:.1f}", f"{p99:.1f}"])
        every.append(compared)
    _hold("live microphones", total(every))
    return Table(_LIVE, ["", *CELLS[1:], "latency p50, ms", "p99, ms"], rows)


def _tell(live: Microphones, say: Say) -> None:
    """Report each segment when it is found, until all microphones have ended."""
    playing = len(live.heard)
    while playing:
        found = live.found.get()
        if found is None:
            playing -= 1
        else:
            say(f"  {found.microphone:<7} speech {found.start:6.2f} – {found.end:6.2f} s")


def _found(mic: Heard, length: int) -> Found:
    """Return the results of one microphone in the form of `streaming.joined`."""
    segments = [(round(s.start * mic.rate), round(s.end * mic.rate)) for s in mic.segments]
    windows = -(-length // silero.FRAMING.hop)
    return Found(segments, np.concatenate(mic.probability)[:windows])


def _proofs(trainings: Sequence[Weights]) -> Table:
    rows = [
        [w.name, f"{w.certificate.errors['probability'].elements:,}", f"{w.certificate.error:.1e}"]
        for w in trainings
    ]
    return Table(_PROOFS, ["weights", "probabilities compared", "differ by at most, of the peak"], rows)
