"""poolkit.nn: torch's modules by name, signature, repr, state and result."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import poolkit  # noqa: E402
import poolkit.nn  # noqa: E402
from poolkit.nn import standard  # noqa: E402

SHARED = [name for name in standard.__all__ if hasattr(torch.nn, name)]
OWN = [name for name in standard.__all__ if name not in SHARED]
SIZES = {1: (12,), 2: (12, 10), 3: (6, 8, 10)}


def constructions(name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments to make the module with."""
    ndim = int(name[-2])
    if name.startswith("Adaptive"):
        indices = [((2,), {"return_indices": True})] if "Max" in name else []
        return [((3,), {}), (((2,) * ndim,), {}), *indices]
    if name.startswith("LP"):
        return [((2, 3), {}), ((3.0, 2), {"stride": 1, "ceil_mode": True})]
    if name.startswith("Fractional"):
        return [((2,), {"output_size": 3}), ((2,), {"output_ratio": (0.5,) * ndim})]
    if name.startswith("MaxUnpool"):
        return [((2,), {}), ((3, 2, 1), {}), (((2,) * ndim,), {"stride": (2,) * ndim})]
    if name.startswith("Max"):
        return [((2,), {}), ((3, 2, 1), {"ceil_mode": True}), ((2,), {"return_indices": True})]
    return [((2,), {}), ((3, 2, 1), {"ceil_mode": True, "count_include_pad": False})]


def made(where: Any, name: str) -> list[Any]:
    return [getattr(where, name)(*args, **kwargs) for args, kwargs in constructions(name)]


def test_torch_has_no_other_pooling_module() -> None:
    theirs = {
        name
        for name in dir(torch.nn)
        if "ool" in name
        and isinstance(getattr(torch.nn, name), type)
        and issubclass(getattr(torch.nn, name), torch.nn.Module)
    }
    assert theirs == set(SHARED)
    assert len(theirs) == 20


@pytest.mark.parametrize("name", SHARED)
def test_signature(name: str) -> None:
    mine, theirs = (
        inspect.signature(getattr(where, name).__init__).parameters.values()
        for where in (poolkit.nn, torch.nn)
    )
    assert [(p.name, p.default, p.kind) for p in mine] == [
        (p.name, p.default, p.kind) for p in theirs
    ]


@pytest.mark.parametrize("name", SHARED)
def test_repr_state_and_attributes(name: str) -> None:
    for mine, theirs in zip(made(poolkit.nn, name), made(torch.nn, name), strict=True):
        assert isinstance(mine, torch.nn.Module)
        assert repr(mine) == repr(theirs)
        assert mine.state_dict().keys() == theirs.state_dict().keys()
        for attribute in getattr(theirs, "__constants__", ()):
            assert getattr(mine, attribute) == getattr(theirs, attribute)
        mine.load_state_dict(theirs.state_dict())


def inputs_of(name: str, module: Any) -> tuple[Any, ...]:
    ndim = int(name[-2])
    x = torch.rand(2, 3, *SIZES[ndim], generator=torch.Generator().manual_seed(1))
    if not name.startswith("MaxUnpool"):
        return (x,)
    pool = getattr(torch.nn.functional, f"max_pool{ndim}d")
    return pool(x, module.kernel_size, module.stride, module.padding, return_indices=True)


def as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name", SHARED)
def test_results(name: str) -> None:
    for mine, theirs in zip(made(poolkit.nn, name), made(torch.nn, name), strict=True):
        if name.startswith("LP") and mine.ceil_mode:
            continue  # torch scales up what hangs over: test_conformance
        results = []
        for module in (mine, theirs):
            torch.manual_seed(2)
            given = {"output_size": SIZES[int(name[-2])]} if "Unpool" in name else {}
            results.append(as_tuple(module(*inputs_of(name, theirs), **given)))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "name", [name for name in standard.__all__ if name not in ("Pool", "SPPF")]
)
def test_copies(name: str) -> None:
    arguments = () if name.startswith("Global") else (2, 2) if name.startswith("LP") else (2,)
    kwargs = {"output_size": 3} if name.startswith("Fractional") else {}
    module = getattr(poolkit.nn, name)(*arguments, **kwargs)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    copies = [
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    ]
    for other in copies:
        assert type(other) is type(module)
        assert repr(other) == repr(module)
    if name in SHARED and name.startswith("MaxUnpool"):
        return
    results = []
    for each in (module, *copies):
        torch.manual_seed(3)
        results.append(each(torch.ones(1, 2, *SIZES[int(name[-2])])))
    assert all(torch.equal(results[0], result) for result in results[1:])


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_own_modules(ndim: int) -> None:
    x = torch.arange(2.0 * 4**ndim).reshape(1, 2, *(4,) * ndim)
    lead = tuple(range(2, ndim + 2))
    get = {
        name: getattr(poolkit.nn, f"{name}{ndim}d")
        for name in ("MinPool", "SumPool", "GlobalMaxPool", "GlobalAvgPool")
    }
    assert torch.equal(get["MinPool"](4)(x), x.amin(lead, keepdim=True))
    assert torch.equal(get["SumPool"](4)(x), x.sum(lead, keepdim=True))
    assert torch.equal(get["GlobalMaxPool"]()(x), x.amax(lead, keepdim=True))
    assert torch.equal(get["GlobalAvgPool"](keepdim=False)(x), x.mean(lead))
    assert {f"{name}{ndim}d" for name in get} <= set(OWN)


def test_pool_takes_recipes_and_copies() -> None:
    module = poolkit.nn.Pool("pyramid((2, 1))", "gem(p=4)")
    assert repr(module) == "Pool(Pyramid((2, 1)), GeM(p=4))"
    x = torch.rand(1, 2, 5, 5)
    expected = poolkit.pool(x, poolkit.Pyramid((2, 1)), poolkit.GeM(4))
    assert torch.equal(module(x), expected)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), expected)


def test_the_numbers_of_the_text() -> None:
    """1 to 16 as 4x4, and a layer of a residual network."""
    x = torch.arange(1.0, 17.0).reshape(1, 1, 4, 4)
    assert poolkit.nn.MaxPool2d(2)(x).tolist() == [[[[6, 8], [14, 16]]]]
    assert poolkit.nn.AvgPool2d(2)(x).tolist() == [[[[3.5, 5.5], [11.5, 13.5]]]]
    assert poolkit.nn.GlobalAvgPool2d()(x).tolist() == [[[[8.5]]]]
    wide = torch.zeros(1, 64, 56, 56)
    halved = poolkit.nn.MaxPool2d(2)(wide)
    assert halved.shape == (1, 64, 28, 28)
    assert halved.numel() / wide.numel() == 0.25


@pytest.mark.parametrize("name", ["MaxPool2d", "AvgPool2d"])
def test_attributes_may_be_changed(name: str) -> None:
    x = torch.rand(1, 2, 8, 8)
    mine, theirs = (getattr(where, name)(2) for where in (poolkit.nn, torch.nn))
    for attribute, value in (("stride", 1), ("padding", 1), ("kernel_size", (3, 2))):
        for module in (mine, theirs):
            module(x)
            setattr(module, attribute, value)
        torch.testing.assert_close(mine(x), theirs(x))


@pytest.mark.parametrize("ndim", [2, 3])
def test_fractional_with_given_samples_is_torchs(ndim: int) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(2, 3, *(9,) * ndim, generator=generator)
    samples = torch.rand(2, 3, ndim, generator=generator)
    name = f"fractional_max_pool{ndim}d"
    arguments: dict[str, Any] = {"output_size": 5, "return_indices": True}
    theirs = getattr(torch.nn.functional, name)(x, 2, **arguments, _random_samples=samples)
    mine = getattr(poolkit, name)(x, 2, **arguments, _random_samples=samples)
    array = getattr(poolkit, name)(x.numpy(), 2, **arguments, _random_samples=samples.numpy())
    for a, b, c in zip(theirs, mine, array, strict=True):
        assert torch.equal(a, b)
        assert np.array_equal(a.numpy(), c)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_unpool_undoes_pool(ndim: int) -> None:
    size = SIZES[ndim]
    x = torch.rand(2, 3, *size)
    pooled = getattr(poolkit.nn, f"MaxPool{ndim}d")(2, return_indices=True)(x)
    module = getattr(poolkit.nn, f"MaxUnpool{ndim}d")(2)
    theirs = getattr(torch.nn, f"MaxUnpool{ndim}d")(2)
    assert torch.equal(module(*pooled), theirs(*pooled))
    odd = [*size[:-1], size[-1] + 1]
    assert torch.equal(module(*pooled, output_size=odd), theirs(*pooled, output_size=odd))
    values, places = pooled
    for wrong in (
        (values, places + 10_000),
        (values, places[..., :1]),
        (values, places.float()),
    ):
        with pytest.raises(poolkit.PoolError, match=rf"pooling float32 .* by max_unpool{ndim}d"):
            module(*wrong)
    with pytest.raises(poolkit.PoolError, match="does not pool to the input"):
        module(*pooled, output_size=[n + 9 for n in size])


@pytest.mark.parametrize("options", [{}, {"output_size": 3, "output_ratio": 0.5}])
def test_fractional_is_refused_when_it_is_made(options: Any) -> None:
    with pytest.raises(poolkit.PoolValueError, match="exactly one of output_size and output_ratio"):
        poolkit.nn.FractionalMaxPool2d(2, **options)
