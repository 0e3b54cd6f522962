"""A client that will not live to see the end: it feeds each stream its first ticks, and waits to be killed.

`python feeder.py ADDRESS`; a line of JSON on its input has, by stream's name, the symbols that it is to feed.
A process of its own, since only a process can be killed; without torch, which it has no need of.
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
    sys.stdin.read()  # until killed, or until who started it is gone


if __name__ == "__main__":
    main(*sys.argv[1:])
