"""The classifier and its training: many words in, one answer out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from measured import Say
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .texts import LABELS, Text

_WIDTH, _HIDDEN = 64, 64
_DROPOUT = 0.5
_FORGOTTEN = 0.2  # share of the words in training that become the unknown word, so that it is learnt
_BATCH, _RATE, _CLIP = 64, 2e-3, 1.0
_EARLY = 0.5  # weight in the loss of the answers before the last word


class Classifier(nn.Module):
    """Map words (batch, time) int64 to scores (batch, 2) after the last word."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words + 1, _WIDTH)  # one more, for the unknown word
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.dropout = nn.Dropout(_DROPOUT)
        self.gru = nn.GRU(_WIDTH, _HIDDEN, batch_first=True)
        self.out = nn.Linear(_HIDDEN, len(LABELS))

    def answers(self, word: Tensor) -> Tensor:
        """Return the scores after each word, (batch, time, 2). Training also asks for early answers."""
        heard, _ = self.gru(self.dropout(self.embedding(word)))
        scores: Tensor = self.out(self.dropout(heard))
        return scores

    def forward(self, word: Tensor) -> Tensor:
        return self.answers(word)[:, -1]


@dataclass(frozen=True)
class Numbered:
    """Texts as input of a model: the indices of their words in the vocabulary, and their labels."""

    words: list[list[int]]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.words)


def numbered(texts: Sequence[Text], vocabulary: Sequence[str]) -> Numbered:
    place = {word: i for i, word in enumerate(vocabulary)}
    unknown = len(vocabulary)
    return Numbered([[place.get(w, unknown) for w in t.words] for t in texts], [t.label for t in texts])


def batches(
    data: Numbered, unknown: int, size: int, random: np.random.Generator | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (words (batch, time), lengths, labels). Texts of similar length are padded with `unknown`.

    The order is random if `random` is given.
    """
    jitter = np.zeros(len(data)) if random is None else random.random(len(data)) * 4
    order = sorted(range(len(data)), key=lambda i: len(data.words[i]) + jitter[i])
    cuts = [order[i : i + size] for i in range(0, len(order), size)]
    if random is not None:
        random.shuffle(cuts)
    for cut in cuts:
        lengths = torch.tensor([len(data.words[i]) for i in cut])
        words = torch.full((len(cut), int(lengths.max())), unknown)
        for row, i in enumerate(cut):
            words[row, : lengths[row]] = torch.tensor(data.words[i])
        yield words, lengths, torch.tensor([data.labels[i] for i in cut])


def train(data: Numbered, validation: Numbered, words: int, epochs: int, seed: int, say: Say) -> Classifier:
    """Train a classifier. Return it in eval mode, as after the epoch that was best on `validation`."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = Classifier(words)
    optimizer = torch.optim.Adam(model.parameters(), _RATE)
    steps = epochs * -(-len(data) // _BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    best, kept = float("inf"), model.state_dict()
    for epoch in range(epochs):
        model.train()
        for given, lengths, labels in batches(data, words, _BATCH, random):
            forgotten = torch.rand(given.shape) < _FORGOTTEN
            loss = loss_of(model.answers(given.masked_fill(forgotten, words)), lengths, labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
            optimizer.step()
            schedule.step()
        lost, right = judged(model, validation, words)
        say(f"  epoch {epoch + 1} of {epochs}: {right:.1%} of the validation texts right, loss {lost:.3f}")
        if lost < best:
            best, kept = lost, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return model.eval()


def loss_of(scores: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of the answer after the last word, plus half that of the earlier answers."""
    batch, time, _ = scores.shape
    each = cross_entropy(scores.transpose(1, 2), labels[:, None].expand(batch, time), reduction="none")
    last = each[torch.arange(batch), lengths - 1].mean()
    heard = torch.arange(time) < lengths[:, None]
    return last + _EARLY * (each * heard).sum() / heard.sum()


@torch.no_grad()
def judged(model: Classifier, data: Numbered, unknown: int) -> tuple[float, float]:
    """Return (mean cross-entropy, share of right answers) after the last word."""
    model.eval()
    lost = right = 0.0
    for words, lengths, labels in batches(data, unknown, 256, None):
        scores = model.answers(words)[torch.arange(len(lengths)), lengths - 1]
        lost += float(cross_entropy(scores, labels, reduction="sum"))
        right += int((scores.argmax(1) == labels).sum())
    return lost / len(data), right / len(data)


@torch.no_grad()
def probabilities(model: Classifier, data: Numbered) -> list[np.ndarray]:
    """Return P(positive) after each word of each text, by torch in one call, to compare with a stream."""
    return [model.answers(torch.tensor([words]))[0].softmax(1)[:, 1].numpy() for words in data.words]
