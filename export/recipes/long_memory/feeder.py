"""A client that will not live to see the end: it feeds each stream its first ticks, and waits to be killed.

`python feeder.py ADDRESS FILE`: FILE has, by stream's name, the symbols that it is to feed. A process of its
own, since only a process can be killed; without torch, which it has no need of.
"""

from __future__ import annotations

import sys

import numpy as np

import runnel


def main(address: str, file: str) -> None:
    with np.load(file) as firsts:
        client = runnel.Client(address)
        for name in firsts.files:
            stream = client.open(name)
            for at in range(len(firsts[name])):
                stream.feed(firsts[name][at : at + 1])
    print("fed", flush=True)
    sys.stdin.read()  # until killed, or until who started it is gone


if __name__ == "__main__":
    main(*sys.argv[1:])
