"""What a record looks like: text as text, numbers as they are, each at its time."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from runnel.insight import captions
from runnel.insight.picture import MAX_CHARACTERS, Sheet, draw, envelope, heat_map
from runnel.insight.recorder import Axis, Record, Track


def track(values: np.ndarray, kind: str = "input", letter: str = "", **more: object) -> Track:
    """Rows of 0, 1, 2 …"""
    columns = values.reshape(len(values), -1)
    size = columns.shape[1]
    made = Track(
        "a", "a", kind, columns, np.arange(size), size, columns.mean(axis=1), 0.0, 1.0, letter, "a gate"
    )
    return replace(made, **more)  # type: ignore[arg-type]


def record(*tracks: Track, rate: float | None = None) -> Record:
    return Record(Axis(0, Fraction(1), rate), tracks, ())


def text_of(text: str) -> Track:
    return track(np.frombuffer(text.encode(), np.uint8))


def gate(rows: int = 6, units: int = 4, letter: str = "f") -> Track:
    values = np.random.default_rng(0).random((rows, units)).astype(np.float32)
    return track(values, "layer", letter)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40))
def test_a_text_is_its_characters_each_at_its_last_byte(text: str) -> None:
    found = captions.row_texts(text_of(text))
    assert found is not None
    assert "".join(found) == text
    ends = np.cumsum([len(c.encode()) for c in text]) - 1
    assert [found[i] for i in ends] == list(text)


def test_numbers_that_are_no_text_stay_numbers() -> None:
    assert captions.row_texts(track(np.arange(200, dtype=np.uint8))) is None
    assert captions.row_texts(track(np.arange(5, dtype=np.int64))) is None
    assert captions.row_texts(track(np.zeros((5, 2), np.uint8))) is None


def test_labels_are_what_numbers_stand_for() -> None:
    named = track(np.array([0, 0, 1, -1, 1, 1]), labels={0: "no", 1: "yes"})
    found = captions.row_texts(named)
    assert found == ["no", "no", "yes", "", "yes", "yes"]
    assert captions.runs(found) == [
        captions.Run(0, 2, "no"),
        captions.Run(2, 3, "yes"),
        captions.Run(4, 6, "yes"),
    ]


@given(st.text("ab \n", max_size=30))
def test_words_are_where_they_are_written(text: str) -> None:
    found = captions.words(list(text))
    assert [run.text for run in found] == text.split()
    assert all(text[run.first : run.end] == run.text for run in found)


def test_blanks_and_line_ends_can_be_seen() -> None:
    assert captions.visible("a b\n\x01") == "a␣b↵\ufffd"


def test_each_character_stands_under_its_tick() -> None:
    text = "it costs $5.\n"
    sheet = Sheet(record(text_of(text), gate(len(text))), "x $1$ y")
    last = [axes for axes in sheet.figure.axes if axes.images][-1]
    shown = [label.get_text().replace(r"\$", "$") for label in last.get_xticklabels()]
    assert "".join(shown) == "it␣costs␣$5.↵"
    # The middle of each is the middle of its column in the heat map.
    left, right, _, _ = last.images[0].get_extent()
    width = (right - left) / len(text)
    np.testing.assert_allclose(last.get_xticks(), left + width * (np.arange(len(text)) + 0.5))
    sheet.figure.savefig(BytesIO(), format="png", dpi=20)


def test_a_long_text_is_told_by_its_words() -> None:
    text = "word " * MAX_CHARACTERS
    sheet = Sheet(record(text_of(text)), "")
    upright = [t for t in sheet.figure.axes[0].texts if t.get_rotation() == 90]
    assert {t.get_text() for t in upright} == {"word"}
    assert 20 < len(upright) <= MAX_CHARACTERS
    assert sheet.figure.axes[0].get_xlabel() == "time steps"


def test_all_panels_have_their_ticks_where_those_of_the_last_are() -> None:
    columns = track(np.random.default_rng(0).random((300, 2)))
    several = [columns, gate(300), gate(300, letter="o")]
    for shown in (several, [replace(t, values=t.values[:1], mean=t.mean[:1]) for t in several]):
        sheet = Sheet(record(*shown), "")
        first, *_, last = [axes for axes in sheet.figure.axes if axes.images or axes.lines[1:]]
        sheet.figure.savefig(BytesIO(), format="png", dpi=20)
        ticks = [[x for x in axes.get_xticks() if -0.5 <= x <= 299.5] for axes in (first, last)]
        assert ticks[0] == ticks[1]
        assert all(x == int(x) for x in ticks[0])
    text = "short"
    upper = Sheet(record(text_of(text), gate(len(text))), "").figure.axes[0]
    assert not len(upper.get_xticks())  # characters stand under the last


@pytest.mark.parametrize("rate", [None, 50.0])
def test_a_heat_map_holds_the_numbers_and_spans_their_time(rate: float | None) -> None:
    shown = replace(gate(), start=10.0)
    [axes] = [a for a in Sheet(record(shown, rate=rate), "").figure.axes if a.images and a.get_xlabel()]
    np.testing.assert_array_equal(axes.images[0].get_array(), shown.values.T.astype(float))
    assert axes.images[0].get_clim() == (0.0, 1.0)
    left, right, _, _ = axes.images[0].get_extent()
    assert (left, right) == ((0.2, 0.32) if rate else (9.5, 15.5))
    assert axes.get_xlabel() == ("seconds" if rate else "time steps")


def test_what_is_no_gate_is_drawn_around_zero_and_the_far_is_said() -> None:
    values = np.linspace(-1, 1, 200, dtype=np.float32).reshape(20, 10)
    even = track(values, "layer", "c")
    axes = next(a for a in Sheet(record(even), "").figure.axes if a.images)
    assert axes.images[0].get_clim() == (-1, 1)
    values = values.copy()
    values[3, 3] = 50.0
    sheet = Sheet(record(track(values, "layer", "c")), "")
    low, high = next(a for a in sheet.figure.axes if a.images).images[0].get_clim()
    assert 0.9 < high < 1
    assert low == -high
    told = [t.get_text() for a in sheet.figure.axes for t in a.get_yticklabels()]
    assert any(t.startswith("≥0.9") for t in told)


@pytest.mark.parametrize("places", [7, 40, 2000])
def test_an_envelope_holds_every_number(places: int) -> None:
    values = np.random.default_rng(1).standard_normal(1000)
    values[100:400] = np.nan
    first, low, high = envelope(values, places)
    assert len(first) <= places
    for i, at in enumerate(first):
        part = values[at : first[i + 1] if i + 1 < len(first) else None]
        part = part[np.isfinite(part)]
        if len(part):
            assert (low[i], high[i]) == (part.min(), part.max())
        else:
            assert np.isnan([low[i], high[i]]).all()


def test_the_same_record_makes_the_same_bytes() -> None:
    seen = record(text_of("abc"), gate(3), track(np.array([1.0, np.nan, 2.0]), "output"))
    for format in ("png", "svg", "pdf"):
        one, other = BytesIO(), BytesIO()
        assert draw(seen, one, format, "t") == draw(seen, other, format, "t") == 3
        assert one.getvalue() == other.getvalue()


def test_what_is_no_number_has_a_colour_that_no_number_has() -> None:
    values = np.linspace(-1, 1, 90, dtype=np.float32).reshape(9, 10)
    values[4, 4] = np.nan
    png, _, _ = heat_map(track(values))
    pixels = imread(BytesIO(png))
    tall, wide = (n // m for n, m in zip(pixels.shape, (10, 9), strict=False))
    cells = pixels[::tall, ::wide, :3].swapaxes(0, 1).astype(float)  # rows of time, as in `values`
    apart = np.abs(cells - cells[4, 4]).max(axis=2)
    assert apart[4, 4] == 0
    assert np.delete(apart.ravel(), 44).min() > 0.1


def test_a_heat_map_alone_has_a_block_of_pixels_for_each_number() -> None:
    numbers = np.random.default_rng(3).permutation(np.linspace(0, 1, 15)).reshape(5, 3)
    shown = track(numbers, "layer", "f")
    png, width, height = heat_map(shown)
    pixels = imread(BytesIO(png))
    assert pixels.shape[:2] == (height, width)
    wide, tall = width // 5, height // 3
    blocks = pixels.reshape(3, tall, 5, wide, 4)
    assert (blocks == blocks[:, :1, :, :1]).all()
    # The colour map goes from dark to light: its green grows with the number.
    assert (np.argsort(blocks[:, 0, :, 0, 1].ravel()) == np.argsort(shown.values.T.ravel())).all()
