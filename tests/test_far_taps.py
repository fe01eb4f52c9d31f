"""Windows whose taps lie far from each other, or whose lines are long: what they read."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

import poolkit  # noqa: E402

DISTANT = [
    ((3,), (2, 1), (1,), (3,)), ((3, 3), (2, 2), (1, 1), (3, 1)), ((2, 3), (1, 1), (1, 1), (2, 1)),
    ((4, 3), (1, 2), (2, 1), (3, 2)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), DISTANT)
def test_a_nan_is_found_by_distant_taps(kernel, stride, padding, dilation, dtype):
    """A window of distant taps, clipped in front, begins behind the next one."""
    for row in range(6):
        x = torch.randn(1, 1, 64, 64, dtype=getattr(torch, dtype))
        x[0, 0, row, 40] = float("nan")
        arguments = (kernel * (2 // len(kernel)), stride, padding, dilation)
        values, indices = torch.nn.functional.max_pool2d(
            x, *arguments, ceil_mode=False, return_indices=True
        )
        mine, places = poolkit.max_pool2d(x, *arguments, return_indices=True)
        assert torch.equal(mine.isnan(), values.isnan())
        assert torch.equal(places, indices)
        alone = poolkit.max_pool2d(x, *arguments)
        assert torch.equal(alone.isnan(), values.isnan())


IN_A_CHILD = """
import numpy as np, threading, time, poolkit
{0}
threading.Thread(target=time.sleep, args=(0.5,)).start()
{1}
"""
FAR = [
    (
        "x = np.zeros((1, 40, 20000), 'float32')",
        "assert not poolkit.avg_pool2d(x, (9, 20000), stride=1).any()",
    ),
    (
        "x = np.zeros((1, 200, 50000), 'float32')",
        "assert not poolkit.max_pool2d(x, (6, 50000), stride=1, dilation=(30, 1)).any()",
    ),
    (
        "x = np.ones((1, 1, 12, 100000), 'float32')",
        "w = poolkit.Sliding((3, 3), stride=(4, 2), padding=(1, 0), dilation=(3, 1))\n"
        "assert np.isfinite(poolkit.pool(x, w, 'max', activation='silu')).all()",
    ),
]


@pytest.mark.parametrize(("before", "call"), FAR)
def test_nothing_is_read_that_is_far_away(before, call):
    """In a process of its own: a read beyond the scratch memory ends it."""
    code = IN_A_CHILD.format(before, call)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
