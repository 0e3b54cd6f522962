"""The recipe `noise_suppression`, hardly trained: its sounds, figures and latency checked by other means."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import measured
import numpy as np
import pytest
import soundfile
import torch
from noise_suppression import measuring, noises, recipe, sounds, streaming
from noise_suppression.network import AHEAD, HOP, RATE, WINDOW, Suppressor

import runnel_export
from runnel import Engine
from runnel.errors import RunnelError
from tests import models, recordings
from tests.recipes.pages import RECIPES, recorded, rows_of

BY_RATIO = "SI-SDR of held-out sounds by speech"
BY_KIND = "SI-SDR of held-out sounds by kind"
STREAMED, LATENCY = "Streamed", "Latency"
LIVE = RECIPES / "noise_suppression" / "live.py"
BEHIND = HOP - 1 + (WINDOW - HOP) + AHEAD * HOP  # samples


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sequence[measured.Table]]:
    """The folder of one quick run, and its tables."""
    if not (recordings.alsa() and recordings.asterisk()):
        pytest.skip(recordings.REASON)
    out = tmp_path_factory.mktemp("noise_suppression")
    return out, recipe.run(out, True, lambda _: None)


@pytest.fixture(scope="module")
def trained(made: tuple[Path, object]) -> Suppressor:
    network = Suppressor()
    network.load_state_dict(torch.load(made[0] / "suppressor.pt", weights_only=True))
    return network.eval()


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def by_torch(network: Suppressor, sound: np.ndarray) -> np.ndarray:
    """The whole sound at once, in float64."""
    double = Suppressor().double()
    double.load_state_dict(network.state_dict())
    with torch.no_grad():
        return double.eval()(torch.from_numpy(sound.astype(np.float64))[None])[0].numpy()


def test_quick_leaves_a_certified_model_a_picture_and_sounds(
    made: tuple[Path, Sequence[measured.Table]],
) -> None:
    out, tables = made
    runnel_export.verify(out / recipe.MODEL)
    assert (out / recipe.PICTURE).stat().st_size > 50_000
    heard = {name: soundfile.read(out / f"{name}.wav") for name in ("noisy", "cleaned", "clean")}
    assert {rate for _, rate in heard.values()} == {RATE}
    assert len({len(sound) for sound, _ in heard.values()}) == 1
    assert len(rows_of(tables, BY_RATIO)) == 2 * len(measuring.RATIOS)
    assert len(rows_of(tables, BY_KIND)) == 2 * len(measuring.KINDS)
    [streamed] = rows_of(tables, STREAMED)
    assert float(streamed[-1]) < streaming.AGREE


def test_a_stream_gives_the_sound_of_torch(made: tuple[Path, object], trained: Suppressor) -> None:
    sound, random = noise(23 * HOP), np.random.default_rng(1)
    cuts = np.sort(random.choice(np.arange(1, len(sound)), 40, replace=False))
    with Engine.load(made[0] / recipe.MODEL) as engine, engine.open() as stream:
        rows = [*map(stream.feed, np.split(sound, cuts)), stream.flush()]
    np.testing.assert_allclose(np.concatenate(rows), by_torch(trained, sound), atol=1e-5)


def test_stated_latency_is_how_far_torch_sees_ahead(
    made: tuple[Path, Sequence[measured.Table]], trained: Suppressor
) -> None:
    """The latest input sample on which an output sample depends, by gradients."""
    with Engine.load(made[0] / recipe.MODEL) as engine:
        assert engine.pipeline.latency == BEHIND
    sound = torch.from_numpy(noise(10 * HOP))[None].requires_grad_()
    output, ahead = trained(sound)[0], []
    for at in range(3 * HOP, 5 * HOP):
        [gradient] = torch.autograd.grad(output[at], sound, retain_graph=True)
        ahead.append(int(gradient[0].nonzero().max()) - at)
    assert max(ahead) == BEHIND
    stated = dict(rows_of(made[1], LATENCY))["latency that the model file states"]
    assert stated == f"{1e3 * BEHIND / RATE:.1f} ms, {BEHIND} samples"


def test_samples_come_when_the_latency_says(made: tuple[Path, object]) -> None:
    sound = noise(9 * HOP)
    with Engine.load(made[0] / recipe.MODEL) as engine, engine.open() as stream:
        came = np.cumsum([len(stream.feed(sound[at : at + 1])) for at in range(len(sound))])
        assert came[-1] + len(stream.flush()) == len(sound)
    whole_hops = np.arange(1, len(sound) + 1) // HOP
    assert came.tolist() == np.maximum(0, (whole_hops - 1 - AHEAD) * HOP).tolist()


def test_figures_are_those_of_the_definition(
    made: tuple[Path, Sequence[measured.Table]], trained: Suppressor
) -> None:
    """SI-SDR by least squares, of the mixtures of the first row."""
    speech, size = sounds.load(pytest.fail, recipe.QUICK.prompts), recipe.QUICK
    found: list[list[float]] = []
    for kind in measuring.KINDS:
        mixture = sounds.held_out(speech, False, kind, measuring.RATIOS[0], size.measured, recipe._HELD_OUT)
        pair = []
        for sound in (mixture.noisy, by_torch(trained, mixture.noisy)):
            gain, left, _, _ = np.linalg.lstsq(mixture.clean[:, None].astype(float), sound, rcond=None)
            pair.append(10 * np.log10(np.sum((gain * mixture.clean) ** 2) / left[0]))
        found.append(pair)
    noisy, cleaned = np.mean(found, axis=0)
    row = rows_of(made[1], BY_RATIO)[0]
    assert row[:2] == [sounds.PROMPTS, "-5"]
    assert [float(row[2]), float(row[4]), float(row[5])] == pytest.approx(
        [noisy, cleaned, cleaned - noisy], abs=0.06
    )


def test_another_sound_or_a_later_one_is_an_error(made: tuple[Path, object], trained: Suppressor) -> None:
    other = Suppressor().eval()
    with pytest.raises(RunnelError, match="sound 0: the stream differs from torch"):
        streaming.streamed(other, made[0] / recipe.MODEL, [noise(20 * HOP)], 0.1, 0)
    with pytest.raises(RunnelError, match="made 3 samples, and torch 4"):
        streaming._apart(np.ones(4), np.ones(3), "x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "_lag", lambda client, sound: BEHIND + 1)
        with pytest.raises(RunnelError, match=f"latency of {BEHIND} samples, but the output lags by 480"):
            streaming.streamed(trained, made[0] / recipe.MODEL, [noise(20 * HOP)], 0.1, 0)


# ------------------------------------------------------------------ live, with pipes and with devices


def pcm(sound: np.ndarray) -> bytes:
    return np.clip(np.rint(sound * 32768), -32768, 32767).astype("<i2").tobytes()


def expected(network: Suppressor, raw: bytes) -> np.ndarray:
    """The samples that live.py should write: a last hop is filled with zeros, and cut again."""
    sound = np.frombuffer(raw, "<i2") / 32768
    filled = np.pad(sound, (0, -len(sound) % HOP))
    return by_torch(network, filled)[: len(sound)] * 32768


def live(
    model: Path, *options: str, raw: bytes = b"", path: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, **({"PATH": str(path)} if path is not None else {})}
    command = [sys.executable, str(LIVE), str(model), *options]
    return subprocess.run(command, input=raw, capture_output=True, env=env, timeout=60)


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("samples", [5000, 3 * HOP, 1, 0])
def test_live_cleans_a_pipe(samples: int, made: tuple[Path, object], trained: Suppressor) -> None:
    raw = pcm(noise(samples))
    done = live(made[0] / recipe.MODEL, "--pipe", raw=raw)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout) == len(raw)
    if samples:
        np.testing.assert_allclose(np.frombuffer(done.stdout, "<i2"), expected(trained, raw), atol=1.01)


def test_live_gives_sound_before_its_input_ends(made: tuple[Path, object]) -> None:
    raw, early = pcm(noise(1600)), 1600 - 2 * HOP
    command = [sys.executable, str(LIVE), str(made[0] / recipe.MODEL), "--pipe"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(raw)
        process.stdin.flush()
        assert len(process.stdout.read(2 * early)) == 2 * early  # the input is still open
        process.stdin.close()
        assert len(process.stdout.read()) == 2 * (1600 - early)
    assert process.returncode == 0


def test_live_takes_the_microphone_and_plays(
    tmp_path: Path, made: tuple[Path, object], trained: Suppressor
) -> None:
    """With programs in the place of ALSA's: one gives a file, the other writes one."""
    raw = pcm(noise(4000, 3))
    (tmp_path / "sound").write_bytes(raw)
    for name, action in (
        ("arecord", f"/bin/cat {tmp_path}/sound"),
        ("aplay", f"/bin/cat > {tmp_path}/played"),
    ):
        program(tmp_path, name, f'echo "$@" > {tmp_path}/{name}.options\n{action}')
    done = live(made[0] / recipe.MODEL, "--device", "hw:1", path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"29.9 ms behind the microphone" in done.stderr
    played = np.frombuffer((tmp_path / "played").read_bytes(), "<i2")
    np.testing.assert_allclose(played, expected(trained, raw), atol=1.01)
    for name in ("arecord", "aplay"):
        options = (tmp_path / f"{name}.options").read_text()
        assert options.startswith(f"-q -t raw -f S16_LE -c 1 -r {RATE} -D hw:1 ")


def test_live_says_what_is_missing(tmp_path: Path, made: tuple[Path, object]) -> None:
    model = made[0] / recipe.MODEL
    done = live(model, path=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(b"live.py: arecord is not installed here: apt install alsa-utils, or")
    program(tmp_path, "arecord", "/bin/cat /dev/zero")
    assert b"live.py: aplay is not installed" in live(model, path=tmp_path).stderr
    program(tmp_path, "aplay", "exit 1")
    done = live(model, path=tmp_path)
    assert done.returncode == 1
    assert b"live.py: aplay ended with status 1: `aplay -L` lists" in done.stderr
    program(tmp_path, "arecord", "exit 3")
    program(tmp_path, "aplay", "/bin/cat > /dev/null")
    done = live(model, path=tmp_path)
    assert done.returncode == 1
    assert b"live.py: arecord ended with status 3" in done.stderr


def test_live_refuses_half_a_sample_and_another_model(tmp_path: Path, made: tuple[Path, object]) -> None:
    done = live(made[0] / recipe.MODEL, "--pipe", raw=b"abc")
    assert (done.returncode, len(done.stdout)) == (1, 2)
    assert b"the sound ends within a sample" in done.stderr
    assert b"live.py: " in live(tmp_path / "none.onnx", "--pipe").stderr
    done = live(models.counter(tmp_path / "counter.onnx").path, "--pipe")
    assert done.returncode == 1
    assert b"a waveform into a waveform is expected" in done.stderr


# ------------------------------------------------------------------ parts


def test_network_without_suppression_gives_its_input_back() -> None:
    network = Suppressor().eval()
    with torch.no_grad():
        network.up1.weight.zero_()
        assert network.up1.bias is not None
        network.up1.bias.fill_(50.0)  # a mask of 1
    sound = noise(7 * HOP)
    np.testing.assert_allclose(measuring.clean(network, sound), sound, atol=1e-6)
    with pytest.raises(ValueError, match="161 samples are not a whole number of hops"):
        measuring.clean(network, noise(HOP + 1))


def test_si_sdr() -> None:
    clean = np.sin(np.arange(1000) * 2 * np.pi / 50)
    other = np.cos(np.arange(1000) * 2 * np.pi / 50)
    for gain in (0.1, 1.0, -3.0):
        assert measuring.si_sdr(gain * (clean + 0.1 * other), clean) == pytest.approx(20)
    assert measuring.si_sdr(clean + 2 * other, clean) == pytest.approx(-20 * np.log10(2))


@pytest.mark.parametrize("kind", noises.KINDS)
def test_noise_is_the_same_for_the_same_seed(kind: str) -> None:
    speech = [noise(3000, seed) for seed in range(3)]
    rows = [noises.make(kind, np.random.default_rng(seed), 16000, speech) for seed in (0, 0, 1)]
    assert all(row.shape == (16000,) and np.isfinite(row).all() for row in rows)
    assert np.mean(rows[0] ** 2) == pytest.approx(1)
    assert (rows[0] == rows[1]).all()
    assert np.abs(rows[0] - rows[2]).max() > 0.1


def test_a_mixture_has_the_ratio_and_the_band_that_were_asked_for() -> None:
    tone = np.sin(np.arange(16000) * 2 * np.pi * 440 / RATE)
    for wide in (False, True):
        made = sounds.mix(tone, noise(16000), 7.0, -20.0, wide)
        left = made.noisy - made.clean
        assert 10 * np.log10(np.sum(made.clean**2) / np.sum(left**2)) == pytest.approx(7, abs=0.01)
        assert 10 * np.log10(np.mean(made.clean**2)) == pytest.approx(-20, abs=0.01)
        upper = np.abs(np.fft.rfft(left))[4001:]
        assert (upper.max() > 1) == wide


def test_wiener_filter_removes_most_of_a_steady_noise() -> None:
    tone = np.sin(np.arange(16000) * 2 * np.pi * 440 / RATE)
    mixture = sounds.mix(tone, noise(16000), 0.0, -20.0, True)
    assert measuring.si_sdr(measuring.wiener(mixture), mixture.clean) > 6
    nothing = replace(mixture, noisy=mixture.clean)
    np.testing.assert_allclose(measuring.wiener(nothing), mixture.clean, atol=1e-6)


@pytest.mark.usefixtures("made")
def test_held_out_recordings_are_not_trained_on() -> None:
    speech = sounds.load(pytest.fail, 60)
    trained = {sound.tobytes() for sound in speech.train}
    held = [sound.tobytes() for sound in (*speech.prompts, *speech.names, speech.noise)]
    assert trained
    assert len(speech.prompts) >= 10
    assert len(speech.names) == 8
    assert not trained & set(held)
    # A made upper band begins where the telephone's ends, and is as strong.
    low, upper = speech.train[0], speech.upper[0]
    frequency, power = np.fft.rfftfreq(len(upper), 1 / RATE), np.abs(np.fft.rfft(upper)) ** 2
    assert power[frequency < 3400].sum() < 1e-3 * power.sum()
    assert np.mean(upper**2) == pytest.approx(np.mean(low**2), rel=1e-3)


# ------------------------------------------------------------------ the page


def test_recorded_figures() -> None:
    tables = recorded("noise_suppression")
    for row in rows_of(tables, BY_RATIO):
        assert float(row[5]) == pytest.approx(float(row[4]) - float(row[2]), abs=0.11)
        assert float(row[5]) > (5 if float(row[1]) <= 5 else 1)
    assert all(float(row[5]) > 0 for row in rows_of(tables, BY_KIND))
    [streamed] = rows_of(tables, STREAMED)
    assert float(streamed[-1]) < streaming.AGREE
    latency = dict(rows_of(tables, LATENCY))
    assert latency["latency that the model file states"] == latency["latency measured, sample by sample"]
    assert latency["latency that the model file states"] == f"29.9 ms, {BEHIND} samples"
    assert float(latency["the same, as a part of real time"]) < 0.5


@pytest.mark.soak
@pytest.mark.usefixtures("made")
def test_whole(tmp_path: Path) -> None:
    rows = rows_of(recipe.run(tmp_path, False, print), BY_RATIO)
    assert all(float(row[5]) > (5 if float(row[1]) <= 5 else 1) for row in rows)
