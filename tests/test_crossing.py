"""Feature crossing: all pairs of fields, in one pass and with their gradient."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest

import poolkit

torch = pytest.importorskip("torch")

PoolValue, PoolType = poolkit.PoolValueError, poolkit.PoolTypeError


def drawn(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(fields: Any) -> Any:
    """All pairs, one by one."""
    total = torch.zeros(fields.shape[-1], dtype=torch.float64)
    for a, b in itertools.combinations(fields.double(), 2):
        total += a * b
    return total


def test_by_hand() -> None:
    # 1*3 + 1*5 + 3*5 = 23 and 2*0 + 2*1 + 0*1 = 2, together 25; weighted 1, 2, 0: 1*6 = 6, 2*0 = 0.
    fields = torch.tensor([[[1.0, 2.0], [3.0, 0.0], [5.0, 1.0]]])
    assert poolkit.bi_interaction(fields).tolist() == [[23, 2]]
    assert poolkit.fm_interaction(fields).tolist() == [25]
    weights = torch.tensor([[1.0, 2.0, 0.0]])
    assert poolkit.bi_interaction(fields, weights=weights).tolist() == [[6, 0]]
    segments = poolkit.Segments(offsets=[0, 2, 2, 3])
    assert poolkit.bi_interaction(fields[0], segments).tolist() == [[3, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize("fields", [0, 1, 2, 3, 26, 70])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_equals_all_pairs(fields: int, dtype: Any) -> None:
    x = drawn(3, fields, 5).to(dtype)
    found = poolkit.bi_interaction(x)
    assert found.dtype == dtype
    want = torch.stack([slow(row) for row in x])
    rough = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 2e-3}
    scale = x.double().abs().sum(1).square().max().item() if fields else 1.0
    assert (found.double() - want).abs().max() <= rough[dtype] * max(scale, 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_interactions_of_half_types_are_rounded_once(dtype: Any) -> None:
    x = drawn(3, 9, 70).to(dtype)
    want = torch.stack([slow(row).sum() for row in x])
    torch.testing.assert_close(poolkit.fm_interaction(x), want.to(dtype), rtol=0, atol=0)


def test_does_not_cancel() -> None:
    """A large value beside small ones: the square of the sum less the sum of squares loses them."""
    x = torch.tensor([[[3001.7], [1e-3], [2e-3]]])
    exact = 3001.7 * 3e-3 + 2e-6
    usual = 0.5 * (x.sum(1).square() - x.square().sum(1))
    assert abs(poolkit.bi_interaction(x).item() - exact) < 1e-5
    assert abs(usual.item() - exact) > 1e-2


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients(weighted: bool) -> None:
    x, w = drawn(2, 4, 3).requires_grad_(), drawn(2, 4, seed=1).requires_grad_()

    def dense(x: Any, w: Any) -> Any:
        return poolkit.bi_interaction(x, weights=w if weighted else None)

    assert torch.autograd.gradcheck(dense, (x, w))
    assert torch.autograd.gradgradcheck(dense, (x, w))
    rows, weights = drawn(6, 3).requires_grad_(), drawn(6, seed=1).requires_grad_()
    for segments in (
        poolkit.Segments(offsets=[0, 3, 3, 6]),
        poolkit.Segments(ids=[2, 0, 2, 1, 2, 0], num_segments=4),
    ):

        def jagged(x: Any, w: Any, segments: Any = segments) -> Any:
            return poolkit.bi_interaction(x, segments, weights=w if weighted else None)

        assert torch.autograd.gradcheck(jagged, (rows, weights))
        assert torch.autograd.gradgradcheck(jagged, (rows, weights))
    padded = poolkit.Segments(mask=[[1, 0, 1, 1], [0, 0, 0, 1]])
    assert torch.autograd.gradcheck(lambda x: poolkit.bi_interaction(x, padded), x)


def test_gradients_of_gradients_may_begin_at_zero() -> None:
    x = drawn(2, 3, 2).requires_grad_()
    seed = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(poolkit.bi_interaction(x), x, seed, create_graph=True)
    (by_seed,) = torch.autograd.grad(first.sum(), seed)
    torch.testing.assert_close(by_seed, 2 * x.sum(1))  # each of three values misses one


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("jagged", [False, True])
def test_weights_and_gradients_of_half_types(jagged: bool, dtype: Any) -> None:
    """The products with the weights are not rounded, nor is the sum from which a value is taken."""
    shape, over = (
        ((30, 4), poolkit.Segments(offsets=[0, 9, 9, 30])) if jagged else ((2, 9, 4), None)
    )
    x, w = drawn(*shape).to(dtype), drawn(*shape[:-1], seed=1).to(dtype)
    found, right = [], []
    for leaf, weights in ((x.clone(), w.clone()), (x.double(), w.double())):
        leaf.requires_grad_(), weights.requires_grad_()
        out = poolkit.bi_interaction(leaf, over, weights=weights)
        out.sum().backward()
        (found if leaf.dtype == dtype else right).extend([out, leaf.grad, weights.grad])
    for a, b in zip(found, right, strict=True):
        assert a.dtype == dtype
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(a.double(), b, rtol=eps, atol=4 * eps)


def test_padding_may_hold_anything() -> None:
    x, weights = drawn(2, 3, 4), drawn(2, 3, seed=1)
    x[0, 2] = float("nan")
    x.requires_grad_(), weights.requires_grad_()
    over = poolkit.Segments(lengths=[2, 3])
    poolkit.bi_interaction(x, over, weights=weights).sum().backward()
    assert x.grad.isfinite().all()
    assert weights.grad.isfinite().all()
    assert x.grad[0, 2].abs().max() == weights.grad[0, 2] == 0


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # by the compiler itself
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # by torch's forward mode
def test_transforms_and_compilers() -> None:
    x, w = drawn(4, 6, 8).requires_grad_(), drawn(4, 6, seed=1)
    want = poolkit.bi_interaction(x, weights=w)
    (gradient,) = torch.autograd.grad(want.sum(), x)

    def run(x: Any) -> Any:
        return poolkit.bi_interaction(x, weights=w)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, want)
    torch.testing.assert_close(torch.autograd.grad(compiled.sum(), x)[0], gradient)
    leaf = x.detach()
    torch.testing.assert_close(torch.func.vmap(poolkit.bi_interaction)(leaf)[0], slow(leaf[0]))
    mapped = torch.func.vmap(
        torch.func.grad(lambda x, w: poolkit.bi_interaction(x, weights=w).sum())
    )
    torch.testing.assert_close(mapped(leaf, w), gradient)
    forward = torch.func.jacfwd(lambda x: run(x).sum())(leaf)
    torch.testing.assert_close(forward, gradient)


def test_layouts_and_empty_batches() -> None:
    x = drawn(3, 5, 4)
    want = poolkit.bi_interaction(x)
    for strange in (x.transpose(0, 1).contiguous().transpose(0, 1), x.mT.contiguous().mT):
        assert torch.equal(poolkit.bi_interaction(strange), want)
    assert poolkit.bi_interaction(drawn(0, 5, 4)).shape == (0, 4)
    assert poolkit.fm_interaction(drawn(2, 0, 4)).tolist() == [0, 0]
    assert poolkit.bi_interaction(drawn(2, 3, 5, 4)).shape == (2, 3, 4)


def test_jagged_is_dense_where_it_can_be() -> None:
    x = drawn(5, 7, 4).float()
    segments = poolkit.Segments(offsets=np.arange(6) * 7)
    found = poolkit.bi_interaction(x.reshape(35, 4), segments)
    torch.testing.assert_close(found, poolkit.bi_interaction(x))


def test_machine() -> None:
    torch.manual_seed(0)
    machine = poolkit.nn.FM([4, 3, 2], dim=5)
    torch.nn.init.normal_(machine.linear.weight)
    fields = torch.tensor([[3, 0, 1], [0, 2, 0]])
    rows = fields + torch.tensor([0, 4, 7])  # each field's values behind those of the one before
    want = machine.linear.weight[rows].sum((1, 2)) + torch.stack(
        [slow(machine.factors.weight[row]).sum() for row in rows]
    )
    torch.testing.assert_close(machine(fields), want.float())
    machine(fields).sum().backward()
    assert machine.factors.weight.grad[[1, 2]].abs().max() == 0
    with pytest.raises(PoolValue, match="field 1 of row 0 is 3"):
        machine(torch.tensor([[0, 3, 0]]))
    with pytest.raises(PoolValue, match=r"fields must be \(N, 3\)"):
        machine(fields[:, :2])
    with pytest.raises(PoolValue, match="cardinalities must be positive"):
        poolkit.nn.FM([3, 0], 2)
    assert poolkit.nn.BiInteractionPool()(drawn(2, 3, 4)).shape == (2, 4)


def test_machine_of_bags() -> None:
    """The same features in any number, with values: a value of 0 is as good as none."""
    torch.manual_seed(0)
    machine = poolkit.nn.FM([4, 3, 2], dim=5).double()
    torch.nn.init.normal_(machine.linear.weight)
    fields = torch.tensor([[3, 0, 1], [0, 2, 0], [1, 1, 1]])
    values = torch.tensor([[2.0, 0.0, -1.0], [1.0, 0.5, 3.0], [0.0, 0.0, 0.0]])
    want = machine(fields, weights=values)
    torch.testing.assert_close(machine(fields, weights=torch.ones(3, 3)), machine(fields))
    assert want[2] == machine.bias
    kept = values != 0
    bags = poolkit.Segments(offsets=[0, 2, 5, 5])
    features = (fields + machine.starts)[kept]
    torch.testing.assert_close(machine(features, bags, weights=values[kept]), want)
    torch.testing.assert_close(
        copy.deepcopy(machine).bfloat16()(features, bags).double(),
        machine(features, bags),
        rtol=0.05,
        atol=0.05,
    )
    again = poolkit.nn.FM([4, 3, 2], dim=5).double()
    again.load_state_dict(machine.state_dict())
    assert torch.equal(again(fields), machine(fields))
    with pytest.raises(PoolValue, match=r"features go from 0 to 9, while pooling.*by FM"):
        machine(torch.tensor([0, 9]), poolkit.Segments(offsets=[0, 2]))
    with pytest.raises(PoolValue, match=r"must be \(rows\), got \(3, 3\)"):
        machine(fields, bags)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested() -> None:
    parts = [drawn(2, 3), drawn(4, 3, seed=1)]
    found = poolkit.bi_interaction(
        torch.nested.nested_tensor(parts, layout=torch.jagged), poolkit.Segments()
    )
    torch.testing.assert_close(found, torch.stack([slow(part) for part in parts]))


def test_errors() -> None:
    with pytest.raises(PoolType, match=r"got ndarray.*while pooling float64 \(2, 2\) by bi_int"):
        poolkit.bi_interaction(np.zeros((2, 2)))
    with pytest.raises(PoolType, match="have no gradient"):
        poolkit.bi_interaction(torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(PoolValue, match="got rank 1"):
        poolkit.bi_interaction(torch.zeros(2))
    with pytest.raises(PoolType, match=r"must be poolkit\.Segments"):
        poolkit.bi_interaction(torch.zeros(2, 2), [0, 2])
    with pytest.raises(PoolValue, match=r"weights have shape \(2, 2\), fields \(2,\)"):
        poolkit.bi_interaction(torch.zeros(2, 2), weights=torch.zeros(2, 2))
    with pytest.raises(PoolType, match="whole numbers, got float32"):
        poolkit.nn.FM([3, 4], 2)(torch.zeros(1, 2))
    with pytest.raises(PoolType, match="whole numbers, got bool"):
        poolkit.nn.FM([3, 4], 2)(torch.ones(2).bool(), poolkit.Segments(offsets=[0, 2]))
    with pytest.raises(PoolValue, match="offsets end at 3, there are 2 rows"):
        poolkit.bi_interaction(torch.zeros(2, 2), poolkit.Segments(offsets=[0, 3]))
