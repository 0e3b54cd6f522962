"""Memory over many steps as streams come and go, as JSON: MiB grown. Arguments: model, features, steps.

"leaking": the same check on a stage that keeps something of every step, over a hundredth of the steps.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3]))  # a script's own folder is all that Python puts there

from tests.growth import MIB, grown, grows
from tests.serve.churning import SAMPLES, Leaking, watched

from runnel.engine import Engine
from runnel.pipeline.pipeline import Pipeline

path, features, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)
chunks = [{"x": rng.standard_normal((1, features)).astype(np.float32)} for _ in range(7)]
with Engine.load(path, max_streams=20_000) as engine:
    samples = watched(engine, chunks, steps)
leaking = watched(
    Engine(Pipeline([Leaking()], None, {}), 20_000), [{"x": np.ones((1, 2), np.float32)}], steps // 100
)
assert len(samples) == SAMPLES
json.dump(
    {"grown": grown(samples) / MIB, "leaking": grown(leaking) / MIB, "caught": grows(leaking)}, sys.stdout
)
