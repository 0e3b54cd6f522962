"""Sentences that people rated: fetch them, spell them as words, and split them for training and testing.

C. J. Hutto and E. E. Gilbert, "VADER: a parsimonious rule-based model for sentiment analysis of social media
text", ICWSM 2014. About 23,700 sentences (reviews of films and products, opinion pages of newspapers, tweets)
were each rated from -4, extremely negative, to 4, by about twenty people. The sentences are in the source
archive of the authors' package, under the MIT licence. pip fetches that archive; this project contains none
of it.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runnel.errors import RunnelError

WANTED, ARCHIVE = "vaderSentiment==3.3.2", "vaderSentiment-3.3.2.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
KEPT = Path(__file__).parents[3] / "recipes-out" / "texts"  # ignored by git; fetched once for all runs
_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
KINDS = {
    "films": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "opinion pages": "nytEditorialSnippets",
    "tweets": "tweets",
}
_WITHIN = 120  # time-out of pip, seconds

LABELS = ("negative", "positive")
SURE = 0.5  # a text with a mean rating nearer to 0 has no label
_HELD_OUT, _VALIDATION = 0.15, 0.10  # shares of the texts
_TWICE = 2  # least occurrences of a word: a rarer word would be learnt from a single text

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+|[^\sa-z0-9]+")


@dataclass(frozen=True)
class Text:
    """One sentence: its words, the label from its ratings, and its origin."""

    words: tuple[str, ...]
    label: int  # index in LABELS
    kind: str
    group: str  # review or article; all its sentences are in one part of the split


@dataclass(frozen=True)
class Split:
    """Three parts that share no text and no review."""

    train: list[Text]
    validation: list[Text]
    held_out: list[Text]


def fetch(kept: Path = KEPT) -> Path:
    """Return the archive, from `kept` or fetched by pip. Its hash is checked. Raises RunnelError."""
    path = kept / ARCHIVE
    if not path.exists():
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept) as folder:  # another run may fetch it at the same time
            _download(Path(folder)).replace(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise RunnelError(f"{path} is not the archive that was expected: delete it, and it is fetched again")
    return path


def _download(folder: Path) -> Path:
    (folder / "wanted.txt").write_text(f"{WANTED} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary=:all:", "--require-hashes", "-r", "wanted.txt"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_WITHIN)
        said = done.stderr.strip().splitlines()[-1:] or ["it gave no reason"]
    except subprocess.TimeoutExpired:
        said = [f"nothing within {_WITHIN} s"]
    path = folder / ARCHIVE
    if not path.exists():
        raise RunnelError(
            f"the rated texts are not here, and pip could not fetch them: {said[0]}. By hand: pip download "
            f"--no-deps --no-binary=:all: {WANTED} -d {KEPT}"
        )
    return path


def read(archive: Path) -> list[Text]:
    """Return every text whose mean rating is clear, without duplicates."""
    found: dict[tuple[str, ...], Text] = {}
    for kind, name in KINDS.items():
        for line in _member(archive, f"hutto_ICWSM_2014/{name}_GroundTruth.txt").splitlines():
            number, rating, text = line.split("\t")
            words = spelled(text)
            if words and abs(float(rating)) >= SURE:
                group = f"{kind} {number.partition('_')[0]}"
                found.setdefault(words, Text(words, int(float(rating) > 0), kind, group))
    return list(found.values())


def _member(archive: Path, name: str) -> str:
    with tarfile.open(archive) as outer:
        inner = outer.extractfile(_INNER)
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as files:
            member = files.extractfile(name)
            assert member is not None
            return member.read().decode("utf-8")


def spelled(text: str) -> tuple[str, ...]:
    """Return lower-case words, numbers, and runs of signs: ("it", "doesn't", "work", ":(")."""
    plain = html.unescape(text).lower().replace("’", "'").replace("''", '"')
    return tuple(_WORD.findall(plain))


def split(texts: Sequence[Text], seed: int = 0) -> Split:
    """Split the texts at random, by whole reviews and articles."""
    groups = sorted({text.group for text in texts})
    order = np.random.default_rng(seed).permutation(len(groups))
    place = {groups[g]: rank / len(groups) for rank, g in enumerate(order)}
    parts: Split = Split([], [], [])
    for text in texts:
        at = place[text.group]
        if at < _HELD_OUT:
            parts.held_out.append(text)
        elif at < _HELD_OUT + _VALIDATION:
            parts.validation.append(text)
        else:
            parts.train.append(text)
    return parts


def vocabulary(texts: Sequence[Text]) -> list[str]:
    """Return the words that occur at least twice, most frequent first. All others become the unknown word."""
    counted = Counter(word for text in texts for word in text.words)
    return [word for word, n in sorted(counted.items(), key=lambda item: (-item[1], item[0])) if n >= _TWICE]
