"""Baselines in bits per character of the test part: counts of n-grams, and compressors.

An n-gram model predicts a character from the n - 1 characters before it, by the counts of what followed them
in the training part. Counts of all lengths are interpolated by the method of I. Witten and T. Bell (The
Zero-Frequency Problem, 1991), in the notation of S. Chen and J. Goodman (An Empirical Study of Smoothing
Techniques for Language Modeling, 1998):

    p_n(c | h) = (count(h c) + kinds(h) p_{n-1}(c | h without its first)) / (count(h) + kinds(h))

with kinds(h) the number of different characters seen after h, and p_0 = 1/256.

For a compressor, the bits are the growth of its output when the test part is appended to the training part.
It continues to learn while it reads the test part, which the other models do not.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections import Counter
from collections.abc import Callable

import numpy as np

from .corpus import BEGIN
from .training import BYTES

_XZ: list[dict[str, int]] = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]


def _deflate(text: bytes, before: bytes) -> int:
    """Return the compressed bytes of `text` after `before`. The format uses the last 32 KiB of `before`."""
    made = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, before[-(1 << 15) :])
    return len(made.compress(text) + made.flush())


COMPRESSORS: dict[str, Callable[[bytes, bytes], int]] = {
    "zlib": _deflate,
    "bz2": lambda text, before: len(bz2.compress(before + text, 9)) - len(bz2.compress(before, 9)),
    "xz": lambda text, before: len(_xz(before + text)) - len(_xz(before)),
}


def _xz(text: bytes) -> bytes:
    return lzma.compress(text, lzma.FORMAT_RAW, filters=_XZ)


def compressed(name: str, train: bytes, test: bytes) -> float:
    """Return the bits per character of the test part, given the training part."""
    return 8 * COMPRESSORS[name](test, train) / len(test)


class NGrams:
    """Counts of all n-grams up to a length."""

    def __init__(self, text: bytes, longest: int) -> None:
        self.longest = longest
        text = BEGIN * longest + text
        self._followed: list[dict[bytes, Counter[int]]] = []  # by length of the history, then by history
        for before in range(longest):
            counts: dict[bytes, Counter[int]] = {}
            for end in range(longest, len(text)):
                counts.setdefault(text[end - before : end], Counter())[text[end]] += 1
            self._followed.append(counts)

    def probabilities(self, code: int, history: bytes) -> list[float]:
        """Return the probabilities of byte `code` after `history`, by 1-grams, 2-grams … the longest."""
        p, found = 1 / BYTES, []
        for before, counts in enumerate(self._followed):
            followed = counts.get(history[len(history) - before :])
            if followed is not None:
                p = (followed[code] + len(followed) * p) / (followed.total() + len(followed))
            found.append(p)
        return found

    def bits_per_character(self, text: bytes) -> list[float]:
        """Return the bits per character by 1-grams, 2-grams … the longest."""
        read = BEGIN * self.longest + text
        p = [
            self.probabilities(read[at], read[at - self.longest + 1 : at])
            for at in range(self.longest, len(read))
        ]
        bits: list[float] = (-np.log2(p)).mean(0).tolist()
        return bits
