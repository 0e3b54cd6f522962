"""The model, and its training by truncated back-propagation through time.

The text is cut into as many rows as the batch has. All rows are read side by side, piece by piece. The state
is carried from piece to piece, but the gradient is not (R. Williams, J. Peng, An Efficient Gradient-Based
Algorithm for On-Line Training of Recurrent Network Trajectories, 1990). Gradients are clipped by their norm
(R. Pascanu, T. Mikolov, Y. Bengio, On the Difficulty of Training Recurrent Neural Networks, 2013). Dropout
applies only between layers (W. Zaremba, I. Sutskever, O. Vinyals, Recurrent Neural Network Regularization,
2014). Each pass starts at another point of the text, so that the cuts between pieces differ.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from measured import Say
from torch import Tensor, nn

from .corpus import BEGIN, Corpus

BYTES = 256
State = tuple[Tensor, Tensor]


class Text(nn.Module):
    """Scores of the next byte, after each byte."""

    def __init__(self, embedded: int, hidden: int, layers: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, embedded)
        self.lstm = nn.LSTM(embedded, hidden, layers, batch_first=True, dropout=dropout)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, BYTES)

    def forward(self, byte: Tensor) -> Tensor:
        """Map (batch, time) int64 to scores (batch, time, 256)."""
        return self.read(byte, None)[0]

    def read(self, byte: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Run from a state. Return (scores, the state after them)."""
        seen, after = self.lstm(self.embedding(byte), state)
        return self.out(self.drop(seen)), after


@dataclass(frozen=True)
class Plan:
    """Sizes of the model and of its training."""

    embedded: int = 64
    hidden: int = 256
    layers: int = 2
    dropout: float = 0.25
    rows: int = 32
    ticks: int = 64  # length of a piece: how far the gradient goes back
    pieces: int = 2800  # number of updates
    rate: float = 4e-3  # highest learning rate of Adam
    rising: int = 100  # pieces until the rate is highest
    norm: float = 1.0  # largest norm of the gradient
    looks: int = 14  # number of evaluations on the validation part
    read: int = 10**9  # most characters of the validation part in an evaluation
    seed: int = 1


QUICK = Plan(
    embedded=16, hidden=32, layers=1, dropout=0.0, pieces=40, rate=1e-2, rising=5, looks=1, read=2000
)


def train(text: Corpus, plan: Plan, say: Say) -> Text:
    """Train a model. Return it as it was best on the validation part, on the CPU, in eval mode."""
    torch.manual_seed(plan.seed)
    random = np.random.default_rng(plan.seed)
    model = Text(plan.embedded, plan.hidden, plan.layers, plan.dropout)
    adam = torch.optim.Adam(model.parameters(), lr=plan.rate)
    best, kept = math.inf, copy.deepcopy(model.state_dict())
    done, state, began = 0, None, time.monotonic()
    validation = text.validation[: plan.read]
    while done < plan.pieces:
        rows = _rows(text.train, plan.rows, int(random.integers(len(text.train))))
        state = None
        for at in range(0, rows.shape[1] - plan.ticks, plan.ticks):
            for group in adam.param_groups:
                group["lr"] = plan.rate * _share(done, plan)
            scores, state = model.read(rows[:, at : at + plan.ticks], state)
            state = (state[0].detach(), state[1].detach())
            loss = _loss(scores, rows[:, at + 1 : at + plan.ticks + 1])
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), plan.norm)
            adam.step()
            done += 1
            if done % max(1, plan.pieces // plan.looks) == 0:
                bits = bits_per_character(model, validation)
                if bits < best:
                    best, kept = bits, copy.deepcopy(model.state_dict())
                took = time.monotonic() - began
                say(
                    f"  {done} of {plan.pieces} pieces, {took:.0f} s: bits per character {_bits(loss):.3f} "
                    f"in training, {bits:.3f} on the validation part"
                )
            if done == plan.pieces:
                break
    model.load_state_dict(kept)
    return model.eval()


def bits_per_character(model: Text, text: bytes) -> float:
    """Return the bits per character of the text by torch. The model's mode does not change."""
    was = model.training
    model.eval()
    read = codes(BEGIN + text)[None]
    with torch.no_grad():
        bits = _bits(_loss(model(read[:, :-1]), read[:, 1:]))
    model.train(was)
    return bits


def codes(text: bytes) -> Tensor:
    """Return the bytes as int64 (T,)."""
    return torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))


def _rows(text: bytes, count: int, begin: int) -> Tensor:
    """Return (count, time): the text from `begin` on, wrapped at its end, cut into `count` equal rows."""
    turned = codes(text).roll(-begin)
    length = len(turned) // count
    return turned[: count * length].view(count, length)


def _share(done: int, plan: Plan) -> float:
    """Return the share of the highest rate: linear, then a cosine (I. Loshchilov, F. Hutter, SGDR, 2017)."""
    return min(1.0, (done + 1) / plan.rising) * 0.5 * (1 + math.cos(math.pi * done / plan.pieces))


def _loss(scores: Tensor, wanted: Tensor) -> Tensor:
    return nn.functional.cross_entropy(scores.flatten(0, 1), wanted.flatten())


def _bits(loss: Tensor) -> float:
    return loss.item() / math.log(2)
