"""Train, certify and stream a classifier, and count right answers by the number of words heard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from measured import Say, Table

from runnel.errors import RunnelError
from runnel.spec import Array
from runnel_export.certify.certificate import Certificate

from . import picture, streaming, texts
from .baseline import BagOfWords, commonest, regress
from .training import Numbered, numbered, probabilities, train

_SEED = 0
_EPOCHS = 4
_QUICK = (3000, 200, 200)  # texts for training, validation and test
_SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
_COUNTS = (1, 2, 3, 5, 8, 12, 20, 30)
_AGREE = 1e-4  # largest difference of two probabilities: float32 rounding stays far below

# Invented examples, with and without a turn of sentiment. The table shows the first.
SENTENCES = (
    "A charming little camera, and then it stopped working after a week. What a waste of money.",
    "The plot is thin and the jokes are stale, but the acting is superb and I loved it!",
    "This is the best phone that I have ever had.",
    "Not good, not even funny: the worst two hours of my life.",
    "The committee will meet on Tuesday to discuss the failure of the new tax.",
)


def run(out: Path, quick: bool, say: Say) -> list[Table]:
    say("rated texts, by pip or from an earlier run")
    parts = texts.split(texts.read(texts.fetch()), _SEED)
    if quick:
        few = [part[:n] for part, n in zip(_scattered(parts), _QUICK, strict=True)]
        parts = texts.Split(*few)
    vocabulary = texts.vocabulary(parts.train)
    known, validation, held = (
        numbered(part, vocabulary) for part in (parts.train, parts.validation, parts.held_out)
    )
    say(f"{len(known):,} texts to learn from, {len(held):,} held out; {len(vocabulary):,} words")
    model = train(known, validation, len(vocabulary), 2 if quick else _EPOCHS, _SEED, say)
    bag = regress(known, validation, len(vocabulary), say)

    say("export, with its certificate")
    torch.save(model.state_dict(), out / "intent.pt")
    path = out / "intent.onnx"
    certificate = streaming.certify(model, held, path)
    pipeline = streaming.write_pipeline(out, path, vocabulary)

    say("held-out texts through the engine")
    heard = streaming.through_engine(pipeline, [text.words for text in parts.held_out])
    told = probabilities(model, held)
    apart = max(float(np.abs(a - b).max()) for a, b in zip(heard, told, strict=True))
    if not apart <= _AGREE:
        raise RunnelError(f"what was streamed differs from torch by {apart:g}; at most {_AGREE:g} is right")

    say("sentences to the daemon, in turns, a word each:")
    sentences = [texts.spelled(sentence) for sentence in SENTENCES]
    answers: list[list[float]] = [[] for _ in sentences]
    for turn in streaming.live(pipeline, sentences):
        for heard_now in turn:
            answers[heard_now.sentence].append(heard_now.positive)
        say(line(turn, len(sentences)))
    alone = streaming.through_engine(pipeline, sentences)
    mixed = max(float(np.abs(np.array(a) - b).max()) for a, b in zip(answers, alone, strict=True))
    if not mixed <= _AGREE:
        raise RunnelError(
            f"the daemon's answers differ from the engine's by {mixed:g}: streams were mixed up"
        )
    picture.draw(out / "intent.png", sentences, alone)

    guess = commonest(known)
    return [
        by_share(held, heard, bag, guess),
        by_count(held, heard, bag),
        by_kind(parts.held_out, held, heard, bag, guess),
        exactness(certificate, heard, apart, sum(map(len, sentences)), mixed),
        word_by_word(sentences[0], answers[0]),
    ]


def line(turn: Sequence[streaming.Heard], sentences: int) -> str:
    """Return one turn as a line of text. Each sentence has its column, which is empty after its end."""
    cells = {heard.sentence: f"{heard.word:>10} {heard.positive:.2f}" for heard in turn}
    return f"  {''.join(cells.get(i, ' ' * 15) for i in range(sentences))}".rstrip()


def _scattered(parts: texts.Split) -> tuple[list[texts.Text], ...]:
    """Shuffle each part, so that its first texts are of all kinds."""
    random = np.random.default_rng(_SEED)
    every = (parts.train, parts.validation, parts.held_out)
    return tuple([part[i] for i in random.permutation(len(part))] for part in every)


def right(data: Numbered, heard: Sequence[Array], words: Sequence[int]) -> Array:
    """Whether the answer was right after the given number of words of each text."""
    said: Array = np.array([p[n - 1] > 0.5 for p, n in zip(heard, words, strict=True)])
    found: Array = said == np.array(data.labels, bool)
    return found


def beginnings(data: Numbered, words: Sequence[int]) -> Numbered:
    return Numbered([text[:n] for text, n in zip(data.words, words, strict=True)], data.labels)


def by_share(data: Numbered, heard: Sequence[Array], bag: BagOfWords, guess: int) -> Table:
    rows = []
    for share in _SHARES:
        words = [max(1, round(share * len(text))) for text in data.words]
        found = right(data, heard, words)
        bagged = bag.right(beginnings(data, words))
        always = np.mean(np.array(data.labels) == guess)
        rows.append(
            [f"{share:.0%}", f"{np.mean(words):.1f}", f"{found.mean():.1%}", f"{bagged:.1%}", f"{always:.1%}"]
        )
    return Table(
        f"Right answers on {len(data):,} held-out texts, by the share of their words that were heard",
        ["heard", "words, mean", "streamed model", "bag of words", f"always {texts.LABELS[guess]}"],
        rows,
    )


def by_count(data: Numbered, heard: Sequence[Array], bag: BagOfWords) -> Table:
    """Return the table by number of words n. It counts the texts that have more words than n."""
    rows = []
    for count in _COUNTS:
        long = [i for i, text in enumerate(data.words) if len(text) > count]
        if not long:
            continue
        some = Numbered([data.words[i] for i in long], [data.labels[i] for i in long])
        answers = [heard[i] for i in long]
        early, late = (
            right(some, answers, [count] * len(long)),
            right(some, answers, list(map(len, some.words))),
        )
        bagged = bag.right(beginnings(some, [count] * len(long)))
        rows.append(
            [str(count), f"{len(long):,}", f"{early.mean():.1%}", f"{bagged:.1%}", f"{late.mean():.1%}"]
        )
    return Table(
        "Right answers after so many words, on the held-out texts that have more",
        ["words heard", "texts", "streamed model", "bag of words", "streamed model, at their end"],
        rows,
    )


def by_kind(
    every: Sequence[texts.Text], data: Numbered, heard: Sequence[Array], bag: BagOfWords, guess: int
) -> Table:
    found = right(data, heard, list(map(len, data.words)))
    rows = []
    for kind in (*texts.KINDS, "all"):
        some = [i for i, text in enumerate(every) if kind in ("all", text.kind)]
        only = Numbered([data.words[i] for i in some], [data.labels[i] for i in some])
        always = np.mean(np.array(only.labels) == guess)
        rows.append(
            [kind, str(len(some)), f"{found[some].mean():.1%}", f"{bag.right(only):.1%}", f"{always:.1%}"]
        )
    bags = np.array([bag.positive(w) == y for w, y in zip(data.words, data.labels, strict=True)])
    alone = (found & ~bags).sum(), (bags & ~found).sum()
    rows.append(["right where the other is wrong", "", f"{alone[0]} texts", f"{alone[1]} texts", ""])
    return Table(
        "Right answers on whole held-out texts, by where they are from",
        ["", "texts", "streamed model", "bag of words", f"always {texts.LABELS[guess]}"],
        rows,
    )


def exactness(
    certificate: Certificate, heard: Sequence[Array], apart: float, live: int, mixed: float
) -> Table:
    words = sum(map(len, heard))
    proved = f"{certificate.errors['scores'].elements:,}"
    return Table(
        "Is the stream what was trained?",
        ["compared", "answers", "differ by at most"],
        [
            ["steps of the file with the module, of the peak", proved, f"{certificate.error:.1e}"],
            ["P(positive), streams of the engine with torch on whole texts", f"{words:,}", f"{apart:.1e}"],
            ["P(positive), streams of the daemon in turns with the engine", f"{live}", f"{mixed:.1e}"],
        ],
    )  # fmt: skip


def word_by_word(words: Sequence[str], answers: Sequence[float]) -> Table:
    rows = [[word, _bar(p), f"{p:.2f}"] for word, p in zip(words, answers, strict=True)]
    return Table("One sentence, live from the daemon", ["word", "negative … positive", "P(positive)"], rows)


def _bar(p: float) -> str:
    """Return a bar of text with a mark at p, between 0 and 1."""
    at = min(20, int(p * 21))
    return "·" * at + "●" + "·" * (20 - at)
