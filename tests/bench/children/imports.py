"""A fresh interpreter that times imports: prints seconds as JSON."""

import json
import sys
import time

start = time.perf_counter()
import numpy  # noqa: E402, F401 - the order is what is measured

numpy_done = time.perf_counter()
import runnel  # noqa: E402

runnel_done = time.perf_counter()
from runnel import Engine  # noqa: E402

engine_done = time.perf_counter()
Engine.load(sys.argv[1])
loaded = time.perf_counter()

json.dump(
    {
        "numpy": numpy_done - start,
        "runnel": runnel_done - numpy_done,
        "engine": engine_done - runnel_done,
        "load": loaded - engine_done,
        "version": runnel.__version__,
    },
    sys.stdout,
)
