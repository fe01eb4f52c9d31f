"""Second-order pooling: bilinear, compact bilinear, and the square root of the covariance."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from poolkit import PoolTypeError, PoolValueError  # noqa: E402
from poolkit.vision import second_order  # noqa: E402
from poolkit.vision.second_order import (  # noqa: E402
    BilinearPool2d,
    CompactBilinearPool2d,
    CovariancePool2d,
    bilinear_pool2d,
    compact_bilinear_pool2d,
    covariance_pool2d,
    signed_root,
    unit,
)

METHODS = ["tensor_sketch", "random_maclaurin"]
PLAIN: dict[str, Any] = {"signed_sqrt": False, "normalize": False}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.to(dtype)


def mean_product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Position by position, in float64."""
    x, y = x.double().flatten(2), y.double().flatten(2)
    products = [x[:, :, None, at] * y[:, None, :, at] for at in range(x.shape[2])]
    return torch.stack(products).mean(0)


# --- bilinear ------------------------------------------------------------------------------------


def test_bilinear_by_hand() -> None:
    # Descriptors (1, 2) and (3, -4): the products are 1, 2, 4 and 9, -12, 16, on average
    # 5, -5, 10. The roots are sqrt 5, -sqrt 5, sqrt 10; their squares sum to 5 + 5 + 5 + 10 = 25.
    x = torch.tensor([[[[1.0, 3.0]], [[2.0, -4.0]]]])
    assert bilinear_pool2d(x, **PLAIN).tolist() == [[5.0, -5.0, -5.0, 10.0]]
    right = torch.tensor([[5.0, -5.0, -5.0, 10.0]])
    roots = right.sign() * right.abs().sqrt()
    torch.testing.assert_close(bilinear_pool2d(x, normalize=False), roots)
    torch.testing.assert_close(bilinear_pool2d(x), roots / 5)
    upper = torch.tensor([[5.0, -5.0 * 2**0.5, 10.0]])
    torch.testing.assert_close(bilinear_pool2d(x, triangle=True, **PLAIN), upper)


def test_two_maps() -> None:
    x, y = maps(2, 3, 4, 5), maps(2, 6, 4, 5, seed=1)
    pooled = bilinear_pool2d(x, y, **PLAIN)
    torch.testing.assert_close(pooled, mean_product(x, y).flatten(1))
    torch.testing.assert_close(bilinear_pool2d(x[0], y[0], **PLAIN), pooled[0])
    assert BilinearPool2d()(x, y).shape == (2, 18)


@pytest.mark.parametrize("signed_sqrt", [False, True])
def test_the_half_keeps_inner_products(signed_sqrt: bool) -> None:
    x = maps(3, 5, 4, 4)
    whole = bilinear_pool2d(x, signed_sqrt=signed_sqrt)
    half = bilinear_pool2d(x, signed_sqrt=signed_sqrt, triangle=True)
    assert half.shape == (3, 15)
    torch.testing.assert_close(half @ half.T, whole @ whole.T)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(3).double())


def test_roots_and_norms_at_zero() -> None:
    x = torch.tensor([0.0, -0.0, 4.0, -9.0], requires_grad=True)
    out = signed_root(x)
    assert out.tolist() == [0.0, 0.0, 2.0, -3.0]
    assert math.copysign(1, out[1].item()) == -1
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 0.0, 1 / 4, 1 / 6]))
    tiny = torch.tensor([[0.0, 0.0], [3e-30, 4e-30], [3e30, 4e30], [torch.nan, 1.0]])
    tiny.requires_grad_()
    out = unit(tiny, 1)
    torch.testing.assert_close(out[:3], torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.6, 0.8]]))
    assert out[3].isnan().all()
    out[:3].sum().backward()
    assert tiny.grad[0].tolist() == [0.0, 0.0]
    assert tiny.grad[:3].isfinite().all()
    assert signed_root(torch.tensor(torch.nan)).isnan()


@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize(
    "pool",
    [bilinear_pool2d, lambda x: compact_bilinear_pool2d(x, 16), covariance_pool2d],
    ids=["bilinear", "compact", "covariance"],
)
def test_the_same_everywhere(pool: Callable[..., Any], value: float) -> None:
    x = torch.full((2, 4, 3, 3), value, requires_grad=True)
    out = pool(x)
    assert out.isfinite().all()
    if value == 0.0 or pool is covariance_pool2d:
        assert out.abs().max() <= 1e-7 * value
    out.square().sum().backward()
    assert x.grad.isfinite().all()


# --- compact bilinear ----------------------------------------------------------------------------


def test_tensor_sketch_by_hand() -> None:
    # Both hashes send channels 0 and 1 to entries 0 and 1 of 3; signs (1, 1) and (1, -1). Of
    # (a, b) = (2, 5): Ψ₁ = (2, 5, 0), Ψ₂ = (2, -5, 0), and their circular convolution is
    # (2 * 2, 2 * -5 + 5 * 2, 5 * -5) = (4, 0, -25).
    x = torch.tensor([[[2.0]], [[5.0]]])[None].double()
    buckets = torch.tensor([[0, 1], [0, 1]])
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    for by in (second_order._sketch_of_positions, second_order._sketch_of_products):
        found = by(x.flatten(2), 3, buckets, signs.double())
        torch.testing.assert_close(found, torch.tensor([[4.0, 0.0, -25.0]]).double())


def test_maclaurin_by_hand() -> None:
    # W₁ (2, 5) = (7, -3), W₂ (2, 5) = (-3, -3): the products are -21 and 9, over sqrt 2.
    x = torch.tensor([[2.0], [5.0]])[None].double()
    signs = torch.tensor([[[1, 1], [1, -1]], [[1, -1], [1, -1]]]).double()
    for by in (second_order._maclaurin_of_positions, second_order._maclaurin_of_products):
        right = torch.tensor([[-21.0, 9.0]]).double() / 2**0.5
        torch.testing.assert_close(by(x, signs), right)


@pytest.mark.parametrize("dimension", [1, 2, 7, 16])
def test_both_ways_to_sketch_are_equal(dimension: int) -> None:
    x = maps(3, 5, 6)
    buckets, signs = second_order._hashes(5, dimension, "tensor_sketch", 3)
    torch.testing.assert_close(
        second_order._sketch_of_positions(x, dimension, buckets, signs.double()),
        second_order._sketch_of_products(x, dimension, buckets, signs.double()),
    )
    _, signs = second_order._hashes(5, dimension, "random_maclaurin", 3)
    torch.testing.assert_close(
        second_order._maclaurin_of_positions(x, signs.double()),
        second_order._maclaurin_of_products(x, signs.double()),
    )


@pytest.mark.parametrize("size", [1, 6])  # one position, and so many that products are sketched
@pytest.mark.parametrize("method", METHODS)
def test_inner_products_are_kept_on_average(method: str, size: int) -> None:
    x, y = (maps(1, 6, size, size, seed=seed) + 0.5 for seed in (0, 4))
    right = (bilinear_pool2d(x, **PLAIN) * bilinear_pool2d(y, **PLAIN)).sum()
    found = []
    for seed in range(600):
        a, b = (compact_bilinear_pool2d(m, 32, method=method, seed=seed, **PLAIN) for m in (x, y))
        found.append((a * b).sum())
    products = torch.stack(found)
    error = products.std() / len(found) ** 0.5
    assert error < 0.2 * right.abs()
    assert (products.mean() - right).abs() < 4 * error
    if size == 1:  # <x, y>², on which the outer products agree
        torch.testing.assert_close(right, (x.flatten() @ y.flatten()) ** 2)


@pytest.mark.parametrize("method", METHODS)
def test_hashes_are_kept(method: str) -> None:
    x = maps(2, 8, 4, 4, dtype=torch.float32)
    module = CompactBilinearPool2d(8, 16, method, seed=5)
    right = compact_bilinear_pool2d(x, 16, method=method, seed=5)
    assert torch.equal(module(x), right)
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(CompactBilinearPool2d(8, 16, method, seed=generator)(x), right)
    other = CompactBilinearPool2d(8, 16, method, seed=6)
    assert not torch.equal(other(x), right)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), right)
    assert torch.equal(copy.deepcopy(module)(x), right)
    assert not list(module.parameters())


# --- covariance ----------------------------------------------------------------------------------


def root_by_eigenvalues(x: torch.Tensor) -> torch.Tensor:
    x = x.double().flatten(2)
    x = x - x.mean(2, keepdim=True)
    values, vectors = torch.linalg.eigh(x @ x.mT / x.shape[2])
    return vectors @ torch.diag_embed(values.clamp(min=0).sqrt()) @ vectors.mT


def test_covariance_by_hand() -> None:
    # Variances 9 and 16, covariance 0, trace 25. One iteration: the eigenvalues a = 9/25 and 16/25
    # become a (3 - a) / 2 = 0.4752 and 0.7552, times 5 = sqrt 25.
    x = torch.tensor([[[3.0, -3.0, 3.0, -3.0]], [[4.0, 4.0, -4.0, -4.0]]])[None] + 7
    once = covariance_pool2d(x, 1)
    torch.testing.assert_close(once, torch.tensor([[2.376, 0.0, 3.776]]))
    torch.testing.assert_close(covariance_pool2d(x, 15), torch.tensor([[3.0, 0.0, 4.0]]))
    whole = covariance_pool2d(x[0], 1, triangle=False)
    torch.testing.assert_close(whole, torch.tensor([2.376, 0.0, 0.0, 3.776]))


def test_covariance_against_eigenvalues() -> None:
    x = maps(2, 6, 8, 8)
    right = root_by_eigenvalues(x)
    found = covariance_pool2d(x, 15, triangle=False).reshape(2, 6, 6)
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)
    five = covariance_pool2d(x.float(), triangle=False).reshape(2, 6, 6)
    torch.testing.assert_close(five.double(), right, rtol=0.05, atol=0.01)
    row, column = torch.triu_indices(6, 6)
    assert torch.equal(covariance_pool2d(x, 15), found[:, row, column])


@pytest.mark.parametrize("iterations", [1, 5, 15])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 3)])
def test_covariance_of_few_positions(size: tuple[int, int], iterations: int) -> None:
    x = maps(2, 16, *size, dtype=torch.float32).requires_grad_()
    out = covariance_pool2d(x, iterations, triangle=False)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    if iterations == 15:
        right = root_by_eigenvalues(x.detach()).flatten(1)
        torch.testing.assert_close(out.double(), right, rtol=1e-3, atol=2e-3)


# --- all of them ---------------------------------------------------------------------------------

ALL: dict[str, Callable[[], Any]] = {
    "bilinear": BilinearPool2d,
    "bilinear half": lambda: BilinearPool2d(triangle=True, signed_sqrt=False),
    "sketch": lambda: CompactBilinearPool2d(4, 8),
    "sketch of positions": lambda: CompactBilinearPool2d(4, 1, normalize=False),
    "maclaurin": lambda: CompactBilinearPool2d(4, 8, "random_maclaurin"),
    "covariance": CovariancePool2d,
    "covariance whole": lambda: CovariancePool2d(3, triangle=False),
}


@pytest.mark.parametrize("name", ALL)
def test_gradients(name: str) -> None:
    module = ALL[name]().double()
    size = (1, 3) if "positions" in name else (2, 3)
    x = maps(2, 4, *size).requires_grad_()
    torch.autograd.gradcheck(module, x)
    torch.autograd.gradgradcheck(module, x)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_rounded_once(name: str, dtype: torch.dtype) -> None:
    module = ALL[name]()
    x = maps(2, 4, 5, 6, dtype=dtype)
    right = copy.deepcopy(module).double()(x.double())
    found = copy.deepcopy(module).to(dtype)(x)
    assert found.dtype == dtype
    # The root of a small product is as uncertain as the root of what float32 leaves of it.
    step = torch.finfo(dtype).eps / 2 * right.abs() + 1e-4
    assert ((found.double() - right).abs() <= step).all()


@pytest.mark.parametrize("name", ALL)
def test_layouts_and_compilers(name: str) -> None:
    module = ALL[name]()
    x = maps(3, 4, 5, 6, dtype=torch.float32)
    right = module(x)
    last = module(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module(x[1]), right[1], rtol=1e-5, atol=1e-5)
    assert module(x[:0]).shape == (0, right.shape[1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), right)
    if name in ("bilinear", "sketch of positions", "covariance"):
        torch.compiler.reset()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), right)
    x[0, 0, 0, 0] = torch.nan
    assert module(x)[0].isnan().any()
    assert not module(x)[1:].isnan().any()


def test_errors() -> None:
    x = torch.zeros(2, 4, 3, 3)
    with pytest.raises(PoolTypeError) as caught:
        bilinear_pool2d(x.long())
    assert str(caught.value) == (
        "maps are of a floating dtype, while pooling int64 (2, 4, 3, 3) by "
        "bilinear_pool2d. Convert the input: x.float()."
    )
    with pytest.raises(PoolTypeError, match="a torch tensor was expected, got list"):
        bilinear_pool2d([1.0])  # type: ignore[arg-type]
    with pytest.raises(PoolValueError, match=r"got rank 2.*Add or remove axes"):
        covariance_pool2d(x[0, 0])
    with pytest.raises(PoolValueError, match="an axis without elements"):
        compact_bilinear_pool2d(x[:, :, :0], 8)
    with pytest.raises(PoolValueError, match=r"different positions.*Resize one"):
        bilinear_pool2d(x, x[..., 1:])
    with pytest.raises(PoolValueError, match="of two maps is not symmetric"):
        bilinear_pool2d(x, x, triangle=True)
    with pytest.raises(PoolValueError, match=r"for 5 channels, the input has 4.*by Compact"):
        CompactBilinearPool2d(5)(x)
    with pytest.raises(PoolValueError, match=r"no method called 'fft'\. Known: tensor_sketch and"):
        CompactBilinearPool2d(4, method="fft")
    with pytest.raises(PoolValueError, match="dimension must be at least 1, got 0"):
        compact_bilinear_pool2d(x, 0)
    with pytest.raises(PoolTypeError, match=r"seed must be an integer or a generator, got 0\.5"):
        CompactBilinearPool2d(4, seed=0.5)  # type: ignore[arg-type]
    for wrong in (0, 16, 2.5, True):
        with pytest.raises(PoolValueError, match=f"iterations must be 1 to 15, got {wrong}"):
            CovariancePool2d(wrong)  # type: ignore[arg-type]
