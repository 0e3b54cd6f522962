"""The trained model as a stream: predict a text, and generate one in three ways that must agree."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measured import Say

from runnel import Client, Engine, Stream
from runnel.client.client import RemoteStream
from runnel.errors import RunnelError
from runnel.spec import Array
from runnel.stage import MAX_STEPS
from runnel_export.demo.daemon import daemon

from .corpus import BEGIN

MODEL = "text.onnx"
PIPELINE = """\
# A text generator: {model} gives scores for the next byte; the byte drawn from them is its next input.
#
#   runnel run {name} prompt.txt --generate 500 -o txt:
#   runnel serve {name} --bind ipc:///run/runnel/runnel.sock

[input]
dtype = "uint8"

[[before]]
use = "cast"                   # a text is bytes; an embedding takes int64
to = "int64"

[model]
path = "{model}"

[[after]]
use = "sample"
temperature = {temperature}
seed = {seed}

[[after]]
use = "cast"                   # the value that is fed back must be like the input: a byte
of = "token"
to = "uint8"

[feedback]
byte = {{ output = "token", initial = {initial} }}    # a line's end, as if a line had just ended

[[sink]]
use = "txt"
"""
_CHUNKS = (1, 2, 5, 30, 200, 1000)  # ticks of the chunks, in turn: the cuts must not matter
_WITHIN = 60.0  # seconds for a process to start and to end
_TOLD_EVERY = 10.0  # seconds
_WORD = re.compile(rb"[A-Za-z]{2,}")


def write_pipeline(folder: Path, name: str, temperature: float, seed: int) -> Path:
    """Write a pipeline file beside the model."""
    path = folder / name
    text = PIPELINE.format(name=name, model=MODEL, temperature=temperature, seed=seed, initial=BEGIN[0])
    path.write_text(text, "utf-8")
    return path


def codes(text: bytes, dtype: str = "uint8") -> Array:
    return np.frombuffer(text, np.uint8).astype(dtype)


def pieces(text: bytes, say: Say = lambda _: None) -> Iterator[tuple[int, bytes]]:
    """Yield (begin, piece) for the text in pieces of different lengths."""
    at = turn = 0
    told = time.monotonic()
    while at < len(text):
        piece = text[at : at + _CHUNKS[turn % len(_CHUNKS)]]
        yield at, piece
        at, turn = at + len(piece), turn + 1
        if time.monotonic() - told > _TOLD_EVERY:
            told = time.monotonic()
            say(f"  {at} of {len(text)} characters")


def bits_per_character(model: Path, text: bytes, say: Say) -> float:
    """Return the bits per character of the text: a live stream predicts each from all before it."""
    read, total = BEGIN + text[:-1], 0.0
    with Engine.load(model, max_streams=1) as engine, engine.open() as stream:
        for at, piece in pieces(read, say):
            scores = stream.feed(codes(piece, "int64")).astype(np.float64)
            best = scores.max(1)
            log_sum = best + np.log(np.exp(scores - best[:, None]).sum(1))
            wanted = scores[np.arange(len(piece)), codes(text[at : at + len(piece)])]
            total += float((log_sum - wanted).sum())
    return total / math.log(2) / len(text)


# Generation


def by_engine(pipeline: Path, prompt: bytes, count: int) -> bytes:
    """Return the prompt and `count` generated characters, by the engine in this process."""
    with Engine.load(pipeline, max_streams=1) as engine, engine.open() as stream:
        return _goes_on(stream, prompt, count)


def by_command(pipeline: Path, prompt: bytes, count: int) -> bytes:
    """Return the prompt and `count` generated characters, by a process of `runnel run` with files."""
    given, made = pipeline.with_name("prompt.txt"), pipeline.with_name("generated.txt")
    given.write_bytes(prompt)
    words = ["run", pipeline, given, "--generate", count - 1, "-o", made, "--quiet"]
    done = subprocess.run(_command(*words), capture_output=True, text=True, timeout=_WITHIN)
    if done.returncode:
        raise RunnelError(f"runnel run ended with status {done.returncode}: {done.stderr.strip()}")
    return prompt + made.read_bytes()


def by_daemon(pipeline: Path, prompt: bytes, count: int) -> bytes:
    """Return the prompt and `count` generated characters, by a process of `runnel serve` over its socket."""
    with daemon(pipeline, "--log-level", "warning") as address, Client(address) as client:
        return _goes_on(client.open(), prompt, count)


def _goes_on(stream: Stream | RemoteStream, prompt: bytes, count: int) -> bytes:
    """Feed the prompt, then generate. The first new character is drawn after the prompt's last one."""
    first = stream.feed(codes(prompt))["token"][-1:]
    steps = [min(MAX_STEPS, count - begin) for begin in range(1, count, MAX_STEPS)]
    rest = [stream.generate(some)["token"] for some in steps]
    return prompt + bytes(np.concatenate([first, *rest]))


WAYS = {"`engine.open().generate`": by_engine, "`runnel run`": by_command, "`runnel serve`": by_daemon}


def _command(*words: object) -> list[str]:
    return [sys.executable, "-m", "runnel.cli.main", *map(str, words)]


# Statistics of generated text


def known_words(text: bytes, train: bytes) -> float:
    """Return the share of words (of at least two letters) that occur in the training part."""
    known = set(_WORD.findall(train))
    words = _WORD.findall(text)
    return sum(word in known for word in words) / max(1, len(words))


def longest_copy(text: bytes, train: bytes) -> int:
    """Return the length of the longest piece that also occurs in the training part, in characters."""
    longest = 0
    for at in range(len(text)):
        while at + longest < len(text) and text[at : at + longest + 1] in train:
            longest += 1
    return longest
