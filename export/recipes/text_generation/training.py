"""The model, and how it is trained: truncated back-propagation through time, the state carried on.

The text is cut into as many rows as a batch has, which are read side by side, a piece of each at a time; the
state goes on from piece to piece, the gradient does not (R. Williams, J. Peng, An Efficient Gradient-Based
Algorithm for On-Line Training of Recurrent Network Trajectories, 1990). Gradients are clipped by their norm
(R. Pascanu, T. Mikolov, Y. Bengio, On the Difficulty of Training Recurrent Neural Networks, 2013), dropout is
on what goes from layer to layer alone (W. Zaremba, I. Sutskever, O. Vinyals, Recurrent Neural Network
Regularization, 2014). Each pass begins elsewhere in the text, so that its pieces are never cut alike.
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
    """Scores of the byte that follows, after each byte."""

    def __init__(self, embedded: int, hidden: int, layers: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, embedded)
        self.lstm = nn.LSTM(embedded, hidden, layers, batch_first=True, dropout=dropout)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, BYTES)

    def forward(self, byte: Tensor) -> Tensor:
        """(batch, time) int64 -> (batch, time, 256)."""
        return self.read(byte, None)[0]

    def read(self, byte: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The same from a state on; and the state after it."""
        seen, after = self.lstm(self.embedding(byte), state)
        return self.out(self.drop(seen)), after


@dataclass(frozen=True)
class Plan:
    """What is trained, and for how long."""

    embedded: int = 64
    hidden: int = 256
    layers: int = 2
    dropout: float = 0.25
    rows: int = 32
    ticks: int = 64  # of a piece: how far the gradient goes back
    pieces: int = 2800  # in all
    rate: float = 4e-3  # Adam's, at its highest
    rising: int = 100  # pieces until it is
    norm: float = 1.0  # of the gradient, at most
    looks: int = 14  # times that the validation part is measured
    read: int = 10**9  # characters of the validation part that are, at most
    seed: int = 1


QUICK = Plan(
    embedded=16, hidden=32, layers=1, dropout=0.0, pieces=40, rate=1e-2, rising=5, looks=1, read=2000
)


def train(text: Corpus, plan: Plan, say: Say) -> Text:
    """The model as it was when it foretold the validation part best; on the CPU, in eval mode."""
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
    """Of the whole text, each character foretold from all before it, by torch. The model's mode stays."""
    was = model.training
    model.eval()
    read = codes(BEGIN + text)[None]
    with torch.no_grad():
        bits = _bits(_loss(model(read[:, :-1]), read[:, 1:]))
    model.train(was)
    return bits


def codes(text: bytes) -> Tensor:
    """int64 (T,)."""
    return torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))


def _rows(text: bytes, count: int, begin: int) -> Tensor:
    """(count, time): the text from `begin` on, around its end, in `count` pieces of one length."""
    turned = codes(text).roll(-begin)
    length = len(turned) // count
    return turned[: count * length].view(count, length)


def _share(done: int, plan: Plan) -> float:
    """Of the highest rate: up in a line, down in a cosine (I. Loshchilov, F. Hutter, SGDR, 2017)."""
    return min(1.0, (done + 1) / plan.rising) * 0.5 * (1 + math.cos(math.pi * done / plan.pieces))


def _loss(scores: Tensor, wanted: Tensor) -> Tensor:
    return nn.functional.cross_entropy(scores.flatten(0, 1), wanted.flatten())


def _bits(loss: Tensor) -> float:
    return loss.item() / math.log(2)
