"""The demo, whole: and its re-export against the vendor's own file, on real recorded speech."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runnel import Engine
from runnel_export import export
from runnel_export.demo import oracle, picture, show, silero
from tests import recordings
from tests import silero as vendor


def demo(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runnel.cli.main", "demo", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def vendors_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our module with the weights of the vendor's ONNX file, exported."""
    module = silero.SileroVAD().eval()
    module.load_state_dict(oracle.vendor_weights())
    path = tmp_path_factory.mktemp("demo") / "silero.onnx"
    export(module, silero.example(), path, framing=silero.FRAMING, rate=silero.RATE)
    return path


def test_the_re_export_equals_the_vendors_untouched_file_on_recorded_speech(vendors_weights: Path) -> None:
    voices = recordings.alsa()[:3] + [p for p in recordings.asterisk() if "demo-" in p.name][:5]
    if not voices:
        pytest.skip(recordings.REASON)
    samples = [recordings.at_16k(p) for p in voices]
    spoken = 0
    with Engine.load(vendors_weights) as engine:
        streams = [engine.open() for _ in samples]
        outs = engine.feed_many(list(zip(streams, samples, strict=True)))
        for stream, out, heard in zip(streams, outs, samples, strict=True):
            ours = np.concatenate([out, stream.flush()])
            theirs = vendor.plain_loop("silero_vad", heard)
            np.testing.assert_allclose(ours, theirs, atol=2e-5)
            spoken += int((theirs > 0.5).sum())
    assert spoken > 50, "the recordings hold speech, so the comparison means something"


def test_the_re_export_is_clean(vendors_weights: Path) -> None:
    spec = Engine.load(vendors_weights).pipeline.model
    assert spec is not None
    assert spec.graph is not None
    ops = spec.graph["ops"]
    assert ops["LSTM"] == 1
    assert ops["MatMul"] == 6  # the transform, four convolutions, the last layer
    assert sum(ops.values()) <= 51
    assert not {"Transpose", "Identity", "Cast", "If", "Gather"} & set(ops)
    assert [s.input for s in spec.states] == ["lstm.h.0", "lstm.c.0"]


def test_demo(tmp_path: Path) -> None:
    done = demo("--seconds", "3", "--microphones", "2", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mic-1   speech   0.9" in done.stdout
    assert "each microphone equals its sound run alone: same segments" in done.stdout
    assert "daemon stopped cleanly" in done.stdout
    assert soundless(tmp_path / "demo-out" / "demo.png") < 0.99
    loaded = Engine.load(tmp_path / "demo-out" / "vad.toml")
    assert loaded.pipeline.inputs.names == ("samples",)


def soundless(path: Path) -> float:
    """The share of white pixels in a picture: 1 for an empty one."""
    from matplotlib import image

    pixels = image.imread(path)[..., :3]
    return float((pixels.min(axis=2) > 0.99).mean())


def test_demo_on_a_file_of_the_users_own(tmp_path: Path) -> None:
    """Stereo at 22.05 kHz: mixed down, resampled in the pipeline."""
    clip, rate = soundfile.read(Path(silero.__file__).with_name("clip.ogg"), dtype="float32")
    from scipy.signal import resample_poly

    sound = resample_poly(clip[: 3 * rate], 441, 320).astype(np.float32)
    soundfile.write(tmp_path / "my.wav", np.stack([sound, sound], 1), 22050)
    done = demo("--input", "my.wav", "--microphones", "1", "--out", "o", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mic-1   speech   0.9" in done.stdout
    assert 'use = "resample"' in (tmp_path / "o" / "vad.toml").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--input", "none.wav"], "none.wav: cannot read it as sound"),
        (["--input", "text.wav"], "text.wav: cannot read it as sound"),
        (["--input", "empty.wav"], "there is no sound in it"),
        (["--microphones", "0"], "--microphones must be in 1..64, not 0"),
        (["--seconds", "-1"], "--seconds must be positive"),
    ],
)
def test_mistakes(tmp_path: Path, words: list[str], says: str) -> None:
    (tmp_path / "text.wav").write_text("not a sound")
    soundfile.write(tmp_path / "empty.wav", np.zeros((0, 1)), 16000)
    done = demo(*words, folder=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_envelope_holds_every_peak() -> None:
    samples = np.random.default_rng(0).standard_normal(10_001).astype(np.float32)
    times, low, high = picture.envelope(samples, 1000.0)
    assert len(times) == len(low) == len(high) <= 3001
    assert low.min() == samples.min()
    assert high.max() == samples.max()
    assert times[-1] <= 10.001


def test_the_demos_files_are_the_packages_own(tmp_path: Path) -> None:
    """The README's files come from what is installed: the vendor's model, and the clip as a WAV."""
    done = demo("--files", ".", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0].split()[0] == "silero_vad.onnx"
    assert (tmp_path / "silero_vad.onnx").read_bytes() == vendor.model("silero_vad").read_bytes()
    heard, rate = soundfile.read(tmp_path / "speech.wav", dtype="float32")
    clip, _ = soundfile.read(Path(show.__file__).with_name("clip.ogg"), dtype="float32")
    assert rate == silero.RATE
    np.testing.assert_allclose(heard, clip, atol=1 / 2**15)  # a WAV of 16 bits
    assert sorted(p.name for p in tmp_path.iterdir()) == ["silero_vad.onnx", "speech.wav"]


def test_the_demos_files_overwrite_nothing_and_may_be_asked_for_again(tmp_path: Path) -> None:
    assert demo("--files", ".", folder=tmp_path).returncode == 0
    assert demo("--files", ".", "-q", folder=tmp_path).stdout == ""
    (tmp_path / "speech.wav").write_bytes(b"mine")
    (tmp_path / "silero_vad.onnx").unlink()
    done = demo("--files", ".", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "speech.wav" in done.stderr
    assert (tmp_path / "speech.wav").read_bytes() == b"mine"
    assert not (tmp_path / "silero_vad.onnx").exists(), "all of them, or none"


def test_the_demos_files_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None; "
        "from runnel.cli.main import main; sys.exit(main(['demo', '--files', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "no")], capture_output=True, text=True)
    assert done.returncode == 2
    assert "there is no folder" in done.stderr
