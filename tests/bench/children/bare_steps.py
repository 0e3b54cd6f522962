"""The same by numpy and onnxruntime alone. Arguments: model, features."""

import sys

import numpy as np
import onnxruntime as ort

path, features = sys.argv[1], int(sys.argv[2])
data = np.random.default_rng(0).standard_normal((64, 1, 1, features)).astype(np.float32)
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
x, *states = session.get_inputs()
state = {s.name: np.zeros([d if isinstance(d, int) else 1 for d in s.shape], np.float32) for s in states}
for i in range(1000):
    y, *after = session.run(None, {x.name: data[i % 64], **state})
    state = dict(zip(state, after, strict=True))
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
