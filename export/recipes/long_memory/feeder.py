"""A client that feeds the first ticks of each stream, and then waits to be killed.

`python feeder.py ADDRESS` reads one line of JSON from its input: the symbols to feed, by stream name. It is a
separate process, since a thread cannot be killed. It does not import torch, which it does not need.
"""

from __future__ import annotations

import json
import sys

import numpy as np

import runnel


def main(address: str) -> None:
    client = runnel.Client(address)
    for name, symbols in json.loads(sys.stdin.readline()).items():
        stream = client.open(name)
        for symbol in symbols:
            stream.feed(np.array([symbol]))
    print("fed", flush=True)
    sys.stdin.read()  # until it is killed, or its parent process has ended


if __name__ == "__main__":
    main(*sys.argv[1:])
