"""The pipeline files: one that forecasts, two that watch with it, one without, and the machine's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runnel import Engine
from runnel.spec import Array

from .network import LAGS, NAMES
from .series import Series
from .training import Scale

MODEL = "forecast.onnx"
MEMORY, WARM_UP = 260, 104  # weeks: five years, two years
THRESHOLD = 4.0  # deviations
LEAST = 0.1  # ppm: the least deviation that is believed; the series is rounded to it

_SERIES = """\
[input.tensors]
co2 = {}                       # ppm, once a week; NaN: nothing was measured

[[before]]
use = "impute"                 # the last number again, and a mark beside it
mark = true
"""


def before(scale: Scale) -> str:
    """From a number a week to what the network sees; training sees it by these very stages."""
    return f"""{_SERIES}
[[before]]
use = "lags"                   # this week, and weeks before it
of = "co2"
lags = {list(LAGS)}

[[before]]
use = "normalize"              # by the training part
of = "co2"
mean = {scale.mean}
std = {scale.std}
"""


def forecast(scale: Scale) -> str:
    """Forecasts in ppm, and the week itself."""
    return f"""{before(scale)}
[model]
path = "{MODEL}"
[model.inputs]
past = "co2"
missing = "co2.missing"

[[after]]
use = "denormalize"
mean = {scale.mean}
std = {scale.std}
"""


def watch(scale: Scale, horizon: int) -> str:
    """An alarm where the forecast of `horizon` weeks ago was too far off."""
    return f"""{forecast(scale)}
[[after]]
use = "forecast_error"
forecast = "week_{horizon}"
actual = "co2"
horizon = {horizon}

{_alarm("residual")}"""


def watch_change() -> str:
    """Without a model: an alarm where the change since the week before is unusual."""
    return f"""{_SERIES}
[[after]]
use = "difference"
of = "co2"

{_alarm("co2")}"""


def _alarm(of: str) -> str:
    return f"""[[after]]
use = "anomaly"
of = "{of}"
threshold = {THRESHOLD}                # deviations
memory = {MEMORY}                   # weeks
warm_up = {WARM_UP}
floor = {LEAST}                    # ppm
"""


def host(rate: float, warm_up: int) -> str:
    """The machine's own load, watched."""
    return f"""\
[input]
rate = {rate:g}
[input.tensors]
time = {{ dtype = "float64" }}   # seconds since 1970
load = {{ shape = [2] }}

[source]
use = "host"
metrics = ["cpu", "memory"]    # both in percent

[[after]]
use = "anomaly"
of = "load"
threshold = {THRESHOLD}
warm_up = {warm_up}
floor = 2.0                    # percent: steadier than this nothing is believed to be
"""


def write(out: Path, name: str, text: str) -> Path:
    path = out / f"{name}.toml"
    path.write_text(f"# Written by the recipe forecast.\n{text}", "utf-8")
    return path


def features(out: Path, series: Series, scale: Scale) -> dict[str, Array]:
    """What the stages before the model make of the whole series."""
    with Engine.load(write(out, "features", before(scale))) as engine, engine.open() as stream:
        made: dict[str, Array] = stream.feed({"co2": series.values.astype(np.float32)})
    return made


def streamed(pipeline: Path, series: Series) -> Array:
    """What the pipeline foretells when it is given one week after the other: (n, horizons), ppm."""
    with Engine.load(pipeline) as engine, engine.open() as stream:
        weeks = [stream.feed({"co2": week}) for week in series.values.astype(np.float32)[:, None]]
    return np.stack([np.concatenate([week[name] for week in weeks]) for name in NAMES], axis=1)
