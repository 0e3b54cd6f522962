"""Write the pipeline of the certified model, and stream texts through it word by word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from runnel import Client, Engine
from runnel.spec import Array
from runnel_export import export
from runnel_export.certify.certificate import Certificate
from runnel_export.demo.daemon import daemon

from .texts import LABELS
from .training import Classifier, Numbered

_TOGETHER = 64  # streams in a batch
_POSITIVE = LABELS.index("positive")


def certify(model: Classifier, data: Numbered, path: Path) -> Certificate:
    """Export the model with its certificate. `data`: texts for the proof, in addition to random words."""
    texts = sorted(data.words, key=len)[-8:]
    shortest = len(texts[0])
    return export(model, torch.tensor([text[:shortest] for text in texts]), path, output_names=["scores"])


def write_pipeline(out: Path, model: Path, vocabulary: Sequence[str]) -> Path:
    """Write a pipeline that gives the likelier label and its probability after each word of a text."""
    (out / "words.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    path = out / "intent.toml"
    path.write_text(
        "# Written by the recipe intent: is it positive or negative, so far? One answer a word.\n"
        "# Words as training spelled them: in lower case, with a blank after each, and between signs too.\n"
        '[input.tensors]\ntext = { dtype = "uint8" }\n\n'
        '[[before]]\nuse = "tokens"\nunit = "word"\nvocabulary = "words.txt"\n'
        f"unknown = {len(vocabulary)}\n\n"
        f'[model]\npath = "{model.name}"\n[model.inputs]\nword = "text"\n\n'
        '[[after]]\nuse = "softmax"\n\n'
        f'[[after]]\nuse = "labels"\nnames = {list(LABELS)}\n'.replace("'", '"')
    )
    return path


def chunk(words: Sequence[str]) -> dict[str, Array]:
    """Return words as a client sends them. The blank after a word ends it."""
    text = "".join(f"{word} " for word in words)
    return {"text": np.frombuffer(text.encode(), np.uint8)}


def positive(out: dict[str, Array]) -> Array:
    """Return P(positive) for each word, from the likelier label and its probability."""
    return np.where(out["label"] == _POSITIVE, out["score"], 1 - out["score"])


def through_engine(pipeline: Path, texts: Sequence[Sequence[str]]) -> list[Array]:
    """Return P(positive) after each word of each text. Each text is a separate stream."""
    found: list[Array] = []
    with Engine.load(pipeline, max_streams=_TOGETHER) as engine:
        for at in range(0, len(texts), _TOGETHER):
            some = texts[at : at + _TOGETHER]
            streams = [engine.open() for _ in some]
            pairs = [(stream, chunk(words)) for stream, words in zip(streams, some, strict=True)]
            for stream, out in zip(streams, engine.feed_many(pairs), strict=True):
                stream.close()
                if isinstance(out, Exception):
                    raise out
                found.append(positive(out))
    return found


@dataclass(frozen=True)
class Heard:
    """One answer of the daemon: the sentence, the word, and P(positive) after it."""

    sentence: int
    word: str
    positive: float


def live(pipeline: Path, sentences: Sequence[Sequence[str]]) -> Iterator[list[Heard]]:
    """Feed sentences to a daemon process, one word of each sentence per turn. Yield each turn's answers."""
    with daemon(pipeline, "--log-level", "warning") as address, Client(address) as client:
        streams = [client.open(f"sentence-{i + 1}") for i in range(len(sentences))]
        for turn in range(max(map(len, sentences))):
            said = []
            for i, (stream, words) in enumerate(zip(streams, sentences, strict=True)):
                if turn < len(words):
                    answer = positive(stream.feed(chunk([words[turn]])))
                    said.append(Heard(i, words[turn], float(answer[0])))
            yield said
        for stream in streams:
            stream.close()
