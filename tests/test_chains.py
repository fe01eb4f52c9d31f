"""`sppf`: a max pooling of its own result, all results joined."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import poolkit
from poolkit.windows import Sliding

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.int64]


def expected(x: torch.Tensor, k: int, levels: int) -> torch.Tensor:
    parts = [x]
    for _ in range(levels):
        parts.append(F.max_pool2d(parts[-1].double(), k, 1, k // 2).to(x.dtype))
    return torch.cat(parts, dim=-3)


def values(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randint(-100, 100, shape, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("k", "levels"), [(5, 3), (3, 1), (1, 2), (13, 2)])
@pytest.mark.parametrize("shape", [(2, 3, 40, 40), (3, 20, 17), (1, 2, 1, 9), (2, 1, 4, 1)])
def test_is_a_chain(shape: tuple[int, ...], k: int, levels: int, dtype: torch.dtype) -> None:
    x = values(shape, dtype)
    assert torch.equal(poolkit.sppf(x, k, levels), expected(x, k, levels))
    if dtype is not torch.bfloat16:
        numpy = poolkit.sppf(x.numpy(), k, levels)
        assert numpy.dtype == x.numpy().dtype
        assert np.array_equal(numpy, expected(x, k, levels).numpy())


def test_is_a_pyramid() -> None:
    """Windows of 5, again and again, are windows of 5, 9 and 13."""
    x = torch.randn(2, 4, 33, 21)
    branches = [x, *(poolkit.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13))]
    assert torch.equal(poolkit.sppf(x), torch.cat(branches, dim=1))


def test_nan_travels() -> None:
    x = torch.zeros(1, 2, 30, 30)
    x[0, 1, 15, 15] = float("nan")
    ours = poolkit.sppf(x)
    assert torch.equal(ours.isnan(), expected(x, 5, 3).isnan())
    assert ours.isnan().sum() == 1 + 25 + 81 + 169


def test_any_layout() -> None:
    x = torch.randn(2, 6, 20, 20)
    behind = x.contiguous(memory_format=torch.channels_last)
    gaps = torch.empty(2, 6, 20, 40)[..., ::2].copy_(x)
    for other in (behind, gaps):
        assert torch.equal(poolkit.sppf(other), poolkit.sppf(x))


def test_gradient() -> None:
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: poolkit.sppf(t, 3, 2), x)
    with torch.no_grad():
        alone = poolkit.sppf(x, 3, 2)
    assert torch.equal(alone, poolkit.sppf(x, 3, 2))


def test_compiles_and_maps() -> None:
    module = poolkit.nn.SPPF(3, levels=2)
    x = torch.randn(3, 2, 12, 12)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), module(x))
    mapped = torch.func.vmap(module)(x)
    assert torch.equal(mapped, module(x))
    exported = torch.export.export(module, (x,)).module()
    assert torch.equal(exported(x), module(x))


@pytest.mark.filterwarnings("ignore")  # of the tracer, which warns of what it cannot see
def test_jit_traces() -> None:
    module = poolkit.nn.SPPF(5)
    x, other = torch.randn(2, 1, 4, 12, 12)
    with torch.no_grad():
        traced = torch.jit.trace(module, (x,))
        assert torch.equal(traced(other), module(other))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_operator_of_graphs(dtype: torch.dtype) -> None:
    run = torch.ops.poolkit.chain.default
    x = values((2, 3, 4, 11, 12), dtype)
    for given in (x[0], x[0, 0], x[0].contiguous(memory_format=torch.channels_last)):
        assert torch.equal(run(given, "Sliding(5, stride=1, padding=2)", 3), expected(given, 5, 3))
    mapped = torch.func.vmap(lambda image: run(image, "Sliding(3, stride=1, padding=1)", 2))
    assert torch.equal(mapped(x), expected(x.flatten(0, 1), 3, 2).unflatten(0, (2, 3)))


def test_negative_views() -> None:
    x = torch.randn(1, 2, 9, 9)
    assert torch.equal(poolkit.sppf(torch._neg_view(x)), poolkit.sppf(-x))


def test_module() -> None:
    module = poolkit.nn.SPPF(5, levels=3)
    assert repr(module) == "SPPF(kernel_size=5, levels=3)"
    assert not module.state_dict()
    x = torch.randn(1, 2, 9, 9)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), module(x))


def test_empty_batch() -> None:
    assert poolkit.sppf(torch.zeros(0, 3, 8, 8)).shape == (0, 12, 8, 8)


def test_threads_do_not_matter() -> None:
    x = torch.randn(3, 37, 40, 40)
    threads = torch.get_num_threads()
    one = two = x
    try:
        torch.set_num_threads(1)
        one = poolkit.sppf(x)
        torch.set_num_threads(2)
        two = poolkit.sppf(x)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 4}, "odd"),
        ({"kernel_size": (5, 2)}, "odd"),
        ({"kernel_size": 0}, "kernel_size"),
        ({"kernel_size": "5"}, "kernel_size"),
        ({"levels": 0}, "at least 1"),
        ({"levels": True}, "integer"),
    ],
)
@pytest.mark.parametrize("make", [torch.zeros, np.zeros])
def test_errors(arguments: dict[str, Any], message: str, make: Any) -> None:
    with pytest.raises(poolkit.PoolError, match=message):
        poolkit.sppf(make((1, 2, 8, 8)), **arguments)


def test_other_ranks_and_kinds() -> None:
    with pytest.raises(poolkit.PoolError, match="rank 3 or 4"):
        poolkit.sppf(torch.zeros(8, 8))
    with pytest.raises(poolkit.PoolError, match="array"):
        poolkit.sppf([[1.0]])  # type: ignore[arg-type]


def test_a_chain_keeps_the_size() -> None:
    from poolkit.plan import plan_for
    from poolkit.reductions import Max

    plan = plan_for(Sliding(2, stride=2), Max(), (8, 8), "float32")
    assert plan.native is not None
    x = np.zeros((1, 1, 8, 8), dtype="float32")
    with pytest.raises(ValueError, match="keeps the size"):
        plan.native.chain(x.ctypes.data, x.ctypes.data, 1, 1, 1, 1)
