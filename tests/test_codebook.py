"""NetVLAD: the limit of hard assignment, memory, clusters, gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from poolkit import PoolTypeError, PoolValueError  # noqa: E402
from poolkit.vision.codebook import NetVLAD  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.to(dtype)


def slow(module: NetVLAD, x: torch.Tensor) -> torch.Tensor:
    """Residual by residual, in float64."""
    module, out = copy.deepcopy(module).double(), []
    for image in x.double():
        rows = image.flatten(1).T
        if module.normalize_input:
            rows = rows / rows.norm(dim=1, keepdim=True)
        sums = torch.zeros_like(module.centroids)
        for row in rows:
            weight = module.assign.weight[:, :, 0, 0]
            share = (weight @ row + module.assign.bias).softmax(0)
            sums = sums + share[:, None] * (row - module.centroids)
        sums = (sums / sums.norm(dim=1, keepdim=True)).flatten()
        out.append(sums / sums.norm())
    return torch.stack(out)


def test_hard_assignment_by_hand() -> None:
    # Words (0, 0), (10, 0), (0, 10); descriptors (1, 2), (2, -1), (10, 3), (9, 4).
    # Word 0: (1, 2) + (2, -1) = (3, 1). Word 1: (0, 3) + (-1, 4) = (-1, 7). Word 2: nothing.
    # Each of the two is divided by its norm, sqrt 10 and sqrt 50, and both by sqrt 2.
    words = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = torch.tensor([[1.0, 2.0, 10.0, 9.0], [2.0, -1.0, 3.0, 4.0]]).reshape(1, 2, 2, 2)
    module = NetVLAD(2, 3, normalize_input=False).init_from(centroids=words, alpha=1e4)
    right = torch.tensor([[3 / 10**0.5, 1 / 10**0.5, -1 / 50**0.5, 7 / 50**0.5, 0, 0]]) / 2**0.5
    torch.testing.assert_close(module(x), right)
    torch.testing.assert_close(module(x[0]), right[0])


def test_hard_assignment_is_vlad() -> None:
    x, words = maps(2, 6, 7, 7), maps(5, 6, seed=1)
    module = NetVLAD(6, 5, normalize_input=False).double()
    module.init_from(centroids=words, alpha=1e6)
    for image, found in zip(x, module(x), strict=True):
        sums = torch.zeros(5, 6, dtype=torch.float64)
        for row in image.flatten(1).T:
            nearest = int((words - row).square().sum(1).argmin())
            sums[nearest] += row - words[nearest]
        sums = torch.nn.functional.normalize(sums, dim=1).flatten()
        torch.testing.assert_close(found, sums / sums.norm())


@pytest.mark.parametrize("normalize_input", [False, True])
def test_soft_assignment(normalize_input: bool) -> None:
    x = maps(2, 6, 4, 5)
    module = NetVLAD(6, 4, alpha=0.7, normalize_input=normalize_input).double()
    torch.testing.assert_close(module(x), slow(module, x))
    torch.testing.assert_close(module(x).norm(dim=1), torch.ones(2).double())


def test_no_residual_is_held() -> None:
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for made in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(made, torch.Tensor):
                    largest = max(largest, made.untyped_storage().nbytes() // 4)
            return out

    module, x = NetVLAD(16, 32), maps(2, 16, 20, 20, dtype=torch.float32).requires_grad_()
    with Watch():
        module(x).sum().backward()
    assert largest == 2 * 32 * 400  # the assignment; residuals would be 16 times as many
    assert x.grad is not None


def test_limits() -> None:
    module = NetVLAD(4, 3)
    x = torch.zeros(2, 4, 3, 3, requires_grad=True)
    out = module(x)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    # One descriptor that is the only word: no residual, and no direction.
    single = NetVLAD(4, 1, normalize_input=False).init_from(centroids=torch.ones(1, 4))
    one = torch.ones(1, 4, 1, 1, requires_grad=True)
    out = single(one)
    out.sum().backward()
    assert out.tolist() == [[0.0] * 4]
    assert one.grad.isfinite().all()
    large = module(torch.full((1, 4, 2, 2), 3e38))
    assert large.isfinite().all()
    assert module(torch.zeros(0, 4, 3, 3)).shape == (0, 12)
    x = torch.randn(2, 4, 3, 3)
    x[0, 1, 1, 1] = torch.nan
    assert module(x).isnan().any(1).tolist() == [True, False]


def test_clusters_are_found() -> None:
    centres = 10 * torch.eye(4, dtype=torch.float64)[:, :3] - 5
    rows = centres.repeat(50, 1) + 0.1 * maps(200, 3)
    module = NetVLAD(3, 4, normalize_input=False).double()
    generator = torch.Generator().manual_seed(1)
    assert module.init_from(rows, generator=generator) is module
    nearest = torch.cdist(centres, module.centroids.detach()).amin(1)
    assert (nearest < 0.1).all()
    # As the paper has it: the nearest word weighs a hundred times as much as the next, on average.
    shares = (rows @ module.assign.weight[:, :, 0, 0].T + module.assign.bias).softmax(1)
    first, second = shares.topk(2, dim=1).values.unbind(1)
    torch.testing.assert_close(
        (first / second).log().mean().item(), math.log(100), rtol=1e-6, atol=0.0
    )
    again = NetVLAD(3, 4, normalize_input=False).double()
    again.init_from(rows, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.centroids, module.centroids)


def test_clusters_of_maps() -> None:
    x = maps(2, 3, 8, 8, dtype=torch.float32)
    module = NetVLAD(3, 6).init_from(x, iterations=5)
    rows = x.flatten(2).transpose(1, 2).reshape(-1, 3)
    rows = rows / rows.norm(dim=1, keepdim=True)
    spread = torch.cdist(rows, module.centroids.detach()).amin(1).square().mean()
    assert spread < 0.5
    assert module.alpha > 0
    assert NetVLAD(3, 1).init_from(x).alpha == 1.0
    # As many words as there are rows: each is its own.
    few = NetVLAD(3, 5, normalize_input=False).init_from(rows[:5], alpha=3.0)
    assert few.alpha == 3.0
    assert torch.cdist(rows[:5], few.centroids.detach()).amin(1).max() < 1e-3
    same = NetVLAD(3, 2).init_from(torch.ones(4, 3), alpha=2.0)
    assert same.centroids.isfinite().all()


@pytest.mark.parametrize("normalize_input", [False, True])
def test_gradients(normalize_input: bool) -> None:
    module = NetVLAD(3, 2, alpha=0.5, normalize_input=normalize_input).double()
    names = [name for name, _ in module.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in module.parameters()]
    x = maps(2, 3, 2, 3).requires_grad_()

    def call(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    torch.autograd.gradcheck(call, (x, *values))
    torch.autograd.gradgradcheck(call, (x, *values))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_rounded_once(dtype: torch.dtype) -> None:
    module = NetVLAD(6, 4, alpha=3.0).to(dtype)
    x = maps(2, 6, 5, 5, dtype=dtype)
    right = slow(module, x)
    for found in (module(x), copy.deepcopy(module).float()(x)):
        assert found.dtype == dtype
        step = torch.finfo(dtype).eps / 2 * right.abs() + 1e-5
        assert ((found.double() - right).abs() <= step).all()


def test_layouts_and_compilers() -> None:
    module = NetVLAD(6, 4, alpha=3.0)
    x = maps(2, 6, 4, 5, dtype=torch.float32)
    right = module(x)
    torch.testing.assert_close(module(x.to(memory_format=torch.channels_last)), right)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module(x), right)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), right)
    other = NetVLAD(6, 4)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), right)
    assert torch.equal(copy.deepcopy(module)(x), right)


def test_errors() -> None:
    module = NetVLAD(4, 3)
    with pytest.raises(PoolValueError) as caught:
        module(torch.zeros(2, 5, 3, 3))
    assert str(caught.value) == (
        "the module is for 4 channels, the input has 5, while pooling float32 (2, 5, 3, 3) by "
        "NetVLAD. Make it with channels=5."
    )
    with pytest.raises(PoolValueError, match="clusters must be at least 1, got 0"):
        NetVLAD(4, 0)
    with pytest.raises(PoolValueError, match="alpha must be positive and finite, got 0"):
        NetVLAD(4, alpha=0)
    with pytest.raises(PoolTypeError, match="alpha must be a number, got 'hard'"):
        NetVLAD(4, alpha="hard")  # type: ignore[arg-type]
    with pytest.raises(PoolTypeError, match=r"or from centroids.*by NetVLAD\.init_from"):
        module.init_from()
    with pytest.raises(PoolValueError, match=r"2 centroids for 3 clusters.*clusters=2"):
        NetVLAD(4, 3).init_from(centroids=torch.zeros(2, 4))
    with pytest.raises(PoolValueError, match=r"of 4 channels cannot be \(9, 5\)"):
        module.init_from(torch.zeros(9, 5))
    with pytest.raises(PoolValueError, match="2 descriptors do not make 3 clusters"):
        module.init_from(torch.zeros(2, 4))
    with pytest.raises(PoolValueError, match="hold infinities or NaN"):
        module.init_from(torch.full((9, 4), torch.nan))
    with pytest.raises(PoolTypeError, match="must be a floating tensor, while pooling a list"):
        module.init_from([[1.0]])  # type: ignore[arg-type]
    with pytest.raises(PoolValueError, match="as near to two words"):
        module.init_from(torch.ones(9, 4))
