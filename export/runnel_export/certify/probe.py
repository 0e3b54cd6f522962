"""What a probe must show besides being a model: that it is the one it goes with, and its gates right.

The gates are computed beside the nodes that they are gates of, so nothing else would notice a wrong one. But
they make up what those nodes give: c_t = f_t c_{t-1} + i_t g_t and h_t = o_t tanh(c_t) of an LSTM,
h_t = z_t h_{t-1} + (1 - z_t) n_t of a GRU. It is h of the node itself, and the states are the node's own.
Like `proofs`, this knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from runnel import probe
from runnel.probe import ProbeLayer
from runnel.spec import Array

from .checks import Prover, Trial
from .errors import Finding, Tally


def same(model: Prover, probe: Prover, trials: Sequence[Trial]) -> Finding:
    """The model's own outputs and states, and the probe's."""
    tally, exact = Tally(), True
    for trial in trials:
        cuts = model.randomly(trial.chunk)
        (wanted, ends), (got, states) = (p.played(trial, cuts) for p in (model, probe))
        for name, values in wanted.items():
            tally.add(name, got[name], values)
            exact &= np.array_equal(got[name], values, equal_nan=values.dtype.kind == "f")
        for name, row in ends.items():
            tally.add(f"state {name}", states[name].ravel(), row.ravel())
            exact &= np.array_equal(states[name], row)
    return tally.finding("same", f"the model's own outputs and states{', bit for bit' if exact else ''}")


def recomposed(prover: Prover, trials: Sequence[Trial]) -> Finding:
    """What the probe's gates make, and what its layers hold; gates between 0 and 1."""
    tally, within = Tally(), True
    spec = prover.model
    initial = {s.input: s.initial for s in spec.states}
    for trial in trials:
        begun = initial if trial.start is None else trial.start
        # Tick by tick and cut at random; and, of a layer whose states something else has a hand in, at once.
        cuts = (prover.evenly(trial.chunk), prover.randomly(trial.chunk))
        plays = [prover.played(trial, places) for places in cuts]
        whole = [prover.played(trial, [])] if spec.any_ticks else []
        for layer in spec.probe.layers if spec.probe else ():
            carried = "h" in layer.states and ("c" in layer.states or "c" not in layer.outputs)
            for outputs, ends in plays if carried or layer.backward else whole:
                seen = {letter: outputs[name].astype(np.float64) for letter, name in layer.outputs.items()}
                if layer.kind in probe.KNOWN:  # (in a formula of one's own a gate may be an exponential)
                    within &= all(v.min() >= 0 and v.max() <= 1 for x, v in seen.items() if x in probe.GATES)
                last = {x: _last(x, seen[x], layer, begun) for x in seen.keys() & set("hc")}
                known = _known(layer, spec.hop, len(next(iter(seen.values()))), carried)
                for letter, made in _made(layer, seen, last).items():
                    tally.add(layer.outputs[letter], made[known], seen[letter][known])
                if layer.kind == "LSTM" and seen["h"].shape == seen["c"].shape:  # (else it is projected)
                    tally.add(layer.outputs["h"], seen["o"] * np.tanh(seen["c"]), seen["h"])
                for letter, state in layer.states.items() if not spec.blocks else ():
                    name = f"{layer.outputs[letter]} at the end"
                    tally.add(name, seen[letter][-1], ends[state].ravel().astype(np.float64))
    about = "the gates make what the layers hold" + ("" if within else ": but a gate is not between 0 and 1")
    return tally.finding("gates", about, within)


def _last(letter: str, values: Array, layer: ProbeLayer, begun: Mapping[str, Array]) -> Array:
    """At each tick what it was before the tick; see `_known`."""
    if layer.backward:
        return np.concatenate([values[1:], values[-1:]])
    first = begun[layer.states[letter]].reshape(1, -1) if letter in layer.states else values[:1]
    return np.concatenate([first.astype(values.dtype), values[:-1]])


def _known(layer: ProbeLayer, block: int, ticks: int, carried: bool) -> Array:
    """Of each tick, whether what was before it is seen: backward, of a block's last tick it is not."""
    at = np.arange(ticks)
    if layer.backward:
        return np.asarray((at % block != block - 1) & (at != ticks - 1))
    return np.asarray(at >= (0 if carried else 1))


def _made(layer: ProbeLayer, seen: Mapping[str, Array], last: Mapping[str, Array]) -> dict[str, Array]:
    """What the gates make of what was before. Of another kind of layer only its author knows the formula."""
    if layer.kind == "LSTM":
        return {"c": seen["f"] * last["c"] + seen["i"] * seen["g"]}
    if layer.kind == "GRU":
        kept = 1 - seen["z"] if layer.takes else seen["z"]
        return {"h": kept * last["h"] + (1 - kept) * seen["n"]}
    return {}
