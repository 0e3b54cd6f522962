"""Two baselines for the classifier: the commonest label, and a bag of words.

The bag of words is a logistic regression on the words that a text has, in any order (D. R. Cox, "The
regression analysis of binary sequences", 1958). The penalty on its weights is chosen on the validation texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from measured import Say
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, embedding_bag

from .training import Numbered

PENALTIES = (3e-5, 1e-4, 3e-4)
_ITERATIONS = 100


@dataclass(frozen=True)
class BagOfWords:
    """One weight for each word of a text, without its count or position, and a bias."""

    weights: np.ndarray
    bias: float

    def positive(self, words: Sequence[int]) -> bool:
        return float(self.weights[list(set(words))].sum()) + self.bias > 0

    def right(self, data: Numbered) -> float:
        """Return the share of texts with a right answer."""
        found = [
            self.positive(words) == bool(label) for words, label in zip(data.words, data.labels, strict=True)
        ]
        return float(np.mean(found))


def commonest(data: Numbered) -> int:
    """Return the label that most texts have."""
    return int(np.bincount(data.labels).argmax())


def regress(data: Numbered, validation: Numbered, words: int, say: Say) -> BagOfWords:
    """Fit one model for each penalty, and return the best on `validation`."""
    found = []
    for penalty in PENALTIES:
        bag = fit(data, words, penalty)
        right = bag.right(validation)
        say(f"  bag of words, penalty {penalty:g}: {right:.1%} of the validation texts right")
        found.append((right, bag))
    return max(found, key=lambda pair: pair[0])[1]


def fit(data: Numbered, words: int, penalty: float) -> BagOfWords:
    """Minimise mean cross-entropy plus penalty times the squared weights, by L-BFGS. It has one minimum."""
    sets = [sorted(set(text)) for text in data.words]
    flat = torch.tensor([word for text in sets for word in text])
    starts = torch.tensor(np.cumsum([0, *map(len, sets[:-1])]))
    labels = torch.tensor(data.labels, dtype=torch.float32)
    weights = torch.zeros(words + 1, 1, requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores = embedding_bag(flat, weights, starts, mode="sum")[:, 0] + bias
        lost = binary_cross_entropy_with_logits(scores, labels) + penalty * weights.square().sum()
        lost.backward()  # type: ignore[no-untyped-call]
        return lost

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return BagOfWords(weights.detach().numpy()[:, 0], float(bias.detach()))
