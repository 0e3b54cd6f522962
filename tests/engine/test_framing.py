import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.errors import ModelError, NonFiniteError, SnapshotError
from runnel.grouping import Framing
from runnel.model.framing import Frame
from runnel.spec import TensorSpec


def make(window: int, hop: int, shape: tuple[int, ...] = ()) -> Frame:
    return Frame(TensorSpec("s", "float32", shape), "w", Framing(window, hop), 16000.0)


@given(
    window=st.integers(1, 40),
    overlap=st.integers(0, 39),
    length=st.integers(0, 300),
    width=st.integers(0, 3),
    data=st.data(),
)
def test_equals_the_definition(
    window: int, overlap: int, length: int, width: int, data: st.DataObject
) -> None:
    """Step k sees samples [k*hop - context, k*hop + hop), zeros before the first and after the last."""
    hop = max(1, window - overlap)
    shape = (width,) if width else ()
    frame = make(window, hop, shape)
    x = np.random.default_rng(length).standard_normal((length, *shape)).astype(np.float32)
    state, outs, at = frame.open(), [], 0
    while at < length:
        size = data.draw(st.integers(0, 90))
        before = {k: v.copy() for k, v in state.items()}
        after, out = frame.step(state, {"s": x[at : at + size]})
        np.testing.assert_array_equal(state["samples"], before["samples"])
        assert len(after["samples"]) < window or hop == window == len(after["samples"]) + 1 or not hop
        state, at = after, at + size
        outs.append(out["w"])
    _, out = frame.flush(state)
    found = np.concatenate([*outs, out["w"]])
    steps = -(-length // hop)
    padded = np.concatenate([np.zeros((window - hop, *shape)), x, np.zeros((hop, *shape))])
    wanted = [padded[k * hop : k * hop + window] for k in range(steps)]
    np.testing.assert_array_equal(found, np.array(wanted, np.float32).reshape(steps, window, *shape))


def test_the_worked_example() -> None:
    _, out = make(576, 512).step({"samples": np.zeros(64, np.float32)}, {"s": np.ones(1024, np.float32)})
    assert out["w"].shape == (2, 576)
    assert out["w"][0, :64].sum() == 0
    assert out["w"][1].sum() == 576


def test_nan_is_refused_before_it_is_stored() -> None:
    frame = make(8, 4)
    with pytest.raises(NonFiniteError, match="time step 1"):
        frame.step(frame.open(), {"s": np.array([0, np.nan], np.float32)})


@pytest.mark.parametrize(("window", "hop"), [(4, 5), (4, 0), (0, 0)])
def test_bounds(window: int, hop: int) -> None:
    with pytest.raises(ModelError, match=r"hop must be in 1..window"):
        Framing(window, hop)


@pytest.mark.parametrize("shape", [(1, 2), (4, 2), (2, 3), (0, 2), (10**6, 2)])
def test_impossible_samples_are_not_restored(shape: tuple[int, ...]) -> None:
    stage = make(4, 2, (2,))
    for held in (2, 3):
        stage.load(stage.open(), {"samples": np.zeros((held, 2), np.float32)})
    with pytest.raises(SnapshotError, match=r"expected 2 to 3 of shape \(2,\)"):
        stage.load(stage.open(), {"samples": np.zeros(shape, np.float32)})
