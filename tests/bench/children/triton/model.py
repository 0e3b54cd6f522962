"""Triton's Python backend, as its users write it: one batched `session.run`, states by sequence in a dict.

The environment says where numpy, onnxruntime and the model are: Triton starts this in a Python of its own.
"""

import os
import sys

sys.path.insert(0, os.environ["RUNNEL_TRITON_SITE"])

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = os.environ["RUNNEL_TRITON_MODEL"]
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.x, *states = self.session.get_inputs()
        self.names = [state.name for state in states]
        self.rest = [np.zeros([d if isinstance(d, int) else 1 for d in s.shape], np.float32) for s in states]
        self.states = {}

    def execute(self, requests):
        ids, chunks, before = [], [], []
        for request in requests:
            id, start, x = (
                triton.get_input_tensor_by_name(request, name).as_numpy() for name in ("CORRID", "START", "x")
            )
            ids.append(int(id.ravel()[0]))
            chunks.append(x.reshape(1, 1, -1))
            before.append(self.rest if start.ravel()[0] else self.states[ids[-1]])
        states = {name: np.concatenate([b[k] for b in before], 1) for k, name in enumerate(self.names)}
        y, *after = self.session.run(None, {self.x.name: np.concatenate(chunks, 1), **states})
        responses = []
        for i, id in enumerate(ids):
            self.states[id] = [array[:, i : i + 1] for array in after]
            responses.append(triton.InferenceResponse([triton.Tensor("y", y[:, i].copy())]))
        return responses
