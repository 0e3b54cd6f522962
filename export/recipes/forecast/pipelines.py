"""The pipeline files: a forecast, two watchers with the model, one without, and the machine's own load."""

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
LEAST = 0.1  # ppm: smallest deviation that is used; the series is rounded to 0.1

_SERIES = """\
[input.tensors]
co2 = {}                       # ppm, once a week; NaN: nothing was measured

[[before]]
use = "impute"                 # the last number again, and a mark beside it
mark = true
"""


def before(scale: Scale) -> str:
    """Stages before the model: one number a week becomes the network's input. Training uses them too."""
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
    """Raise an alarm if the forecast from `horizon` weeks ago was too far off."""
    return f"""{forecast(scale)}
[[after]]
use = "forecast_error"
forecast = "week_{horizon}"
actual = "co2"
horizon = {horizon}

{_alarm("residual")}"""


def watch_change() -> str:
    """Raise an alarm, without a model, if the change since the week before is unusual."""
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
    """Watch the machine's own load."""
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
    """Return the network's input for the whole series, computed by the stages before the model."""
    with Engine.load(write(out, "features", before(scale))) as engine, engine.open() as stream:
        made: dict[str, Array] = stream.feed({"co2": series.values.astype(np.float32)})
    return made


def streamed(pipeline: Path, series: Series) -> Array:
    """Return the pipeline's forecasts when it is fed week by week: (n, horizons), ppm."""
    with Engine.load(pipeline) as engine, engine.open() as stream:
        weeks = [stream.feed({"co2": week}) for week in series.values.astype(np.float32)[:, None]]
    return np.stack([np.concatenate([week[name] for week in weeks]) for name in NAMES], axis=1)
