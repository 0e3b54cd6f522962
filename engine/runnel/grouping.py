"""How a stream's samples or ticks are grouped for a model: framing, blocks, steps."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ModelError

MAX_WINDOW = 2**16  # ticks of a block and its lookahead: they are buffered, and are one call of the model


@dataclass(frozen=True, slots=True)
class Framing:
    """How samples are cut into windows, one per step of the model.

    Step k sees samples ``[k*hop - (window - hop), k*hop + hop)``, with zeros before the first sample.
    Example: window 576 and hop 512 carry 64 samples of context; after 1024 samples there are two steps.
    """

    window: int
    hop: int

    def __post_init__(self) -> None:
        if not (0 < self.hop <= self.window):
            raise ModelError(
                f"framing: hop must be in 1..window, but hop is {self.hop} and window is {self.window}"
            )

    @property
    def context(self) -> int:
        return self.window - self.hop


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of ticks with a lookahead, as a model takes them.

    Step k sees ticks ``[k*ticks, k*ticks + window)`` and returns outputs for the first `ticks` of them; its
    states are then those after the block. If the stream ends within a window, the rest of the window is
    padded. The input `present` holds the number of real ticks in the window, and the output `kept` holds the
    number of outputs that belong to the stream. The output of a tick comes at most `latency` ticks after it.
    (The latency-controlled BLSTM of Zhang et al. 2016, https://arxiv.org/abs/1510.08983.)
    """

    ticks: int
    lookahead: int
    present: str = "present"  # the model's input: int32, one number per window
    kept: str = "kept"  # the model's output: int32, one number per window

    def __post_init__(self) -> None:
        if self.ticks < 1 or self.lookahead < 0 or self.window > MAX_WINDOW:
            raise ModelError(
                f"blocks: a block has at least 1 tick, a lookahead at least 0, both together at most "
                f"{MAX_WINDOW}, but ticks is {self.ticks} and lookahead is {self.lookahead}"
            )

    @property
    def window(self) -> int:
        """Ticks that the model sees in one step."""
        return self.ticks + self.lookahead

    @property
    def own(self) -> tuple[str, str]:
        """The tensors between the model and its surrounding stages, which no stream sees."""
        return self.present, self.kept

    @property
    def latency(self) -> int:
        """Ticks from the first tick of a block until its output is returned."""
        return self.window - 1


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps of a model whose rows come later than the ticks, or at another rate.

    A step takes `ticks` ticks and gives `rows` rows. Row 0 of a sequence comes in the step that holds tick
    `delay`. The first rows of a stream may therefore lie before the sequence, and the last ones after it: the
    outputs `begun` and `kept` say that the rows from `begun` to below `kept` of a step belong to the stream.
    At the end of a sequence the last step is filled up with zeros, and `after` more steps are run. The input
    `present` is the number of ticks of the sequence from a step's first tick on, at most `ticks`; in steps
    after the end it is 0 or negative.
    """

    ticks: int
    rows: int
    delay: int  # ticks
    after: int
    present: str = "present"  # the model's input: int32, one number a step
    begun: str = "begun"  # the model's outputs: likewise
    kept: str = "kept"
    position: str = "position"  # the model's state that counts ticks: int64, one number

    def __post_init__(self) -> None:
        if min(self.ticks, self.rows) < 1 or min(self.delay, self.after) < 0:
            raise ModelError(f"steps: a step has at least 1 tick and 1 row, but they are {self}")
        if max(self.ticks, self.rows, self.delay, self.ticks * self.after) > MAX_WINDOW:
            raise ModelError(
                f"steps: at most {MAX_WINDOW} ticks or rows a step, and of delay, but they are {self}"
            )

    @property
    def own(self) -> tuple[str, ...]:
        """Tensors between the model and the stages around it, never part of a stream."""
        return self.present, self.begun, self.kept

    @property
    def latency(self) -> int:
        """Largest number of ticks between a tick and the row of the same time."""
        return self.ticks - 1 + self.delay
