"""Triton's own client on a gRPC stream, a chunk of each sequence on its way at any time.

Arguments: host:port, sequences, features, seconds. Prints steps/s and the p50 in ms of a step as JSON. Runs
in the environment that has tritonclient.
"""

import json
import os
import queue
import statistics
import sys
import time

import numpy as np
import tritonclient.grpc as triton

address, sequences, features, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
WAIT_SECONDS = 30.0

answers: queue.SimpleQueue = queue.SimpleQueue()
client = triton.InferenceServerClient(address)
deadline = time.monotonic() + WAIT_SECONDS
while True:
    try:
        if client.is_model_ready("lstm"):
            break
    except triton.InferenceServerException:
        pass
    if time.monotonic() > deadline:
        sys.exit("Triton does not become ready")
    time.sleep(0.1)
client.start_stream(lambda result, error: answers.put((result, error)))
x = triton.InferInput("x", [1, features], "FP32")
x.set_data_from_numpy(np.random.default_rng(0).standard_normal((1, features)).astype(np.float32))
sent = {}


def send(id, start=False):
    sent[id] = time.perf_counter()
    client.async_stream_infer("lstm", [x], sequence_id=id, sequence_start=start, request_id=str(id))


def receive():
    result, error = answers.get(timeout=WAIT_SECONDS)
    if error:
        sys.exit(f"Triton: {error}")
    id = int(result.get_response().id)
    return id, time.perf_counter() - sent[id]


for id in range(1, sequences + 1):
    send(id, start=True)
for id in [receive()[0] for _ in range(sequences)]:
    send(id)
took = []
start = time.perf_counter()
while time.perf_counter() - start < seconds:
    id, latency = receive()
    took.append(latency)
    send(id)
elapsed = time.perf_counter() - start
print(json.dumps({"rate": len(took) / elapsed, "p50": statistics.median(took) * 1e3}), flush=True)
os._exit(0)  # what is still on its way would keep the client's threads waiting
