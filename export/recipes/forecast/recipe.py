"""Train, certify, stream week by week, compare with forecasts without a model; detect faults; run live."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from measured import Say, Table

from runnel.errors import RunnelError
from runnel.files import library
from runnel.spec import Array
from runnel_export import export

from . import faults, live, pipelines, series, structural, training
from .faults import KINDS, Watched
from .network import Forecaster
from .series import BASELINES, HORIZONS, Series
from .training import Scale

SEED = 0
AGREE = 0.01  # ppm: largest difference between the stream and torch; the series is rounded to 0.1
NETWORK, CLASSICAL = "the network, streamed", "structural model, for comparison"
WATCHES = {"against the forecast of last week": 1, "against that of 13 weeks ago": 13}
PLAIN = "change since last week, no model"


def run(out: Path, quick: bool, say: Say) -> list[Table]:
    for name in ("statsmodels", "matplotlib", "psutil"):
        library(name, "its series, its picture and its sensors", "recipes")
    from . import picture  # imported late, so that a missing package is reported first

    say("[1/5] Weekly CO2 at Mauna Loa, through the stages before the model")
    data = series.co2()
    scale = training.scale_of(data)
    features = pipelines.features(out, data, scale)
    parts = data.validate, data.test - data.validate, len(data.values) - data.test
    say("  {} weeks to train, {} to choose by, {} to test".format(*parts))

    say("[2/5] Train")
    network = training.train(data, features, scale, 12 if quick else 200, SEED, say)

    torch.save(network.state_dict(), out / "forecast.pt")

    say("[3/5] Certify, and stream it week by week")
    certify(network, features, out, quick, say)
    made = pipelines.streamed(pipelines.write(out, "forecast", pipelines.forecast(scale)), data)
    apart = float(np.abs(made - training.whole(network, features, scale)).max())
    if not apart <= AGREE:
        raise RunnelError(f"the stream differs from torch by {apart:g} ppm; at most {AGREE:g} is right")
    say(f"  {len(made)} weeks, one at a time: torch, in float64, differs by at most {apart:.1e} ppm")
    fitted = structural.fit(data, *((data.validate, 5) if quick else (0, 100)))
    classical = structural.foretold(data, fitted)

    say("[4/5] Faults, planted into the test part")
    planted = faults.draw(data, 4 if quick else 40, SEED)
    watched = watch(out, data, scale, planted)

    say("[5/5] This machine's own sensors, live")
    plan = live.Plan(10, 6, 2, 0.5, 1.6) if quick else live.Plan(5, 25, 10, 2.0, 13)
    seen = live.watch(pipelines.write(out, "host", pipelines.host(plan.rate, plan.warm_up)), plan)
    picture.draw(out / "forecast.png", data, made, watched, seen)
    say(f"  a picture: {out / 'forecast.png'}")
    return [*compared(data, made, classical), noticed(watched), lived(seen)]


def certify(network: Forecaster, features: dict[str, Array], out: Path, quick: bool, say: Say) -> None:
    """Write the model file, certified on random data and on weeks of the series."""
    weeks = slice(0, 150 if quick else 520)
    past, missing = (torch.from_numpy(features[name][weeks])[None] for name in ("co2", "co2.missing"))
    certificate = export(network, {"past": past, "missing": missing}, out / pipelines.MODEL, seed=SEED)
    checks = ", ".join(check.name for check in certificate.checks if check.tolerance is not None)
    say(f"  certified, by {checks}: wrong by at most {certificate.error:.1e} of a peak")


def watch(out: Path, data: Series, scale: Scale, planted: list[faults.Fault]) -> dict[str, Watched]:
    texts = {name: (f"watch_{h}", pipelines.watch(scale, h)) for name, h in WATCHES.items()}
    texts[PLAIN] = ("watch_change", pipelines.watch_change())
    return {
        name: faults.watched(pipelines.write(out, file, text), data, planted)
        for name, (file, text) in texts.items()
    }


def compared(data: Series, made: Array, classical: Array) -> list[Table]:
    """Return two tables for the test part: root mean square error, and MASE."""
    rows = {
        **{name: series.made_by(baseline, data.held) for name, baseline in BASELINES.items()},
        NETWORK: made,
        CLASSICAL: classical,
    }
    missed = {name: series.errors(data, row, data.test, len(data.values)) for name, row in rows.items()}
    header = ["forecast", *(f"{h} weeks" if h > 1 else "1 week" for h in HORIZONS)]
    return [
        Table(
            "Root mean square error in the test part, ppm",
            header,
            [[name, *(f"{series.rmse(e):.3f}" for e in row)] for name, row in missed.items()],
        ),
        Table(
            "Mean absolute scaled error (MASE) in the test part",
            header,
            [[name, *(f"{series.mase(e, data):.3f}" for e in row)] for name, row in missed.items()],
        ),
    ]


def noticed(watched: dict[str, Watched]) -> Table:
    rows = []
    for name, result in watched.items():
        for kind in KINDS:
            found, of, delay, later = result.of(kind)
            when = "—" if delay is None else f"{delay:g}"
            rows.append([name, kind, f"{found} of {of}", when, f"{later:.1f}", f"{result.false_a_year:.1f}"])
    header = ["an alarm", "fault", "noticed", "after weeks", "later alarms", "false alarms a year"]
    return Table(f"Faults planted, and noticed within {faults.NOTICED_WITHIN} weeks", header, rows)


def lived(seen: live.Seen) -> Table:
    """Return the table of the live run with one burst of load."""
    before = seen.load[~seen.during, 0]
    within = seen.load[seen.during, 0]
    delay = "not seen" if seen.delay is None else f"seen after {seen.delay:.1f} s"
    row = [
        f"{seen.end - seen.begin:.1f} s", f"{np.median(before):.0f} %", f"{within.max():.0f} %", delay,
        f"{seen.elsewhere} of {int((~seen.during).sum())} rows",
    ]  # fmt: skip
    header = [
        "all processors busy for",
        "processor otherwise",
        "at most then",
        "anomaly",
        "unusual elsewhere",
    ]
    return Table("This machine, live", header, [row])
