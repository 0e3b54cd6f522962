"""1000 steps through the engine, and the process's peak memory in KiB. Arguments: model, features."""

import sys

import numpy as np

from runnel import Engine

path, features = sys.argv[1], int(sys.argv[2])
data = np.random.default_rng(0).standard_normal((64, 1, features)).astype(np.float32)
stream = Engine.load(path).open()
for i in range(1000):
    stream.feed(data[i % 64])
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
