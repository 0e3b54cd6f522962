"""Train, certify and stream a text model, generate text in three ways, and look at the gates."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from measured import Passage, Say, Table

from runnel import probe
from runnel.errors import RunnelError
from runnel.files import library
from runnel_export import Certificate, export

from . import baselines, corpus, gates, generation, training
from .corpus import Corpus
from .training import Text

LONGEST = 6  # longest n-grams: longer ones predict no better
PROMPT = b"The "
TEMPERATURE = 0.7
OTHERS = (0.5, 1.0)
WRITTEN = 3000  # characters generated at each temperature
SHOWN = 700  # characters of the first text in the README
QUICK_TRAIN, QUICK_TEST, QUICK_WRITTEN = 60_000, 4000, 1100
DRAWN = slice(3012, 3192)  # part of the test part in the picture: two sentences, with line ends and indents
SEED = 7
SAME = 1e-3  # largest difference between torch and the engine, bits per character


def run(out: Path, quick: bool, say: Say) -> list[Table | Passage]:
    """Run the recipe. `quick`: use a small model, little training, and the first characters of each part."""
    library("matplotlib", "pictures of gates", "recipes")
    text, count = corpus.load(), WRITTEN
    if quick:
        train, test = text.train[:QUICK_TRAIN], text.test[:QUICK_TEST]
        text, count = replace(text, train=train, test=test), QUICK_WRITTEN
    say(f"train on {len(text.train)} characters of {text.pages} pages")
    model = training.train(text, training.QUICK if quick else training.Plan(), say)
    torch.save(model.state_dict(), out / "text.pt")

    say("export, with its certificate and a probe")
    path = out / generation.MODEL
    certificate = certify(model, text, path, say)
    say("foretell the test part: by counts, by compressors, by torch, and streamed through the engine")
    foretold = _foretold(model, text.train, text.test, path, say)
    say("write: by the engine, by `runnel run`, by `runnel serve`")
    ways, texts = _ways(out, count)
    texts |= _otherwise(out, count)
    say("read the test part once more, with the gates in sight")
    seen = gates.watch(probe.beside(path), text.test, say)
    gates.draw(out / "text.toml", text.test[DRAWN], out / "gates.png")
    return [
        _about(model, text, certificate),
        foretold,
        ways,
        _beside(texts, text.train, text.test[:count]),
        Passage(
            f"The model at temperature {TEMPERATURE}, after {PROMPT.decode()!r}",
            texts[TEMPERATURE][:SHOWN].decode("ascii", "replace"),
        ),
        gates.averages(seen, text.test),
        gates.tellers(seen, text.test),
    ]


def certify(model: Text, text: Corpus, path: Path, say: Say) -> Certificate:
    """Export the step model and its probe, certified on random bytes and on the text."""
    random = torch.Generator().manual_seed(SEED)
    example = torch.randint(training.BYTES, (1, 100), generator=random)
    return export(
        model,
        {"byte": example},
        path,
        output_names=["scores"],
        data={"byte": training.codes(text.validation[:200])[None]},
        probe="gates",
        progress=lambda line: say(f"  {line}"),
    )


def _about(model: Text, text: Corpus, certificate: Certificate) -> Table:
    lstm = model.lstm
    worst = max(error.relative for error in certificate.errors.values())
    return Table(
        "The text and the model",
        ["", ""],
        [
            ["characters of the pages, without what repeats", f"{text.written:,}, {text.kept:,}"],
            ["to train on, to choose by, to measure on",
             f"{len(text.train):,}, {len(text.validation):,}, {len(text.test):,}"],
            ["LSTM: layers, hidden units, parameters in all",
             f"{lstm.num_layers}, {lstm.hidden_size}, {sum(p.numel() for p in model.parameters()):,}"],
            ["largest error in the certificate, allowed", f"{worst:.1e}, {certificate.tolerance:.0e}"],
        ],
    )  # fmt: skip


def _foretold(model: Text, train: bytes, test: bytes, path: Path, say: Say) -> Table:
    """Return the bits per character of all models. Raises RunnelError if the stream differs from torch."""
    grams = baselines.NGrams(train, LONGEST).bits_per_character(test)
    figures = {f"{n}-grams": bits for n, bits in enumerate(grams, 1)}
    figures |= {name: baselines.compressed(name, train, test) for name in baselines.COMPRESSORS}
    by_torch = training.bits_per_character(model, test)
    streamed = generation.bits_per_character(path, test, say)
    if not abs(streamed - by_torch) <= SAME:
        raise RunnelError(
            f"the stream needs {streamed:.4f} bits per character, torch {by_torch:.4f}: it is another model"
        )
    figures |= {"LSTM, by torch": by_torch, "LSTM, streamed through the engine": streamed}
    return Table(
        "Bits per character of the test part",
        ["by", "bits"],
        [[name, f"{bits:.4f}" if "LSTM" in name else f"{bits:.2f}"] for name, bits in figures.items()],
    )


def _ways(out: Path, count: int) -> tuple[Table, dict[float, bytes]]:
    """Generate with one seed in three ways. Raises RunnelError if the texts differ."""
    pipeline = generation.write_pipeline(out, "text.toml", TEMPERATURE, SEED)
    texts = {name: way(pipeline, PROMPT, count) for name, way in generation.WAYS.items()}
    first = next(iter(texts.values()))
    for name, text in texts.items():
        if text != first:
            raise RunnelError(f"{name} wrote {text!r:.200}, and the engine {first!r:.200}, from one seed")
    table = Table(
        "One seed, three ways to write: the same text",
        ["by", "characters", "SHA-256"],
        [[name, str(len(text)), hashlib.sha256(text).hexdigest()[:16]] for name, text in texts.items()],
    )
    return table, {TEMPERATURE: first}


def _otherwise(out: Path, count: int) -> dict[float, bytes]:
    """Generate with the same seed at the other temperatures."""
    texts = {}
    for temperature in OTHERS:
        pipeline = generation.write_pipeline(out, f"text-{temperature}.toml", temperature, SEED)
        texts[temperature] = generation.by_engine(pipeline, PROMPT, count)
        pipeline.with_suffix(".txt").write_bytes(texts[temperature])
    return texts


def _beside(texts: dict[float, bytes], train: bytes, human: bytes) -> Table:
    """Compare generated and human text: how much of each occurs in the training part."""
    named = {f"the model, at temperature {t}": texts[t] for t in sorted(texts)}
    named["the beginning of the test part"] = human
    return Table(
        "What is written, beside the training part",
        ["by", "words that occur in it", "longest piece copied, characters"],
        [
            [name, f"{generation.known_words(text, train):.0%}", str(generation.longest_copy(text, train))]
            for name, text in named.items()
        ],
    )
