"""Valid options for each of the stages that come with Runnel, given the signal at the stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from runnel.loading.registry import make_stage
from runnel.spec import Signal, TensorSpec

Options = dict[str, Any]

MAX_NUMBERS = 256  # per time step: keeps the tests fast


@dataclass
class Flow:
    """The state of the draw: the signal at which the next stage would be."""

    random: Random
    signal: Signal
    begun: bool = False  # a stage comes before
    nan: bool = False  # a NaN may arrive: not for stages that refuse it
    loose: bool = False  # floats may differ in their last bits, as after a model
    bounded: str = ""  # the array whose integers are certainly among its labels

    def one(self, *values: Any) -> Any:
        return self.random.choice(values)

    def maybe(self) -> bool:
        return self.random.random() < 0.5

    def number(self, low: float, high: float) -> float:
        return self.random.randint(int(low * 8), int(high * 8)) / 8

    def tensors(self, fits: Callable[[TensorSpec], bool]) -> list[TensorSpec]:
        return [t for t in self.signal.tensors if fits(t)]

    @property
    def width(self) -> int:
        return sum(math.prod(t.shape) for t in self.signal.tensors)


def floats(t: TensorSpec) -> bool:
    return t.dtype.startswith("float")


def narrow(t: TensorSpec) -> bool:
    return t.dtype in ("float32", "float16")


def single(t: TensorSpec) -> bool:
    return t.dtype == "float32"


def classes(t: TensorSpec) -> bool:
    return single(t) and len(t.shape) > 0 and t.shape[-1] > 0


def whole(t: TensorSpec) -> bool:
    return np.dtype(t.dtype).kind in "iu"


def text(t: TensorSpec) -> bool:
    return (t.dtype, t.shape) == ("uint8", ())


# One function per stage: options that are valid for the flow, or None if no array fits.


def mono(flow: Flow) -> Options | None:
    fit = flow.tensors(lambda t: floats(t) and len(t.shape) == 1)
    if not fit:
        return None
    chosen = flow.one(*fit)
    options: Options = {"of": chosen.name}
    if flow.maybe():
        count = flow.random.randint(1, chosen.shape[0])
        options["channels"] = flow.random.sample(range(chosen.shape[0]), count)
    return options


def gain(flow: Flow) -> Options | None:
    if not flow.tensors(floats):
        return None
    return flow.one({"factor": -0.5}, {"factor": 2}, {"db": 6.0}, {"factor": 0.0})


def resample(flow: Flow) -> Options | None:
    rate = flow.signal.rate
    if rate is None or flow.nan or not all(map(single, flow.signal.tensors)):
        return None
    factors = [(1, 2), (2, 1), (3, 2), (2, 3), (5, 3), (1, 5), (1, 1)]
    fit = [(up, down) for up, down in factors if (rate * up / down).is_integer() and rate * up / down < 1e5]
    if not fit:
        return None
    up, down = flow.one(*fit)
    return {"rate": rate * up / down, "half_width": flow.one(1, 2, 5)}


def pre_emphasis(flow: Flow) -> Options | None:
    return {"coefficient": flow.number(0, 1)} if flow.tensors(floats) and not flow.nan else None


def iir(flow: Flow) -> Options | None:
    if flow.nan or not flow.tensors(floats):
        return None
    if flow.signal.rate is not None and flow.maybe():
        kind = flow.one("lowpass", "highpass", "bandpass", "notch")
        return {"kind": kind, "frequency": flow.signal.rate * flow.one(0.05, 0.2, 0.4), "q": 0.7}
    section = flow.one([0.5, 0.25, 0, 1, -0.25, 0.125], [2, 0, 0, 2, 0.5, 0])
    return {"sections": [section] * flow.one(1, 2)}


def frame(flow: Flow) -> Options | None:
    if flow.nan or len(flow.signal.tensors) != 1 or flow.width > MAX_NUMBERS / 8:
        return None
    (tensor,) = flow.signal.tensors
    if len(tensor.shape) > 3:
        return None
    window = flow.random.randint(1, 8)
    options = {
        "window": window,
        "hop": flow.random.randint(1, window),
        "padding": flow.one("none", "left", "center", "mirror"),
        "last": flow.one("fill", "drop"),
    }
    if single(tensor):
        options["function"] = flow.one("rectangular", "hann", "povey")
    return options


def log_mel(flow: Flow) -> Options | None:
    rate = flow.signal.rate
    sound = [(t.dtype, t.shape) for t in flow.signal.tensors] == [("float32", ())]
    # After a model the last bits of a sample are not determined, and in silence the logarithm shows them.
    if not sound or flow.nan or flow.loose or rate is None or rate < 1000:
        return None
    samples = flow.one(24, 32)
    return {
        "frame_ms": 1000 * samples / rate,
        "hop_ms": 1000 * flow.one(8, 16, 24) / rate,
        "n_mels": 4,
        "n_fft": 64,
        "low_hz": 0.0,
        "snip_edges": flow.maybe(),
        "floor": 1e-3,
        "scale": 8.0,
    }


def mfcc(flow: Flow) -> Options | None:
    options = log_mel(flow)
    if options is None:
        return None
    return {**options, "n_ceps": flow.random.randint(1, 4), "use_energy": flow.maybe()}


def normalize(flow: Flow) -> Options | None:
    if not flow.tensors(floats):
        return None
    if flow.maybe() or flow.nan or not all(map(narrow, flow.tensors(floats))):
        return {"mean": flow.number(-2, 2), "std": flow.number(0.5, 4)}
    options: Options = {"running": True, "eps": 0.01}
    if flow.maybe():
        options["time_constant"] = flow.number(1, 40)
    if flow.maybe():
        options |= {"warm_up": flow.random.randint(1, 90), "mean": 1.0}
    return options


def decimate(flow: Flow) -> Options | None:
    every = flow.random.randint(1, 5)
    if not flow.nan and all(map(narrow, flow.signal.tensors)) and flow.maybe():
        return {"every": every, "mean": True}
    return {"every": every, "phase": flow.random.randint(0, every - 1)}


def impute(flow: Flow) -> Options | None:
    fit = flow.tensors(floats)
    if not fit or any(f"{t.name}.missing" in flow.signal.names for t in fit):
        return None
    method = flow.one("hold", "linear", "constant")
    options = {"method": method, "value": flow.number(-1, 1), "mark": flow.maybe()}
    return {**options, "max_gap": flow.random.randint(1, 6)} if method == "linear" else options


def difference(flow: Flow) -> Options | None:
    if flow.nan or not flow.tensors(floats):
        return None
    order, lag = flow.random.randint(1, 2), flow.random.randint(1, 4)
    return {"order": order, "lag": lag, "before": flow.one("first", "zero")}


def lags(flow: Flow) -> Options | None:
    if flow.nan or not flow.tensors(floats) or flow.width > MAX_NUMBERS / 4:
        return None
    if any(len(t.shape) > 3 for t in flow.signal.tensors):
        return None
    return {
        "lags": flow.one(1, 3, [0, 2], [5, 0, 1]),
        "layout": flow.one("stack", "concatenate"),
        "before": flow.one("first", "zero"),
    }


def tick(flow: Flow) -> Options | None:
    if ("time", "float64", ()) not in [(t.name, t.dtype, t.shape) for t in flow.signal.tensors] or flow.nan:
        return None
    others = flow.tensors(lambda t: t.name != "time")
    if flow.begun or not others:  # a stage before may have changed the time stamps
        return None
    fit = ["hold"]
    fit += ["linear"] if all(map(floats, others)) else []
    fit += ["mean"] if all(map(narrow, others)) else []
    options: Options = {"rate": flow.one(0.5, 2, 3), "how": flow.one(*fit)}
    if flow.maybe():
        options |= {"max_gap": 1.5, "gap": "hold"}
    return options


def cast(flow: Flow) -> Options | None:
    tensor = flow.one(*flow.signal.tensors)
    kinds = ("float32", "float16", "float64", "int16", "int32", "int64", "uint8")
    to = flow.one(*(k for k in kinds if k != tensor.dtype and (not flow.nan or k.startswith("float"))))
    if flow.loose and not to.startswith("float"):
        return None
    return {"to": to, "of": tensor.name, "saturate": True, "round": True}


def tokens(flow: Flow) -> Options | None:
    fit = flow.tensors(text)
    if not fit or flow.begun:  # the text is no longer text after other stages
        return None
    unit = flow.one("byte", "character") if len(flow.signal.tensors) == 1 else "byte"
    options: Options = {"unit": unit, "of": fit[0].name}
    if unit == "character":
        options |= {"alphabet": "abcé", "unknown": flow.one(0, 4), "invalid": "replace"}
    elif flow.maybe():
        options |= {"alphabet": "abc", "unknown": 3}
    return options


def one_hot(flow: Flow) -> Options | None:
    fit = flow.tensors(lambda t: whole(t) and t.name == flow.bounded)
    if not fit or len(fit[0].labels) * flow.width > MAX_NUMBERS or len(fit[0].shape) > 3:
        return None
    return {"of": fit[0].name}


def softmax(flow: Flow) -> Options | None:
    fit = flow.tensors(classes)
    if not fit:
        return None
    of = flow.one(*fit).name
    return {"of": of, "temperature": flow.one(0.5, 1.0, 2.0), "log": flow.maybe()}


def labels(flow: Flow) -> Options | None:
    fit = flow.tensors(classes)
    if not fit or flow.nan or flow.loose or {"label", "score"} & set(flow.signal.names):
        return None
    chosen = flow.one(*fit)
    n = chosen.shape[-1]
    return {"of": chosen.name, "k": flow.random.randint(1, min(n, 3)), "names": [f"c{i}" for i in range(n)]}


def threshold(flow: Flow) -> Options | None:
    fit = flow.tensors(single)
    if not fit or flow.nan or flow.loose:
        return None
    on, below = flow.number(-1, 1), flow.maybe()
    width = flow.number(0, 1)
    return {"of": flow.one(*fit).name, "on": on, "off": on + width if below else on - width, "below": below}


def smooth(flow: Flow) -> Options | None:
    if not flow.tensors(single) or flow.nan:
        return None
    ways: list[Options] = [{"weight": 0.25}, {"weight": 1.0}, {"median": 1}, {"median": 5}]
    ways += [{"time_constant": 7 / flow.signal.rate}] if flow.signal.rate else []
    return flow.one(*ways)


def event(flow: Flow) -> Options | None:
    fit = flow.tensors(lambda t: t.dtype == "bool" or whole(t))
    if not fit or flow.loose:
        return None
    options = {"of": flow.one(*fit).name, "close": flow.maybe()}
    return {**options, "rate": 10.0} if flow.signal.rate is None and flow.maybe() else options


def speech_segments(flow: Flow) -> Options | None:
    shapes = [(t.dtype, math.prod(t.shape)) for t in flow.signal.tensors]
    if shapes != [("float32", 1)] or flow.nan or flow.loose:
        return None
    hop = 64
    rate = flow.signal.rate * hop if flow.signal.rate else 6400.0
    hops = [round(1000 * hop / rate * n, 6) for n in (0, 1, 2, 3)]  # in ms
    return {
        "hop": hop,
        "rate": rate,
        "threshold": flow.number(0.25, 1),
        "min_speech_ms": flow.one(*hops),
        "min_silence_ms": flow.one(*hops),
        "pad_ms": flow.one(*hops) * 0.75,
    }


def ctc_greedy(flow: Flow) -> Options | None:
    fit = flow.tensors(lambda t: classes(t) and len(t.shape) == 1)
    if not fit or flow.nan or flow.loose:
        return None
    chosen = flow.one(*fit)
    n = chosen.shape[0]
    return {"of": chosen.name, "blank": flow.random.randint(-1, n - 1)}


def sample(flow: Flow) -> Options | None:
    fit = flow.tensors(classes)
    if not fit or flow.nan or flow.loose or {"token", "probability"} & set(flow.signal.names):
        return None
    chosen = flow.one(*fit)
    n = chosen.shape[-1]
    return {
        "of": chosen.name,
        "temperature": flow.one(0.0, 0.5, 1.0),
        "top_k": flow.random.randint(0, n),
        "top_p": flow.one(0.5, 0.9, 1.0),
        "seed": flow.one(0, 7),
        **({"alphabet": "abcdefghijklmnop"[:n]} if n <= 16 else {}),
    }


def forecast_error(flow: Flow) -> Options | None:
    if flow.nan or "residual" in flow.signal.names:
        return None
    fit = flow.tensors(single)
    pairs = [(a.name, b.name) for a in fit for b in fit if a is not b and a.shape == b.shape]
    if not pairs:
        return None
    forecast, actual = flow.one(*pairs)
    return {"forecast": forecast, "actual": actual, "horizon": flow.random.randint(1, 4)}


def anomaly(flow: Flow) -> Options | None:
    fit = flow.tensors(single)
    if not fit or flow.loose or {"z", "anomaly"} & set(flow.signal.names):
        return None
    return {
        "of": flow.one(*fit).name,
        "threshold": flow.one(1.0, 2.0),
        "memory": flow.one(0, 3, 50),
        "warm_up": flow.one(2, 10),
        "floor": 0.01,
        "learn_all": flow.maybe(),
        "restart": flow.one(0, 2),
    }


def denormalize(flow: Flow) -> Options | None:
    if not flow.tensors(floats):
        return None
    return {"mean": flow.number(-2, 2), "std": flow.number(0.5, 2)}


STAGES: Mapping[str, Callable[[Flow], Options | None]] = {
    f.__name__: f
    for f in (
        mono, gain, resample, pre_emphasis, iir, frame, log_mel, mfcc, normalize, decimate, impute,
        difference, lags, tick, cast, tokens, one_hot, softmax, labels, threshold, smooth, event,
        speech_segments, ctc_greedy, sample, forecast_error, anomaly, denormalize,
    )
}  # fmt: skip

END_NAN = {"impute", "event"}
LOOSE = {"log_mel", "mfcc"}  # products of matrices in float32


def put(flow: Flow, use: str, options: Options) -> None:
    """Add a stage; if it refuses its options the test fails, since `STAGES` states that they fit."""
    stage = make_stage(use, flow.signal, options, use)
    flow.nan = (flow.nan and use not in END_NAN) or use == "forecast_error"
    flow.loose = flow.loose or use in LOOSE
    flow.bounded = ""
    for t in stage.outputs.tensors:
        if use in ("labels", "sample", "tokens") and t.labels and t.dtype == "int64":
            flow.bounded = t.name
    flow.begun = True
    flow.signal = stage.outputs
