"""The recipe `speech_activity`: its figures counted again, its faults found; and what its page recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from speech_activity import comparing, recipe, streaming
from speech_activity import recordings as speech
from speech_activity.comparing import Compared, compare, total
from speech_activity.vendor import Found

import runnel_export
from runnel import Engine
from runnel.errors import RunnelError
from tests import recordings
from tests.recipes.pages import recorded, rows_of

SEGMENTS, LIVE, PROOFS = "Segments of speech", "Live microphones", "Certificates"


@pytest.fixture
def here() -> None:
    if not (recordings.alsa() and recordings.asterisk()):
        pytest.skip(recordings.REASON)


def vendors_own(path: Path, window: int = 512) -> list[tuple[int, int]]:
    """As its manual has it: load the model, get the timestamps; of whole windows, as a stream's are."""
    silero = pytest.importorskip("silero_vad")
    sound = recordings.at_16k(path)
    filled = np.concatenate([sound, np.zeros(-len(sound) % window, np.float32)])
    found = silero.get_speech_timestamps(torch.from_numpy(filled), silero.load_silero_vad(onnx=True))
    return [(s["start"], s["end"]) for s in found]


@pytest.mark.usefixtures("here")
def test_quick(tmp_path: Path) -> None:
    told: list[str] = []
    tables = recipe.run(tmp_path, True, told.append)
    for name in ("silero.onnx", "silero_safetensors.onnx"):
        runnel_export.verify(tmp_path / name)
    assert (tmp_path / "speech.png").stat().st_size > 20_000

    ranked = sorted(recordings.asterisk(), key=lambda path: path.stat().st_size)
    files = ranked[len(ranked) * 9 // 10 :][:2]
    wanted = [vendors_own(path) for path in files]
    rows = rows_of(tables, SEGMENTS)
    assert len(rows) == 8
    [prompts] = [row for row in rows if row[:2] == ["telephone prompts", "ONNX file"]]
    seconds = sum(soundfile.info(path).duration for path in files)
    assert prompts[2:4] == ["2", f"{seconds:.0f}"]
    assert prompts[4] == str(sum(len(vendors_own(path, window=1)) for path in files))
    assert prompts[5:8] == [str(sum(map(len, wanted)))] * 3
    assert all(row[5] == row[6] == row[7] and row[8] == "0" for row in rows)

    # The pipeline that it leaves behind finds them too, fed by the sample's hand.
    with Engine.load(tmp_path / "silero_8000.toml") as engine:
        for path, segments in zip(files, wanted, strict=True):
            with engine.open() as stream:
                outs = [stream.feed(piece) for piece in np.array_split(recordings.read(path)[0], 7)]
                outs.append(stream.flush())
            pairs = [(s, e) for out in outs for s, e in zip(out["start"], out["end"], strict=True)]
            assert [(s, e) for s, e in pairs if e >= 0] == segments

    live = rows_of(tables, LIVE)
    assert [row[0] for row in live] == ["mic-1", "mic-2", "mic-3"]
    assert sum(int(row[3]) for row in live) == sum(int(row[5]) for row in live) > 0
    assert sum("speech" in line and "–" in line for line in told) == sum(int(row[4]) for row in live)
    assert len(rows_of(tables, PROOFS)) == 2


HOPS = np.linspace(0, 1, 20, dtype=np.float32)
THEIRS = Found([(512, 2048), (4096, 8192)], HOPS, 1)
LENGTH = 20 * 512


def test_what_is_equal_is_counted_as_identical() -> None:
    same = compare(THEIRS, THEIRS, LENGTH)
    assert same == Compared(1, LENGTH / 16000, 1, 2, 2, 2, 0, 0, 0.0)
    recipe._hold("x", same)
    recipe._hold("x", compare(Found([], HOPS), Found([], HOPS), LENGTH))
    both = total([same, same])
    assert (both.sounds, both.theirs, both.identical) == (2, 4, 4)


@pytest.mark.parametrize(
    ("ours", "identical", "unmatched", "samples"),
    [
        ([(512, 2048), (4096, 8192 + 513)], 1, 0, 513),
        ([(512 - 600, 2048), (4096, 8192)], 1, 0, 600),
        ([(512, 2048)], 1, 1, 0),
        ([(512, 8192)], 0, 3, 0),
        ([(512, 2048), (4096, 5000), (6000, 8192)], 1, 3, 0),
        ([], 0, 2, 0),
    ],
)
def test_a_difference_is_seen(
    ours: list[tuple[int, int]], identical: int, unmatched: int, samples: int
) -> None:
    found = compare(Found(ours, HOPS), THEIRS, LENGTH)
    assert (found.identical, found.unmatched, found.samples) == (identical, unmatched, samples)
    with pytest.raises(RunnelError, match="prompts: what was streamed differs from the vendor's"):
        recipe._hold("prompts", found)
    # One that is right beside it does not hide it.
    with pytest.raises(RunnelError):
        recipe._hold("prompts", total([found, compare(THEIRS, THEIRS, LENGTH)]))
    if unmatched:
        assert found.cells()[comparing.CELLS.index("ms apart, at most")] == f"{unmatched} unmatched"


def test_another_probability_is_seen() -> None:
    found = compare(replace(THEIRS, probability=HOPS + np.float32(2e-4)), THEIRS, LENGTH)
    assert found.probability == pytest.approx(2e-4, rel=1e-3)
    with pytest.raises(RunnelError):
        recipe._hold("x", found)
    with pytest.raises(ValueError, match="19 windows of ours, 20"):
        compare(replace(THEIRS, probability=HOPS[1:]), THEIRS, LENGTH)


def test_rows_after_the_last_window_have_segments_only() -> None:
    """1200 samples are three windows, the last of them filled up."""
    rows = {
        "probability": np.array([0.1, 0.9, 0.8, 0, 0], np.float32),
        "start": np.array([-1, -1, -1, 0, 700]),
        "end": np.array([-1, -1, -1, 600, 1536]),
    }
    cut = [{name: a[:2] for name, a in rows.items()}, {name: a[2:] for name, a in rows.items()}]
    found = streaming.joined(cut, 1200)
    assert found.segments == [(0, 600), (700, 1536)]
    assert found.probability.tolist() == rows["probability"][:3].tolist()


def test_without_recordings_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "_ROOT", tmp_path)
    monkeypatch.setattr(speech, "_PLACES", (tmp_path,))
    told: list[str] = []
    with pytest.raises(RunnelError, match="alsa-utils and asterisk-core-sounds-en-wav: install these"):
        speech.sets(told.append)
    assert told[0].startswith("fetching")


def test_the_recorded_segments_are_the_vendors() -> None:
    rows = rows_of(recorded("speech_activity"), SEGMENTS)
    assert len(rows) == 8
    sounds = {row[0]: int(row[2]) for row in rows}
    assert sounds["telephone prompts"] > 500
    for row in rows:
        segments = [int(cell.replace(",", "")) for cell in row[5:8]]
        assert len(set(segments)) == 1
        assert segments[0] >= (300 if "telephone" in row[0] else 8)
        assert float(row[8]) == 0
        assert float(row[9]) < 1e-4
    live = rows_of(recorded("speech_activity"), LIVE)
    assert len(live) == 8
    assert all(row[3] == row[4] == row[5] for row in live)


def test_recordings_that_were_unpacked_by_half_are_not_taken_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in speech._FOLDERS.values():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "one.wav").write_bytes(b"")
    monkeypatch.setattr(speech, "_ROOT", tmp_path)
    monkeypatch.setattr(speech, "_PLACES", (tmp_path,))
    with pytest.raises(RunnelError, match="there is no recorded speech here"):
        speech.sets(lambda _: None)
    (tmp_path / "complete").touch()
    assert [len(files) for files in speech.sets(pytest.fail).values()] == [1, 1]


@pytest.mark.soak
@pytest.mark.usefixtures("here")
def test_whole(tmp_path: Path) -> None:
    rows = rows_of(recipe.run(tmp_path, False, print), SEGMENTS)
    assert all(row[5] == row[6] == row[7] for row in rows)
