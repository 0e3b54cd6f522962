"""Valid requests of every op, with frames and bytes changed."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.fuzz.corpus import messages

GOOD = messages()


@st.composite
def mutated(draw: st.DrawFn) -> list[bytes]:
    frames = list(draw(st.sampled_from(GOOD)))
    for change in draw(
        st.lists(st.sampled_from(["flip", "cut", "grow", "drop", "repeat", "swap"]), max_size=3)
    ):
        at = draw(st.integers(0, len(frames) - 1))
        if change == "drop" and len(frames) > 1:
            del frames[at]
        elif change == "repeat":
            frames.insert(at, frames[at])
        elif change == "swap":
            frames[at], frames[-1] = frames[-1], frames[at]
        elif change == "grow":
            frames[at] += draw(st.binary(min_size=1, max_size=8))
        elif change == "cut" and frames[at]:
            frames[at] = frames[at][: draw(st.integers(0, len(frames[at]) - 1))]
        elif change == "flip" and frames[at]:
            changed = bytearray(frames[at])
            changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
            frames[at] = bytes(changed)
    return frames
