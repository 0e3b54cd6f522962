"""A record as a picture: panels below each other on one time axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, Final

import numpy as np

from ..files import library
from ..probe import GATES
from ..spec import Array
from . import captions
from .recorder import MAX_LINES, Record, Track

FORMATS: Final = ("png", "svg", "pdf")
MAX_CHARACTERS: Final = 200  # most ticks with a legible character under each
MAX_WORDS: Final = 100  # the same for whole words, which are rotated
_USUAL: Final = 0.95  # share of all numbers: the colours end there if others are far beyond
_FAR: Final = 2.0  # times as far
_DPI: Final = 100
_WIDTH, _WIDEST = 11.0, 19.0  # inches of the panels
_PER_CHARACTER: Final = 0.092  # inches: a letter of the size below
_LETTER: Final = 7.5  # points
_LINE: Final = 0.11  # inches: a line of such letters, or a rotated word
_UPRIGHT: Final = 0.75  # inches: height of a rotated word
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.75, 0.95, 0.45, 0.55  # inches around the panels
_GAP: Final = 0.27  # inches between two panels, for a title
_INK, _FAINT, _MARK = "#22313f", "#7f8c8d", "#c0392b"
_NOTHING: Final = "#b8bdbe"  # a gap in the values
_LINES: Final = ("#22313f", "#2a9d8f", "#e76f51", "#457b9d", "#8e6c8a", "#b8860b", "#6a994e", "#7f8c8d")
_BANDS: Final = ("#d9ead3", "#cfe2f3", "#fce5cd", "#ead1dc", "#fff2cc", "#d0e0e3", "#f4cccc", "#d9d2e9")


@dataclass(frozen=True, slots=True)
class _Panel:
    """The drawing of one track: height in inches, including a strip for the mean above it."""

    track: Track
    height: float
    draw: Callable[[Any, Any, Track], None]  # (axes, the figure's drawer, track)
    strip: float = 0.0


def require_libraries() -> None:
    """Raise UsageError if pictures cannot be drawn here."""
    library("matplotlib", "pictures", "plot")


def draw(record: Record, out: BinaryIO, format: str, title: str = "") -> int:
    """Write the picture in one of `FORMATS`; return the number of panels.

    The same record gives the same bytes.
    """
    require_libraries()
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "runnel", "font.family": ["DejaVu Sans"]}):
        sheet = Sheet(record, title)
        # No date and no random name, so that pictures can be compared.
        metadata = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[format]
        sheet.figure.savefig(out, format=format, dpi=_DPI, metadata=metadata)
    return len(sheet.panels)


def heat_map(track: Track) -> tuple[bytes, int, int]:
    """Return one track as (PNG, width, height), one row per unit, some pixels per number."""
    from matplotlib import image

    low, high, name = _colours(track)
    wide, tall = (max(1, -(-most // n)) for most, n in ((800, len(track.values)), (200, len(track.units))))
    scaled = (track.values.T.astype(np.float64) - low) / (high - low)
    pixels = _palette(name)(scaled, bytes=True).repeat(tall, axis=0).repeat(wide, axis=1)
    out = BytesIO()
    image.imsave(out, pixels, format="png")
    return out.getvalue(), pixels.shape[1], pixels.shape[0]


def is_map(track: Track) -> bool:
    """Whether the track is drawn as a heat map, not as lines or text."""
    return track.kind in ("layer", "states") or track.size > MAX_LINES


def heading(track: Track) -> str:
    """Return the track's heading."""
    return f"{track.name}   {track.letter}   {track.meaning}" if track.letter else track.name


def envelope(values: Array, bins: int) -> tuple[Array, Array, Array]:
    """Return (first index, least, greatest) of at most `bins` parts of a column.

    They are NaN for an empty part.
    """
    width = max(1, -(-len(values) // bins))
    padded = np.full(-(-len(values) // width) * width, np.nan)
    padded[: len(values)] = values
    parts = padded.reshape(-1, width)
    # Not nanmin, which warns of a part without numbers, such as a sensor's gap.
    low, high = (np.where(np.isnan(parts), end, parts) for end in (np.inf, -np.inf))
    bottom, top = low.min(axis=1), high.max(axis=1)
    empty = bottom > top
    bottom[empty] = top[empty] = np.nan
    return np.arange(len(parts)) * width, bottom, top


def _colours(track: Track) -> tuple[float, float, str]:
    """Return (lowest, highest, colour map): gates range from 0 to 1, all else around 0."""
    if track.letter in GATES:
        return 0.0, 1.0, "viridis"
    finite = track.values[np.isfinite(track.values)]
    sizes = np.abs(finite.astype(np.float64)).ravel()
    most = float(sizes.max(initial=0.0)) or 1.0
    # A few units far from all others, such as of a counting cell, would leave the rest without colour.
    usual = float(np.quantile(sizes, _USUAL)) if sizes.size else most
    if 0 < _FAR * usual < most:
        most = usual
    return -most, most, "RdBu_r"


def _palette(name: str) -> Any:
    """Return a colour map with its own colour for gaps: white would look like zero."""
    from matplotlib import colormaps

    return colormaps[name].with_extremes(bad=_NOTHING)


class Sheet:
    """The figure, in inches from its upper left."""

    def __init__(self, record: Record, title: str) -> None:
        from matplotlib.figure import Figure

        self.record = record
        start, end = record.span
        self.text = captions.axis_texts(record)
        ticks = (end - start) / float(record.axis.tick)
        self.wide = _WIDTH
        if self.text:
            self.wide = min(_WIDEST, max(_WIDTH, ticks * _PER_CHARACTER))
        # If time steps are counted, the middle of a row is at its number, so it begins half a step before.
        self.shift = 0.0 if record.axis.rate else -0.5
        self.span: tuple[float, float] = (self.x(start), self.x(end))
        self.panels = [self._panel(track) for track in record.tracks]
        upright = 0.0  # more room under the last panel for whole words
        if self.text and not captions.are_characters(self.text[1]) and ticks <= MAX_WORDS:
            upright = min(1.5, _PER_CHARACTER * max(map(len, self.text[1])))
        tall = sum(p.height + _GAP for p in self.panels) + _TOP + _BOTTOM + upright
        self.size = (self.wide + _LEFT + _RIGHT, tall)
        self.figure = Figure(figsize=self.size, dpi=_DPI)
        if title:
            self.figure.text(
                _LEFT / self.size[0], 1 - 0.22 / tall, _drawable(title), fontsize=11, color=_INK,
                va="center",
            )  # fmt: skip
        y = _TOP
        for panel in self.panels:
            y += _GAP
            self._draw_panel(panel, y, last=panel is self.panels[-1])
            y += panel.height

    def x(self, steps: Any) -> Any:
        """Return the position of a time step: in seconds, or its number."""
        axis = self.record.axis
        return steps / axis.rate if axis.rate else steps + self.shift

    @property
    def inches(self) -> float:
        """Inches of paper per unit of the axis."""
        return self.wide / max(1e-9, self.span[1] - self.span[0])

    def legible(self, track: Track) -> bool:
        """Whether each of its rows has room for a character."""
        return bool((self.x(track.step) - self.x(0.0)) * self.inches > 0.8 * _PER_CHARACTER)

    def axes(self, top: float, height: float) -> Any:
        wide, tall = self.size
        return self.figure.add_axes(
            (_LEFT / wide, 1 - (top + height) / tall, self.wide / wide, height / tall)
        )

    def _panel(self, track: Track) -> _Panel:
        if (texts := captions.row_texts(track)) is not None:
            upright = captions.are_characters(texts) and not self.legible(track)
            return _Panel(track, _UPRIGHT if upright else 0.26, _band)
        if is_map(track):
            return _Panel(track, 0.22 + min(1.4, max(0.4, 0.014 * len(track.units))), _map, 0.22)
        return _Panel(track, 0.9, _lines)

    def _draw_panel(self, panel: _Panel, top: float, last: bool) -> None:
        track = panel.track
        if panel.strip:
            self._mean(self.axes(top, panel.strip - 0.02), track)
        axes = self.axes(top + panel.strip, panel.height - panel.strip)
        panel.draw(axes, self, track)
        axes.set_xlim(*self.span)
        axes.tick_params(labelsize=7, colors=_INK, length=2)
        for spine in axes.spines.values():
            spine.set(color=_FAINT, linewidth=0.5)
        above = 1 + 0.04 / (panel.height - panel.strip) + panel.strip / (panel.height - panel.strip)
        axes.text(0, above, heading(track), transform=axes.transAxes, fontsize=8.5, color=_INK, va="bottom")
        if self.record.made_from is not None:
            axes.axvline(self.x(self.record.made_from), color=_MARK, linewidth=0.9, linestyle="--")
            if track is self.record.tracks[0]:
                axes.text(
                    self.x(self.record.made_from), above, " made by itself", fontsize=8, color=_MARK,
                    transform=axes.get_xaxis_transform(), va="bottom", clip_on=False,
                )  # fmt: skip
        self._times(axes, last)

    def _mean(self, axes: Any, track: Track) -> None:
        """Draw the mean over all units as a thin line."""
        axes.step(self.x(track.edges), [*track.mean, track.mean[-1]], where="post", color=_INK, linewidth=0.7)
        axes.set_xlim(*self.span)
        axes.margins(y=0.1)
        axes.set_axis_off()
        finite = track.mean[np.isfinite(track.mean)]
        ends = (finite.min(), finite.max()) if finite.size else ()
        least, most = [f"{end:.3g}".replace("-", "−") for end in ends] or ["", ""]
        for x, y, side, text in (
            (-0.006, 0.5, "right", "mean"), (1.006, 0.5, "left", least), (1.006, 1.05, "left", most)
        ):  # fmt: skip
            axes.text(x, y, text, transform=axes.transAxes, fontsize=6.5, color=_FAINT, ha=side, va="center")

    def _times(self, axes: Any, last: bool) -> None:
        """Draw the ticks of a panel, equal in all panels, with labels under the `last`."""
        axis, (start, end) = self.record.axis, self.span
        ticks = round((self.record.span[1] - self.record.span[0]) / float(axis.tick))
        if self.text is not None:
            track, texts = self.text
            one_each = captions.are_characters(texts)
            if ticks <= (MAX_CHARACTERS if one_each else MAX_WORDS):
                if not last:
                    axes.set_xticks([])
                    return
                middles = self.x(track.edges[:-1] + track.step / 2)
                axes.set_xticks(
                    middles, [_drawable(captions.visible(t)) for t in texts], fontsize=_LETTER,
                    rotation=0 if one_each else 90, family="DejaVu Sans Mono",
                )  # fmt: skip
                axes.tick_params(axis="x", length=0, pad=2)
                axes.set_xlim(start, end)
                return
        if not axis.rate:
            from matplotlib.ticker import MaxNLocator

            axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
        if last:
            axes.set_xlabel("seconds" if axis.rate else "time steps", fontsize=8.5, color=_INK)
        else:
            axes.tick_params(labelbottom=False)


def _map(axes: Any, sheet: Sheet, track: Track) -> None:
    """Draw a heat map, one row per unit, with a colour bar."""
    low, high, colours = _colours(track)
    left, right = sheet.x(track.start), sheet.x(track.end)
    room = len(track.values) <= sheet.wide * _DPI  # at least a pixel per number; else averaged
    image = axes.imshow(
        track.values.T.astype(np.float64), aspect="auto", cmap=_palette(colours), vmin=low, vmax=high,
        extent=(left, right, len(track.units) - 0.5, -0.5), interpolation="nearest" if room else "auto",
    )  # fmt: skip
    axes.set_yticks([0, len(track.units) - 1], [track.units[0], track.units[-1]])
    box = axes.get_position()
    wide = sheet.size[0]
    bar = sheet.figure.add_axes((box.x1 + 0.08 / wide, box.y0, 0.09 / wide, box.height))
    ticks = [0.0, 1.0] if low == 0 else [low, 0.0, high]
    sheet.figure.colorbar(image, cax=bar, ticks=ticks)
    beyond = bool((np.abs(track.values[np.isfinite(track.values)]) > high).any())
    least, most = ("≤", "≥") if beyond else ("", "")
    labels = [f"{least * (v == low)}{most * (v == high)}{v:.2g}" for v in ticks]
    bar.set_yticklabels([text.replace("-", "−") for text in labels])
    bar.tick_params(labelsize=6.5, colors=_INK, length=2)
    bar.yaxis.get_offset_text().set_visible(False)
    for spine in bar.spines.values():
        spine.set(color=_FAINT, linewidth=0.5)


def _lines(axes: Any, sheet: Sheet, track: Track) -> None:
    """Draw one line per channel, or its range if rows exceed pixels."""
    bins = int(sheet.wide * _DPI)
    middle = track.start + track.step / 2
    for i in range(len(track.units)):
        column, colour = track.values[:, i].astype(np.float64), _LINES[i % len(_LINES)]
        label = str(track.units[i]) if track.size > 1 else None
        if len(column) <= 2 * bins:
            at = sheet.x(middle + np.arange(len(column)) * track.step)
            dots = "." if len(column) <= 60 else ""
            style = "default" if track.values.dtype.kind == "f" else "steps-mid"
            axes.plot(
                at, column, color=colour, linewidth=0.9, marker=dots, markersize=3, label=label,
                drawstyle=style,
            )  # fmt: skip
        else:
            first, least, greatest = envelope(column, bins)
            at = sheet.x(middle + first * track.step)
            axes.fill_between(at, least, greatest, color=colour, linewidth=0.4, label=label)
    if track.size > 1:
        axes.legend(
            loc="center left", bbox_to_anchor=(1.002, 0.5), fontsize=6.5, frameon=False, handlelength=0.8,
            labelspacing=0.15, borderaxespad=0,
        )  # fmt: skip
    axes.margins(y=0.08)
    axes.locator_params(axis="y", nbins=4)
    axes.spines[["top", "right"]].set_visible(False)


def _band(axes: Any, sheet: Sheet, track: Track) -> None:
    """Draw text: characters at their ticks, rotated words, or bands."""
    texts = captions.row_texts(track) or []
    upright = captions.are_characters(texts) and not sheet.legible(track)
    if upright:
        parts = captions.words(texts)
    elif captions.are_characters(texts):
        parts = [captions.Run(i, i + 1, t) for i, t in enumerate(texts) if t]
    else:
        parts = captions.runs(texts)
        _coloured(axes, sheet, track, parts)
    free = -np.inf  # inches: the end of the last rotated word
    for part in parts:
        left, right = (sheet.x(track.start + row * track.step) for row in (part.first, part.end))
        text = _drawable(captions.visible(part.text))
        middle, room = (left + right) / 2, (right - left) * sheet.inches / _PER_CHARACTER
        if upright:
            middle, room = left + _LINE / 2 / sheet.inches, _UPRIGHT / _PER_CHARACTER * 1.3
            if left * sheet.inches < free:
                continue
            free = left * sheet.inches + _LINE
        elif captions.are_characters(texts):
            room = np.inf
        if len(text) > room + 0.6:
            if room < 3:
                continue
            text = text[: int(room) - 1] + "…"
        axes.text(
            middle, 0.04 if upright else 0.46, text, fontsize=_LETTER, family="DejaVu Sans Mono", color=_INK,
            ha="center", va="bottom" if upright else "center", rotation=90 if upright else 0,
            transform=axes.get_xaxis_transform(), clip_on=True,
        )  # fmt: skip
    axes.set_yticks([])


def _coloured(axes: Any, sheet: Sheet, track: Track, parts: Sequence[captions.Run]) -> None:
    """Draw one colour per name if they are few; else two alternating colours."""
    names = sorted({part.text for part in parts})
    for i, part in enumerate(parts):
        band = names.index(part.text) if len(names) <= len(_BANDS) else i % 2
        left, right = (sheet.x(track.start + row * track.step) for row in (part.first, part.end))
        axes.axvspan(left, right, color=_BANDS[band], linewidth=0)


def _drawable(text: str) -> str:
    """Replace characters missing in the font, and escape $, which starts a formula in matplotlib."""
    font = _font()
    return "".join(c if font.get_char_index(ord(c)) else "\ufffd" for c in text).replace("$", r"\$")


def _font() -> Any:
    from matplotlib import font_manager

    return font_manager.get_font(font_manager.findfont("DejaVu Sans Mono"))
